"""Models that read the offline embedding of their user."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.fake_embeddings import packed
from tfrz.config import to_mapping
from tfrz.data.spec import UserEmbedding
from tfrz.models.dcn_v2 import DCNv2, DCNv2Config
from tfrz.models.m3 import M3, M3Config
from tfrz.models.multi_interest import MultiInterest, MultiInterestConfig
from tfrz.models.user_embedding import read_user_embedding

STORED = UserEmbedding("1-a", num_vectors=3, dim=20)
ANY = UserEmbedding("1-a", num_vectors=3, dim=20, any_version=True)
MODELS = ("dcn_v2", "m3", "m3_small", "multi_interest", "popularity")
kinds = pytest.mark.parametrize("kind", MODELS)


def _model(kind: str, long_history: UserEmbedding | None = STORED, **more):
    keras.utils.set_random_seed(3)
    if long_history is not None:
        more["long_history"] = long_history
    if kind == "dcn_v2":
        config = DCNv2Config(embedding_dim=4, rank=2, hidden_units=(8,))
        return DCNv2(config, {"user_xf": 10, "item_xf": 6}, numeric=["price_xf"], **more)
    if kind == "m3":
        config = M3Config(item_dim=8, input_units=(8,), encoder_dim=8, output_units=(6,))
        return M3(config, 12, 14, 4, {"page": 3}, **more)
    if kind == "m3_small":
        config = M3Config(encoder="sasrec", item_dim=8, input_units=(), output_units=())
        return M3(config, 12, 14, 4, padding="left", **more)
    tower = "deep" if kind == "multi_interest" else "popularity"
    config = MultiInterestConfig(tower, dim=8, num_interests=2, normalize=True)
    return MultiInterest(config, 12, 14, 4, **more)


def _vectors(count: int, seed: int = 0) -> list[bytes]:
    rng = np.random.default_rng(seed)
    return [packed(rng.normal(0, 0.5, (3, 20))) for _ in range(count)]


def _batch(vectors: list[bytes], versions: list[str]) -> dict[str, tf.Tensor]:
    rows = len(vectors)
    rng = np.random.default_rng(1)
    history = tf.constant(rng.integers(1, 13, (rows, 4)))
    return {
        "user_xf": tf.constant(rng.integers(0, 10, rows)),
        "item_xf": tf.constant(rng.integers(0, 6, rows)),
        "price_xf": tf.constant(rng.normal(size=rows), tf.float32),
        "history_xf": history,
        "history_page_xf": history % 3,
        "page_xf": tf.constant(rng.integers(0, 3, rows)),
        "long_history_xf": tf.constant(vectors),
        "long_history_version_xf": tf.constant(versions),
    }


def _random(model) -> None:
    """Weights none of which is 0, the stand-in for missing vectors least of all."""
    rng = np.random.default_rng(5)
    for weight in model.trainable_weights:
        weight.assign(rng.normal(0, 0.3, weight.shape))


def test_what_is_missing_and_what_is_read():
    one, other = _vectors(2)
    sent = [one, other, b"", one[:-1], one + b"\0", one]
    versions = ["1-a", "2-b", "1-a", "1-a", "1-a", ""]
    batch = _batch(sent, versions)
    vectors, missing = read_user_embedding(batch, STORED)
    assert missing.numpy().tolist() == [False, True, True, True, True, True]
    assert vectors.shape == (6, 3, 20) and vectors.dtype == tf.float32
    assert np.abs(vectors[0].numpy()).max() > 0.5 and not vectors[1:].numpy().any()
    vectors, missing = read_user_embedding(batch, ANY)
    assert missing.numpy().tolist() == [False, False, True, True, True, False]
    np.testing.assert_array_equal(vectors[0], vectors[5])


@kinds
def test_invariant_13_without_an_embedding_nothing_depends_on_the_stored_bytes(kind):
    model = _model(kind)
    _random(model)
    first, second = _vectors(4, 1), _vectors(4, 2)
    # Scales that are no numbers, and every bit set.
    broken = [b"\xff" * len(first[0])] * 4
    read = model(_batch(first, ["1-a"] * 4)).numpy()
    assert np.abs(read - model(_batch(second, ["1-a"] * 4)).numpy()).max() > 1e-3
    nothing = model(_batch([b""] * 4, [""] * 4)).numpy()
    assert np.isfinite(nothing).all() and np.abs(read - nothing).max() > 1e-3
    for stored in (first, second, broken, [b"short"] * 4):
        other = model(_batch(stored, ["2-b"] * 4)).numpy()
        np.testing.assert_array_equal(other, nothing)
    np.testing.assert_array_equal(model(_batch([b"short"] * 4, ["1-a"] * 4)).numpy(), nothing)


@kinds
def test_any_version_is_read_where_that_is_asked_for(kind):
    model, same = _model(kind, ANY), _model(kind)
    _random(model)
    same.set_weights(model.get_weights())
    other = model(_batch(_vectors(4), ["2-b"] * 4)).numpy()
    np.testing.assert_array_equal(other, same(_batch(_vectors(4), ["1-a"] * 4)).numpy())


@kinds
def test_without_a_long_history_a_model_is_what_it_was(kind):
    plain, wider = _model(kind, None), _model(kind)
    assert {"long_history", "adapter", "adapter_units"}.isdisjoint(plain.get_config())
    assert not any(layer.name == "long_history" for layer in plain.layers)
    assert len(plain.weights) + 3 == len(wider.weights)
    batch = _batch(_vectors(4), ["1-a"] * 4)
    few = {name: value for name, value in batch.items() if not name.startswith("long_")}
    np.testing.assert_array_equal(plain(few).numpy(), plain(batch).numpy())


@kinds
@pytest.mark.parametrize("adapter", ["linear", "gate"])
def test_it_is_made_again_saved_and_compiled_as_any_model(kind, adapter, tmp_path):
    model = _model(kind, adapter=adapter)
    _random(model)
    batch = _batch([*_vectors(3), b""], ["1-a", "1-a", "2-b", ""])
    expected = model(batch).numpy()
    copy = type(model).from_config(model.get_config())
    assert copy.get_config() == model.get_config()
    assert copy.get_config()["long_history"] == to_mapping(STORED)
    copy(batch)
    copy.set_weights(model.get_weights())
    np.testing.assert_array_equal(copy(batch).numpy(), expected)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(batch).numpy(), expected)
    compiled = tf.function(model.interact, jit_compile=True)(model.embed(batch))
    np.testing.assert_allclose(compiled.numpy(), expected, atol=1e-5)


@kinds
def test_in_mixed_precision_it_answers_nearly_the_same(kind):
    model, half = _model(kind), _model(kind, dtype="mixed_bfloat16")
    batch = _batch([*_vectors(3), b""], ["1-a"] * 4)
    half.set_weights(model.get_weights())
    answer, expected = half(batch), model(batch).numpy()
    assert answer.dtype == tf.float32
    scale = max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(answer.numpy(), expected, atol=2e-2 * scale)


@kinds
def test_every_weight_of_the_adapter_learns(kind):
    model = _model(kind, adapter="gate")
    _random(model)
    batch = _batch([*_vectors(3), b"\xff" * len(_vectors(1)[0])], ["1-a", "1-a", "1-a", "2-b"])
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(batch) ** 2)
    weights = model.long_history_adapter.trainable_weights
    assert len(weights) == 5
    for gradient in tape.gradient(loss, weights):
        assert np.isfinite(gradient.numpy()).all() and np.abs(gradient.numpy()).max() > 0


def test_dcn_puts_it_behind_the_fields_and_the_numbers():
    model, plain = _model("dcn_v2", adapter_units=5), _model("dcn_v2", None)
    _random(model)
    plain(_batch([b""], [""]))
    for name, layer in plain.embeddings.items():
        layer.set_weights(model.embeddings[name].get_weights())
    batch = _batch(_vectors(4), ["1-a"] * 4)
    x0 = model.embed(batch).numpy()
    assert x0.shape == (4, 2 * 4 + 1 + 5)
    np.testing.assert_array_equal(x0[:, :9], plain.embed(batch).numpy())
    read = model.long_history_adapter(*read_user_embedding(batch, STORED))
    np.testing.assert_array_equal(x0[:, 9:], read.numpy())


@pytest.mark.parametrize("kind", ["m3", "m3_small"])
def test_m3_answers_requests_before_the_embedding_as_if_there_were_none(kind):
    model = _model(kind)
    _random(model)
    batch = _batch(_vectors(3), ["1-a"] * 3)
    without = model.encode(model.embed({**batch, "long_history_xf": tf.constant([b""] * 3)}))
    everywhere = model.encode(model.embed(batch)).numpy()
    usable = np.array([[0, 0, 1, 1], [0, 0, 0, 0], [1, 1, 1, 1]])
    batch["long_history_usable_xf"] = tf.constant(usable)
    hidden = model.encode(model.embed(batch)).numpy()
    # Event t answers request t; the request after the last is the served one.
    read = np.concatenate([usable, np.ones((3, 1), int)], axis=1).astype(bool)
    np.testing.assert_allclose(hidden[read], everywhere[read], atol=1e-6)
    np.testing.assert_allclose(hidden[~read], without.numpy()[~read], atol=1e-6)
    assert np.abs(everywhere - without.numpy()).min(axis=-1).max() > 0


def test_m3_marks_the_served_request_of_a_short_history():
    model = _model("m3")
    _random(model)
    batch = _batch(_vectors(1), ["1-a"])
    batch["history_xf"] = tf.constant([[3, 5, 0, 0]], tf.int64)
    everywhere = model(batch).numpy()
    batch["long_history_usable_xf"] = tf.zeros([1, 4], tf.int64)
    np.testing.assert_allclose(model(batch).numpy(), everywhere, atol=1e-6)


def test_multi_interest_adds_it_to_every_vector_before_they_are_normalised():
    model = _model("multi_interest")
    _random(model)
    batch = _batch(_vectors(3), ["1-a"] * 3)
    embedded = model.embed(batch)
    read = model.long_history_adapter(embedded["long_history"], embedded["no_long_history"])
    towers = model.user_tower(embedded["events"], mask=embedded["real"]).numpy()
    users = towers + read.numpy()[:, None]
    users /= np.linalg.norm(users, axis=-1, keepdims=True)
    np.testing.assert_allclose(model.encode(embedded).numpy(), users, atol=1e-5)
