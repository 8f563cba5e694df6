"""The metrics of a run's SavedModel on any source with labels: what `tfrz evaluate` does.

All rows of the source are judged, without a split: of histories and logs each user's last event,
of lists every query. The metrics are those of the answers that a client gets, so a metric of more
items than the model lists (`export.top_k`) is left out.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tfrz.config import did_you_mean, require
from tfrz.data.columns import first_values, to_examples, whole
from tfrz.data.sources.files import CorruptLines
from tfrz.errors import InputError
from tfrz.metrics.off_policy import self_normalized
from tfrz.metrics.ranking import at_rank, parse
from tfrz.zoo.predicting import (
    Asked,
    AskedModel,
    Asking,
    Form,
    form_of,
    open_model,
    open_reader,
    open_served,
    padded,
    slices_of,
)

logger = logging.getLogger(__name__)

Outputs = dict[str, NDArray[Any]]

_RANKED = ("map", "precision", "recall", "ndcg")
_SLICES = 20
# Rows of a request to a server.
_SENT_AT_ONCE = 512
_RUN = (
    "name a run or a SavedModel of the model that is served: its configuration and feature spec "
    "say how the data become requests"
)


def _joined(parts: Sequence[NDArray[Any]], empty: Any) -> NDArray[Any]:
    """Concatenated batches; the rows of narrower ones are filled up."""
    if parts[0].ndim == 2:
        width = max(part.shape[1] for part in parts)
        parts = [
            np.pad(part, ((0, 0), (0, width - part.shape[1])), constant_values=empty)
            for part in parts
        ]
    return np.concatenate(parts)


class Judge:
    """Compares the answers of a model with what was the case.

    Args:
      model: that answers.
      form: how records become examples.

    Attributes:
      reads: output of `serving_raw` that is judged; None where it is another signature.

    Raises:
      InputError: the model does not have that output.
    """

    reads: ClassVar[str | None] = None

    def __init__(self, model: AskedModel, form: Form) -> None:
        self.model, self.form, self.task = model, form, model.task
        has = model.outputs("serving_raw")
        if self.reads is not None and self.reads not in has:
            raise InputError(
                f"{model.place} answers {', '.join(has)}, not {self.reads}: it is no model of "
                f"{model.record_type} records"
            )

    def judged(self, table: pa.Table) -> Outputs:
        """What `metrics` reads, a row for each example, `[rows, ...]`."""
        raise NotImplementedError

    def metrics(self, outputs: Outputs) -> dict[str, float]:
        """The metrics of some rows."""
        return dict(self.task.metrics(outputs))

    def baseline(self, outputs: Outputs) -> tuple[str, dict[str, float]] | None:
        """A simple baseline's name and metrics; None if there is none."""
        del outputs
        return None

    def answers(self, table: pa.Table) -> tuple[pa.Table, Outputs]:
        """The examples with what was joined to them, and the answers to all of them."""
        parts: dict[str, list[NDArray[Any]]] = {}
        tables = []
        asking = Asking(self.form)
        for some, outputs in asking.answers(lambda: iter([table])):
            tables.append(some)
            for name, values in outputs.items():
                parts.setdefault(name, []).append(values)
        if self.form.join is not None:
            self.form.join.check(asking.found)
        empty = {name: b"" if p[0].dtype == object else -1 for name, p in parts.items()}
        return pa.concat_tables(tables), {n: _joined(p, empty[n]) for n, p in parts.items()}

    def of_examples(self, table: pa.Table, signature: str) -> Outputs:
        """The answers to labelled examples of a signature that takes serialised ones."""
        parts: dict[str, list[NDArray[Any]]] = {}
        for some in slices_of([table], min(self.form.asked.batch_size, 1024)):
            if self.form.join is not None:
                some, _ = self.form.join(some)
            serialized = to_examples(some, self.form.spec, some.num_rows, label=True)
            examples = np.array(serialized, object)
            for name, values in self.model.ask(signature, {"examples": examples}).items():
                parts.setdefault(name, []).append(values)
        return {name: np.concatenate(values) for name, values in parts.items()}


class ClickJudge(Judge):
    """Probabilities against clicks."""

    reads = "scores"

    def judged(self, table: pa.Table) -> Outputs:
        """As of `Judge`."""
        table, outputs = self.answers(table)
        return {
            "label": _numbers(table, self.form.spec.label),
            "logits": _logits(outputs["scores"]),
        }

    def baseline(self, outputs: Outputs) -> tuple[str, dict[str, float]] | None:
        """The share of clicks in these data, given to everyone."""
        label = outputs["label"]
        rate = np.full(len(label), label.mean())
        return "the share of ones", self.metrics({"label": label, "logits": _logits(rate)})


class RankJudge(Judge):
    """Listed items against the one that followed."""

    reads = "item_ids"

    def judged(self, table: pa.Table) -> Outputs:
        """As of `Judge`."""
        table, outputs = self.answers(table)
        target = first_values(whole(table[self.form.spec.label]))
        target = target.to_numpy(zero_copy_only=False).astype(object)
        hit = outputs["item_ids"] == target[:, None]
        return {"rank": np.where(hit.any(axis=1), hit.argmax(axis=1) + 1, 0)}

    def metrics(self, outputs: Outputs) -> dict[str, float]:
        """The ranking metrics of the model's row that the lists are long enough for."""
        found = {}
        for name in self.task.entry.metrics:
            kind, n = parse(name)
            listed = n <= self.model.config.export.top_k
            if kind in _RANKED and listed and len(outputs["rank"]):
                found[name] = float(np.mean(at_rank(kind, outputs["rank"], n)))
        return found


class LogJudge(RankJudge):
    """Listed actions against rewarded ones, and the value of the policy."""

    def judged(self, table: pa.Table) -> Outputs:
        """As of `Judge`."""
        found = super().judged(table)
        return {**found, **self.of_examples(table, "judge_log")}

    def metrics(self, outputs: Outputs) -> dict[str, float]:
        """Ranking metrics of rewarded actions, and the estimated value."""
        rewarded = outputs["reward"] > 0
        found = super().metrics({"rank": outputs["rank"][rewarded]})
        if np.any(outputs["policy"] > 0):
            cap = self.model.config.evaluator.cap
            reward, policy, logged = (outputs[n] for n in ("reward", "policy", "logged"))
            estimate = self_normalized(reward, policy, logged, cap=cap)
            found |= {"snips": estimate.value, "snips_low": estimate.low}
            found["effective_sample_size"] = estimate.effective_sample_size
        return found

    def baseline(self, outputs: Outputs) -> tuple[str, dict[str, float]] | None:
        """The logger's own reward."""
        return "the logger", {"snips": float(np.mean(outputs["reward"]))}


class ListJudge(Judge):
    """Slates against grades."""

    reads = "positions"

    def judged(self, table: pa.Table) -> Outputs:
        """As of `Judge`."""
        table, outputs = self.answers(table)
        length = self.model.config.data.lists.length  # type: ignore[union-attr]
        labels = padded(whole(table[self.form.spec.label]), "float32")[:, :length]
        positions = outputs["positions"][:, : labels.shape[1]]
        there = (positions >= 0) & (positions < labels.shape[1])
        ordered = np.take_along_axis(labels, np.where(there, positions, 0), axis=1)
        return {
            "ordered": np.where(there & np.isfinite(ordered), ordered, -1.0),
            "base": np.where(np.isfinite(labels), labels, -1.0),
        }

    def baseline(self, outputs: Outputs) -> tuple[str, dict[str, float]] | None:
        """The order in which candidates came."""
        return "the base order", self.metrics({"ordered": outputs["base"]})


class TimelineJudge(Judge):
    """Scores of candidates against outcomes."""

    def judged(self, table: pa.Table) -> Outputs:
        """As of `Judge`."""
        scores = self.of_examples(table, "score")
        spec = self.form.spec
        task: Any = self.task
        task._binary, task._tasks = spec.binary, spec.tasks
        columns = [_logits(scores[t]) if t in spec.binary else scores[t] for t in spec.tasks]
        labels = [padded(whole(table[f"label_{task}"]), "float32") for task in spec.tasks]
        return {"output": np.stack(columns, axis=-1), "label": np.stack(labels, axis=-1)}


JUDGES: dict[str, type[Judge]] = {
    "impression": ClickJudge,
    "history": RankJudge,
    "logged_action": LogJudge,
    "list": ListJudge,
    "timeline": TimelineJudge,
}


def _numbers(table: pa.Table, name: str) -> NDArray[Any]:
    values = first_values(whole(table[name])).to_numpy(zero_copy_only=False)
    return np.asarray(values, np.float32)


def _logits(scores: NDArray[Any]) -> NDArray[Any]:
    p = np.clip(np.asarray(scores, np.float64), 1e-7, 1 - 1e-7)
    return (np.log(p) - np.log1p(-p)).astype(np.float32)


def _values(form: Form, table: pa.Table, name: str) -> pa.Array:
    """The value of a feature in each example, as text."""
    known = [
        f.name
        for f in form.request_spec.features
        if f.kind == "categorical" and not f.multivalent and f.name in table.column_names
    ]
    near = did_you_mean(name, known)
    has = ", ".join(known) or "none"
    require(
        name in known, f"--slice {name}", f"no categorical feature with one value{near} ({has})"
    )
    values = first_values(whole(table[name]))
    if pa.types.is_binary(values.type):
        return values
    return values.cast(pa.string()).cast(pa.binary())


def evaluate_file(
    target: str | Path,
    data: str,
    features: str | None = None,
    slices: Sequence[str] = (),
    max_corrupt_fraction: float | None = None,
    run: str | Path | None = None,
) -> dict[str, Any]:
    """Metrics of a model on a source with labels.

    Args:
      target: a run of `tfrz train`, a SavedModel, the folder of its versions, or the address of a
        server, as `tfrz.serving.client.connect` takes it.
      data: as `--data` of the command line.
      features: feature spec of a file of the user's own; that of the run if left out.
      slices: categorical features with one value; their most frequent values are judged apart.
      max_corrupt_fraction: tolerated share of corrupt lines; that of the run if left out.
      run: of a server, a run or SavedModel of the same model, which says how data become requests.

    Returns:
      `metrics`, `baseline` (its name and metrics, or null), `slices` (feature to value to
      `examples` and metrics), `examples`, `corrupt_lines`, `model`.

    Raises:
      InputError: bad input of any kind.
    """
    served = "://" in str(target)
    require(served == (run is not None), "--run", _RUN if served else "is for a server's address")
    asked = Asked(keep=())
    model: AskedModel
    if run is not None:
        model = open_served(str(target), run, features)
        asked = dataclasses.replace(asked, batch_size=_SENT_AT_ONCE)
    else:
        model = open_model(target, features)
    reader = open_reader(model, data, labelled=True)
    form = form_of(model, reader, asked)
    if max_corrupt_fraction is None:
        max_corrupt_fraction = model.config.data.max_corrupt_fraction
    corrupt = CorruptLines()
    records = form.read(corrupt)
    corrupt.check(reader.name, max_corrupt_fraction)
    table = form.labelled(records)
    chosen = {name: _values(form, table, name) for name in dict.fromkeys(slices)}
    judge = JUDGES[model.record_type](model, form)
    outputs = judge.judged(table)
    if not table.num_rows:
        raise InputError(f"{data} has nothing to evaluate on")
    found: dict[str, dict[str, Any]] = {}
    for name, values in chosen.items():
        counts = pc.value_counts(values.fill_null(b"")).to_pylist()
        counts.sort(key=lambda one: (-one["counts"], one["values"]))
        if len(counts) > _SLICES:
            logger.warning("%s has %d values: the %d largest", name, len(counts), _SLICES)
        for one in counts[:_SLICES]:
            mask = pc.equal(values.fill_null(b""), one["values"]).to_numpy(zero_copy_only=False)
            some = {key: value[mask] for key, value in outputs.items()}
            word = one["values"].decode("utf-8", "replace")
            result = {"examples": one["counts"], **judge.metrics(some)}
            found.setdefault(name, {})[word] = result
    baseline = judge.baseline(outputs)
    return {
        "model": model.place,
        "examples": table.num_rows,
        "metrics": judge.metrics(outputs),
        "baseline": None if baseline is None else {"name": baseline[0], "metrics": baseline[1]},
        "slices": found,
        "corrupt_lines": len(corrupt),
        "first_corrupt": str(corrupt[0]) if len(corrupt) else None,
    }
