"""The density study: one vector or several; weighted equally, by frequency or by density."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfrz.metrics.ranking import at_rank
from tfrz.pictures import picture
from tfrz.reproduce.experiment import Check, Context, Experiment, Outcome
from tfrz.reproduce.runs import Row
from tfrz.reproduce.training import prepared, settings, staged, task_of
from tfrz.zoo.tasks.retrieval import HEAD, TAIL

SKEWS = {"none": (0.0, 0.0), "a=1, b=0.5": (1.0, 0.5), "a=1, b=1": (1.0, 1.0), "a=1, b=2": (1.0, 2)}
# Settings of each run, whose stages are the arms.
RUNS: dict[str, dict[str, Any]] = {
    "SUR": {"interests": 1, "kind": "density", "calibrate": False},
    "MUR3": {"interests": 3, "kind": "density", "calibrate": True},
    "MUR5": {"interests": 5, "kind": "none", "calibrate": False},
    "SUR-FW": {"interests": 1, "kind": "frequency", "calibrate": False},
    "MUR3-FW": {"interests": 3, "kind": "frequency", "calibrate": True},
}
ARMS: dict[str, tuple[str, str]] = {
    "SUR": ("SUR", "train"),
    "MUR3": ("MUR3", "train"),
    "MUR5": ("MUR5", "train"),
    "SUR-FW": ("SUR-FW", "train"),
    "MUR3-FW": ("MUR3-FW", "train"),
    "MUR3-FW+cal": ("MUR3-FW", "calibrate"),
    "SUR-IDW": ("SUR", "density"),
    "MUR3-IDW": ("MUR3", "density"),
    "MUR3-IDW+cal": ("MUR3", "calibrate"),
}
_OVERRIDES = (
    "data.history.length=20",
    "data.history.train_targets=1",
    "model.user_tower=shallow",
    "model.dim=2",
    "model.normalize=false",
    "model.temperature=1",
    "model.item_features=false",
    "trainer.epochs=10",
    "trainer.batch_size=128",
    "trainer.learning_rate=0.1",
    "trainer.clip_norm=null",
    "trainer.early_stopping_patience=5",
    "trainer.early_stopping_metric=cross_entropy",
    "trainer.steps_per_call=78",
    "weighting.metric=recall_at_10_tail",
    "weighting.components=null",
    "weighting.relative_noise=false",
    "weighting.max_weight=null",
    "export.drop_seen=false",
)
# Of the specification's prototype: HR@5, tail HR@5, HR@10, head HR@10, tail HR@10.
_PROTOTYPE = {
    "none": {
        "SUR": (0.149, 0.129, 0.294, 0.365, 0.276),
        "MUR3": (0.165, 0.143, 0.328, 0.421, 0.304),
        "MUR5": (0.168, 0.146, 0.330, 0.402, 0.312),
        "SUR-FW": (0.147, 0.146, 0.291, 0.295, 0.290),
        "MUR3-FW": (0.166, 0.164, 0.331, 0.335, 0.331),
        "MUR3-FW+cal": (0.173, 0.171, 0.339, 0.351, 0.336),
        "SUR-IDW": (0.150, 0.141, 0.292, 0.313, 0.287),
        "MUR3-IDW": (0.165, 0.162, 0.326, 0.339, 0.322),
        "MUR3-IDW+cal": (0.169, 0.160, 0.332, 0.370, 0.323),
    },
    "a=1, b=0.5": {
        "SUR": (0.278, 0.068, 0.455, 0.807, 0.224),
        "MUR3": (0.316, 0.134, 0.509, 0.791, 0.324),
        "MUR5": (0.316, 0.133, 0.514, 0.811, 0.319),
        "SUR-FW": (0.165, 0.238, 0.343, 0.149, 0.470),
        "MUR3-FW": (0.208, 0.251, 0.435, 0.366, 0.480),
        "MUR3-FW+cal": (0.220, 0.209, 0.453, 0.541, 0.396),
        "SUR-IDW": (0.214, 0.207, 0.388, 0.353, 0.411),
        "MUR3-IDW": (0.260, 0.216, 0.468, 0.505, 0.443),
        "MUR3-IDW+cal": (0.280, 0.170, 0.493, 0.680, 0.371),
    },
    "a=1, b=1": {
        "SUR": (0.395, 0.032, 0.564, 0.912, 0.154),
        "MUR3": (0.442, 0.075, 0.614, 0.903, 0.274),
        "MUR5": (0.449, 0.079, 0.625, 0.887, 0.316),
        "SUR-FW": (0.139, 0.223, 0.332, 0.256, 0.421),
        "MUR3-FW": (0.191, 0.240, 0.420, 0.388, 0.459),
        "MUR3-FW+cal": (0.209, 0.225, 0.453, 0.487, 0.413),
        "SUR-IDW": (0.313, 0.150, 0.459, 0.558, 0.343),
        "MUR3-IDW": (0.353, 0.135, 0.527, 0.671, 0.358),
        "MUR3-IDW+cal": (0.396, 0.091, 0.566, 0.789, 0.303),
    },
    "a=1, b=2": {
        "SUR": (0.655, 0.009, 0.821, 0.980, 0.135),
        "MUR3": (0.698, 0.035, 0.839, 0.967, 0.284),
        "MUR5": (0.700, 0.044, 0.838, 0.968, 0.275),
        "SUR-FW": (0.084, 0.162, 0.306, 0.290, 0.372),
        "MUR3-FW": (0.155, 0.178, 0.362, 0.357, 0.385),
        "MUR3-FW+cal": (0.190, 0.191, 0.404, 0.409, 0.385),
        "SUR-IDW": (0.516, 0.038, 0.655, 0.770, 0.155),
        "MUR3-IDW": (0.523, 0.127, 0.666, 0.751, 0.300),
        "MUR3-IDW+cal": (0.621, 0.072, 0.740, 0.856, 0.239),
    },
}
_METRICS = ("hr_5", "tail_hr_5", "hr_10", "head_hr_10", "tail_hr_10")


def judged(model: Any, task: Any, batches: Any, cuts: tuple[int, ...]) -> dict[str, float]:
    """Returns the recall of the full ranking over all targets, the head and the tail."""
    predict = tf.function(
        lambda batch: task.predict(model, batch), autograph=False, reduce_retracing=True
    )
    parts = [predict(batch) for batch in batches.once()]
    rank, group = (np.concatenate([p[n].numpy() for p in parts]) for n in ("rank", "group"))
    found = {}
    for cut in cuts:
        hits = at_rank("recall", rank, cut)
        found[f"hr_{cut}"] = float(hits.mean())
        found[f"head_hr_{cut}"] = float(hits[group == HEAD].mean())
        found[f"tail_hr_{cut}"] = float(hits[group == TAIL].mean())
    return found


@functools.lru_cache(maxsize=1)
def _prepared(skew: tuple[float, float], users: int, seed: int) -> Any:
    options = {"users": users, "seed": seed, "interest_power": skew[0], "item_power": skew[1]}
    overrides = [*_OVERRIDES, *settings(options, "data.options.")]
    return prepared(task_of("multi_interest", "simulated", overrides), "simulated")


def train_one(key: dict[str, Any]) -> Row:
    """One run: the test metrics after each of its stages."""
    sets = _prepared(tuple(key["skew"]), key["users"], key["seed"])
    run = RUNS[key["run"]]
    overrides = (
        *_OVERRIDES,
        f"model.num_interests={run['interests']}",
        f"weighting.kind={run['kind']}",
        f"weighting.calibrate={str(run['calibrate']).lower()}",
        f"trainer.epochs={key['epochs']}",
    )
    stages: dict[str, dict[str, float]] = {}

    def after(stage: str, model: Any, task: Any) -> None:
        stages[stage] = judged(model, task, sets.test, (5, 10))

    staged("multi_interest", "simulated", sets, overrides, key["seed"], after)
    # The weights may converge at once; then the first stage is also the result.
    if run["kind"] == "density":
        stages.setdefault("density", stages["train"])
    about = f"{key['run']}, skew {key['skew']}, seed {key['seed']}"
    return {"stages": stages, "says": f"{about}: HR@10 {stages['train']['hr_10']:.3f}"}


Means = dict[str, dict[str, dict[str, float]]]


def _checks(mean: Means) -> list[Check]:
    skewed = [name for name in mean if name != "none"]

    def shown(values: dict[str, float], digits: int = 3) -> str:
        return ", ".join(f"{name}: {value:.{digits}f}" for name, value in values.items())

    gain = {s: mean[s]["MUR3"]["hr_10"] - mean[s]["SUR"]["hr_10"] for s in mean}
    overall = {s: mean[s]["MUR3"]["hr_10"] for s in mean}
    tail = {s: mean[s]["MUR3"]["tail_hr_5"] for s in mean}
    rising = bool(np.all(np.diff(list(overall.values())) > 0))
    falling = bool(np.all(np.diff(list(tail.values())) < 0))
    checks = [
        Check(
            "(i) MUR3 above SUR by 0.01 HR@10 at every skew",
            min(gain.values()) >= 0.01,
            shown(gain),
        ),
        Check("(ii) more skew: unweighted MUR3 has a higher HR@10", rising, shown(overall)),
        Check("(ii) more skew: unweighted MUR3 has a lower tail HR@5", falling, shown(tail)),
    ]
    for family in ("SUR", "MUR3"):
        others = [family, f"{family}-IDW"] + ([f"{family}-IDW+cal"] if family == "MUR3" else [])
        weighted = f"{family}-FW"
        tails = {
            s: mean[s][weighted]["tail_hr_10"] - max(mean[s][o]["tail_hr_10"] for o in others)
            for s in skewed
        }
        wholes = {
            s: mean[s][weighted]["hr_10"] - min(mean[s][o]["hr_10"] for o in others) for s in skewed
        }
        heads = {
            s: mean[s][weighted]["head_hr_10"] - min(mean[s][o]["head_hr_10"] for o in others)
            for s in skewed
        }
        checks += [
            Check(
                f"(iii) skewed: {weighted} has the largest tail HR@10 of {family}'s weightings",
                min(tails.values()) > 0,
                "ahead by " + shown(tails),
            ),
            Check(
                f"(iii) skewed: {weighted} has the lowest head and overall HR@10",
                max(*wholes.values(), *heads.values()) < 0,
                f"overall {shown(wholes)}; head {shown(heads)}",
            ),
        ]
    factor = {s: mean[s]["MUR3-IDW"]["tail_hr_5"] / mean[s]["MUR3"]["tail_hr_5"] for s in skewed}
    kept = {s: mean[s]["MUR3-IDW"]["hr_10"] - mean[s]["MUR3-FW"]["hr_10"] for s in skewed}
    back = {
        metric: {s: mean[s]["MUR3-IDW+cal"][metric] - mean[s]["MUR3-IDW"][metric] for s in skewed}
        for metric in ("hr_10", "head_hr_10", "tail_hr_5")
    }
    unskewed = [v["hr_10"] for n, v in mean["none"].items() if n.startswith("MUR3")]
    return [
        *checks,
        Check(
            "(iv) skewed: IDW raises MUR3's tail HR@5 (1.6 to 3.7 times in the prototype)",
            min(factor.values()) > 1,
            "times " + shown(factor, 2),
        ),
        Check(
            "(iv) skewed: IDW keeps more HR@10 than FW (0.03 to 0.30 in the prototype)",
            min(kept.values()) > 0,
            shown(kept),
        ),
        Check(
            "(v) skewed: calibration raises overall and head HR@10 and lowers tail HR@5",
            min(*back["hr_10"].values(), *back["head_hr_10"].values()) > 0
            and max(back["tail_hr_5"].values()) < 0,
            "; ".join(f"{m} {shown(v)}" for m, v in back.items()),
        ),
        Check(
            "(vi) without skew MUR3's arms are within 0.02 HR@10 of each other",
            max(unskewed) - min(unskewed) <= 0.02,
            f"{min(unskewed):.3f} to {max(unskewed):.3f}",
        ),
    ]


def _plot(mean: Means, path: Path) -> None:
    """Plots head against tail, with a line through MUR3's stages for each skew."""
    with picture(path, 4.2 * len(mean), 4) as figure:
        for place, (skew, arms) in enumerate(mean.items()):
            axes = figure.add_subplot(1, len(mean), place + 1)
            for name, values in arms.items():
                point = values["tail_hr_10"], values["head_hr_10"]
                axes.scatter(*point, marker="s" if name.startswith("SUR") else "o")
                axes.annotate(name, point, fontsize=7, xytext=(3, 3), textcoords="offset points")
            line = [arms[n] for n in ("MUR3", "MUR3-IDW+cal", "MUR3-IDW", "MUR3-FW")]
            axes.plot([v["tail_hr_10"] for v in line], [v["head_hr_10"] for v in line], lw=0.8)
            axes.set_title(f"skew {skew}")
            axes.set_xlabel("tail HR@10")
            axes.set_ylabel("head HR@10")


def _run(context: Context) -> Outcome:
    size = {"users": 10_000, "epochs": 10}
    seeds = context.seeds
    keys = [
        {"run": run, "skew": skew, "seed": seed, **size}
        for skew in SKEWS.values()
        for seed in seeds
        for run in RUNS
    ]
    done = context.trained("density.jsonl", train_one, keys)
    found: dict[tuple[Any, ...], dict[str, Any]] = {
        (row["key"]["run"], tuple(row["key"]["skew"]), row["key"]["seed"]): row["stages"]
        for row in done
    }
    mean: Means = {}
    table = []
    for skew, powers in SKEWS.items():
        mean[skew] = {}
        for arm, (run, stage) in ARMS.items():
            values = [found[run, powers, seed][stage] for seed in seeds]
            mean[skew][arm] = {m: float(np.mean([v[m] for v in values])) for m in _METRICS}
            spread = np.std([v["hr_10"] for v in values])
            cells = [f"{mean[skew][arm][m]:.3f}" for m in _METRICS]
            cells[2] += f" ({spread:.3f})"
            old = _PROTOTYPE[skew][arm]
            table.append((skew, arm, *cells, f"{old[2]:.3f}", f"{old[1]:.3f}"))
    plot = context.work / "density.png"
    _plot(mean, plot)
    context.say(f"head against tail: {plot}")
    return Outcome(
        columns=(
            "skew",
            "model",
            "HR@5",
            "tail HR@5",
            "HR@10 (std)",
            "head HR@10",
            "tail HR@10",
            "prototype HR@10",
            "tail HR@5 ",
        ),
        rows=table,
        checks=_checks(mean),
        details={"seeds": seeds, **size, "overrides": _OVERRIDES, "runs": done},
    )


EXPERIMENT = Experiment(
    "multi_interest/density",
    "Simulated interests: one vector or several, weighted by nothing, frequency or density",
    "synthetic study of the authors' code",
    _run,
    {"seeds": 4},
    {"seeds": 1},
)
