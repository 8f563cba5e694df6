"""DV365 itself: what a user's vectors depend on and what not, on either Keras."""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfrz.config import from_mapping, to_mapping
from tfrz.errors import ConfigError
from tfrz.models.dv365 import DV365, DV365Config

# Of X; tables lie across each other.
TABLES = {"liked": (0, 3), "seen": (2,), "skipped": (4, 1)}
KINDS = {"liked": "topic", "seen": "item", "skipped": "topic"}
SIZES = {"topic": 7, "item": 11}
DESCRIBED = ("item", "topic")
CANDIDATES, TASKS, SLICES = 3, 2, 5
SMALL = {"dim": 6, "candidate_dim": 4, "num_heads": 2, "hidden_units": [5], "embedding_scale": 1.0}
ENCODERS = {
    "both": ({}, 2 + 4),
    "over tokens": ({"attend_over": "tokens", "layers_per_block": 2}, 2 + 4),
    "funnel": ({"encoder": "funnel", "funnel_blocks": 1, "stride": 3}, 2),
    "linear": ({"encoder": "linear", "linear_outputs": 3}, 3),
}
encoders = pytest.mark.parametrize("encoder", ENCODERS)


def _model(values: dict | None = None, tables=TABLES, **arguments) -> DV365:
    keras.utils.set_random_seed(3)
    config = from_mapping(DV365Config, {**SMALL, **(values or {})}, "model")
    given = {"recent": True, "num_tasks": TASKS, **arguments}
    model = DV365(config, tables, KINDS, SIZES, CANDIDATES, DESCRIBED, **given)
    rng = np.random.default_rng(5)
    # Biases too, so that nothing hides behind a zero.
    model.set_weights([w + 0.1 * rng.normal(size=w.shape) for w in model.get_weights()])
    return model


def _named(encoder: str, **arguments) -> DV365:
    return _model(ENCODERS[encoder][0], **arguments)


def _lists(tables=TABLES) -> dict[str, tuple[int, int]]:
    """Each list's places and ids."""
    lists = {f"slices_{name}": (len(of), SIZES[KINDS[name]]) for name, of in tables.items()}
    for kind in DESCRIBED:
        lists[f"candidate_{kind}"] = (CANDIDATES, SIZES[kind])
        lists[f"recent_{kind}"] = (1, SIZES[kind])
    return lists


def _batch(rows: int = 4, entries: int = 8, seed: int = 0, empty: int = 0) -> dict[str, np.ndarray]:
    """Random lists; those of the first rows hold no slices."""
    rng, batch = np.random.default_rng(seed), {}
    for name, (places, ids) in _lists().items():
        shape = (rows, entries)
        batch[f"{name}_ids_xf"] = rng.integers(1, ids, shape)
        batch[f"{name}_places_xf"] = rng.integers(0, places, shape)
        batch[f"{name}_weights_xf"] = rng.uniform(0.5, 2, shape).astype("float32")
        if name.startswith("slices_"):
            batch[f"{name}_ids_xf"][:empty] = 0
    return batch


def _tensors(batch: dict[str, np.ndarray]) -> dict[str, tf.Tensor]:
    return {name: tf.constant(value) for name, value in batch.items()}


def _vectors(model: DV365, batch: dict) -> np.ndarray:
    return model.encode(model.pool(_tensors(batch))[0]).numpy()


# Shapes.


@encoders
@pytest.mark.parametrize("recent", [True, False])
def test_shapes(encoder, recent):
    model = _named(encoder, recent=recent)
    batch = _tensors(_batch())
    outputs = model(batch)
    assert outputs.shape == (4, CANDIDATES, TASKS)
    assert outputs.dtype == tf.float32
    shapes = {name: tuple(value.shape) for name, value in batch.items()}
    assert model.compute_output_shape(shapes) == (4, CANDIDATES, TASKS)
    pooled, totals = model.pool(batch)
    assert pooled.shape == (4, SLICES, 6)
    assert totals.shape == (4, SLICES)
    assert model.num_slices == SLICES
    assert model.num_vectors == ENCODERS[encoder][1]
    assert model.encode(pooled).shape == (4, model.num_vectors, 6)
    assert np.isfinite(outputs.numpy()).all()


def test_the_papers_shape_is_58_vectors():
    tables = {"liked": tuple(range(200))}
    config = DV365Config(dim=4, linear_outputs=8, hidden_units=())
    model = DV365(config, tables, KINDS, SIZES, 1, ("item",))
    assert (model.num_slices, model.num_vectors) == (200, 58)
    assert model.encode(tf.zeros([2, 200, 4])).shape == (2, 58, 4)


@encoders
def test_mixed_precision_answers_in_float32_and_is_close(encoder):
    exact = _named(encoder)
    mixed = _named(encoder, dtype="mixed_bfloat16")
    mixed.set_weights(exact.get_weights())
    batch = _tensors(_batch())
    assert mixed(batch).dtype == tf.float32
    assert mixed.pool(batch)[0].dtype == tf.float32
    scale = np.abs(exact(batch).numpy()).max()
    np.testing.assert_allclose(mixed(batch), exact(batch), atol=0.05 * scale)


def test_rows_do_not_know_each_other():
    model, batch = _model(), _batch()
    together = model(_tensors(batch)).numpy()
    for row in range(4):
        alone = model(_tensors({n: v[row : row + 1] for n, v in batch.items()})).numpy()
        np.testing.assert_allclose(alone[0], together[row], rtol=1e-5, atol=1e-6)


# Slices.


def test_pooled_means_by_hand():
    model = _model()
    batch = _batch(rows=1, empty=1)
    place = {name: f"slices_{name}_{{}}_xf" for name in TABLES}
    batch[place["liked"].format("ids")][0, :3] = [2, 5, 2]
    batch[place["liked"].format("places")][0, :3] = [1, 1, 0]
    batch[place["liked"].format("weights")][0, :3] = [1.0, 3.0, 0.5]
    batch[place["skipped"].format("ids")][0, 7] = 2
    batch[place["skipped"].format("places")][0, 7] = 0
    pooled, totals = (v.numpy()[0] for v in model.pool(_tensors(batch)))
    liked = np.array(model.slice_tables["liked"].embeddings)
    skipped = np.array(model.slice_tables["skipped"].embeddings)
    np.testing.assert_allclose(pooled[3], (liked[2] + 3 * liked[5]) / 4, rtol=1e-5)
    np.testing.assert_allclose(pooled[0], liked[2], rtol=1e-5)
    # The same id in another table has another vector.
    np.testing.assert_allclose(pooled[4], skipped[2], rtol=1e-5)
    assert (liked[2] != skipped[2]).all()
    assert not pooled[[1, 2]].any()
    weight = batch[place["skipped"].format("weights")][0, 7]
    np.testing.assert_allclose(totals, [0.5, 0, 0, 4, weight])


@encoders
def test_the_order_of_entries_changes_nothing(encoder):
    model, batch = _named(encoder), _batch()
    before = model(_tensors(batch)).numpy()
    rng = np.random.default_rng(1)
    for name in _lists():
        order = rng.permutation(8)
        for part in ("ids", "places", "weights"):
            batch[f"{name}_{part}_xf"] = batch[f"{name}_{part}_xf"][:, order]
    np.testing.assert_allclose(model(_tensors(batch)), before, rtol=1e-5, atol=1e-5)


def test_scaling_all_weights_of_a_user_changes_no_vector():
    model, batch = _model(), _batch()
    scaled = {n: 8 * v if n.endswith("_weights_xf") else v for n, v in batch.items()}
    np.testing.assert_allclose(_vectors(model, scaled), _vectors(model, batch), rtol=1e-5)
    (_, before), (_, after) = model.pool(_tensors(batch)), model.pool(_tensors(scaled))
    np.testing.assert_allclose(after, 8 * before, rtol=1e-6)


def test_invariant_8_slices_in_another_order_with_their_weights_are_the_same_vectors():
    order = [3, 0, 4, 1, 2]
    moved = {name: tuple(order[place] for place in places) for name, places in TABLES.items()}
    first, second = _named("linear"), _named("linear", tables=moved)
    second.set_weights(first.get_weights())
    matrix = np.array(first.compression.W)
    permuted = np.empty_like(matrix)
    permuted[order] = matrix
    second.compression.W.assign(permuted)
    batch = _tensors(_batch())
    for before, after in zip(first.pool(batch), second.pool(batch), strict=True):
        np.testing.assert_array_equal(after.numpy()[:, order], before.numpy())
    np.testing.assert_allclose(
        second.encode(second.pool(batch)[0]),
        first.encode(first.pool(batch)[0]),
        rtol=1e-5,
        atol=1e-6,
    )


def test_invariant_8_the_linear_compression_alone_is_linear():
    model = _named("linear")
    x, y = np.random.default_rng(0).normal(size=(2, 3, SLICES, 6)).astype("float32")
    together = model.encode(tf.constant(2 * x - 3 * y)).numpy()
    apart = 2 * model.encode(tf.constant(x)).numpy() - 3 * model.encode(tf.constant(y)).numpy()
    np.testing.assert_allclose(together, apart, rtol=1e-4, atol=1e-5)
    expected = np.einsum("bnd,no->bod", x, np.array(model.compression.W))
    np.testing.assert_allclose(model.encode(tf.constant(x)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("encoder", ["linear", "both"])
def test_invariant_9_dimensions_in_another_order_are_so_in_the_vectors(encoder):
    model = _named(encoder)
    x = np.random.default_rng(0).normal(size=(2, SLICES, 6)).astype("float32")
    order = [4, 2, 0, 5, 1, 3]
    after = model.encode(tf.constant(x[:, :, order])).numpy()
    np.testing.assert_allclose(after, model.encode(tf.constant(x)).numpy()[:, :, order], atol=1e-5)


def test_vectors_of_the_funnel_come_before_those_of_the_linear_compression():
    model = _model()
    x = tf.constant(np.random.default_rng(0).normal(size=(2, SLICES, 6)).astype("float32"))
    whole = model.encode(x).numpy()
    np.testing.assert_array_equal(whole[:, :2], model.funnel(x).numpy())
    np.testing.assert_array_equal(whole[:, 2:], model.compression(x).numpy())


def test_the_order_in_which_tables_are_named_changes_nothing():
    turned = dict(reversed(TABLES.items()))
    first, second = _model(), _model(tables=turned)
    of_first = {layer.name: layer for layer in first.layers}
    assert set(of_first) == {layer.name for layer in second.layers}
    for layer in second.layers:
        layer.set_weights(of_first[layer.name].get_weights())
    batch = _tensors(_batch())
    np.testing.assert_allclose(second(batch), first(batch), rtol=1e-5, atol=1e-6)


def test_candidates_are_scored_each_for_itself():
    model, batch = _model(), _batch()
    before = model(_tensors(batch)).numpy()
    # What describes candidate 1 becomes that of candidate 2, and the other way round.
    for kind in DESCRIBED:
        places = batch[f"candidate_{kind}_places_xf"]
        batch[f"candidate_{kind}_places_xf"] = np.array([0, 2, 1])[places]
    after = model(_tensors(batch)).numpy()
    np.testing.assert_allclose(after[:, [0, 2, 1]], before, rtol=1e-5, atol=1e-6)
    assert (np.abs(after[:, 1] - before[:, 1]) > 1e-4).any()


# Users without events, and padding.


@encoders
def test_a_user_without_events_pools_to_zeros_and_is_scored(encoder):
    model = _named(encoder)
    batch = _tensors(_batch(empty=2))
    pooled, totals = model.pool(batch)
    assert not pooled.numpy()[:2].any()
    assert not totals.numpy()[:2].any()
    assert totals.numpy()[2:].any()
    outputs = model(batch).numpy()
    assert np.isfinite(outputs).all()
    # All lists empty, of no width at all.
    nothing = {name: value[:, :0] for name, value in batch.items()}
    assert np.isfinite(model(nothing).numpy()).all()
    assert not model.pool(nothing)[0].numpy().any()


@encoders
@pytest.mark.parametrize("where", ["before", "between", "behind"])
def test_padding_changes_nothing(encoder, where):
    model, batch = _named(encoder), _batch(empty=1)
    at = {"before": [0] * 5, "between": [2, 3, 3, 6, 7], "behind": [8] * 5}[where]
    rng = np.random.default_rng(9)
    padded = {}
    for name, value in batch.items():
        # Whatever stands beside an id of 0 is not read.
        other = rng.integers(-5, 9, value.shape[:1] + (5,)).astype(value.dtype)
        wide = np.insert(value, at, 0, axis=1)
        if not name.endswith("_ids_xf"):
            places = np.asarray(at) + np.arange(5)
            wide[:, places] = other
        padded[name] = wide
    np.testing.assert_allclose(
        model(_tensors(padded)), model(_tensors(batch)), rtol=1e-5, atol=1e-6
    )
    for after, before in zip(
        model.pool(_tensors(padded)), model.pool(_tensors(batch)), strict=True
    ):
        np.testing.assert_allclose(after, before, rtol=1e-6, atol=1e-7)


@encoders
def test_ragged_lists_are_the_same_as_padded_ones(encoder):
    model, batch = _named(encoder), _batch(empty=1)
    lengths = np.random.default_rng(2).integers(0, 9, 4)
    ragged = {}
    for name, value in batch.items():
        value = np.where(np.arange(8) < lengths[:, None], value, 0).astype(value.dtype)
        batch[name] = value
        ragged[name] = tf.RaggedTensor.from_tensor(tf.constant(value), lengths)
    np.testing.assert_allclose(model(ragged), model(_tensors(batch)), rtol=1e-5, atol=1e-6)


def test_places_that_a_table_does_not_have_are_ignored():
    model, batch = _model(), _batch()
    few = {name: value.copy() for name, value in batch.items()}
    for name, (places, _) in _lists().items():
        batch[f"{name}_places_xf"][:, :2] = [-1, places]
        few[f"{name}_ids_xf"][:, :2] = 0
    np.testing.assert_allclose(model(_tensors(batch)), model(_tensors(few)), rtol=1e-5, atol=1e-6)


def test_without_an_encoder_the_history_is_not_read():
    model = _model({"encoder": "none"})
    assert model.num_vectors == 0
    assert not model.slice_tables
    batch = _batch()
    before = model(_tensors(batch)).numpy()
    kept = {name: value for name, value in batch.items() if not name.startswith("slices_")}
    np.testing.assert_array_equal(model(_tensors(kept)), before)
    other = {**_batch(seed=8), **kept}
    np.testing.assert_array_equal(model(_tensors(other)), before)


# Training.


@encoders
def test_every_weight_gets_a_gradient(encoder):
    model = _named(encoder)
    batch = _tensors(_batch(rows=16, entries=30))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.square(model(batch, training=True)))
    gradients = tape.gradient(loss, model.trainable_variables)
    for variable, gradient in zip(model.trainable_variables, gradients, strict=True):
        gradient = tf.convert_to_tensor(gradient).numpy()
        assert np.isfinite(gradient).all(), variable.name
        assert gradient.any(), variable.name


def test_dropout_is_for_training_alone():
    model, batch = _model({"dropout": 0.5}), _tensors(_batch())
    assert (model(batch).numpy() == model(batch).numpy()).all()
    assert (model(batch, training=True).numpy() != model(batch).numpy()).any()
    plain = _model()
    plain.set_weights([w for w in model.get_weights() if w.dtype == np.float32])
    np.testing.assert_allclose(plain(batch), model(batch), rtol=1e-5, atol=1e-6)


def test_models_of_a_seed_are_equal_and_tables_are_not_alike():
    first, second = _model(), _model()
    for one, other in zip(first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    liked, skipped = (np.array(first.slice_tables[n].embeddings) for n in ("liked", "skipped"))
    assert (liked != skipped).all()


# Round trips.


@pytest.mark.parametrize("encoder", [*ENCODERS, "none"])
def test_a_model_made_from_its_config_computes_the_same(encoder):
    values = {"encoder": "none"} if encoder == "none" else ENCODERS[encoder][0]
    model = _model({**values, "dropout": 0.25})
    copy = DV365.from_config(model.get_config())
    assert copy.get_config() == model.get_config()
    assert copy.config == model.config
    copy.set_weights(model.get_weights())
    batch = _tensors(_batch())
    np.testing.assert_array_equal(copy(batch), model(batch))


@pytest.mark.parametrize("encoder", [*ENCODERS, "none"])
def test_a_saved_model_is_equal_to_the_bit(encoder, tmp_path):
    values = {"encoder": "none"} if encoder == "none" else ENCODERS[encoder][0]
    model, batch = _model(values), _tensors(_batch(empty=1))
    expected = model(batch).numpy()
    model.save(str(tmp_path / "model.keras"))
    loaded = keras.models.load_model(str(tmp_path / "model.keras"))
    assert isinstance(loaded, DV365)
    assert loaded.get_config() == model.get_config()
    np.testing.assert_array_equal(loaded(batch), expected)
    model.save_weights(str(tmp_path / "model.weights.h5"))
    other = _model(values)
    other.set_weights([np.zeros_like(w) for w in other.get_weights()])
    other.load_weights(str(tmp_path / "model.weights.h5"))
    np.testing.assert_array_equal(other(batch), expected)


def test_a_model_survives_its_text():
    model = _model()
    text = json.dumps(keras.saving.serialize_keras_object(model))
    copy = keras.saving.deserialize_keras_object(json.loads(text))
    assert isinstance(copy, DV365)
    copy.set_weights(model.get_weights())
    batch = _tensors(_batch())
    np.testing.assert_array_equal(copy(batch), model(batch))


def test_a_configuration_is_its_mapping():
    config = from_mapping(DV365Config, {"encoder": "funnel", "hidden_units": []}, "model")
    assert from_mapping(DV365Config, to_mapping(config), "model") == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dim": 0}, "model.dim"),
        ({"funnel_blocks": 0}, "model.funnel_blocks"),
        ({"layers_per_block": 0}, "model.layers_per_block"),
        ({"num_heads": 0}, "model.num_heads"),
        ({"linear_outputs": 0}, "model.linear_outputs"),
        ({"candidate_dim": 0}, "model.candidate_dim"),
        ({"stride": 1}, "model.stride"),
        ({"hidden_units": [8, 0]}, "model.hidden_units"),
        ({"dropout": 1.0}, "model.dropout"),
        ({"dropout": -0.1}, "model.dropout"),
        ({"embedding_scale": 0.0}, "model.embedding_scale"),
        ({"encoder": "lce"}, "model.encoder"),
        ({"attend_over": "dim"}, "model.attend_over.*did you mean 'dims'"),
        ({"head": 2}, "model.head"),
    ],
)
def test_bad_configurations_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        from_mapping(DV365Config, values, "model")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tables": {}}, "tables"),
        ({"candidates": 0}, "candidates"),
        ({"num_tasks": 0}, "num_tasks"),
    ],
)
def test_bad_arguments_are_refused(change, message):
    given = {
        "tables": TABLES,
        "table_ids": KINDS,
        "vocabulary_sizes": SIZES,
        "candidates": 1,
        "described": DESCRIBED,
    }
    with pytest.raises(ConfigError, match=message):
        DV365(DV365Config(), **{**given, **change})
