"""Summaries of a source: its rows, corrupt lines, and the values of each feature."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tfrz.data.histories.spec import HistorySpec
from tfrz.data.impressions.spec import FeatureSpec
from tfrz.data.lists.spec import ListSpec
from tfrz.data.sources.files import CorruptLine
from tfrz.data.sources.reader import Reader
from tfrz.data.spec import Feature
from tfrz.data.timelines.spec import NUMBERS, TimelineSpec
from tfrz.data.usage import Advice, Counts, Usage, UsageCounter, advice
from tfrz.errors import InputError

# A tail is judged by so many numbers.
_KEPT = 200_000


@dataclasses.dataclass
class FeatureSummary:
    """Summary of one column.

    Attributes:
      name: Name of the column.
      kind: categorical, multivalent, numeric, time, or label.
      rows: Number of rows with a value.
      missing: Number of rows without a value.
      values: Number of values; more than `rows` if a row has several.
      distinct: Number of distinct terms; null for numbers.
      top: The most frequent terms and their counts.
      minimum: Smallest number; null for terms.
      mean: Mean of the numbers.
      maximum: Largest number.
    """

    name: str
    kind: str
    rows: int = 0
    missing: int = 0
    values: int = 0
    distinct: int | None = None
    top: list[tuple[str, int]] = dataclasses.field(default_factory=list)
    minimum: float | None = None
    mean: float | None = None
    maximum: float | None = None


@dataclasses.dataclass
class SourceSummary:
    """Summary of a source.

    Attributes:
      name: Name of the source.
      record_type: Type of its records.
      rows: Number of rows that could be read.
      corrupt: Number of lines that could not be read.
      first_corrupt: The first of these lines, as `file:line: reason`.
      features: Summary of each column.
      usage: What matters for a recommender.
      advice: What to set, and why.
    """

    name: str
    record_type: str
    rows: int
    corrupt: int
    first_corrupt: str | None
    features: list[FeatureSummary]
    usage: Usage
    advice: list[Advice]


class _Column:
    """Accumulates the summary of one column, batch by batch."""

    def __init__(self, name: str, kind: str) -> None:
        self.summary = FeatureSummary(name, kind)
        self.terms = Counts()
        self.sum = 0.0
        self._sample: list[NDArray[Any]] = []
        self._sampled = 0

    def add(self, column: pa.ListArray) -> None:
        summary = self.summary
        flat = pc.list_flatten(column).drop_null()
        if pa.types.is_floating(flat.type) or summary.kind == "time":
            numbers = flat.to_numpy(zero_copy_only=False).astype(np.float64)
            numbers = numbers[np.isfinite(numbers)]
            present = len(numbers)
            if present:
                low, high = float(numbers.min()), float(numbers.max())
                summary.minimum = low if summary.minimum is None else min(low, summary.minimum)
                summary.maximum = high if summary.maximum is None else max(high, summary.maximum)
                self.sum += float(numbers.sum())
                if self._sampled < _KEPT and summary.kind == "numeric":
                    self._sample.append(numbers[: _KEPT - self._sampled])
                    self._sampled += len(self._sample[-1])
        else:
            lengths = pc.list_value_length(column).fill_null(0)
            present = pc.sum(pc.greater(lengths, 0)).as_py() or 0
            self.terms.add(flat)
        summary.rows += present
        summary.missing += len(column) - present
        summary.values += len(flat)

    def finish(self, top: int) -> FeatureSummary:
        summary = self.summary
        if summary.minimum is not None:
            summary.mean = self.sum / max(summary.rows, 1)
        elif summary.kind in ("categorical", "multivalent"):
            summary.distinct = len(self.terms.counts)
            summary.top = [(_text(term), count) for term, count in self.terms.top(top)]
        return summary

    def tail(self) -> float | None:
        """How many times the 99th percentile of positive numbers is their median, if over ten."""
        if self.summary.minimum is None or self.summary.minimum < 0 or not self._sample:
            return None
        positive = np.concatenate(self._sample)
        positive = positive[positive > 0]
        if len(positive) < 20:
            return None
        ratio = float(np.quantile(positive, 0.99) / np.median(positive))
        return ratio if ratio > 10 else None


def _text(term: bytes | str | int) -> str:
    return term.decode("utf-8", "replace") if isinstance(term, bytes) else str(term)


def _columns(reader: Reader) -> dict[str, _Column]:
    """Returns the columns to summarise."""
    spec = reader.feature_spec()
    if isinstance(spec, HistorySpec):
        columns = {"user": _Column("user", "categorical"), "item": _Column("item", "categorical")}
        if spec.time is not None:
            columns["time"] = _Column("time", "time")
        return columns | {f.name: _Column(f.name, f.kind) for f in spec.context}
    if isinstance(spec, ListSpec):
        columns = {"query": _Column("query", "categorical"), "item": _Column("item", "categorical")}
        columns |= {f.name: _Column(f.name, f.kind) for f in (*spec.candidate, *spec.context)}
        return columns | {"relevance": _Column("relevance", "label")}
    if isinstance(spec, TimelineSpec):
        kinds = {"user": "categorical", "time": "time", "action": "categorical"}
        kinds |= {f.name: "multivalent" if f.multivalent else f.kind for f in spec.ids}
        kinds |= {n: "numeric" for n in NUMBERS if getattr(spec, n) is not None}
        kinds |= {f"label_{task}": "label" for task in spec.tasks}
        return {name: _Column(name, kind) for name, kind in kinds.items()}
    columns = {
        f.name: _Column(f.name, "multivalent" if f.multivalent else f.kind) for f in spec.features
    }
    columns[spec.label] = _Column(spec.label, "label")
    return columns


def _as_lists(column: pa.Array) -> pa.ListArray:
    """Converts a column of single values to lists; null becomes an empty list."""
    if pa.types.is_list(column.type):
        return column
    present = np.asarray(column.is_valid())
    offsets = np.concatenate([[0], np.cumsum(present)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), column.drop_null())


def summarize(reader: Reader, limit: int | None = None, top: int = 3) -> SourceSummary:
    """Summarises a source in one pass.

    Args:
      reader: Reader of the source.
      limit: Stop after the batch that reaches this many rows.
      top: Number of frequent terms to list.

    Raises:
      InputError: The source is missing, has the wrong format, or has no records.
    """
    columns, counter = _columns(reader), UsageCounter(reader)
    rows, corrupt, first = 0, 0, None
    for shard in reader.shards():
        for item in reader.read(shard):
            if isinstance(item, CorruptLine):
                corrupt += 1
                first = first or str(item)
                continue
            rows += item.num_rows
            counter.add(item)
            for name, column in columns.items():
                column.add(_as_lists(item.column(name)))
        if rows >= (math.inf if limit is None else limit):
            break
    if not rows:
        raise InputError(f"{reader.name} has no records: {first or 'nothing to read'}")
    features = [column.finish(top) for column in columns.values()]
    usage = counter.finish()
    described = [f for f in features if f.kind in ("categorical", "multivalent", "numeric")]
    if described:
        usage.missing = sum(f.missing for f in described) / (rows * len(described))
    found = [*advice(counter, usage), *_of_features(columns, reader, rows)]
    return SourceSummary(
        reader.name, reader.record_type, rows, corrupt, first, features, usage, found
    )


def _of_features(columns: dict[str, _Column], reader: Reader, rows: int) -> list[Advice]:
    """What the values of features suggest for the feature spec."""
    spec: Any = reader.feature_spec()
    groups: dict[str, tuple[Feature, ...]] = {}
    if isinstance(spec, FeatureSpec):
        groups = {"features": spec.features}
    elif isinstance(spec, HistorySpec):
        groups = {"context": spec.context}
    elif isinstance(spec, ListSpec):
        groups = {"candidate": spec.candidate, "context": spec.context}
    found = []
    for key, features in groups.items():
        for feature in features:
            column = columns[feature.name]
            where = f"{key}: [{{name: {feature.name}, %s}}] in the feature spec"
            tail = column.tail() if feature.log_offset is None else None
            if tail is not None and feature.kind == "numeric":
                reason = f"the 99th percentile of {feature.name} is {tail:,.0f} times its median"
                found.append(Advice(where % "log_offset: 1.0", reason))
            missing = column.summary.missing / rows
            if missing >= 0.95:
                reason = f"{missing:.1%} of the values of {feature.name} are missing"
                found.append(Advice(f"{key}: leave {feature.name} out", reason))
            distinct = column.summary.distinct or 0
            if feature.min_count == 1 and feature.kind == "categorical" and distinct >= 1000:
                once = float((column.terms.counts == 1).mean())
                if once > 0.5:
                    reason = f"{once:.0%} of the values of {feature.name} occur once"
                    found.append(Advice(where % "min_count: 2", reason))
    return found
