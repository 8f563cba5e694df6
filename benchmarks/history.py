"""Suite `history`: DV365's export job, its packed vectors, its pooling and its server.

python -m benchmarks.history --json FILE
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import histories
from benchmarks.measure import time_paired
from benchmarks.report import Bound, Figure, Section
from benchmarks.runner import Options, Part

TITLE = "DV365: export of embeddings, their size, pooling, serving"

# The paper's shape: vectors of a user, their width, and the slices that go in.
VECTORS, DIM, SLICES = 58, 256, 200
_BEAM = ("apache_beam", "pyarrow")


def measure_memory(options: Options) -> Section:
    """See `history_export`."""
    from benchmarks import history_export

    return history_export.measure_memory(options)


def measure_throughput(options: Options) -> Section:
    """See `history_export`."""
    from benchmarks import history_export

    return history_export.measure_throughput(options)


def measure_incremental(options: Options) -> Section:
    """See `history_export`."""
    from benchmarks import history_export

    return history_export.measure_incremental(options)


def measure_pooling(options: Options) -> Section:
    """See `history_pooling`."""
    from benchmarks import history_pooling

    return history_pooling.measure_pooling(options)


def measure_xla(options: Options) -> Section:
    """See `history_pooling`."""
    from benchmarks import history_pooling

    return history_pooling.measure_xla(options)


# Packed vectors.

_COPY = "copy of the float32"


def vectors_to_pack(users: int, seed: int) -> dict[str, np.ndarray]:
    """Vectors of several kinds, float32 `[users, VECTORS, DIM]` each."""
    rng = np.random.default_rng(seed)
    shape = (users, VECTORS, DIM)
    normal = rng.standard_normal(shape)
    made = {
        "normal": normal,
        "uniform": rng.uniform(-1, 1, shape),
        "heavy tails": rng.standard_t(2, shape),
        "tiny": 1e-8 * normal,
        "far from 0": 10 + normal,
        "sparse": normal * (rng.random(shape) < 0.02),
    }
    return {name: values.astype(np.float32) for name, values in made.items()}


def worst_error(vectors: np.ndarray) -> float:
    """The greatest error of a value after packing and unpacking, in units of scale / 2."""
    from tfrz.layers.quantize import pack4, unpack4

    words = pack4(vectors)
    scale = np.ascontiguousarray(words[..., -1:], "<u8").view("<f4")[..., :1].astype(np.float64)
    error = np.abs(unpack4(words, vectors.shape[-1]).astype(np.float64) - vectors)
    coded = (scale > 0)[..., 0]
    return float((error / (np.where(scale > 0, scale, 1.0) / 2))[coded].max())


def measure_size(options: Options) -> Section:
    """Bytes of a user, error and speed of the 4-bit code at the paper's shape."""
    import tensorflow as tf

    from tfrz.layers.quantize import pack4, packed_bytes, unpack4, unpack4_strings

    users, rounds = (4, 3) if options.quick else (256, 21)
    kinds = vectors_to_pack(users, options.seed)
    errors = {name: worst_error(vectors) for name, vectors in kinds.items()}
    vectors = kinds["normal"]
    words = pack4(vectors)
    stored = [one.astype("<u8").tobytes() for one in words]
    size = len(stored[0])
    assert {len(one) for one in stored} == {packed_bytes(VECTORS, DIM)}
    strings = tf.constant(stored)
    unpack_strings = tf.function(lambda packed: unpack4_strings(packed, VECTORS, DIM))
    np.testing.assert_array_equal(unpack_strings(strings), unpack4(words, DIM))
    times = time_paired(
        {
            "pack4": lambda: pack4(vectors),
            "unpack4": lambda: unpack4(words, DIM),
            "unpack4_strings, in a graph": lambda: unpack_strings(strings).numpy(),
            _COPY: vectors.copy,
        },
        rounds,
    )
    judged = not options.quick
    numbers = SLICES * DIM
    # What a rounding of the scale to 20 bits may cost, and the sum of two float32.
    slack = 30 * 2.0**-20 + 2.0**-14
    return Section(
        title=f"{VECTORS} vectors of {DIM} in 4 bits a value",
        baseline=_COPY,
        setup={"users": users, "rounds": rounds},
        timings=times.summary(_COPY),
        figures=(
            Figure("a user, packed", size, "bytes", Bound(7888, "at most"), judged),
            Figure(
                "a user, packed, less the paper's",
                size - 7888,
                "bytes",
                Bound(0, "at least"),
                judged,
            ),
            Figure(f"pooled input of {SLICES} x {DIM} float32 / packed, bytes", 4 * numbers / size),
            Figure("the vectors in float32 / packed, bytes", 4 * VECTORS * DIM / size),
            Figure("pooled input / packed, numbers / words of 64 bits", numbers / (size / 8)),
            Figure(
                "greatest error / (scale / 2)",
                max(errors.values()),
                "x",
                Bound(1 + slack, "at most"),
                judged,
            ),
            *(Figure(f"greatest error / (scale / 2), {n}", e) for n, e in errors.items()),
            *(
                Figure(f"{name}, users", users / times[name].median, "users/s")
                for name in times.timings
            ),
        ),
        notes=(
            "The paper says 24 TB for three billion users; in bytes the code saves 25.96 times, "
            "the 51.9 that one may read are numbers against words",
            "The bound on the error leaves room for the scale's 20 bits and one sum of float32",
        ),
    )


# The funnel.

_DIMS, _TOKENS = "over dims", "over tokens"


def make_funnel(attend_over: str, batch: int, tokens: int, dim: int, seed: int) -> tuple[Any, int]:
    """A forward and backward pass of a funnel, and its parameters."""
    import keras
    import tensorflow as tf

    from tfrz.layers import FunnelSummarizer

    keras.utils.set_random_seed(seed)
    layer = FunnelSummarizer(attend_over=attend_over)
    layer.build((None, tokens, dim))
    rng = np.random.default_rng(seed)
    x = tf.constant(rng.standard_normal((batch, tokens, dim)), tf.float32)

    @tf.function
    def pass_() -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_mean(tf.square(layer(x, training=True)))
        return tape.gradient(loss, [x, *layer.trainable_variables])

    parameters = sum(int(np.prod(w.shape)) for w in layer.trainable_variables)
    return lambda: [gradient.numpy() for gradient in pass_()], parameters


def measure_funnel(options: Options) -> Section:
    """The funnel's two readings at the paper's shape."""
    batch, tokens, dim, rounds = (2, 16, 8, 2) if options.quick else (8, SLICES, DIM, 11)
    made = {
        name: make_funnel(over, batch, tokens, dim, options.seed)
        for name, over in ((_DIMS, "dims"), (_TOKENS, "tokens"))
    }
    times = time_paired({name: run for name, (run, _) in made.items()}, rounds)
    parameters = {name: count for name, (_, count) in made.items()}
    return Section(
        title=f"funnel of {tokens} tokens of {dim}, forward and backward, batch {batch}",
        baseline=_TOKENS,
        setup={"batch": batch, "tokens": tokens, "dim": dim, "rounds": rounds},
        timings=times.summary(_TOKENS),
        figures=(
            *(Figure(f"{name}, parameters", count, "") for name, count in parameters.items()),
            Figure(f"{_DIMS} / {_TOKENS}, parameters", parameters[_DIMS] / parameters[_TOKENS]),
            *(Figure(name, 1e3 * times[name].median, "ms") for name in made),
            Figure(f"{_DIMS} / {_TOKENS}, time", times.ratio(_DIMS, _TOKENS).of_medians),
        ),
        notes=(
            "Two blocks of one layer each, stride 2. Over dims a block's width are the tokens, "
            "which every block halves; over tokens it is the dimension, which stays",
        ),
    )


# Serving.


def encode_request(model: Path, events: int, seed: int) -> tuple[Any, bytes, int]:
    """A user's sketches as a `PredictRequest` to `encode`, the same in JSON, and their entries."""
    from tensorflow_serving.apis import predict_pb2

    from benchmarks.history_world import World
    from tfrz.data.timelines.slicing import slice_user
    from tfrz.embeddings.encoder import model_facts
    from tfrz.serving.tensors import to_proto

    world = World(users=1, events=events, seed=seed)
    slices = model_facts(model).timeline.slices
    sketches = slice_user(slices, world.table(0), world.end)
    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = "m", "encode"
    document: dict[str, Any] = {"signature_name": "encode", "inputs": {}}
    total = 0
    for table in slices.tables:
        places, ids, weights = sketches[table].entries()
        total += len(ids)
        for part, values in (("ids", ids), ("places", places), ("weights", weights)):
            name = f"slices_{table}_{part}"
            to_proto(values[None], request.inputs[name])
            plain = [v.decode() if isinstance(v, bytes) else v for v in values.tolist()]
            document["inputs"][name] = [plain]
    return request, json.dumps(document).encode(), total


def measure_serving(options: Options) -> Section:
    """`encode` of one user over gRPC and REST against a bare call."""
    from benchmarks.history_export import trained

    lengths, rounds = ((200,), 20) if options.quick else ((500, 7000), 200)
    model = trained(options.quick)
    figures, timings, entries = [], {}, {}
    for events in lengths:
        request, body, entries[events] = encode_request(model, events, options.seed)
        times = histories.time_answers(model.parent, request, body, rounds, "encode")
        timings[events] = times.summary(histories.IN_PROCESS)
        name = f"{events:,} events"
        for which in times.timings:
            figures.append(Figure(f"{name}, {which}, p50", 1e3 * times[which].median, "ms"))
        for which in (histories.GRPC, histories.REST):
            ratio = times.ratio(which, histories.IN_PROCESS).of_medians
            figures.append(Figure(f"{name}, {which} / {histories.IN_PROCESS}", ratio))
        figures.append(Figure(f"{name}, request over gRPC", request.ByteSize() / 1024, "KiB"))
        figures.append(Figure(f"{name}, request over REST", len(body) / 1024, "KiB"))
    return Section(
        title="p50 of `encode` for one user's sketches, against a bare call",
        baseline=histories.IN_PROCESS,
        setup={"rounds": rounds, "entries": {f"{n:,} events": e for n, e in entries.items()}},
        timings=timings[lengths[-1]],
        figures=tuple(figures),
        notes=(
            f"Calls take turns; client and server share the machine. The table is of "
            f"{lengths[-1]:,} events, {entries[lengths[-1]]:,} entries of slices",
        ),
        details={"timings": {str(n): rows for n, rows in timings.items()}},
    )


PARTS: Mapping[str, Part] = {
    "memory": Part(
        measure_memory,
        "100 users of 7,000 and 70,000 events: peak memory and growth of time",
        layer=False,
        needs=_BEAM,
    ),
    "throughput": Part(
        measure_throughput,
        "1,000 users of 70,000 events: events per second, memory, bytes on disk",
        layer=False,
        needs=_BEAM,
    ),
    "incremental": Part(
        measure_incremental,
        "an incremental day against a full run: bytes, events read, time",
        layer=False,
        needs=_BEAM,
    ),
    "size": Part(measure_size, "the 4-bit code: bytes, error, speed"),
    "pooling": Part(measure_pooling, "a training step, slices pooled in three ways"),
    "funnel": Part(measure_funnel, "the funnel over dims against over tokens"),
    "serving": Part(
        measure_serving,
        "p50 of one user's embedding through the server",
        layer=False,
        needs=("grpc", "tensorflow_serving", *_BEAM),
    ),
    "xla": Part(measure_xla, "a training step with the dense part compiled and not"),
}

if __name__ == "__main__":
    from benchmarks.runner import main

    raise SystemExit(main("history"))
