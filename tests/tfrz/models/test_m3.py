"""M3 itself: sections 5.1 and 5.2 of its specification on the whole model, and its answers."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfrz.config import from_mapping
from tfrz.errors import ConfigError
from tfrz.models.m3 import M3, M3Config

LENGTH, ITEMS = 9, 20


def _model(padding: str = "right", **values) -> M3:
    keras.utils.set_random_seed(5)
    sizes = {"item_dim": 6, "input_units": [6], "encoder_dim": 6, "output_units": [6]}
    config = from_mapping(M3Config, {**sizes, "embedding_scale": 0.5, **values}, "model")
    return M3(config, ITEMS, ITEMS + 2, LENGTH, {"page": 4}, padding=padding)


def _batch(seed: int = 0, real: int = LENGTH) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    batch = {
        "history_xf": rng.integers(1, ITEMS + 1, (2, LENGTH)),
        "history_page_xf": rng.integers(1, 4, (2, LENGTH)),
        "page_xf": rng.integers(1, 4, 2),
    }
    for name in ("history_xf", "history_page_xf"):
        batch[name][:, real:] = 0
    return batch


def _hidden(model: M3, batch: dict[str, np.ndarray]) -> np.ndarray:
    tensors = {name: tf.constant(value) for name, value in batch.items()}
    return model.encode(model.embed(tensors)).numpy()


VARIANTS = pytest.mark.parametrize(
    "values",
    [
        {},
        {"short_range": "convolution", "gate_activation": "softmax"},
        {"short_range": "lstm", "gate": "bottom"},
        {"encoder": "caser"},
        {"encoder": "sasrec"},
    ],
    ids=str,
)


@VARIANTS
def test_5_1_1_an_event_changes_nothing_before_it(values):
    model, batch = _model(**values), _batch()
    before = _hidden(model, batch)
    batch["history_xf"][:, 5] = batch["history_xf"][:, 5] % ITEMS + 1
    after = _hidden(model, batch)
    # Request r comes before event r: 0..5 have not seen event 5.
    np.testing.assert_array_equal(before[:, :6], after[:, :6])
    assert (before[:, 6] != after[:, 6]).any()


@pytest.mark.parametrize("values", [{}, {"gate": "fixed"}], ids=str)
def test_5_1_1_the_context_of_a_request_changes_that_request_alone(values):
    model, batch = _model(context_in_input=False, **values), _batch()
    before = _hidden(model, batch)
    batch["page_xf"] = batch["page_xf"] % 3 + 1
    after = _hidden(model, batch)
    np.testing.assert_array_equal(before[:, :-1], after[:, :-1])
    assert (before[:, -1] != after[:, -1]).any()


def test_the_gate_reads_the_context_of_the_request_not_of_the_event():
    """The off-by-one of 8.3: without c_out in F_out, c_out acts through the gate alone."""
    model, batch = _model(context_in_input=False, context_in_output=False), _batch()
    gates = model.gates(batch)[0].numpy()
    changed = dict(batch, page_xf=batch["page_xf"] % 3 + 1)
    other = model.gates(changed)[0].numpy()
    np.testing.assert_array_equal(gates[:, :-1], other[:, :-1])
    assert (gates[:, -1] != other[:, -1]).any()
    before, after = _hidden(model, batch), _hidden(model, changed)
    np.testing.assert_array_equal(before[:, :-1], after[:, :-1])
    assert (before[:, -1] != after[:, -1]).any()


@VARIANTS
@pytest.mark.parametrize("real", [0, 1, 4])
def test_5_1_7_padding_changes_nothing_on_either_side(values, real):
    if values.get("encoder") == "sasrec":
        sides = ("right",)  # Its positions count from the first column.
    else:
        sides = ("right", "left")
    found = []
    for side in sides:
        batch = _batch(real=real)
        if side == "left":
            for name in ("history_xf", "history_page_xf"):
                batch[name] = np.roll(batch[name], LENGTH - real, axis=1)
        logits = _model(side, **values)({n: tf.constant(v) for n, v in batch.items()})
        found.append(logits.numpy())
    if real and "right" in sides:
        short = {n: v[:, :real] if v.ndim == 2 else v for n, v in _batch(real=real).items()}
        model = _model("right", **values)
        found.append(model({n: tf.constant(v) for n, v in short.items()}).numpy())
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], atol=2e-6)


def test_5_1_3_tiny_alone_reads_the_last_event_only():
    model, batch = _model(ranges=["tiny"]), _batch()
    before = _hidden(model, batch)
    for name in ("history_xf", "history_page_xf"):
        batch[name][:, :5] = batch[name][:, 4::-1]
    np.testing.assert_array_equal(before[:, 6:], _hidden(model, batch)[:, 6:])


def test_5_1_4_long_alone_does_not_know_the_order_and_the_recurrent_network_does():
    for ranges, same in ((["long"], True), (["short"], False)):
        model, batch = _model(ranges=ranges), _batch()
        before = _hidden(model, batch)[:, -1]
        for name in ("history_xf", "history_page_xf"):
            batch[name][:, :5] = batch[name][:, 4::-1]
        difference = np.abs(before - _hidden(model, batch)[:, -1]).max()
        assert (difference < 1e-5) == same


def test_an_empty_history_is_answered_by_context_and_popularity():
    model = _model()
    bias = np.zeros((ITEMS + 2, 1), "float32")
    bias[7] = 50.0
    model.output_bias.embeddings.assign(bias)
    batch = {n: tf.constant(v) for n, v in _batch(real=0).items()}
    logits = model(batch).numpy()
    assert (logits.argmax(1) + 1 == 7).all()
    other = model({**batch, "page_xf": batch["page_xf"] % 3 + 1}).numpy()
    assert (logits != other).any()


def test_tied_tables_are_one():
    tied = _model(tie_embeddings=True)
    assert tied.output_items is tied.items
    assert len(tied.trainable_weights) == len(_model().trainable_weights) - 1
    items, _ = tied.item_vectors()
    np.testing.assert_array_equal(items, tied.items.embeddings[1 : ITEMS + 1])


def test_the_tables_of_items_do_not_start_alike():
    model = _model()
    assert (model.items.embeddings.numpy() != model.output_items.embeddings.numpy()).any()


def test_one_trace_serves_all_batches():
    model, traces = _model(), []

    @tf.function(jit_compile=True, reduce_retracing=True)
    def step(embedded):
        traces.append(1)
        return model.encode(embedded)

    for seed in range(4):
        step(model.embed({n: tf.constant(v) for n, v in _batch(seed).items()}))
        for weight in model.mixture.trainable_weights:
            weight.assign_add(0.01 * tf.ones_like(weight))
    assert len(traces) == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"ranges": []}, "model.ranges"),
        ({"ranges": ["tiny", "tiny"]}, "model.ranges"),
        ({"item_dim": 0}, "model.item_dim"),
        ({"input_units": [0]}, "model.input_units"),
        ({"dropout": 1.0}, "model.dropout"),
        ({"context_dim": 0}, "model.context_dim"),
        ({"tie_embeddings": True, "output_units": [3]}, "model.tie_embeddings"),
        ({"correction": "partition"}, "model.correction"),
        ({"gate": "open"}, "model.gate"),
    ],
)
def test_bad_configurations_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        from_mapping(M3Config, values, "model")
