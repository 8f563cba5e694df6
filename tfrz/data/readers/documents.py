"""Sources of graded or clicked documents by query. They become lists.

A batch has the columns `query`, `item` and `split` (binary), `position` (int64, the place in the
source), `score` (float32, the base ranker's; equal where the source is in its order), `relevance`
(float32) and one per feature of the spec.
"""

from __future__ import annotations

import abc
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tfrz.config import from_mapping, read_yaml, require
from tfrz.data.columns import ARROW, record_batch
from tfrz.data.features import Feature, ListSpec, numeric
from tfrz.data.readers.base import Reader, Shard, TextSource, corrupt
from tfrz.data.readers.tabular import Tabular, typed
from tfrz.data.records import CorruptLine
from tfrz.data.simulators.slates import NUM_FEATURES, SlateSimulator
from tfrz.errors import InputError

# A record's candidates stay behind those of the record before it.
_CANDIDATES_A_RECORD = 1 << 20


class DocumentReader(Reader):
    """A source of documents by query."""

    record_type = "list"

    @abc.abstractmethod
    def feature_spec(self) -> ListSpec:
        """What the columns are."""

    @property
    def schema(self) -> pa.Schema:
        """The columns of a batch."""
        columns = {
            "query": pa.binary(),
            "item": pa.binary(),
            "split": pa.binary(),
            "position": pa.int64(),
            "score": pa.float32(),
            "relevance": pa.float32(),
        }
        spec = self.feature_spec()
        for feature in (*spec.candidate, *spec.context):
            columns[feature.name] = ARROW[feature.dtype]
        return pa.schema(list(columns.items()))

    def batch(self, **columns: Any) -> pa.RecordBatch:
        """A batch of the schema; `split` and `score` may be left out."""
        count = len(columns["query"])
        columns.setdefault("split", pa.array([b""] * count, pa.binary()))
        columns.setdefault("score", np.zeros(count, np.float32))
        return record_batch(self.schema, columns)


_LINE = re.compile(rb"^\s*(\S+)\s+qid:(\S+)((?:\s+\d+:\S+)*)\s*$")
_DOCUMENT = re.compile(rb"docid\s*=\s*(\S+)")
_SPLITS = {"train": "train", "vali": "validation", "valid": "validation", "test": "test"}


class Letor(DocumentReader):
    """Documents in the format of LETOR, MSLR and SVMlight: `grade qid:N 1:v 2:v ... # docid = D`.

    A folder has the source's own splits in files whose names begin with train, vali and test; a
    single file is split by query. Features that a line leaves out are 0.

    Args:
      path: the folder or file, plain, `.gz` or `.xz`.
      num_features: numbers of features; those of the first 1,000 lines if not given.
      order_by: number of the feature that is the base ranker's score, the highest first; the order
        of the lines if not given.
    """

    name = "letor"

    def __init__(
        self, path: str, num_features: int | None = None, order_by: int | None = None
    ) -> None:
        self.path = path
        for name, value in (("num_features", num_features), ("order_by", order_by)):
            whole = value is None or isinstance(value, int)
            require(whole, f"data.options.{name}", "must be a whole number")
        self.num_features = self._count() if num_features is None else num_features
        require(self.num_features >= 1, "data.options.num_features", "must be at least 1")
        require(
            order_by is None or 1 <= order_by <= self.num_features,
            "data.options.order_by",
            f"must be the number of a feature, 1 to {self.num_features}",
        )
        self.order_by = order_by

    def _parts(self) -> list[tuple[str, str]]:
        """Files and the splits they are."""
        root = Path(self.path)
        if not root.exists():
            raise InputError(f"{root} does not exist: check the path given to --data")
        if not root.is_dir():
            return [(str(root), "")]
        found: dict[str, str] = {}
        # The shortest name first: `test.txt` before `test_with_comments.txt`.
        for file in sorted(root.iterdir(), key=lambda p: (len(p.name), p.name)):
            split = _SPLITS.get(re.split(r"[._-]", file.name)[0])
            if split is not None and file.is_file():
                found.setdefault(split, str(file))
        if "train" not in found:
            raise InputError(f"{root} has no file whose name begins with train: name the file")
        return [(path, split) for split, path in found.items()]

    def _count(self) -> int:
        greatest, parts = 0, self._parts()
        path = next((path for path, split in parts if split == "train"), parts[0][0])
        with TextSource(path).open() as file:
            for _ in range(1000):
                line = file.readline().partition(b"#")[0]
                greatest = max([greatest, *(int(n) for n in re.findall(rb"\s(\d+):", line))])
        if not greatest:
            raise InputError(
                f"{path} has no features in its first 1,000 lines: is it a file of "
                "lines 'grade qid:N 1:v 2:v ...'?"
            )
        return greatest

    def feature_spec(self) -> ListSpec:
        """See `Reader`."""
        return ListSpec(
            candidate=tuple(numeric(f"f{i}") for i in range(1, self.num_features + 1)),
            score=None if self.order_by is None else f"f{self.order_by}",
        )

    def files(self) -> list[str]:
        """See `Reader`."""
        return [path for path, _ in self._parts()]

    def shards(self) -> list[Shard]:
        """See `Reader`."""
        return [shard for path in self.files() for shard in TextSource(path).shards()]

    def _parsed(self, line: bytes) -> tuple[float, bytes, np.ndarray] | str:
        """Grade, query and features of a line, or what is wrong with it."""
        found = _LINE.match(line)
        if found is None:
            return "is not 'grade qid:N 1:v 2:v ...'"
        grade, query, rest = found.groups()
        values = np.zeros(self.num_features, np.float32)
        try:
            relevance = float(np.float32(float(grade)))
        except ValueError:
            return f"the grade is not a number: {grade.decode('utf-8', 'replace')}"
        if not 0 <= relevance < np.inf:
            return f"the grade is negative or not finite: {relevance:g}"
        for pair in rest.split():
            name, _, value = pair.partition(b":")
            number = int(name)
            where = f"query {query.decode('utf-8', 'replace')}: feature {number}"
            if not 1 <= number <= self.num_features:
                return f"{where} is beyond the {self.num_features} of data.options.num_features"
            try:
                values[number - 1] = float(value)
            except ValueError:
                return f"{where} is not a number: {value.decode('utf-8', 'replace')}"
            if not np.isfinite(values[number - 1]):
                return f"{where} is not finite: {value.decode('utf-8', 'replace')}"
        return relevance, query, values

    def read(self, shard: Shard) -> Iterator[pa.RecordBatch | CorruptLine]:
        """See `Reader`."""
        split = dict(self._parts())[shard.path]
        queries, items, grades, rows, places = [], [], [], [], []
        for i, line in enumerate(TextSource(shard.path).lines(shard)):
            content, _, comment = line.partition(b"#")
            if not content.strip():
                continue
            parsed = self._parsed(content)
            if isinstance(parsed, str):
                yield corrupt(shard, i, parsed, line)
                continue
            number = shard.first_line + i
            named = _DOCUMENT.search(comment)
            grades.append(parsed[0])
            queries.append(parsed[1])
            rows.append(parsed[2])
            items.append(named.group(1) if named else b"%s-%d" % (parsed[1], number))
            places.append(number)
        if not rows:
            return
        matrix = np.stack(rows)
        columns = {f"f{i + 1}": matrix[:, i] for i in range(self.num_features)}
        if self.order_by is not None:
            columns["score"] = matrix[:, self.order_by - 1]
        yield self.batch(
            query=pa.array(queries, pa.binary()),
            item=pa.array(items, pa.binary()),
            split=pa.array([split.encode()] * len(rows), pa.binary()),
            position=places,
            relevance=grades,
            **columns,
        )


class TabularDocuments(Tabular, DocumentReader):
    """A user's own file of lists.

    CSV and Parquet have a row per candidate; a TFRecord file has an `ExampleListWithContext` per
    query, as TF-Ranking writes them.

    Args:
      path: `*.csv[.gz]`, `*.tsv[.gz]`, `*.parquet` or `*.tfrecord[.gz]`.
      features: a YAML file as of `ListSpec`.
    """

    record_type = "list"

    def __init__(self, path: str, features: str) -> None:
        self._open(path)
        self.spec = from_mapping(ListSpec, read_yaml(features), features)

    @property
    def _multivalent(self) -> tuple[Feature, ...]:
        return ()

    @property
    def _names(self) -> list[str]:
        spec = self.spec
        keys = [n for n in (spec.query, spec.item, spec.relevance, spec.score) if n is not None]
        keys += [feature.name for feature in (*spec.candidate, *spec.context)]
        return list(dict.fromkeys(keys))

    def _row(self, raw: dict[str, list[Any]]) -> dict[str, Any] | str:
        spec, row = self.spec, {}
        for name, column in (("query", spec.query), ("item", spec.item)):
            if column is None:
                continue
            values = [v for v in raw[column] if v not in ("", b"")]
            if len(values) != 1:
                return f"{column} is missing" if not values else f"{column} has several values"
            row[name] = typed("string", values[0])
        for name, column in (("relevance", spec.relevance), ("score", spec.score)):
            if column is None:
                continue
            try:
                (row[name],) = (float(np.float32(float(value))) for value in raw[column])
            except (ValueError, TypeError):
                return f"{column} is not a number: {raw[column]!r:.40}"
            if not np.isfinite(row[name]) or (name == "relevance" and row[name] < 0):
                return f"{column} is {row[name]:g}"
        for feature in (*spec.candidate, *spec.context):
            values = raw[feature.name]
            where = f"query {row['query'].decode('utf-8', 'replace')}: {feature.name}"
            try:
                row[feature.name] = typed(feature.dtype, values[0]) if values else None
            except (ValueError, TypeError):
                return f"{where} is not {feature.dtype}: {values!r:.40}"
            value = row[feature.name]
            if isinstance(value, float) and not np.isfinite(value):
                return f"{where} is not finite: {value}"
        return row

    def _batch(self, rows: list[tuple[int, dict[str, Any]]]) -> pa.RecordBatch:
        columns: dict[str, list[Any]] = {"position": [number for number, _ in rows]}
        if self.spec.item is None:
            columns["item"] = [b"%d" % number for number, _ in rows]
        for name in self.schema.names:
            if name in rows[0][1]:
                columns[name] = [row[name] for _, row in rows]
        return self.batch(**columns)

    def _examples(self, shard: Shard) -> Iterator[tuple[int, dict[str, Any]] | CorruptLine]:
        import tensorflow as tf
        from tensorflow_serving.apis import input_pb2

        def values(example: Any, name: str) -> list[Any]:
            if name not in example.features.feature:
                return []
            stored = example.features.feature[name]
            kind = stored.WhichOneof("kind")
            return list(getattr(stored, kind).value) if kind else []

        compression = "GZIP" if self.path.endswith(".gz") else ""
        records = tf.data.TFRecordDataset(shard.path, compression_type=compression)
        try:
            for number, record in enumerate(records, start=1):
                try:
                    lists = input_pb2.ExampleListWithContext.FromString(record.numpy())
                except Exception:  # protobuf's DecodeError has a home in each implementation
                    yield CorruptLine(self.path, number, "is not an ExampleListWithContext", "")
                    continue
                for place, example in enumerate(lists.examples):
                    row = self._row(
                        {n: values(example, n) or values(lists.context, n) for n in self._names}
                    )
                    if isinstance(row, str):
                        yield CorruptLine(self.path, number, f"candidate {place + 1}: {row}", "")
                    else:
                        yield number * _CANDIDATES_A_RECORD + place, row
        except tf.errors.DataLossError as error:
            raise InputError(f"{self.path} is not a TFRecord file, or damaged") from error


class SimulatedDocuments(DocumentReader):
    """Graded lists of `SlateSimulator`, in the order of its base ranker.

    Args:
      queries: how many.
      length: documents of each.
      seed: of the world and of the draws.
    """

    name = "simulated"
    _QUERIES_A_SHARD = 2000

    def __init__(self, queries: int = 4000, length: int = 10, seed: int = 0) -> None:
        for name, value in (("queries", queries), ("length", length)):
            whole = isinstance(value, int) and value >= 1
            require(whole, f"data.options.{name}", "must be a whole number >= 1")
        self.queries, self.length, self.seed = queries, length, seed

    def feature_spec(self) -> ListSpec:
        """See `Reader`."""
        return ListSpec(candidate=tuple(numeric(f"f{i}") for i in range(1, NUM_FEATURES + 1)))

    def shards(self) -> list[Shard]:
        """See `Reader`."""
        starts = range(0, self.queries, self._QUERIES_A_SHARD)
        step = self._QUERIES_A_SHARD
        return [Shard("simulated", "", s, min(s + step, self.queries)) for s in starts]

    def read(self, shard: Shard) -> Iterator[pa.RecordBatch | CorruptLine]:
        """See `Reader`."""
        count = shard.end - shard.start
        drawn = SlateSimulator(self.seed).sample(
            count, self.length, seed=self.seed * 1_000_003 + shard.start
        )
        queries = np.repeat(np.arange(shard.start, shard.end), self.length)
        places = np.tile(np.arange(self.length), count)
        matrix = drawn["features"].reshape(-1, NUM_FEATURES).astype(np.float32)
        yield self.batch(
            query=pa.array([f"query_{q}" for q in queries]),
            item=pa.array([f"document_{q}_{i}" for q, i in zip(queries, places, strict=True)]),
            position=queries * self.length + places,
            relevance=drawn["grade"].ravel().astype(np.float32),
            **{f"f{i + 1}": matrix[:, i] for i in range(NUM_FEATURES)},
        )
