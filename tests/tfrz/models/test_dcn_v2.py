"""DCN-V2 itself: what the battery does not know to ask."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfrz.config import from_mapping
from tfrz.errors import ConfigError
from tfrz.layers.dropout import SeededDropout
from tfrz.models.dcn_v2 import DCNv2, DCNv2Config, embedding_width


def _config(**values):
    return from_mapping(DCNv2Config, values, "model")


def _dense_parameters(model: keras.Model) -> int:
    embedded = {id(layer.embeddings) for layer in model.embeddings.values()}
    weights = [w for w in model.trainable_weights if id(w) not in embedded]
    return sum(int(np.prod(w.shape)) for w in weights)


def test_parameters_of_the_papers_criteo_model():
    """26 fields of width 39 and 13 numbers: 3.5M, Table 6, embeddings left out."""
    model = DCNv2(
        _config(
            cross="full",
            num_cross_layers=2,
            hidden_units=[768, 768],
            embedding_dim=39,
            logit_bias=True,
        ),
        {f"C{i}": 10 for i in range(26)},
        numeric=[f"I{i}" for i in range(13)],
    )
    assert _dense_parameters(model) == 3_492_377


@pytest.mark.parametrize("dim", [4, 10])
@pytest.mark.parametrize("structure", ["stacked", "parallel"])
@pytest.mark.parametrize(
    ("cross", "of_a_layer"),
    [
        ("full", lambda d: d * d + d),
        ("low_rank", lambda d: 2 * d * 3 + d),
        ("mixture", lambda d: 2 * (2 * d * 3 + 9) + 2 * d + d),
    ],
)
def test_parameters_by_the_complexity_table(structure, cross, of_a_layer, dim):
    config = _config(
        structure=structure,
        cross=cross,
        rank=3,
        num_experts=2,
        num_cross_layers=3,
        hidden_units=[5],
        embedding_dim=dim,
    )
    d = 2 * dim + 1
    logit = 5 + (d if structure == "parallel" else 0)
    model = DCNv2(config, {"a": 7, "b": 4}, numeric=("n",))
    assert _dense_parameters(model) == 3 * of_a_layer(d) + 5 * (d + 1) + logit


def test_the_papers_width_rule():
    sizes = [10_000, 16]  # 6 * 10 and 6 * 2
    assert embedding_width(sizes) == 36
    model = DCNv2(_config(embedding_dim=None), {"a": sizes[0], "b": sizes[1]})
    assert {layer.embeddings.shape[1] for layer in model.embeddings.values()} == {36}


def test_multivalent_fields_are_the_mean_of_their_real_values():
    model = DCNv2(_config(embedding_dim=3), {"tags": 6}, multivalent=("tags",))
    table = model.embeddings["tags"].embeddings.numpy()
    x0 = model.embed({"tags": tf.constant([[2, 4, 0], [5, 0, 0], [0, 0, 0]])}).numpy()
    np.testing.assert_allclose(x0[0], (table[2] + table[4]) / 2, rtol=1e-6)
    np.testing.assert_allclose(x0[1], table[5], rtol=1e-6)
    np.testing.assert_array_equal(x0[2], np.zeros(3))


def test_stacked_reads_the_crosses_and_parallel_reads_the_embeddings():
    for structure in ("stacked", "parallel"):
        config = _config(structure=structure, cross="full", num_cross_layers=1, hidden_units=[4])
        model = DCNv2(config, {}, numeric=("n", "m"))
        x0 = tf.constant([[0.3, -0.7]])
        model.cross_layers[0].b.assign([1.0, 2.0])
        hidden = model.hidden_layers[0]
        seen = model.cross_layers[0](x0, x0) if structure == "stacked" else x0
        h = hidden(seen).numpy()[0]
        logit = model.logit.kernel.numpy()[:, 0]
        if structure == "stacked":
            expected = h @ logit
        else:
            crossed = model.cross_layers[0](x0, x0).numpy()[0]
            expected = np.concatenate([crossed, h]) @ logit
        assert model.interact(x0).numpy()[0] == pytest.approx(expected, rel=1e-5)


def test_the_penalty_is_the_sum_of_the_squared_frobenius_norms():
    decay = 0.01
    for cross in ("full", "low_rank", "mixture"):
        config = _config(
            cross=cross, rank=2, num_experts=2, cross_decay=decay, embedding_dim=3, hidden_units=[4]
        )
        model = DCNv2(config, {"a": 5})
        model({"a": tf.constant([1])})
        expected = 0.0
        for layer in model.cross_layers:
            if cross == "full":
                expected += float(np.square(layer.W.numpy()).sum())
            elif cross == "low_rank":
                expected += float(np.square(layer.U.numpy() @ layer.V.numpy().T).sum())
            else:
                for i in range(2):
                    part = slice(2 * i, 2 * i + 2)
                    product = layer.U.numpy()[:, part] @ layer.V.numpy()[:, part].T
                    expected += float(np.square(product).sum())
        assert float(tf.add_n(model.losses)) == pytest.approx(decay * expected, rel=1e-4)


def test_seeded_dropout_drops_its_share_and_only_in_training():
    layer = SeededDropout(0.25, seed=3)
    ones = tf.ones((200, 100))
    np.testing.assert_array_equal(layer(ones, training=False), ones)
    dropped = layer(ones, training=True).numpy()
    kept = dropped[dropped != 0]
    np.testing.assert_allclose(kept, 1 / 0.75, rtol=1e-6)
    assert abs((dropped == 0).mean() - 0.25) < 0.02
    assert (layer(ones, training=True).numpy() != dropped).any()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"cross": "half"}, "model.cross"),
        ({"rank": 0}, "model.rank"),
        ({"num_experts": 0}, "model.num_experts"),
        ({"dropout": 1.0}, "model.dropout"),
        ({"hidden_units": [0]}, "model.hidden_units"),
        ({"num_cross_layers": -1}, "model.num_cross_layers"),
        ({"experts": 3}, "unknown key"),
    ],
)
def test_bad_configurations_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        _config(**values)


def test_a_model_of_nothing_is_refused():
    with pytest.raises(ConfigError, match="at least one"):
        DCNv2(_config(), {})
    with pytest.raises(ConfigError, match="needs cross layers or hidden units"):
        DCNv2(_config(num_cross_layers=0, hidden_units=[]), {"a": 3})
