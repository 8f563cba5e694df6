"""Models that change lanes: SavedModels and `.keras` files of each lane, loaded by the other."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfrz.reproduce.experiment import Check, Context, Experiment, Outcome
from tfrz.reproduce.lanes.lane import NAMES, Lane, both_lanes, capped, unfinished
from tfrz.reproduce.lanes.metrics import SIZES, overrides
from tfrz.reproduce.runs import Row
from tfrz.zoo import registry

BOUND = 1e-5
OLDER, NEWER = NAMES
Arrays = Mapping[str, NDArray[Any]]


def answer_difference(home: Arrays, away: Arrays) -> tuple[float, bool]:
    """Compares the answers of a model on two lanes.

    Args:
      home: outputs of the lane that exported it, by name.
      away: those of the other lane.

    Returns:
      The largest difference of numbers, relative to the largest magnitude in the same output, and
      whether all other outputs (ids, positions) are equal. An output that is missing, of another
      shape or not finite at other places differs by infinity.
    """
    if set(home) != set(away):
        return float("inf"), False
    largest, equal = 0.0, True
    for name, one in home.items():
        two = away[name]
        if one.shape != two.shape or one.dtype.kind != two.dtype.kind:
            return float("inf"), False
        if one.dtype.kind != "f":
            equal &= bool((one == two).all())
            continue
        finite = np.isfinite(one)
        if not np.array_equal(one[~finite], two[~finite], equal_nan=True):
            return float("inf"), equal
        if finite.any():
            size = max(float(np.abs(one[finite]).max()), np.finfo(np.float32).tiny)
            change = float(np.abs(one[finite] - two[finite]).max()) / size
            largest = max(largest, change if np.isfinite(change) else float("inf"))
    return largest, equal


def check_direction(source: str, found: Mapping[str, Mapping[str, Any]]) -> Check:
    """Judges the SavedModels of one lane on the other.

    Args:
      source: the lane that exported them.
      found: model to `difference` and `ids_equal`, or to `failed`.
    """
    target = NEWER if source == OLDER else OLDER
    promised = source == OLDER
    failed = {model: row["failed"] for model, row in found.items() if "failed" in row}
    done = {model: row for model, row in found.items() if model not in failed}
    differ = [
        model for model, r in done.items() if not r["difference"] <= BOUND or not r["ids_equal"]
    ]
    largest = max((row["difference"] for row in done.values()), default=float("nan"))
    measured = f"{len(done)} of {len(found)} models load, difference at most {largest:.1e}"
    if differ:
        measured += f"; other answers: {', '.join(differ)}"
    if failed:
        measured += "; " + "; ".join(f"{model}: {says}" for model, says in failed.items())
    word = "promises" if promised else "does not promise"
    statement = (
        f"SavedModels of the {source} lane answer alike on the {target} lane, to {BOUND:g} and "
        f"with equal ids (TensorFlow {word} that they load)"
    )
    if failed and not promised and not differ:
        return Check(statement, None, measured, reason="TensorFlow promises the other direction")
    return Check(statement, not differ and not failed, measured)


def check_keras_files(source: str, found: Mapping[str, Mapping[str, Any]]) -> Check:
    """Judges the `.keras` files of one lane on the other.

    Args:
      source: the lane that saved them.
      found: model to `error`, or to `refused`.
    """
    target = NEWER if source == OLDER else OLDER
    refused = [name for name, row in found.items() if "refused" in row]
    errors = {name: row["error"] for name, row in found.items() if name not in refused}
    differ = [name for name, error in errors.items() if not error <= BOUND]
    statement = (
        f".keras files of the {source} lane that Keras loads on the {target} lane answer alike, "
        f"to {BOUND:g}"
    )
    measured = f"{len(errors)} of {len(found)} load"
    if errors:
        measured += f", difference at most {max(errors.values()):.1e}"
    if differ:
        measured += f"; other answers: {', '.join(differ)}"
    if refused:
        measured += f"; Keras refuses {', '.join(refused)}"
    if not errors:
        return Check(statement, None, measured, reason="Keras refuses this direction")
    return Check(statement, not differ, measured)


def _arrays(path: str) -> dict[str, NDArray[Any]]:
    with np.load(path) as stored:
        return {name: stored[name] for name in stored.files}


def _compared(rows: Sequence[Row], source: str) -> dict[str, dict[str, Any]]:
    """The answers to the SavedModels of a lane, compared model by model."""
    found: dict[str, dict[str, Any]] = {}
    for model in dict.fromkeys(row["key"]["model"] for row in rows):
        own = {r["key"]["lane"]: r for r in rows if r["key"]["model"] == model}
        problem = unfinished(own.values())
        if problem:
            found[model] = {"failed": problem}
            continue
        home, away = own[source], next(row for lane, row in own.items() if lane != source)
        largest, equal = answer_difference(_arrays(home["key"]["to"]), _arrays(away["key"]["to"]))
        found[model] = {"difference": largest, "ids_equal": equal, "outputs": home["outputs"]}
    return found


def _saved_models(
    context: Context, lanes: Mapping[str, Lane], folder: Path
) -> dict[str, dict[str, dict[str, Any]]]:
    """Lane that exported to model to what was found."""
    pythons = {name: lane.python for name, lane in lanes.items()}
    run = functools.partial(capped, pythons, context.size["cap_s"])
    models = context.size["models"] or registry.names()
    changes = {m: [*overrides(m, context.size), f"trainer.seed={context.seed}"] for m in models}
    exports = [
        lane.key(
            {
                "do": "export",
                "model": model,
                "overrides": changes[model],
                "to": str(folder / lane.name / model),
            }
        )
        for lane in lanes.values()
        for model in models
    ]
    exported = context.trained("exports.jsonl", run, exports)
    found = {}
    for source in lanes:
        own = [row for row in exported if row["key"]["lane"] == source]
        missing = {r["key"]["model"]: {"failed": r["unfinished"]} for r in own if "unfinished" in r}
        keys = [
            lane.key(
                {
                    "do": "answers",
                    "model": row["key"]["model"],
                    "folder": str(folder / source),
                    "to": str(Path(row["key"]["to"], f"answers.{lane.name}.npz")),
                }
            )
            for row in own
            if row["key"]["model"] not in missing
            for lane in lanes.values()
        ]
        found[source] = _compared(context.trained("answers.jsonl", run, keys), source) | missing
    return found


def _keras_files(
    context: Context, lanes: Mapping[str, Lane], folder: Path
) -> dict[str, dict[str, dict[str, Any]]]:
    """Lane that saved to model to what was found on the other."""
    pythons = {name: lane.python for name, lane in lanes.items()}
    run = functools.partial(capped, pythons, context.size["cap_s"])
    found = {}
    for source, target in ((OLDER, NEWER), (NEWER, OLDER)):
        at = {"folder": str(folder / source / "keras")}
        keys = [lanes[source].key({"do": "keras_save", **at})]
        keys.append(lanes[target].key({"do": "keras_load", **at}))
        saved, loaded = (context.trained("keras.jsonl", run, [key])[0] for key in keys)
        problem = unfinished((saved, loaded))
        found[source] = {"all": {"refused": problem}} if problem else loaded["models"]
    return found


def table(
    saved: Mapping[str, Mapping[str, Mapping[str, Any]]],
    files: Mapping[str, Mapping[str, Mapping[str, Any]]],
) -> list[tuple[Any, ...]]:
    """A row for each model and direction: what, from, on, difference, ids, what went wrong."""
    rows: list[tuple[Any, ...]] = []
    for source, target in ((OLDER, NEWER), (NEWER, OLDER)):
        for model, row in saved[source].items():
            what = f"SavedModel, {model}"
            if "failed" in row:
                rows.append((what, source, target, "", "", row["failed"]))
                continue
            ids = "equal" if row["ids_equal"] else "NOT equal"
            rows.append((what, source, target, f"{row['difference']:.1e}", ids, ""))
        for name, row in files[source].items():
            shown = f"{row['error']:.1e}" if "error" in row else ""
            says = f"refused: {row['refused'][:60]}" if "refused" in row else ""
            rows.append((f".keras, {name}", source, target, shown, "", says))
    return rows


def _run(context: Context) -> Outcome:
    lanes = both_lanes(context)
    folder = (context.work / "saved_models").absolute()
    saved = _saved_models(context, lanes, folder)
    files = _keras_files(context, lanes, folder)
    checks = [check_direction(source, saved[source]) for source in NAMES]
    checks += [check_keras_files(source, files[source]) for source in NAMES]
    details = {
        "lanes": {name: dict(lane.versions) for name, lane in lanes.items()},
        "SavedModels": saved,
        "keras": files,
    }
    columns = ("model", "of the lane", "on the lane", "relative difference", "ids", "problem")
    return Outcome(columns, table(saved, files), checks, details)


EXPERIMENT = Experiment(
    "lanes/saved_models",
    "models of each lane, loaded and asked on the other: SavedModels and .keras files",
    "this package: TensorFlow 2.15 with Keras 2 against the newest with Keras 3",
    _run,
    {"steps": 20, "models": None, "cap_s": 300, **SIZES},
    {"steps": 5, "models": ("dcn_v2", "topk_reinforce")},
)
