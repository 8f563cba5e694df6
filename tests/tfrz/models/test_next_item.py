"""What a subclass of `NextItemModel` can rely on, with the simplest encoder there is."""

from __future__ import annotations

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfrz.config import from_mapping
from tfrz.errors import ConfigError
from tfrz.models import NextItemConfig, NextItemModel

LENGTH, ITEMS, DIM = 5, 7, 3


@dataclasses.dataclass(frozen=True)
class SumConfig(NextItemConfig):
    """No options of its own."""


@keras.saving.register_keras_serializable(package="tests")
class Sum(NextItemModel):
    """Encodes an event as the sum of the events so far."""

    config_class = SumConfig

    def make_encoder(self) -> None:
        """Nothing."""

    def encode_events(self, z, embedded, training=False):
        """`[batch, time, width]`."""
        return tf.cumsum(tf.where(embedded["real"][..., None], z, 0.0), axis=1)


def _model(padding: str = "right", context: dict[str, int] | None = None, **values) -> Sum:
    keras.utils.set_random_seed(3)
    sizes = {"item_dim": DIM, "input_units": [], "encoder_dim": DIM, "output_units": []}
    config = from_mapping(SumConfig, {**sizes, "embedding_scale": 1.0, **values}, "model")
    return Sum(config, ITEMS, ITEMS + 2, LENGTH, context, padding=padding)


def _padded(history: list[int], side: str) -> np.ndarray:
    zeros = [0] * (LENGTH - len(history))
    return np.array([history + zeros if side == "right" else zeros + history])


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("history", [[], [4], [4, 2, 7], [1, 2, 3, 4, 5]], ids=str)
def test_request_r_is_represented_by_the_events_before_it(side, history):
    model = _model(side)
    embedded = model.embed({"history_xf": tf.constant(_padded(history, side))})
    encoded = model.encode(embedded).numpy()[0]
    assert encoded.shape == (LENGTH + 1, DIM)
    items = model.items.embeddings.numpy()
    first = 0 if side == "right" else LENGTH - len(history)
    for r in range(len(history) + 1):
        expected = items[history[:r]].sum(axis=0) if r else np.zeros(DIM)
        np.testing.assert_allclose(encoded[first + r], expected, rtol=1e-5, atol=1e-6)
    place = int(embedded["place"][0])
    assert place == first + len(history)
    vectors, bias = (np.asarray(v) for v in model.item_vectors())
    logits = model({"history_xf": tf.constant(_padded(history, side))}).numpy()[0]
    np.testing.assert_allclose(logits, vectors @ encoded[place] + bias, rtol=1e-5, atol=1e-6)


def test_the_request_stands_after_the_last_event():
    model = _model()
    past, request = tf.constant([[1, 2, 0, 0, 0]]), tf.constant([9])
    found = model.with_request(past, request, model.request_place(past))
    assert found.numpy().tolist() == [[1, 2, 9, 0, 0, 0]]
    left = _model("left")
    past = tf.constant([[0, 0, 0, 1, 2]])
    found = left.with_request(past, request, left.request_place(past))
    assert found.numpy().tolist() == [[0, 0, 0, 1, 2, 9]]


def test_it_is_saved_and_loaded_without_code_of_its_own(tmp_path):
    model = _model(context={"page": 3}, context_dim=None, context_in_input=False, output_units=[4])
    batch = {
        "history_xf": tf.constant(_padded([3, 1], "right")),
        "history_page_xf": tf.constant(_padded([1, 2], "right")),
        "page_xf": tf.constant([2]),
    }
    model.save(tmp_path / "model.keras")
    copy = keras.models.load_model(tmp_path / "model.keras")
    assert isinstance(copy, Sum)
    assert copy.get_config() == model.get_config()
    assert copy.config == model.config
    np.testing.assert_array_equal(copy(batch), model(batch))
    assert model.compute_output_shape({"history_xf": (None, LENGTH)}) == (None, ITEMS)


def test_the_options_of_the_base_are_checked():
    for name in ("item_dim", "encoder_dim", "num_sampled"):
        with pytest.raises(ConfigError, match=f"model.{name}: must be at least 1"):
            from_mapping(SumConfig, {name: 0}, "model")
