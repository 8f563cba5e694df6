"""Graded documents in the format of LETOR, MSLR and SVMlight, as lists."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from typing_extensions import override

from tfrz.config import require
from tfrz.data.lists.readers import DocumentReader
from tfrz.data.lists.spec import ListSpec
from tfrz.data.sources.files import CorruptLine, Shard, TextSource, corrupt
from tfrz.data.spec import numeric
from tfrz.errors import InputError

_LINE = re.compile(rb"^\s*(\S+)\s+qid:(\S+)((?:\s+\d+:\S+)*)\s*$")

_DOCUMENT = re.compile(rb"docid\s*=\s*(\S+)")

_SPLITS = {"train": "train", "vali": "validation", "valid": "validation", "test": "test"}


class Letor(DocumentReader):
    """Documents in the format of LETOR, MSLR and SVMlight: `grade qid:N 1:v 2:v ... # docid = D`.

    In a folder, files whose names begin with train, vali and test are the splits; a single file is
    split by query. Features missing from a line are 0.

    Args:
      path: The folder or file, plain, `.gz` or `.xz`.
      num_features: Number of features; by default the largest in the first 1,000 lines.
      order_by: Number of the feature that is the base ranker's score, the highest first; by default
        the order of the lines.
    """

    name = "letor"

    def __init__(
        self, path: str, num_features: int | None = None, order_by: int | None = None
    ) -> None:
        self.path = path
        self.num_features = self._count() if num_features is None else num_features
        require(self.num_features >= 1, "data.options.num_features", "must be at least 1")
        require(
            order_by is None or 1 <= order_by <= self.num_features,
            "data.options.order_by",
            f"must be the number of a feature, 1 to {self.num_features}",
        )
        self.order_by = order_by

    def _parts(self) -> list[tuple[str, str]]:
        """Returns the files with their splits."""
        root = Path(self.path)
        if not root.exists():
            raise InputError(f"{root} does not exist: check the path given to --data")
        if not root.is_dir():
            return [(str(root), "")]
        found: dict[str, str] = {}
        # Shortest name first, so that `test.txt` precedes `test_with_comments.txt`.
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

    @override
    def feature_spec(self) -> ListSpec:
        return ListSpec(
            candidate=tuple(numeric(f"f{i}") for i in range(1, self.num_features + 1)),
            score=None if self.order_by is None else f"f{self.order_by}",
        )

    @override
    def files(self) -> list[str]:
        return [path for path, _ in self._parts()]

    @override
    def shards(self) -> list[Shard]:
        return [shard for path in self.files() for shard in TextSource(path).shards()]

    def _parsed(self, line: bytes) -> tuple[float, bytes, NDArray[Any]] | str:
        """Parses grade, query and features of a line; returns the reason if that fails."""
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

    @override
    def read(self, shard: Shard) -> Iterator[pa.RecordBatch | CorruptLine]:
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
