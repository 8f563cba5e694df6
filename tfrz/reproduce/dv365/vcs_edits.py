"""Next directory and extension of an author: what the whole history adds to the newest edits.

The ranker reads the newest 100 edits in every variant, as models downstream do; the embedding of
the whole history is added to them, with its gap of a day. Candidates are the edit that followed
and four edits of others. Weights are chosen on the validation targets, which lie before those of
the test. Everything is on `vcs-edits`, users with at least 200 events.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tfrz.data.records import open_source
from tfrz.errors import InputError
from tfrz.metrics import normalized_entropy
from tfrz.reproduce.experiment import Check, Context, Experiment, Outcome
from tfrz.reproduce.runs import Row, where
from tfrz.reproduce.training import task_of, train

_DATA = "../shared/data/vcs-edits"
_LONG = 10_000
_POOL = "{name: %s, timeline: explicit, id: %s, table: %s}"
_SINGLE = ", ".join(
    _POOL % (f"all_{kind}", kind, f"edited_{kind}") for kind in ("directory", "extension")
)
_VARIANTS = {
    "recent 100": ("model.encoder=none",),
    "+ single pool": ("data.timeline.slices={version: 1, slices: [" + _SINGLE + "]}",),
    "+ multi-slice": (),
}


@functools.lru_cache(maxsize=3)
def _sets(variant: str, data: str, quick: bool) -> tuple[Any, list[str], np.ndarray]:
    """Returns the sets of a variant, its settings, and which test users have a long history."""
    settings = [
        f"data.options={{min_events: {2000 if quick else 200}}}",
        f"data.timeline.targets={20 if quick else 40}",
        "data.validation_fraction=0.1",
        "data.test_fraction=0.2",
        f"trainer.batch_size={32 if quick else 128}",
        "trainer.learning_rate=0.003",
        *_VARIANTS[variant],
    ]
    task = task_of("dv365", "vcs-edits", settings)
    reader = open_source(f"vcs-edits:{data}", None, "timeline", **task.config.data.options)
    source = task.resolve(reader)
    parts, left_out = task.examples(source)
    counts = _events_of(data)
    long = np.array([counts[user] >= _LONG for (user,) in parts["test"]["user"].to_pylist()])
    return task.prepared(source.spec, parts, left_out), settings, long


@functools.lru_cache(maxsize=1)
def _events_of(data: str) -> dict[bytes, int]:
    """Returns the number of events of each user."""
    users = pq.read_table(Path(data) / "events.parquet", columns=["user"])["user"]
    counted = pc.value_counts(users).to_pylist()
    return {b"%d" % one["values"]: one["counts"] for one in counted}


def _chosen(key: dict[str, Any]) -> list[str]:
    """Overrides of the trainer, which keeps the best weights on the validation set."""
    return [
        f"trainer.epochs={key['epochs']}",
        "trainer.evaluations_per_epoch=4",
        "trainer.early_stopping_patience=2",
        "trainer.tensorboard=false",
        f"trainer.seed={key['seed']}",
    ]


def _train(key: dict[str, Any]) -> Row:
    sets, settings, long = _sets(key["variant"], key["data"], key["quick"])
    task = task_of("dv365", "vcs-edits", [*settings, *_chosen(key)])
    model, best = train(task, sets.inputs, sets.train.columns(), sets.validation)
    parts = [task.predict(model, batch) for batch in sets.test.once()]
    logits, labels = (
        np.concatenate([part[name].numpy()[..., 0] for part in parts])
        for name in ("output", "label")
    )
    found = {
        "all": normalized_entropy(labels.ravel(), logits.ravel()),
        "long": normalized_entropy(labels[long].ravel(), logits[long].ravel()),
    }
    found["epoch"] = float(best["epoch"])
    says = f"{key['variant']}, seed {key['seed']}: {found['all']:.4f}"
    return {**found, "examples": len(long), "of_long": int(long.sum()), "says": says}


def _run(context: Context) -> Outcome:
    data = os.path.abspath(context.data or _DATA)
    if not Path(data, "events.parquet").exists():
        raise InputError(f"{data} has no events.parquet: name the folder of vcs-edits with --data")
    keys = [
        {
            "variant": variant,
            "seed": seed,
            "epochs": context.size["epochs"],
            "data": data,
            "quick": context.quick,
        }
        for variant in _VARIANTS
        for seed in context.seeds
    ]
    rows = context.trained("dv365.vcs_edits.jsonl", _train, keys)
    by = {v: where(rows, variant=v) for v in _VARIANTS}
    mean = {v: {n: float(np.mean([r[n] for r in by[v]])) for n in ("all", "long")} for v in by}
    base = mean["recent 100"]
    table = [
        (
            variant,
            *(f"{mean[variant][n]:.4f} ± {np.std([r[n] for r in by[variant]]):.4f}" for n in base),
            *(f"{100 * (mean[variant][n] / base[n] - 1):+.2f} %" for n in base),
        )
        for variant in _VARIANTS
    ]

    def below(first: str, second: str) -> Check:
        pairs = [a["all"] - b["all"] for a, b in zip(by[first], by[second], strict=True)]
        return Check(
            f"normalised entropy: {first} is below {second}",
            bool(np.mean(pairs) < 0),
            f"mean difference {np.mean(pairs):+.4f}, by seed "
            + ", ".join(f"{pair:+.4f}" for pair in pairs),
        )

    return Outcome(
        columns=(
            "the ranker reads",
            "NE, all users",
            "NE, users of 10,000 events or more",
            "change, all",
            "change, long",
        ),
        rows=table,
        checks=[
            below("+ single pool", "recent 100"),
            below("+ multi-slice", "recent 100"),
            below("+ multi-slice", "+ single pool"),
        ],
        details={"runs": rows},
    )


EXPERIMENT = Experiment(
    name="dv365/vcs_edits",
    title="next directory and extension of authors, from the newest edits and the whole history",
    source="downstream rankers, on public histories; no figure of the paper",
    measure=_run,
    full={"seeds": 3, "epochs": 10},
    quick={"seeds": 2, "epochs": 5},
)
