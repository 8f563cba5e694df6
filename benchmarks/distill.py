"""Suite `distill`: the cost of a teacher in training, and the savings of small models in serving.

python -m benchmarks.distill --json FILE
"""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import histories, load_test
from benchmarks import serving_processes as processes
from benchmarks.measure import PairedTimings, time_paired
from benchmarks.report import Bound, Figure, Section
from benchmarks.runner import Options, Part

TITLE = "distillation and low rank: training with a teacher, serving of small models"

# MovieLens-1M's fields: rows of their embeddings, of padding and of unknown terms among them.
FIELDS = {
    "user_id": 6042,
    "movie_id": 3708,
    "gender": 4,
    "age": 9,
    "occupation": 23,
    "zip_code": 3441,
    "genres": 20,
}
_GENRES = 3

# The shapes of the serving parts, on whatever data.
_BOTH = {"structure": "parallel", "cross": "full", "num_cross_layers": 2}
TEACHER_MODEL: dict[str, Any] = {**_BOTH, "embedding_dim": 30, "hidden_units": [256]}
STUDENT_MODEL: dict[str, Any] = {**_BOTH, "embedding_dim": 4, "hidden_units": [64]}
WEIGHT = 1.0  # Of the teacher's term; the better one in `tfrz reproduce distillation/clicks`.
CANDIDATES = (1, 500)

_PLAIN, _CACHED, _LIVE = "plain", "cached teacher", "live teacher"
TEACHER, SMALL, STUDENT = "teacher", "small model", "distilled student"
# Name to what it is compressed from.
COMPRESSED = {"compressed teacher": TEACHER, "compressed student": STUDENT}
RANK = 8
_UNITS = {"SavedModel": "KiB", "p50": "ms", "p99": "ms"}
DENSE, REQUEST = "dense", "request without a model"


def settings(model: Mapping[str, Any]) -> list[str]:
    """A model's shape as overrides of a configuration."""
    return [f"model.{name}={json.dumps(value)}" for name, value in model.items()]


# Training steps.


def make_steps(
    name: str,
    overrides: Sequence[str],
    inputs: Any,
    columns: Mapping[str, np.ndarray],
    steps: int,
    teacher: Any = None,
) -> Callable[[], float]:
    """Returns a function that runs steps of the zoo's loop on one batch and returns the mean loss.

    Args:
      name: of the model in the registry.
      overrides: `key=value` on its default configuration.
      inputs: what the model must know of its data.
      columns: the batch.
      steps: of each call.
      teacher: a live one, of history records.
    """
    import tensorflow as tf

    from tfrz.training.fit import _Loop, build_model
    from tfrz.zoo import registry
    from tfrz.zoo.run_config import load_run_config

    rows = len(next(iter(columns.values())))
    config = load_run_config(name, "default", [*overrides, f"trainer.batch_size={rows}"])
    entry = registry.get(name)
    task = entry.new_task(config)
    if teacher is not None:
        task.teacher = teacher
    model = build_model(lambda: task.build(inputs), config.trainer)
    loop = _Loop(model, task, config.trainer, total_steps=1_000_000)
    batch = {key: tf.constant(value) for key, value in columns.items()}
    iterator = loop.iterator(tf.data.Dataset.from_tensors(batch).repeat())
    return lambda: loop.run(iterator, steps)


def click_columns(batch: int, seed: int) -> dict[str, np.ndarray]:
    """A batch of made-up impressions in MovieLens-1M's fields, with what a teacher said of each."""
    rng = np.random.default_rng(seed)
    columns = {f"{name}_xf": rng.integers(1, rows, batch) for name, rows in FIELDS.items()}
    columns["genres_xf"] = rng.integers(1, FIELDS["genres"], (batch, _GENRES))
    columns["label_xf"] = (rng.random(batch) < 0.5).astype(np.float32)
    columns["teacher_score_xf"] = rng.random(batch).astype(np.float32)
    return columns


def make_click_steps(taught: bool, batch: int, steps: int, seed: int) -> Callable[[], float]:
    """Steps of a small DCN-V2, with cached scores of a teacher or without."""
    from tfrz.zoo.tasks.click import ModelInputs

    columns = click_columns(batch, seed)
    overrides = [*settings(STUDENT_MODEL), "trainer.ema_decay=0.999", "trainer.embedding_l2=0.03"]
    if taught:
        overrides.append("distill.teacher=cached")
    else:
        del columns["teacher_score_xf"]
    sizes = {f"{name}_xf": rows for name, rows in FIELDS.items()}
    inputs = ModelInputs(sizes, multivalent=("genres_xf",))
    return make_steps("dcn_v2", overrides, inputs, columns, steps)


def make_history_steps(
    taught: bool, batch: int, length: int, dim: int, items: int, steps: int, seed: int
) -> Callable[[], float]:
    """Steps of an M3 over all items, with a teacher of twice its width or without."""
    from tfrz.zoo import registry
    from tfrz.zoo.run_config import load_run_config
    from tfrz.zoo.tasks.history import HistoryInputs
    from tfrz.zoo.teacher import LiveTeacher

    def shape(width: int) -> list[str]:
        units = {"input_units": [width], "encoder_dim": width, "output_units": [width]}
        values = {"item_dim": width, "loss": "softmax", **units}
        return [*settings(values), f"data.history.length={length}"]

    rng = np.random.default_rng(seed)
    pages = 6
    columns = {
        "history_xf": rng.integers(1, items + 1, (batch, length)),
        "history_page_xf": rng.integers(1, pages, (batch, length)),
        "target_xf": rng.integers(1, items + 1, batch),
        "page_xf": rng.integers(1, pages, batch),
    }
    inputs = HistoryInputs(items, items + 2, length, {"page": pages}, (), "right")
    if not taught:
        return make_steps("m3", shape(dim), inputs, columns, steps)
    entry = registry.get("m3")
    task = entry.new_task(load_run_config("m3", "default", shape(2 * dim)))
    teacher = LiveTeacher(Path(), task, task.build(inputs))
    overrides = [*shape(dim), "distill.teacher=live"]
    return make_steps("m3", overrides, inputs, columns, steps, teacher)


def measure_step(options: Options) -> Section:
    """A DCN-V2 with cached scores of a teacher, and an M3 with a live one, against plain steps."""
    clicks = {"batch": 1024, "steps": 20, "rounds": 75}
    events = {"batch": 64, "length": 50, "dim": 32, "items": 3706, "steps": 1, "rounds": 9}
    if options.quick:
        clicks = {"batch": 16, "steps": 1, "rounds": 2}
        events = {"batch": 4, "length": 6, "dim": 8, "items": 40, "steps": 1, "rounds": 2}

    def paired(make: Callable[..., Callable[[], float]], taught: str, **sizes: int) -> Any:
        rounds = sizes.pop("rounds")
        return time_paired(
            {name: make(name == taught, seed=options.seed, **sizes) for name in (_PLAIN, taught)},
            rounds,
        )

    cached = paired(make_click_steps, _CACHED, **clicks)
    live = paired(make_history_steps, _LIVE, **events)
    return Section(
        title=f"training step of DCN-V2 (batch {clicks['batch']:,}) and of M3 with a teacher",
        baseline=_PLAIN,
        setup={"dcn_v2": clicks, "m3": events, "fields": FIELDS, "student": STUDENT_MODEL},
        timings=cached.summary(_PLAIN),
        figures=(
            Figure("DCN-V2, step", 1e3 * cached[_PLAIN].median / clicks["steps"], "ms"),
            Figure(
                f"DCN-V2, {_CACHED} / {_PLAIN}",
                cached.ratio(_CACHED, _PLAIN).of_medians,
                bound=Bound(1.15, "at most"),
                judged=not options.quick,
            ),
            Figure("M3, step", 1e3 * live[_PLAIN].median / events["steps"], "ms"),
            Figure(f"M3, {_LIVE} / {_PLAIN}", live.ratio(_LIVE, _PLAIN).of_medians),
        ),
        notes=(
            f"The table is of {clicks['steps']} steps of DCN-V2, in the zoo's own loop",
            "M3's teacher is twice as wide as its student and scores all items for every event; "
            "the plain step has the softmax over all items too",
        ),
        details={"m3": live.summary(_PLAIN)},
    )


# Serving.


def time_served(
    models: Mapping[str, Path],
    candidates: Sequence[int],
    rounds: int,
    without: str | None = None,
) -> dict[int, PairedTimings]:
    """The same requests over gRPC to one server of several models, which take turns.

    Args:
      models: name to the folder of its versions.
      candidates: rows of a request.
      rounds: how often each model is asked.
      without: a model that is also asked for the transformed features alone: what a request costs
        whatever the model, as `REQUEST`.

    Returns:
      By the number of candidates.
    """
    import grpc

    from tfrz.serving.client import PREDICT

    served = {name: name.replace(" ", "_") for name in models}
    entries = (
        f'config {{ name: "{served[name]}" base_path: "{base}" model_platform: "tensorflow" }}'
        for name, base in models.items()
    )

    def payload(name: str, rows: int, signature: str = "serving_default") -> bytes:
        request = processes.warmup_rows(models[name], rows, served[name])
        request.model_spec.signature_name = signature
        sent: bytes = request.SerializeToString()
        return sent

    found = {}
    with tempfile.NamedTemporaryFile("w", suffix=".config") as file:
        file.write(f"model_config_list {{ {' '.join(entries)} }}")
        file.flush()
        with processes.serving((f"--model_config_file={file.name}",)) as (server,):
            channel = grpc.insecure_channel(f"127.0.0.1:{server.port}")
            predict = channel.unary_unary(PREDICT)
            for rows in candidates:
                payloads = {name: payload(name, rows) for name in models}
                if without is not None:
                    payloads[REQUEST] = payload(without, rows, "transform_features")
                calls = {name: functools.partial(predict, sent) for name, sent in payloads.items()}
                found[rows] = time_paired(calls, rounds, warm_up=20)
            channel.close()
    return found


def data_of(options: Options) -> tuple[str, list[str], tuple[str, ...]]:
    """DATA of the serving parts, overrides that go with it, and what a reader must know of it."""
    if options.quick:
        return "simulated", ["data.options.rows=4000", "trainer.epochs=1"], ()
    if histories.movielens(options) is None:
        return "simulated", [], ("movielens-1m: left out, the data are not there",)
    return options.data, [], ()


def sizes_of(base: Path) -> dict[str, float]:
    """A SavedModel's parameters, those that are no embedding, and its KiB on disk."""
    import tensorflow as tf

    version = base / "1"
    counts = {
        name.split("/")[1]: int(np.prod(shape))
        for name, shape in tf.train.list_variables(str(version / "variables" / "variables"))
        if name.startswith("weights/")
    }
    dense = sum(count for name, count in counts.items() if not name.endswith("-embeddings"))
    size = sum(path.stat().st_size for path in version.rglob("*") if path.is_file())
    return {
        "parameters": sum(counts.values()),
        "dense parameters": dense,
        "SavedModel": size / 1024,
    }


def export_ranks(data: str, overrides: Sequence[str], ranks: Sequence[int], out: Path) -> None:
    """Untrained models of the teacher's shape, dense and with all layers of a rank, exported.

    Args:
      data: whose vocabularies they have.
      overrides: `key=value` that go with it.
      ranks: one a model.
      out: takes a folder of versions for each, `dense` and `rank <rank>`.
    """
    from tfrz.export.saved_model import export_model
    from tfrz.reproduce.training import permuted
    from tfrz.training.factorization import factorize
    from tfrz.training.fit import build_model
    from tfrz.zoo import registry
    from tfrz.zoo.run_config import load_run_config

    wanted = [*settings(TEACHER_MODEL), *overrides]
    config = load_run_config("dcn_v2", data.partition(":")[0], wanted)
    entry = registry.get("dcn_v2")
    task = entry.new_task(config)
    prepared = permuted(task, data)
    dense = build_model(lambda: task.build(prepared.inputs), config.trainer)
    models = {DENSE: dense, **{f"rank {rank}": factorize(dense, rank)[0] for rank in ranks}}
    for name, model in models.items():
        export_model(
            out / name / "1",
            model,
            task,
            prepared.transform,
            prepared.spec,
            config,
            prepared.vocabularies,
            card="",
            warmup=prepared.examples[: config.export.warmup_examples],
        )


def measure_curve(options: Options) -> Section:
    """The teacher's shape with all its layers at a rank, asked for 500 candidates."""
    ranks, rounds, rows = ((4,), 3, 8) if options.quick else ((4, 8, 16, 32), 300, CANDIDATES[-1])
    data, overrides, notes = data_of(options)
    with tempfile.TemporaryDirectory(prefix="tfrz-bench-") as folder:
        export_ranks(data, overrides, ranks, Path(folder))
        bases = {name: Path(folder) / name for name in (DENSE, *(f"rank {r}" for r in ranks))}
        sizes = {name: sizes_of(base) for name, base in bases.items()}
        times = time_served(bases, [rows], rounds, without=DENSE)[rows]
    figures = [Figure(f"{REQUEST}, p50", 1e3 * times[REQUEST].median, "ms")]
    for name in bases:
        figures.append(Figure(f"{name}, dense parameters", sizes[name]["dense parameters"], ""))
        figures.append(Figure(f"{name}, p50", 1e3 * times[name].median, "ms"))
        if name != DENSE:
            ratio = times.ratio(name, DENSE).of_medians
            figures.append(Figure(f"{name} / {DENSE}, p50", ratio))
    return Section(
        title=f"p50 of {rows} candidates by the rank of all layers, over gRPC",
        baseline=DENSE,
        setup={"data": data, "ranks": list(ranks), "rounds": rounds, "model": TEACHER_MODEL},
        timings=times.summary(DENSE),
        figures=tuple(figures),
        notes=(
            *notes,
            "One server has all models, and they take turns; their weights are not trained, which "
            "time does not depend on",
            f"{REQUEST}: the same candidates parsed and transformed, and their ids sent back; no "
            "rank can save that",
        ),
        details={"sizes": sizes},
    )


def make_models(
    data: str, overrides: Sequence[str], fine_tune_steps: int, out: Path
) -> dict[str, dict[str, Any]]:
    """The models of the table, made one after the other; what each `metrics.json` holds.

    Args:
      data: DATA of them all.
      overrides: `key=value` of them all.
      fine_tune_steps: of those that are compressed.
      out: takes a run of `tfrz train` or `tfrz compress` for each.
    """
    from tfrz.zoo.compress import compress
    from tfrz.zoo.train import train

    taught = [f"distill.teacher={out / TEACHER}", f"distill.weight={WEIGHT}"]
    wanted = {
        TEACHER: settings(TEACHER_MODEL),
        SMALL: settings(STUDENT_MODEL),
        STUDENT: [*settings(STUDENT_MODEL), *taught],
    }
    common = ["trainer.tensorboard=false", *overrides]
    for name, own in wanted.items():
        train("dcn_v2", data, out / name, overrides=[*common, *own], progress=False)
    for name, source in COMPRESSED.items():
        compress(
            out / source,
            out / name,
            RANK,
            fine_tune_steps=fine_tune_steps,
            learning_rate=0.0005,
            distill=0.5,
            progress=False,
        )
    return {
        name: json.loads((out / name / "metrics.json").read_text())
        for name in (*wanted, *COMPRESSED)
    }


def measure_serving(options: Options) -> Section:
    """Quality, size and latency of a teacher and of what is made of it, in one table."""
    rounds, fine_tune_steps = (3, 3) if options.quick else (1000, 1000)
    data, overrides, notes = data_of(options)
    overrides = [*overrides, f"data.seed={options.seed}", f"trainer.seed={options.seed}"]
    with tempfile.TemporaryDirectory(prefix="tfrz-bench-") as folder:
        runs = make_models(data, overrides, fine_tune_steps, Path(folder))
        bases = {name: Path(folder) / name / "model" for name in runs}
        table: dict[str, dict[str, float]] = {
            name: {"test log loss": found["log_loss"], "test AUC": found["auc"], **sizes_of(base)}
            for (name, base), found in zip(
                bases.items(), (run["metrics"]["test"] for run in runs.values()), strict=True
            )
        }
        times = time_served(bases, CANDIDATES, rounds)
    percentile = load_test.percentile
    for rows, timings in times.items():
        for name, row in table.items():
            row[f"p50 of {rows}"] = 1e3 * timings[name].median
            row[f"p99 of {rows}"] = 1e3 * percentile(sorted(timings[name].seconds), 0.99)
    figures = [
        Figure(f"{what}, {name}", row[what], _UNITS.get(what.partition(" ")[0], ""))
        for what in table[TEACHER]
        for name, row in table.items()
    ]
    compared = ("parameters", "dense parameters", "SavedModel", *(f"p50 of {n}" for n in times))
    figures += [
        Figure(f"{what}, {name} / {TEACHER}", row[what] / table[TEACHER][what])
        for what in compared
        for name, row in table.items()
        if name != TEACHER
    ]
    most = CANDIDATES[-1]
    return Section(
        title=f"a teacher and what is made of it: quality, size, latency over gRPC, {data}",
        baseline=TEACHER,
        setup={
            "data": data,
            "rounds": rounds,
            "teacher": TEACHER_MODEL,
            "student": STUDENT_MODEL,
            "weight": WEIGHT,
            "rank": RANK,
            "fine_tune_steps": fine_tune_steps,
        },
        timings=times[most].summary(TEACHER),
        figures=tuple(figures),
        notes=(
            *notes,
            f"One server has all models, and they take turns. The table is of {most} candidates",
            f"Compressed: all layers at rank {RANK} where that makes them smaller, then "
            f"{fine_tune_steps:,} steps taught by the model as it was, kept if they help",
        ),
        details={"table": table, "runs": runs},
    )


PARTS: Mapping[str, Part] = {
    "step": Part(measure_step, "a training step with a teacher against a plain one"),
    "serving": Part(
        measure_serving,
        "quality, size and latency of a teacher and of what is made of it",
        layer=False,
        needs=("grpc", "tensorflow_serving"),
    ),
    "curve": Part(
        measure_curve,
        "latency by the rank of all layers",
        layer=False,
        needs=("grpc", "tensorflow_serving"),
    ),
}

if __name__ == "__main__":
    from benchmarks.runner import main

    raise SystemExit(main("distill"))
