"""Long histories in few vectors: the specification's invariants 4, 5, 6, 8, 9 and 13."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.oracles import history as oracle
from tfrz.errors import ConfigError
from tfrz.layers.history import (
    FunnelSummarizer,
    LinearCompression,
    LongHistoryAdapter,
    MultiSlicePooling,
    pooled_mean,
)

SLICES, IDS, DIM, TOKENS, BATCH, ENTRIES = 3, 11, 4, 6, 5, 12


def _array(tensor) -> np.ndarray:
    return np.asarray(tf.convert_to_tensor(tensor))


def _weights(layer) -> dict[str, np.ndarray]:
    return {
        getattr(w, "path", w.name).split(":")[0].split("/")[-1]: _array(w).astype("float64")
        for w in layer.weights
    }


def _filled(layer, *inputs, seed: int = 5):
    """The layer built for the inputs, with weights of moderate size."""
    layer(*map(tf.constant, inputs))
    rng = np.random.default_rng(seed)
    layer.set_weights([rng.normal(0, 0.5, w.shape).astype(w.dtype) for w in layer.get_weights()])
    return layer


def _entries(batch: int = BATCH, entries: int = ENTRIES, seed: int = 0) -> list[np.ndarray]:
    """Ids with padding, slices with some out of range, weights."""
    rng = np.random.default_rng(seed)
    shape = (batch, entries)
    return [
        rng.integers(0, IDS, shape),
        rng.integers(-2, SLICES + 2, shape).astype("int32"),
        rng.uniform(0, 2, shape),
    ]


def _pooling(dtype: str = "float64", slices: int = SLICES, ids: int = IDS) -> MultiSlicePooling:
    layer = MultiSlicePooling(slices, ids, DIM, dtype=dtype)
    layer.build()
    rng = np.random.default_rng(6)
    layer.set_weights([rng.normal(size=(ids, DIM))])
    return layer


def _x(batch: int = BATCH, tokens: int = TOKENS, dim: int = DIM, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(batch, tokens, dim))


def _missing(batch: int = BATCH) -> np.ndarray:
    return np.arange(batch) % 2 == 1


LAYERS = {
    "pooling": (
        lambda **k: MultiSlicePooling(SLICES, IDS, DIM, **k),
        lambda: _entries(),
        lambda w, *a: oracle.pooled(w, *a, num_slices=SLICES),
    ),
    "funnel over dims": (
        lambda **k: FunnelSummarizer(num_heads=2, **k),
        lambda: [_x()],
        lambda w, x: oracle.funnel(w, x, num_heads=2),
    ),
    "funnel over tokens": (
        lambda **k: FunnelSummarizer(3, 2, 3, attend_over="tokens", units=5, **k),
        lambda: [_x()],
        lambda w, x: oracle.funnel(w, x, 3, 2, 3, attend_over="tokens"),
    ),
    "compression of tokens": (
        lambda **k: LinearCompression(2, **k),
        lambda: [_x()],
        oracle.compression,
    ),
    "compression of dims": (
        lambda **k: LinearCompression(2, "dims", **k),
        lambda: [_x()],
        lambda w, x: oracle.compression(w, x, "dims"),
    ),
    "linear adapter": (
        lambda **k: LongHistoryAdapter(7, **k),
        lambda: [_x(), _missing()],
        oracle.adapter,
    ),
    "gated adapter": (
        lambda **k: LongHistoryAdapter(7, "gate", **k),
        lambda: [_x(), _missing()],
        lambda w, x, m: oracle.adapter(w, x, m, "gate"),
    ),
}
layers = pytest.mark.parametrize("name", LAYERS)


@layers
def test_it_computes_what_the_oracle_computes(name):
    make, draw, expected = LAYERS[name]
    inputs = draw()
    layer = _filled(make(dtype="float64"), *inputs)
    output = layer(*map(tf.constant, inputs))
    np.testing.assert_allclose(output, expected(_weights(layer), *inputs), atol=1e-12)
    assert tuple(output.shape) == layer.compute_output_shape(*[x.shape for x in inputs])


@layers
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_xla_changes_nothing(name, dtype):
    make, draw, _ = LAYERS[name]
    inputs = [x.astype("float32") if x.dtype == float else x for x in draw()]
    layer = _filled(make(dtype=dtype), *inputs)
    output = layer(*map(tf.constant, inputs))
    assert output.dtype == ("float32" if dtype == "float32" else "bfloat16")
    compiled = tf.function(lambda *a: layer(*a), jit_compile=True)(*map(tf.constant, inputs))
    expected = _array(tf.cast(output, tf.float32))
    # XLA rounds intermediate values elsewhere: a step of bfloat16 between 4 and 8 is 2^-5.
    tolerance = (1e-5 if dtype == "float32" else 4e-2) * max(1.0, np.abs(expected).max())
    np.testing.assert_allclose(tf.cast(compiled, tf.float32), expected, atol=tolerance)


@layers
def test_a_layer_made_from_its_config_computes_the_same(name):
    make, draw, _ = LAYERS[name]
    inputs = draw()
    layer = _filled(make(dtype="float64"), *inputs)
    copy = keras.layers.deserialize(keras.layers.serialize(layer))
    copy(*map(tf.constant, inputs))
    copy.set_weights(layer.get_weights())
    np.testing.assert_array_equal(copy(*map(tf.constant, inputs)), layer(*map(tf.constant, inputs)))
    assert copy.get_config() == layer.get_config()


@layers
def test_gradients_are_finite_for_empty_histories_too(name):
    make, draw, _ = LAYERS[name]
    inputs = draw()
    layer = _filled(make(dtype="float32"), *inputs)
    inputs = [tf.constant(np.zeros_like(x)) for x in inputs]
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.square(layer(*inputs) - 1))
    for gradient in tape.gradient(loss, layer.trainable_variables):
        if gradient is not None:
            assert np.isfinite(_array(gradient)).all()


# --- pooling


def _by_chunks(layer, rows, slices, ids, weights, batch: int, size: int, order=None):
    """Sums and totals, one chunk added to the other."""
    chunks = [slice(i, i + size) for i in range(0, len(ids), size)]
    sums, totals = 0.0, 0.0
    for chunk in chunks if order is None else [chunks[i] for i in order]:
        more = layer.sums_of(
            *map(tf.constant, (a[chunk] for a in (rows, slices, ids, weights))), batch
        )
        sums, totals = sums + more[0], totals + more[1]
    return sums, totals


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-13), ("float32", 1e-5)])
def test_invariant_4_sums_of_chunks_add_up_to_the_whole(dtype, tolerance):
    rng, n, vocabulary = np.random.default_rng(0), 70_000, 500
    layer = _pooling(dtype, ids=vocabulary)
    ids, weights = rng.integers(1, vocabulary, n), rng.random(n).astype(dtype)
    rows, slices = rng.integers(0, 2, n), rng.integers(0, SLICES, n)
    whole = pooled_mean(*layer.sums_of(*map(tf.constant, (rows, slices, ids, weights)), 2))
    order = rng.permutation(-(-n // 4096))
    for given in (None, order):
        chunked = pooled_mean(*_by_chunks(layer, rows, slices, ids, weights, 2, 4096, given))
        np.testing.assert_allclose(chunked, whole, rtol=0, atol=tolerance)
    table = layer.get_weights()[0].astype("float64")
    for row in range(2):
        for f in range(SLICES):
            mine = (rows == row) & (slices == f)
            mean = np.average(table[ids[mine]], axis=0, weights=weights[mine])
            np.testing.assert_allclose(whole[row, f], mean, rtol=0, atol=tolerance)


def test_invariant_4_the_layer_is_the_mean_of_its_sums():
    ids, slices, weights = _entries()
    layer = _pooling()
    rows = np.repeat(np.arange(BATCH), ENTRIES)
    sums, totals = layer.sums_of(
        *map(tf.constant, (rows, slices.ravel(), ids.ravel(), weights.ravel())), BATCH
    )
    assert sums.shape == (BATCH, SLICES, DIM) and totals.shape == (BATCH, SLICES)
    output = layer(*map(tf.constant, (ids, slices, weights)))
    np.testing.assert_array_equal(pooled_mean(sums, totals), output)
    np.testing.assert_array_equal(
        layer.rows_of(tf.constant([3, 0])), _array(layer.embeddings)[[3, 0]]
    )


def test_invariant_5_the_order_of_events_does_not_matter():
    inputs = _entries()
    layer, order = _pooling(), np.random.default_rng(1).permutation(ENTRIES)
    np.testing.assert_allclose(
        layer(*[tf.constant(x[:, order]) for x in inputs]),
        layer(*map(tf.constant, inputs)),
        atol=1e-14,
    )


def test_invariant_6_equal_weights_are_a_plain_mean():
    ids, slices, _ = _entries()
    output = _array(_pooling()(*map(tf.constant, (ids, slices, np.full(ids.shape, 0.3)))))
    table = _pooling().get_weights()[0]
    for row in range(BATCH):
        for f in range(SLICES):
            mine = ids[row][(slices[row] == f) & (ids[row] != 0)]
            expected = table[mine].mean(axis=0) if len(mine) else np.zeros(DIM)
            np.testing.assert_allclose(output[row, f], expected, atol=1e-14)


@pytest.mark.parametrize("factor", [0.25, 3.7, 1e6])
def test_invariant_6_a_factor_of_all_weights_changes_nothing(factor):
    ids, slices, weights = _entries()
    layer = _pooling()
    plain, scaled = (
        layer(*map(tf.constant, (ids, slices, w))) for w in (weights, factor * weights)
    )
    np.testing.assert_allclose(scaled, plain, atol=1e-13)


def test_invariant_6_an_empty_slice_is_zero():
    ids = np.array([[1, 2, 0], [0, 0, 0], [3, 3, 3]])
    slices = np.array([[0, 0, 1], [0, 1, 2], [1, 2, 2]])
    weights = np.array([[1.0, 2.0, 5.0], [1.0, 1.0, 1.0], [0.0, 1.0, 1.0]])
    output = _array(_pooling()(*map(tf.constant, (ids, slices, weights))))
    filled = np.array([[True, False, False], [False] * 3, [False, False, True]])
    assert (output[~filled] == 0).all() and (output[filled] != 0).all()


@pytest.mark.parametrize("what", ["padding", "slice too low", "slice too high"])
def test_what_does_not_count_changes_nothing(what):
    ids, slices, weights = _entries(seed=3)
    layer = _pooling()
    more_ids, more_slices = {
        "padding": (0, 1),
        "slice too low": (IDS + 7, -1),
        "slice too high": (IDS + 7, 2**40),
    }[what]

    def longer(values, value, dtype):
        return np.concatenate([values.astype(dtype), np.full((BATCH, 4), value, dtype)], axis=1)

    # The weights are NaN there, the ids out of the table, and the padding's row is NaN.
    more = (longer(ids, more_ids, "int64"), longer(slices, more_slices, "int64"))
    rows = layer.get_weights()[0]
    rows[0] = np.nan
    layer.set_weights([rows])
    output = []
    for inputs in ((ids, slices, weights), (*more, longer(weights, np.nan, "float64"))):
        with tf.GradientTape() as tape:
            pooled = layer(*map(tf.constant, inputs))
            loss = tf.reduce_sum(tf.square(pooled))
        gradient = _array(tape.gradient(loss, layer.trainable_variables[0]))
        assert np.isfinite(gradient).all() and not gradient[0].any()
        output.append((_array(pooled), gradient))
    np.testing.assert_array_equal(output[0][0], output[1][0])
    np.testing.assert_allclose(output[0][1], output[1][1], atol=1e-14)


def test_thousands_of_events_are_summed_in_float32_under_mixed_bfloat16():
    rng, n = np.random.default_rng(0), 5000
    ids, slices = rng.integers(1, IDS, (1, n)), np.zeros((1, n), int)
    weights = rng.integers(1, 1000, (1, n)).astype("float32")
    layer = _pooling("mixed_bfloat16")
    sums, totals = layer.sums_of(
        *map(tf.constant, (np.zeros(n, int), slices[0], ids[0], weights[0])), 1
    )
    assert sums.dtype == totals.dtype == tf.float32
    assert float(totals[0, 0]) == pytest.approx(weights.sum(dtype="float64"), rel=1e-6)
    output = layer(*map(tf.constant, (ids, slices, weights)))
    assert output.dtype == tf.bfloat16
    table = layer.get_weights()[0].astype("float64")
    mean = np.average(table[ids[0]], axis=0, weights=weights[0])
    expected = tf.cast(mean, tf.bfloat16)
    # One rounding, at the very end.
    np.testing.assert_allclose(
        tf.cast(output[0, 0], tf.float32), tf.cast(expected, tf.float32), rtol=2**-8
    )


def test_the_tables_gradient_is_sparse():
    layer, inputs = _pooling(), _entries()
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(*map(tf.constant, inputs)))
    assert isinstance(tape.gradient(loss, layer.trainable_variables[0]), tf.IndexedSlices)


def test_a_functional_model_takes_whole_numbers():
    inputs = [
        keras.Input((ENTRIES,), dtype="int64"),
        keras.Input((ENTRIES,), dtype="int32"),
        keras.Input((ENTRIES,), dtype="float32"),
    ]
    layer = MultiSlicePooling(SLICES, IDS, DIM)
    vectors = layer(*inputs)
    missing = keras.Input((), dtype="bool")
    model = keras.Model([*inputs, missing], LongHistoryAdapter(2)(vectors, missing))
    values = [tf.constant(x) for x in _entries()]
    output = model([*values[:2], tf.cast(values[2], tf.float32), tf.constant(_missing())])
    assert output.shape == (BATCH, 2)


# --- compression


def _summary(x: np.ndarray, attend_over: str = "dims") -> tuple[np.ndarray, np.ndarray]:
    """What the funnel and the linear compression, put together, make of x."""
    keras.utils.set_random_seed(2)
    funnel = FunnelSummarizer(attend_over=attend_over, dtype="float64")
    linear = LinearCompression(8, dtype="float64")
    return _array(funnel(tf.constant(x))), _array(linear(tf.constant(x)))


@pytest.mark.parametrize("attend_over", ["dims", "tokens"])
def test_invariant_8_the_shape_of_the_paper(attend_over):
    both = np.concatenate(_summary(_x(2, 200, 256), attend_over), axis=1)
    assert both.shape == (2, 58, 256)
    funnel, linear = FunnelSummarizer(attend_over=attend_over), LinearCompression(8)
    assert funnel.num_outputs(200) == 50
    shapes = [layer.compute_output_shape((None, 200, 256)) for layer in (funnel, linear)]
    assert [tuple(s) for s in shapes] == [(None, 50, 256), (None, 8, 256)]


def test_invariant_8_slices_and_kernel_in_another_order_give_the_same():
    x, order = _x(), np.random.default_rng(0).permutation(TOKENS)
    layer = _filled(LinearCompression(2, dtype="float64"), x)
    output = _array(layer(tf.constant(x)))
    layer.set_weights([layer.get_weights()[0][order]])
    np.testing.assert_allclose(layer(tf.constant(x[:, order])), output, atol=1e-14)


@pytest.mark.parametrize("compress", ["tokens", "dims"])
def test_invariant_8_the_linear_compression_is_linear(compress):
    x, y = _x(seed=1), _x(seed=2)
    layer = _filled(LinearCompression(2, compress, dtype="float64"), x)
    expected = 2 * _array(layer(tf.constant(x))) - 3 * _array(layer(tf.constant(y)))
    np.testing.assert_allclose(layer(tf.constant(2 * x - 3 * y)), expected, atol=1e-13)


def test_invariant_9_dimensions_in_another_order_give_outputs_in_that_order():
    x, order = _x(), np.random.default_rng(0).permutation(DIM)
    for plain, permuted in zip(_summary(x), _summary(x[:, :, order]), strict=True):
        np.testing.assert_allclose(permuted, plain[:, :, order], atol=1e-12)


def test_invariant_9_is_not_one_of_attention_over_tokens():
    x, order = _x(), np.roll(np.arange(DIM), 1)
    plain, permuted = (_summary(v, "tokens")[0] for v in (x, x[:, :, order]))
    assert np.abs(permuted - plain[:, :, order]).max() > 1e-3


@pytest.mark.parametrize("attend_over", ["dims", "tokens"])
def test_where_the_stride_does_not_divide_the_last_mean_is_of_what_is_left(attend_over):
    layer = FunnelSummarizer(1, stride=3, num_heads=2, attend_over=attend_over, dtype="float64")
    x = _x(2, 7, 4)
    layer(tf.constant(x))
    # Without the layers' own outputs, only the pooling is left.
    layer.set_weights([np.zeros(w.shape) for w in layer.get_weights()])
    expected = np.stack([x[:, :3].mean(1), x[:, 3:6].mean(1), x[:, 6]], axis=1)
    np.testing.assert_allclose(layer(tf.constant(x)), expected, atol=1e-15)
    assert layer.num_outputs(7) == 3 and FunnelSummarizer(5).num_outputs(7) == 1
    assert FunnelSummarizer(1, stride=9)(tf.constant(x)).shape == (2, 1, 4)


@pytest.mark.parametrize("attend_over", ["dims", "tokens"])
def test_fewer_numbers_than_heads_are_heads_of_one(attend_over):
    layer = FunnelSummarizer(num_heads=4, attend_over=attend_over)
    assert layer(tf.zeros([1, 3, 2])).shape == (1, 1, 2)
    assert _weights(layer)["W_Q_0"].shape == ((3, 4) if attend_over == "dims" else (2, 4))


def test_dropout_is_for_training():
    x = tf.constant(_x())
    layer = FunnelSummarizer(num_heads=2, dropout=0.5, dtype="float64")
    np.testing.assert_array_equal(layer(x), layer(x, training=False))
    first, second = layer(x, training=True), layer(x, training=True)
    assert not np.allclose(first, layer(x)) and not np.allclose(first, second)
    assert len({d.seed for d in layer.dropouts}) == 4


# --- adapter


@pytest.mark.parametrize("kind", ["linear", "gate"])
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_invariant_13_a_missing_embedding_is_not_read(kind, dtype):
    x, missing = _x().astype("float32"), _missing()
    adapter = _filled(LongHistoryAdapter(7, kind, dtype=dtype), x, missing)
    head = _filled(keras.layers.Dense(2, dtype=dtype), np.zeros((1, 7), "float32"))
    outcomes = []
    for value in (0.0, -7.5, np.inf, np.nan):
        stored = np.where(missing[:, None, None], np.float32(value), x)
        with tf.GradientTape() as tape:
            logits = head(adapter(tf.constant(stored), tf.constant(missing)))
            loss = tf.reduce_sum(tf.square(logits))
        gradients = tape.gradient(loss, [*adapter.trainable_variables])
        outcomes.append([_array(tf.cast(a, tf.float32)) for a in (logits, *gradients)])
        assert all(np.isfinite(a).all() for a in outcomes[-1])
    for other in outcomes[1:]:
        for a, b in zip(outcomes[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_invariant_13_the_stand_in_is_trained_by_the_missing_alone():
    x = _x()
    layer = _filled(LongHistoryAdapter(3, dtype="float64"), x, _missing())
    stand_in = next(
        w for w in layer.trainable_variables if w.name.split(":")[0].endswith("missing")
    )
    for missing, count in ((_missing(), 2), (np.zeros(BATCH, bool), 0)):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(tf.constant(x), tf.constant(missing)))
        np.testing.assert_array_equal(tape.gradient(loss, stand_in), [count] * 3)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: MultiSlicePooling(0, 1, 1),
        lambda: MultiSlicePooling(1, 1, 0),
        lambda: FunnelSummarizer(num_blocks=0),
        lambda: FunnelSummarizer(stride=0),
        lambda: FunnelSummarizer(units=0),
        lambda: FunnelSummarizer(attend_over="time"),
        lambda: FunnelSummarizer(dropout=1.0),
        lambda: LinearCompression(0),
        lambda: LinearCompression(1, "time"),
        lambda: LongHistoryAdapter(0),
        lambda: LongHistoryAdapter(1, "mlp"),
    ],
)
def test_arguments_out_of_range_are_named(wrong):
    with pytest.raises(ConfigError, match="must be"):
        wrong()


def test_unknown_sizes_are_errors():
    for layer in (FunnelSummarizer(), LinearCompression(1), LongHistoryAdapter(1)):
        with pytest.raises(ValueError, match="needs to know"):
            layer.build((None, None, 4))
