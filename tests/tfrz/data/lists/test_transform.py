"""Lists of a fixed length: normalisation within the list, padding, vocabularies; under TFT and not."""

from __future__ import annotations

import dataclasses
import functools
import json

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf

from tests.lazy import lazy
from tfrz.data.columns import raw_sparse
from tfrz.data.lists.spec import ListConfig, ListSpec
from tfrz.data.lists.transform import ListPreprocessor, normalized, preprocess_list
from tfrz.data.spec import MISSING_INT, Feature, numeric, raw_feature_spec
from tfrz.data.transform import densify, transform_table
from tfrz.export.raw_inputs import to_sparse

beam = lazy("apache_beam")
tft = lazy("tensorflow_transform")
tft_analyzers = lazy("tfrz.data.tft_analyzers")
tft_beam = lazy("tensorflow_transform.beam")

SPEC = ListSpec(
    candidate=(
        numeric("f1"),
        numeric("price", log_offset=1.0, standardize=True),
        Feature("brand"),
        Feature("shop", dtype="int64", vocabulary_size=2),
    ),
    context=(
        Feature("page"),
        Feature("hour", dtype="int64"),
        numeric("age", log_offset=0.0, standardize=True),
        numeric("load"),
    ),
)
CONFIG = ListConfig(length=4)
TYPES = {"string": pa.binary(), "int64": pa.int64(), "float32": pa.float32()}
NAN = float("nan")
HOW = pytest.mark.parametrize("how", ["standardize", "min_max", "none"])
LOGS = pytest.mark.parametrize("logs", [False, True], ids=["as they are", "logs"])


def _table(rows: list[dict]) -> pa.Table:
    columns = {f.name: f.dtype for f in SPEC.features} | {"relevance": "float32"}
    return pa.table(
        {
            name: pa.array([row.get(name, []) for row in rows], pa.list_(TYPES[dtype]))
            for name, dtype in columns.items()
        }
    )


def _random_rows(count: int = 120, longest: int = 4) -> list[dict]:
    rng, rows = np.random.default_rng(0), []
    for query in range(count):
        n = int(rng.integers(0, longest + 1))
        rows.append(
            {
                "candidates": [b"d%d" % i for i in rng.integers(0, 1000, n)],
                "f1": rng.choice([NAN, -3.0, 0.25, 8.0], n).tolist(),
                "price": rng.choice([NAN, -5.0, 0.5, 20.0], n).tolist(),
                "brand": rng.choice([b"", b"x", b"y", b"y"], n).tolist(),
                "shop": rng.choice([MISSING_INT, 3, 3, 7, 7, 7, 9], n).tolist(),
                "query": [b"q%d" % (query // 3)],
                "page": [[], [b"home"], [b"detail"]][int(rng.integers(3))],
                "hour": [int(rng.integers(3))],
                "age": [float(rng.exponential(30))],
                "load": [[], [NAN], [0.5]][int(rng.integers(3))],
                "relevance": rng.integers(0, 5, n).astype(float).tolist(),
            }
        )
    return rows


@functools.cache
def _fitted(config: ListConfig = CONFIG) -> ListPreprocessor:
    return ListPreprocessor.fit_examples(_table(_random_rows()), SPEC, config)


def _one(row: dict, config: ListConfig = CONFIG) -> dict[str, np.ndarray]:
    transformed = _fitted(config)(raw_sparse(_table([row]), SPEC), with_label=True)
    return {name: value.numpy()[0] for name, value in transformed.items()}


def _normal(values, config: ListConfig, valid=None) -> np.ndarray:
    """One feature of some lists, `[lists, length]`."""
    given = tf.constant(values, tf.float32)
    mask = tf.ones_like(given, tf.bool) if valid is None else tf.constant(valid)
    return normalized(given[..., None], mask, config).numpy()[..., 0]


def test_standardised_features_have_mean_0_and_deviation_1_in_their_list():
    found = _normal([[1.0, 2.0, 6.0], [100.0, 200.0, 600.0]], ListConfig())
    expected = (np.array([1.0, 2.0, 6.0]) - 3) / np.std([1, 2, 6])
    np.testing.assert_allclose(found, [expected, expected], rtol=1e-5)


def test_min_max_features_are_0_to_1_in_their_list():
    config = ListConfig(normalize="min_max")
    found = _normal([[-1.0, 3.0, 0.0], [10.0, 10.5, 11.0]], config)
    np.testing.assert_allclose(found, [[0, 1, 0.25], [0, 0.5, 1]], rtol=1e-6)


def test_without_normalisation_features_are_as_they_are():
    found = _normal([[-1.0, 3.0, NAN]], ListConfig(normalize="none"))
    np.testing.assert_array_equal(found, [[-1, 3, 0]])


def test_logarithms_keep_the_sign_and_come_before_normalisation():
    config = ListConfig(log_features=True, normalize="none")
    found = _normal([[-np.e + 1, 0.0, np.e**2 - 1]], config)
    np.testing.assert_allclose(found, [[-1, 0, 2]], atol=1e-6)
    config = ListConfig(log_features=True, normalize="min_max")
    found = _normal([[0.0, np.e - 1, np.e**2 - 1]], config)
    np.testing.assert_allclose(found, [[0, 0.5, 1]], atol=1e-6)


@LOGS
@pytest.mark.parametrize("how", ["standardize", "min_max"])
@pytest.mark.parametrize("value", [0.0, 0.1, 1e-8, -7.3, 1e8 + 8, 1e30])
def test_constant_features_and_single_candidates_are_0(how, logs, value):
    config = ListConfig(normalize=how, log_features=logs)
    for length in (1, 3, 7, 50):
        assert not _normal([[value] * length], config).any()
    # One candidate that is there, one that has a value.
    assert not _normal([[value, 5.0]], config, [[True, False]]).any()
    assert not _normal([[value, NAN, NAN]], config).any()


def test_nearly_constant_features_are_not_blown_up():
    value = np.float32(0.1)
    up = np.nextafter(value, np.float32(1))
    assert not _normal([[value, up, value]], ListConfig()).any()


@LOGS
@HOW
def test_missing_values_and_padding_are_0_and_do_not_count(how, logs):
    config = ListConfig(normalize=how, log_features=logs)
    found = _normal([[1.0, NAN, 5.0, 999.0]], config, [[True, True, True, False]])
    np.testing.assert_array_equal(found[0, [1, 3]], [0, 0])
    np.testing.assert_allclose(found[0, [0, 2]], _normal([[1.0, 5.0]], config)[0], rtol=1e-6)
    for nothing in (NAN, np.inf, -np.inf):
        assert not _normal([[nothing] * 3], config).any()


@LOGS
@HOW
def test_nan_never_comes_out(how, logs):
    config = ListConfig(normalize=how, log_features=logs)
    rng = np.random.default_rng(0)
    pool = [NAN, np.inf, -np.inf, 0.0, -0.0, 1e-45, 1e-38, 1.0, -1.0, 1e20, -1e20]
    values = rng.choice(np.array(pool, np.float32), (500, 5))
    assert np.isfinite(_normal(values, config, rng.random((500, 5)) < 0.8)).all()


@LOGS
@HOW
def test_nan_does_not_come_out_of_the_greatest_numbers(how, logs):
    config = ListConfig(normalize=how, log_features=logs)
    most = float(np.finfo(np.float32).max)
    values = [[most, -most, 0.0], [most, most, 1.0], [most, most, most], [most, -most, -most]]
    assert np.isfinite(_normal(values, config)).all()


def test_the_first_candidates_are_kept_and_the_rest_is_padding():
    long = {
        "candidates": [b"d%d" % i for i in range(6)],
        "f1": [1.0, 2.0, 3.0, 4.0, 1000.0, NAN],
        "brand": [b"x", b"", b"y", b"x", b"y", b"y"],
        "relevance": [0.0, 3.0, 0.0, 1.0, 4.0, 4.0],
    }
    short = {name: values[:4] for name, values in long.items()}
    seen, same = _one(long), _one(short)
    for name in seen:
        np.testing.assert_array_equal(seen[name], same[name])
    assert seen["mask_xf"].tolist() == [1, 1, 1, 1]
    assert seen["relevance_xf"].tolist() == [0, 3, 0, 1]
    two = _one({name: values[:2] for name, values in long.items()})
    assert two["mask_xf"].tolist() == [1, 1, 0, 0]
    np.testing.assert_allclose(two["features_xf"][:, 0], [-1, 1, 0, 0], atol=1e-5)
    assert two["brand_xf"].tolist() == [seen["brand_xf"][0], 0, 0, 0]
    empty = _one({})
    assert empty["features_xf"].shape == (4, 2)
    assert not any(np.any(value) for value in empty.values())


def test_labels_are_never_negative_or_missing():
    row = {"candidates": [b"a", b"b", b"c"], "relevance": [-1.0, NAN, 2.0]}
    assert _one(row)["relevance_xf"].tolist() == [0, 0, 2, 0]


def test_categories_of_candidates_and_of_the_request():
    row = {
        "candidates": [b"a", b"b", b"c", b"d"],
        "brand": [b"y", b"x", b"never seen", b""],
        "shop": [7, 3, 9, MISSING_INT],
        "page": [b"never seen"],
        "hour": [2],
        "query": [b"never asked"],
    }
    seen = _one(row)
    # By falling frequency; two shops have a place, the third is out of the vocabulary.
    assert seen["brand_xf"].tolist() == [1, 2, 3, 0]
    assert seen["shop_xf"].tolist() == [1, 2, 3, 0]
    assert seen["page_xf"] == 3 and 1 <= seen["hour_xf"] <= 3
    assert seen["query_xf"] == len(_fitted().vocabularies["query"]) + 1
    missing = _one({"candidates": [b"a"], "hour": [MISSING_INT]})
    assert missing["page_xf"] == missing["hour_xf"] == missing["query_xf"] == 0
    sizes = _fitted().vocabulary_sizes
    assert sizes == {"query_xf": 42, "brand_xf": 4, "shop_xf": 4, "page_xf": 4, "hour_xf": 5}


def test_categories_of_a_place_without_a_candidate_are_0():
    row = {"candidates": [b"a", b"", b"c"], "brand": [b"y", b"y", b"y"], "f1": [1.0, 50.0, 3.0]}
    seen = _one(row)
    assert seen["mask_xf"].tolist() == [1, 0, 1, 0]
    assert seen["brand_xf"].tolist() == [1, 0, 1, 0]
    np.testing.assert_allclose(seen["features_xf"][:, 0], [-1, 0, 1, 0], atol=1e-5)


def test_numeric_contexts_are_scaled_over_all_lists():
    ages = np.array([row["age"][0] for row in _random_rows()], np.float64)
    logs = np.log(ages)
    found = np.stack([_one({"age": [a], "load": [0.5]})["context_xf"] for a in (1.0, 30.0)])
    expected = (np.log([1.0, 30.0]) - logs.mean()) / logs.std()
    np.testing.assert_allclose(found[:, 0], expected, rtol=1e-4)
    np.testing.assert_allclose(found[:, 1], 0.5)
    for nothing in ({}, {"age": [NAN]}, {"age": [-1.0], "load": [NAN]}):
        assert _one(nothing)["context_xf"].tolist() == [0, 0]


def test_a_features_own_logarithm_counts_what_is_below_it_as_missing():
    row = {"candidates": [b"a", b"b", b"c"], "price": [0.0, -5.0, np.e**2 - 1]}
    seen = _one(row, dataclasses.replace(CONFIG, normalize="min_max"))
    np.testing.assert_allclose(seen["features_xf"][:, 1], [0, 0, 1, 0], atol=1e-5)


def test_lists_without_numbers_or_without_contexts_have_none():
    spec = ListSpec(candidate=(Feature("brand"),))
    table = pa.table(
        {
            "candidates": pa.array([[b"a", b"b"]]),
            "brand": pa.array([[b"x", b"y"]]),
            "query": pa.array([[b"q"]]),
            "relevance": pa.array([[1.0, 0.0]], pa.list_(pa.float32())),
        }
    )
    fitted = ListPreprocessor.fit_examples(table, spec, CONFIG)
    seen = transform_table(fitted, table)
    assert seen["features_xf"].shape == (1, 4, 0)
    assert seen.keys() == {"features_xf", "mask_xf", "brand_xf", "query_xf", "relevance_xf"}


def test_raw_tensors_with_padding_behind_are_the_same_list():
    fitted = _fitted()

    def features(ids: list[str], f1: list[float], brand: list[str]) -> dict[str, tf.Tensor]:
        width = len(ids)
        return {
            "candidates": tf.constant([ids]),
            "f1": tf.constant([f1]),
            "price": tf.constant([[1.0] * width]),
            "brand": tf.constant([brand]),
            "shop": tf.constant([[3] * width], tf.int64),
            "query": tf.constant(["q1"]),
            "page": tf.constant(["home"]),
            "hour": tf.constant([MISSING_INT], tf.int64),
            "age": tf.constant([NAN]),
            "load": tf.constant([NAN]),
        }

    raw = features(["a", "b"], [1.0, NAN], ["x", ""])
    padded = features(["a", "b", "", "", "", ""], [1.0, NAN, 7, 7, 7, 7], ["x", "", *"xxxx"])
    both = [densify(fitted(to_sparse(one, SPEC.aligned))) for one in (raw, padded)]
    assert both[0]["brand_xf"].numpy()[0].tolist() == [2, 0, 0, 0]
    for name in both[0]:
        np.testing.assert_array_equal(both[0][name], both[1][name])


def _transformed(rows: list[dict], folder, config: ListConfig):
    """Rows as TensorFlow Transform writes them, and its output."""
    metadata = tft.DatasetMetadata.from_feature_spec(raw_feature_spec(SPEC))
    with beam.Pipeline(runner="DirectRunner") as pipeline, tft_beam.Context(str(folder / "tmp")):
        given = pipeline | beam.Create(_table(rows).to_pylist())
        (data, _), function = (given, metadata) | tft_beam.AnalyzeAndTransformDataset(
            lambda inputs: preprocess_list(inputs, SPEC, config, tft_analyzers.TransformAnalyzers())
        )
        _ = function | tft_beam.WriteTransformFn(str(folder / "output"))
        _ = (
            data
            | beam.Map(lambda row: json.dumps({n: np.asarray(v).tolist() for n, v in row.items()}))
            | beam.io.WriteToText(str(folder / "rows"), shard_name_template="")
        )
    lines = (folder / "rows").read_text().splitlines()
    return [json.loads(line) for line in lines], tft.TFTransformOutput(str(folder / "output"))


@pytest.fixture(scope="module", params=["lists that fit", "lists that are cut"])
def by_transform(request, tmp_path_factory):
    longest = 4 if request.param == "lists that fit" else 9
    rows = _random_rows(longest=longest)
    if longest > 4:  # A brand that is only there beyond the length.
        rows[0] = {"candidates": [b"d"] * 6, "brand": [b"x"] * 5 + [b"far"], "query": [b"q0"]}
    folder = tmp_path_factory.mktemp("transform")
    return rows, *_transformed(rows, folder, CONFIG)


def _comparable(row: dict) -> tuple[str, list[float]]:
    """Whole numbers as text to sort by, and the others."""
    whole, others = {}, []
    for name in sorted(row):
        flat = np.atleast_1d(np.asarray(row[name], np.float64)).ravel()
        if name in ("features_xf", "context_xf"):
            others += flat.tolist()
        else:
            whole[name] = flat.tolist()
    return json.dumps([whole, np.round(others, 2).tolist()]), others


@pytest.mark.needs("tensorflow_transform")
def test_both_transforms_agree(by_transform):
    rows, theirs, output = by_transform
    table = _table(rows)
    fitted = ListPreprocessor.fit_examples(table, SPEC, CONFIG)
    ours = transform_table(fitted, table, batch_size=50)
    assert fitted.vocabulary_sizes == tft_analyzers.vocabulary_sizes_from_transform(output, SPEC)
    assert ours.keys() == theirs[0].keys()
    own = [_comparable({n: c[i] for n, c in ours.items()}) for i in range(table.num_rows)]
    for there, here in zip(sorted(map(_comparable, theirs)), sorted(own), strict=True):
        assert json.loads(there[0])[0] == json.loads(here[0])[0]
        np.testing.assert_allclose(there[1], here[1], rtol=1e-3, atol=1e-4)


@pytest.mark.needs("tensorflow_transform")
def test_the_transforms_graph_answers_without_a_label(by_transform):
    _, _, output = by_transform
    raw = tf.io.parse_example([b"", b""], raw_feature_spec(SPEC, label=False))
    features = output.transform_features_layer()(dict(raw))
    assert "relevance_xf" not in features
    assert features["features_xf"].shape == (2, 4, 2)
    assert not features["mask_xf"].numpy().any()
