"""TensorFlow Transform under Beam and the in-process preprocessor give the same numbers."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf

from tests.lazy import lazy
from tfrz.data.columns import raw_sparse
from tfrz.data.impressions.spec import FeatureSpec
from tfrz.data.impressions.transform import ImpressionPreprocessor, preprocess
from tfrz.data.spec import Feature, numeric, raw_feature_spec
from tfrz.data.transform import densify, transform_table

beam = lazy("apache_beam")
tft = lazy("tensorflow_transform")
tft_analyzers = lazy("tfrz.data.tft_analyzers")
tft_beam = lazy("tensorflow_transform.beam")

SPEC = FeatureSpec(
    (
        numeric("row"),
        Feature("city"),
        Feature("rare", min_count=3, oov_buckets=4),
        Feature("top", vocabulary_size=5),
        Feature("code", dtype="int64"),
        Feature("tags", multivalent=True),
        numeric("price", log_offset=1.0, standardize=True),
        numeric("age", standardize=True),
        numeric("clicks", log_offset=4.0),
    )
)
ROWS = 300


def _table() -> pa.Table:
    rng = np.random.default_rng(3)
    words = ["", "a", "b", "B", "zü", "日本", "two words", "line\nbreak", *map(str, range(9))]

    def word():
        return words[min(int(rng.exponential(3)), len(words) - 1)].encode()

    def some(make):
        return [make()] if rng.random() > 0.2 else []

    columns: dict[str, list] = {f.name: [] for f in SPEC.features}
    columns["label"] = []
    for i in range(ROWS):
        columns["row"].append([float(i)])
        for name in ("city", "rare", "top"):
            columns[name].append(some(word))
        columns["code"].append(some(lambda: int(rng.integers(-3, 9))))
        columns["tags"].append([word() for _ in range(int(rng.integers(0, 4)))])
        columns["price"].append(some(lambda: float(rng.exponential(50) - 2)))
        columns["age"].append(some(lambda: float(rng.normal(40, 9))))
        columns["clicks"].append(some(lambda: float(rng.integers(-5, 99))))
        columns["label"].append([float(rng.random() < 0.3)])
    types = {"string": pa.binary(), "int64": pa.int64(), "float32": pa.float32()}
    kinds = {f.name: f.dtype for f in SPEC.features} | {"label": "float32"}
    return pa.table({n: pa.array(v, pa.list_(types[kinds[n]])) for n, v in columns.items()})


@pytest.fixture(scope="module")
def by_transform(tmp_path_factory):
    """Rows as TensorFlow Transform writes them, and its output."""
    folder = tmp_path_factory.mktemp("transform")
    metadata = tft.DatasetMetadata.from_feature_spec(raw_feature_spec(SPEC))
    with beam.Pipeline(runner="DirectRunner") as pipeline, tft_beam.Context(str(folder / "tmp")):
        rows = pipeline | beam.Create(_table().to_pylist())
        (data, _), function = (rows, metadata) | tft_beam.AnalyzeAndTransformDataset(
            lambda inputs: preprocess(inputs, SPEC, tft_analyzers.TransformAnalyzers())
        )
        _ = function | tft_beam.WriteTransformFn(str(folder / "output"))
        _ = (
            data
            | beam.Map(lambda row: json.dumps({n: np.asarray(v).tolist() for n, v in row.items()}))
            | beam.io.WriteToText(str(folder / "rows"), shard_name_template="")
        )
    rows = [json.loads(line) for line in (folder / "rows").read_text().splitlines()]
    rows.sort(key=lambda row: row["row_xf"])
    return rows, tft.TFTransformOutput(str(folder / "output"))


@pytest.mark.needs("tensorflow_transform")
@pytest.mark.parametrize("feature", [f.name for f in SPEC.features] + ["label"])
def test_both_transforms_agree(feature, by_transform):
    rows, _ = by_transform
    table = _table()
    ours = transform_table(ImpressionPreprocessor.fit(table, SPEC), table, batch_size=128)
    name = f"{feature}_xf"
    assert len(rows) == len(ours[name]) == ROWS
    for theirs, own in zip(rows, ours[name], strict=True):
        if feature == "tags":
            assert theirs[name] == [i for i in own.tolist() if i]
        else:
            np.testing.assert_allclose(theirs[name], own, rtol=1e-5, atol=1e-6)


@pytest.mark.needs("tensorflow_transform")
def test_both_count_the_same_ids(by_transform):
    _, output = by_transform
    fitted = ImpressionPreprocessor.fit(_table(), SPEC)
    assert fitted.vocabulary_sizes == tft_analyzers.vocabulary_sizes_from_transform(output, SPEC)


def test_the_contract_of_ids():
    spec = FeatureSpec((Feature("city", oov_buckets=2), numeric("n", log_offset=4.0)))
    column = [[b"x"], [b"y"], [b"y"], []]
    table = pa.table(
        {
            "city": pa.array(column, pa.list_(pa.binary())),
            "n": pa.array([[-4.0], [-3.0], [0.0], []], pa.list_(pa.float32())),
            "label": pa.array([[1.0]] * 4, pa.list_(pa.float32())),
        }
    )
    fitted = ImpressionPreprocessor.fit(table, spec)
    seen = transform_table(fitted, table)
    assert seen["city_xf"].tolist() == [2, 1, 1, 0]  # y is more frequent; 0 is missing
    np.testing.assert_allclose(seen["n_xf"], [0, 0, np.log(4.0), 0], rtol=1e-6)
    assert fitted.vocabulary_sizes == {"city_xf": 5}
    unseen = table.set_column(0, "city", pa.array([[b"q"]] * 4, pa.list_(pa.binary())))
    raw = raw_sparse(unseen, spec)
    ids = densify(fitted(raw, with_label=True))["city_xf"].numpy()
    assert set(ids.tolist()) <= {3, 4}


def test_a_preprocessor_survives_a_saved_model(tmp_path):
    table = _table()
    module = ImpressionPreprocessor.fit(table, SPEC)
    raw = raw_sparse(table, SPEC)

    @tf.function(
        input_signature=[{n: tf.SparseTensorSpec([None, None], v.dtype) for n, v in raw.items()}]
    )
    def transform(values):
        return densify(module(values, with_label=True))

    module.transform = transform
    expected = transform(raw)
    tf.saved_model.save(module, str(tmp_path / "m"))
    loaded = tf.saved_model.load(str(tmp_path / "m")).transform(raw)
    for name, value in expected.items():
        np.testing.assert_array_equal(loaded[name], value)
