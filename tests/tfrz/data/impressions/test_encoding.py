"""Batch by batch, in memory or in files, the encoder gives what the transform gives at once."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from tests.tfrz.data.impressions.test_transform import SPEC, _table
from tfrz.data.impressions import encoding
from tfrz.data.impressions.encoding import coded, encode, encoded_in
from tfrz.data.impressions.transform import ImpressionPreprocessor
from tfrz.data.splits import SplitPlan, split_rows
from tfrz.data.transform import transform_table


def _parts(table: pa.Table, rows: int):
    for start in range(0, table.num_rows, rows):
        some = table.slice(start, rows)
        yield (coded(some, SPEC) if start % 2 else some), split_rows(some, SplitPlan((0.2, 0.2), 0))


@pytest.fixture(scope="module")
def expected():
    """The transform of `tfrz.data.impressions.transform`, fitted to the training rows."""
    table = _table()
    rows = split_rows(table, SplitPlan((0.2, 0.2), 0))
    parts = {split: table.take(pa.array(some)) for split, some in rows.items()}
    transform = ImpressionPreprocessor.fit(parts["train"], SPEC)
    return transform, {s: transform_table(transform, part) for s, part in parts.items()}


@pytest.mark.parametrize("rows", [7, 64, 1000])
@pytest.mark.parametrize("group", [16, 1 << 16])
@pytest.mark.parametrize("on_disk", [False, True])
def test_it_equals_the_transform(tmp_path, monkeypatch, expected, rows, group, on_disk):
    monkeypatch.setattr(encoding, "GROUP_ROWS", group)
    transform, columns = expected
    directory = tmp_path / "cache" if on_disk else None
    found = encode(SPEC, _parts(_table(), rows), directory, lambda: 3)
    if directory is not None:
        found = encoded_in(directory, SPEC)
    assert found.left_out == 3
    assert found.fitted.transform.vocabularies == transform.vocabularies
    for name, (mean, variance) in transform._moments.items():
        assert found.fitted.transform._moments[name] == pytest.approx((mean, variance), rel=1e-6)
    for split, wanted in columns.items():
        some = found.sets[split]
        assert some.num_examples == len(wanted["label_xf"])
        assert all(batch.num_rows == group for batch in some.batches[:-1])
        got = found.fitted.columns(some.table(), some.widths)
        assert got.keys() == wanted.keys()
        for name, column in wanted.items():
            assert got[name].dtype == column.dtype and got[name].shape == column.shape, name
            # The last digit of a logarithm depends on the place in the batch.
            tolerance = 1e-5 if column.dtype == np.float32 else 0
            np.testing.assert_allclose(
                got[name], column, rtol=tolerance, atol=tolerance, err_msg=f"{split} {name}"
            )
    assert len(found.examples) == len(columns["validation"]["label_xf"])


def test_a_folder_without_a_whole_result_counts_for_nothing(tmp_path):
    directory = tmp_path / "cache"
    assert encoded_in(directory, SPEC) is None

    def stopped():
        yield from list(_parts(_table(), 100))[:2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode(SPEC, stopped(), directory)
    assert encoded_in(directory, SPEC) is None
    encode(SPEC, _parts(_table(), 100), directory)
    assert encoded_in(directory, SPEC) is not None
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
