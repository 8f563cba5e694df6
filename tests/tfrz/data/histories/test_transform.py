"""Histories of a fixed length: alignment, padding, vocabulary, time; under TFT and not."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf

from tests.lazy import lazy
from tfrz.data.histories.spec import HistoryConfig, HistorySpec
from tfrz.data.histories.transform import HistoryPreprocessor, preprocess_history
from tfrz.data.spec import MISSING_INT, Feature, numeric, raw_feature_spec
from tfrz.data.transform import densify, transform_table
from tfrz.export.raw_inputs import to_sparse

beam = lazy("apache_beam")
tft = lazy("tensorflow_transform")
tft_analyzers = lazy("tfrz.data.tft_analyzers")
tft_beam = lazy("tensorflow_transform.beam")

SPEC = HistorySpec(
    context=(
        Feature("page"),
        Feature("shop", dtype="int64"),
        numeric("price", log_offset=1.0, standardize=True),
    )
)
CONFIG = HistoryConfig(length=4, time_features=("gap", "hour", "weekday"))
TYPES = {"string": pa.binary(), "int64": pa.int64(), "float32": pa.float32()}


def _table(rows: list[dict]) -> pa.Table:
    columns = {f.name: f.dtype for f in SPEC.features} | {"target": "string"}
    return pa.table(
        {
            name: pa.array([row.get(name, []) for row in rows], pa.list_(TYPES[dtype]))
            for name, dtype in columns.items()
        }
    )


def _random_rows(count: int = 120) -> list[dict]:
    rng, rows = np.random.default_rng(0), []
    for _ in range(count):
        events = int(rng.integers(0, 7))
        start = int(rng.integers(1_000_000_000, 1_700_000_000))
        times = start + np.cumsum(rng.integers(0, 10 ** int(rng.integers(1, 8)), events + 1))
        pages = [b"", b"home", b"detail", b"cart"]
        rows.append(
            {
                "history": [b"i%d" % i for i in rng.integers(0, 30, events)],
                "target": [b"i%d" % rng.integers(0, 30)],
                "history_time": times[:-1].tolist(),
                "request_time": times[-1:].tolist(),
                "history_page": [pages[i] for i in rng.integers(0, 4, events)],
                "page": [pages[int(rng.integers(4))]],
                "history_shop": rng.choice([MISSING_INT, 3, 7], events).tolist(),
                "shop": [int(rng.choice([MISSING_INT, 3, 7]))],
                "history_price": rng.choice([np.nan, 0.5, 20.0], events).tolist(),
                "price": [float(rng.exponential(9))],
            }
        )
    return rows


def _one(row: dict, config: HistoryConfig = CONFIG) -> dict[str, np.ndarray]:
    fitted = HistoryPreprocessor.fit_examples(_table(_random_rows()), SPEC, config)
    return {name: value[0] for name, value in transform_table(fitted, _table([row])).items()}


def _ids(*terms: bytes) -> list[int]:
    fitted = HistoryPreprocessor.fit_examples(_table(_random_rows()), SPEC, CONFIG)
    known = {term: i for i, term in enumerate(fitted.vocabularies["item"], start=1)}
    return [known.get(term.decode(), len(known) + 1) for term in terms]


def test_the_newest_events_are_kept_and_padding_is_on_its_side():
    long = {"history": [b"i%d" % i for i in range(6)], "target": [b"i9"]}
    expected = _ids(b"i2", b"i3", b"i4", b"i5")
    assert _one(long)["history_xf"].tolist() == expected
    assert _one(long)["seen_xf"].tolist() == _ids(*long["history"])
    short = {"history": [b"i1", b"i2"]}
    ids = _ids(b"i1", b"i2")
    assert _one(short)["history_xf"].tolist() == [*ids, 0, 0]
    assert _one(short)["mask_xf"].tolist() == [1, 1, 0, 0]
    left = dataclasses.replace(CONFIG, padding="left")
    assert _one(short, left)["history_xf"].tolist() == [0, 0, *ids]
    assert _one(short, left)["mask_xf"].tolist() == [0, 0, 1, 1]
    empty = _one({})
    assert not empty["mask_xf"].any() and empty["target_xf"] == 0
    assert _one({"history": [b"never seen"]})["history_xf"].tolist() == [*_ids(b"?"), 0, 0, 0]


def test_contexts_stay_beside_their_events():
    row = {
        "history": [b"i1", b"", b"i2"],  # The event without an item goes, with its context.
        "history_page": [b"home", b"cart", b""],
        "page": [b"detail"],
        "history_price": [20.0, 20.0, np.nan],
    }
    seen = _one(row)
    pages = {"home": _one({**row, "page": [b"home"]})["page_xf"], "missing": 0}
    assert seen["history_page_xf"].tolist() == [pages["home"], pages["missing"], 0, 0]
    assert seen["mask_xf"].tolist() == [1, 1, 0, 0]
    assert seen["history_price_xf"][0] != 0 and not seen["history_price_xf"][1:].any()
    # A context that is known of the newest events alone.
    row = {"history": [b"i1", b"i2", b"i3"], "history_page": [b"home"]}
    assert _one(row)["history_page_xf"].tolist() == [0, 0, pages["home"], 0]


def test_contexts_of_time():
    sunday = 3 * 86400 + 5 * 3600  # 1970-01-04, 05:00.
    row = {
        "history": [b"i1", b"i2", b"i3"],
        "history_time": [sunday, sunday + 8, sunday + 8 + 95],
        "request_time": [sunday + 86400 * 365],
    }
    seen = _one(row)
    assert seen["history_gap_xf"].tolist() == [0, 1, 2, 0]  # None, under 10 s, under 100 s.
    assert seen["gap_xf"] == 8  # A year: the last bucket.
    assert seen["history_hour_xf"].tolist() == [6, 6, 6, 0]
    assert seen["history_weekday_xf"].tolist() == [7, 7, 7, 0]
    assert seen["weekday_xf"] == 1  # Monday, a year on.
    unknown = _one({"history": [b"i1"]})
    assert [unknown[n] for n in ("gap_xf", "hour_xf", "weekday_xf")] == [0, 0, 0]


def test_raw_tensors_padded_on_either_side_are_the_same_history():
    fitted = HistoryPreprocessor.fit_examples(_table(_random_rows()), SPEC, CONFIG)

    def features(history: list[str], page: list[str]) -> dict[str, tf.Tensor]:
        width = len(history)
        return {
            "history": tf.constant([history]),
            "history_time": tf.constant([[5] * width], tf.int64),
            "request_time": tf.constant([9], tf.int64),
            "history_page": tf.constant([page]),
            "page": tf.constant(["home"]),
            "history_shop": tf.constant([[3] * width], tf.int64),
            "shop": tf.constant([MISSING_INT], tf.int64),
            "history_price": tf.constant([[1.0] * width]),
            "price": tf.constant([float("nan")]),
        }

    both = [
        densify(fitted(to_sparse(features(*lists), SPEC.aligned)))
        for lists in (
            (["i1", "i2", "", ""], ["", "home", "", ""]),
            (["", "i1", "i2"], ["cart", "", "home"]),
        )
    ]
    for name in set(both[0]) - {"seen_xf"}:
        np.testing.assert_array_equal(both[0][name], both[1][name])
    seen = [sorted(one["seen_xf"].numpy()[0].tolist()) for one in both]
    assert [i for i in seen[0] if i] == [i for i in seen[1] if i] == sorted(_ids(b"i1", b"i2"))
    assert both[0]["history_xf"].numpy()[0].tolist() == [*_ids(b"i1", b"i2"), 0, 0]


@pytest.fixture(scope="module")
def by_transform(tmp_path_factory):
    """Rows as TensorFlow Transform writes them, and its output."""
    folder = tmp_path_factory.mktemp("transform")
    metadata = tft.DatasetMetadata.from_feature_spec(raw_feature_spec(SPEC))
    with beam.Pipeline(runner="DirectRunner") as pipeline, tft_beam.Context(str(folder / "tmp")):
        rows = pipeline | beam.Create(_table(_random_rows()).to_pylist())
        (data, _), function = (rows, metadata) | tft_beam.AnalyzeAndTransformDataset(
            lambda inputs: preprocess_history(
                inputs, SPEC, CONFIG, tft_analyzers.TransformAnalyzers()
            )
        )
        _ = function | tft_beam.WriteTransformFn(str(folder / "output"))
        _ = (
            data
            | beam.Map(lambda row: json.dumps({n: np.asarray(v).tolist() for n, v in row.items()}))
            | beam.io.WriteToText(str(folder / "rows"), shard_name_template="")
        )
    rows = [json.loads(line) for line in (folder / "rows").read_text().splitlines()]
    return rows, tft.TFTransformOutput(str(folder / "output"))


def _comparable(row: dict) -> tuple[str, list[float]]:
    """Whole numbers as text to sort by, and the prices."""
    whole, prices = {}, []
    for name in sorted(row):
        flat = np.atleast_1d(np.asarray(row[name], np.float64))
        if "price" in name:
            prices += flat.tolist()
        else:
            whole[name] = (flat[flat != 0] if name == "seen_xf" else flat).tolist()
    return json.dumps(whole), prices


@pytest.mark.needs("tensorflow_transform")
def test_both_transforms_agree(by_transform):
    rows, output = by_transform
    table = _table(_random_rows())
    fitted = HistoryPreprocessor.fit_examples(table, SPEC, CONFIG)
    ours = transform_table(fitted, table, batch_size=50)
    own = [
        _comparable({name: column[i] for name, column in ours.items()})
        for i in range(table.num_rows)
    ]
    for theirs, here in zip(sorted(map(_comparable, rows)), sorted(own), strict=True):
        assert theirs[0] == here[0]
        np.testing.assert_allclose(theirs[1], here[1], rtol=1e-3, atol=1e-4)
    assert fitted.vocabulary_sizes == tft_analyzers.vocabulary_sizes_from_transform(output, SPEC)


@pytest.mark.needs("tensorflow_transform")
def test_the_transforms_graph_answers_without_a_target(by_transform):
    _, output = by_transform
    spec = raw_feature_spec(SPEC, label=False)
    raw = tf.io.parse_example([b"", b""], spec)
    features = output.transform_features_layer()(dict(raw))
    assert "target_xf" not in features
    assert features["history_xf"].shape == (2, 4)
    assert not features["mask_xf"].numpy().any()
