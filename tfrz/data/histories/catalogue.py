"""The catalogue: the items that may be recommended, and their features.

Its table has one row per item: the raw id (binary), and a column of lists for each feature, as for
impressions.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tfrz.config import from_mapping, to_mapping
from tfrz.data.columns import one_each, whole
from tfrz.data.histories.spec import CandidateSpec
from tfrz.data.impressions.spec import FeatureSpec
from tfrz.data.impressions.transform import ImpressionPreprocessor
from tfrz.data.transform import transform_table
from tfrz.errors import InputError

_SPEC = b"tfrz.candidates"


@dataclasses.dataclass(frozen=True)
class Catalogue:
    """Items and their features.

    Attributes:
      spec: Spec of the columns.
      table: One row per item, see the module's docstring.

    Raises:
      InputError: An item has no id, or occurs twice.
    """

    spec: CandidateSpec
    table: pa.Table

    def __post_init__(self) -> None:
        ids = self._ids
        if not len(ids):
            raise InputError("the catalogue is empty: nothing can be recommended")
        empty = pc.or_kleene(pc.is_null(ids), pc.equal(pc.binary_length(ids), 0))
        if pc.any(empty).as_py():
            row = int(np.flatnonzero(np.asarray(empty.to_numpy(zero_copy_only=False)))[0])
            raise InputError(f"row {row + 1} of the catalogue has no {self.spec.item}")
        counted = pc.value_counts(ids)
        twice = counted.field("values").filter(pc.greater(counted.field("counts"), 1))
        if len(twice):
            name = twice[0].as_py().decode("utf-8", "backslashreplace")
            more = f", and {len(twice) - 1} others are" if len(twice) > 1 else ""
            raise InputError(f"item {name!r} is in the catalogue twice{more}: keep one row of each")

    @property
    def _ids(self) -> pa.Array:
        return whole(self.table[self.spec.item]).cast(pa.binary())

    @property
    def items(self) -> list[bytes]:
        """Raw ids, in the order of the rows."""
        return list(self._ids.to_pylist())

    @classmethod
    def of_items(cls, items: list[bytes]) -> Catalogue:
        """Returns a catalogue without features."""
        return cls(CandidateSpec(), pa.table({"item": pa.array(items, pa.binary())}))

    def rows_of(self, items: list[bytes]) -> NDArray[Any]:
        """Returns the row of each item; -1 for items that are not in the catalogue."""
        index = {item: row for row, item in enumerate(self.items)}
        return np.array([index.get(item, -1) for item in items], np.int64)

    def check_match(self, items: Sequence[str]) -> None:
        """Checks that the catalogue lists the items of the training events.

        Args:
          items: The vocabulary of the events.

        Raises:
          InputError: Too few of them are in it: the ids are written differently, or the file
            belongs to other events.
        """
        unknown = [item for item, row in zip(items, self._rows(items), strict=True) if row < 0]
        share = 1 - len(unknown) / max(len(items), 1)
        if not items or share >= self.spec.min_match:
            return
        known = set(items)
        listed = (item.decode("utf-8", "backslashreplace") for item in self.items)
        others = list(itertools.islice((item for item in listed if item not in known), 3))
        raise InputError(
            f"the catalogue lists {share:.1%} of the {len(items):,} items of the training events: "
            f"it has ids such as {_quoted(others)}, the events have {_quoted(unknown[:3])}; make "
            "them equal, or lower candidates.min_match in the feature spec"
        )

    def _rows(self, items: Sequence[str]) -> NDArray[Any]:
        return self.rows_of([item.encode() for item in items])

    def write(self, path: str | Path) -> None:
        """Writes a Parquet file for `read`."""
        metadata = {_SPEC: json.dumps(to_mapping(self.spec)).encode()}
        pq.write_table(self.table.replace_schema_metadata(metadata), str(path))

    @classmethod
    def read(cls, path: str | Path) -> Catalogue:
        """Reads a file of `write`.

        Raises:
          InputError: The file was not written by `write`.
        """
        try:
            table = pq.read_table(str(path))
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{path} is not a Parquet file: {error}") from error
        text = (table.schema.metadata or {}).get(_SPEC)
        if text is None:
            raise InputError(f"{path} is not a catalogue that tfrz wrote")
        return cls(from_mapping(CandidateSpec, json.loads(text), str(path)), table)


def _quoted(items: Sequence[str]) -> str:
    return ", ".join(repr(item) for item in items) or "none"


def feature_spec(spec: CandidateSpec) -> FeatureSpec:
    """Returns the features of a catalogue as a spec of impressions with an unused label."""
    return FeatureSpec(spec.features, label=f"_{spec.item}")


class CandidateFeatures:
    """Transformed features of the items of a catalogue.

    Args:
      catalogue: A catalogue with at least one feature; the transform is fitted to it.

    Attributes:
      transform: The fitted transform of raw sparse features.
    """

    def __init__(self, catalogue: Catalogue) -> None:
        self.spec = feature_spec(catalogue.spec)
        self.transform = ImpressionPreprocessor.fit(catalogue.table, self.spec)
        labelled = catalogue.table.append_column(
            self.spec.label, one_each(np.zeros(catalogue.table.num_rows), "float32")
        )
        columns = transform_table(self.transform, labelled)
        columns.pop(f"{self.spec.label}_xf")
        self._columns = columns

    def columns(self, rows: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Returns the transformed features of some rows; -1 gives zeros, as if all were missing."""
        taken = {}
        for name, column in self._columns.items():
            values = column[np.maximum(rows, 0)].copy()
            values[rows < 0] = 0
            taken[name] = values
        return taken

    @property
    def shapes(self) -> dict[str, Any]:
        """Number of ids (`categorical`), width (`multivalent`) and name (`numeric`) of features."""
        names = {f.name: f"{f.name}_xf" for f in self.spec.features}
        return {
            "categorical": self.transform.vocabulary_sizes,
            "multivalent": {
                names[f.name]: int(self._columns[names[f.name]].shape[1])
                for f in self.spec.multivalent
            },
            "numeric": tuple(names[f.name] for f in self.spec.numeric),
        }
