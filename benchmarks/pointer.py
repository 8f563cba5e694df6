"""Suite `pointer`: seq2slate's decoder against the usual ways to write one, its steps and slates.

The loop is the zoo's. Beside it stand a decoder whose steps are unrolled in Python, and one that
keeps no state and reads again, before each choice, all that it has chosen. All three have the same
weights and score with the same code.

    python -m benchmarks.pointer --json FILE
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from benchmarks.measure import time_paired
from benchmarks.report import Bound, Figure, Section
from benchmarks.runner import Options, Part

TITLE = "pointer decoder (seq2slate): decoding, gradients, beams, serving"

LOOP, UNROLLED, PREFIX = "loop", "unrolled", "prefix again"
PLAIN_LOOP, PLAIN_UNROLLED = "loop, no XLA", "unrolled, no XLA"
WHOLE, ONE_STEP = "encode + decode", "encode + one step"


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The shape of one measurement.

    Attributes:
      batch: lists.
      length: candidates of a list, all of them valid; as many steps are decoded.
      units: width of encoder and decoder.
      features: of a candidate.
      scale: weights are uniform between minus this and this. With the model's own 0.1 the choices
        of an untrained model are close to uniform.
      rounds: paired rounds.
    """

    batch: int = 32
    length: int = 50
    units: int = 128
    features: int = 16
    scale: float = 0.5
    rounds: int = 21

    @classmethod
    def of(cls, options: Options) -> Sizes:
        """The sizes of the bounds, or small ones."""
        return cls(4, 6, 8, 3, rounds=3) if options.quick else cls()

    def setup(self, **more: Any) -> dict[str, Any]:
        """For the report."""
        return {**dataclasses.asdict(self), **more}


def make_model(sizes: Sizes, seed: int, **config: Any) -> Any:
    """An untrained model; the same weights for every scorer that reads lists."""
    import keras

    from tfrz.models.seq2slate import Seq2Slate, Seq2SlateConfig

    keras.utils.set_random_seed(seed)
    settings = Seq2SlateConfig(units=sizes.units, initial_scale=sizes.scale, **config)
    return Seq2Slate(settings, sizes.length, sizes.features)


def make_lists(sizes: Sizes, seed: int) -> dict[str, Any]:
    """Random lists as the model takes them."""
    import tensorflow as tf

    rng = np.random.default_rng(seed)
    features = rng.normal(size=(sizes.batch, sizes.length, sizes.features))
    return {
        "features_xf": tf.constant(features, tf.float32),
        "mask_xf": tf.ones([sizes.batch, sizes.length], tf.int64),
    }


def encoded_lists(model: Any, lists: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a decoder takes: x, E, the encoder's last h and c, valid."""
    x, valid = lists["features_xf"], lists["mask_xf"] != 0
    return (x, *model.encoder.encode(x, valid), valid)


def unrolled(decoder: Any, x: Any, encoded: Any, hidden: Any, carry: Any, valid: Any) -> Any:
    """Greedy decoding with its steps written one after the other."""
    import tensorflow as tf

    from tfrz.layers.pointer import Slate, masked, step_log_probabilities

    size, score = int(valid.shape[1]), decoder._stepper(x, encoded, valid)
    nothing = tf.zeros_like(valid[:, 0], tf.int32) - 1
    state, last, free, steps = [hidden, carry], nothing, valid, []
    for _ in range(size):
        state, scores = score(state, last)
        chosen, live = tf.argmax(masked(scores, free), 1, tf.int32), tf.reduce_any(free, axis=1)
        steps.append((tf.where(live, chosen, nothing), scores, free))
        last = tf.where(live, chosen, last)
        free = free & ~tf.one_hot(last, size, on_value=True, off_value=False, dtype=tf.bool)
    positions, scores, free = (tf.stack(parts, axis=1) for parts in zip(*steps, strict=True))
    return Slate(positions, scores, free, step_log_probabilities(scores, free, positions))


def prefix_again(decoder: Any, x: Any, encoded: Any, hidden: Any, carry: Any, valid: Any) -> Any:
    """Greedy decoding that runs the LSTM over the whole prefix before each choice.

    Spares it whatever does not depend on the missing state: `W_enc e_i` is computed once, scores
    once a step, and loops run as far as the prefix is long.
    """
    import tensorflow as tf

    from tfrz.layers.pointer import roll

    size, score = int(valid.shape[1]), decoder._stepper(x, encoded, valid)
    go = tf.convert_to_tensor(decoder.go)

    def read(state: list[Any], row: Any) -> list[Any]:
        chosen = tf.gather(x, tf.maximum(row, 0), batch_dims=1)
        return list(decoder.cell(tf.where(row[:, None] < 0, go, chosen), state)[1])

    def score_anew(seen: Any, last: Any) -> tuple[Any, Any]:
        j, rows = seen
        _, state = tf.while_loop(
            lambda k, _: k < j,
            lambda k, state: (k + 1, read(state, tf.gather(rows, k, axis=1))),
            (tf.constant(0), [hidden, carry]),
            maximum_iterations=size,
        )
        rows = tf.where(tf.range(size)[None, :] == j, last[:, None], rows)
        return (j + 1, rows), score(state, last)[1]

    rows = tf.zeros_like(valid, tf.int32)
    return roll(score_anew, (tf.constant(0), rows), valid)


def decoders(decoder: Any) -> dict[str, Callable[..., Any]]:
    """Greedy decoders of the same weights, from `encoded_lists` to a slate."""
    return {
        LOOP: decoder.decode,
        UNROLLED: lambda *lists: unrolled(decoder, *lists),
        PREFIX: lambda *lists: prefix_again(decoder, *lists),
    }


def make_run(function: Callable[..., Any], *inputs: Any, xla: bool) -> Callable[[], Any]:
    """A compiled call on these inputs; its first result is brought to the host."""
    import tensorflow as tf

    call = tf.function(function, jit_compile=xla)

    def run() -> Any:
        outputs = call(*inputs)
        return tf.nest.flatten(outputs)[0].numpy()

    return run


def require_same_slates(found: Mapping[str, np.ndarray]) -> None:
    """Refuses to time decoders that do not choose alike.

    Raises:
      AssertionError: two of the slates differ.
    """
    (first, expected), *others = found.items()
    for name, positions in others:
        np.testing.assert_array_equal(positions, expected, f"{name} against {first}")


def first_calls(runs: Mapping[str, Callable[[], Any]]) -> tuple[dict[str, float], dict[str, Any]]:
    """Seconds of the first call of each, in which it is traced and compiled; and its results."""
    seconds, results = {}, {}
    for name, run in runs.items():
        begin = time.perf_counter()
        results[name] = run()
        seconds[name] = time.perf_counter() - begin
    return seconds, results


def measure_decode(options: Options) -> Section:
    """The loop against both baselines; shorter and longer lists; one step against all."""
    sizes = Sizes.of(options)
    model, lists = make_model(sizes, options.seed), make_lists(sizes, options.seed)
    forms, inputs = decoders(model.decoder), encoded_lists(model, lists)
    alike = {name: make_run(form, *inputs, xla=True) for name, form in forms.items()}
    alike[PLAIN_LOOP] = make_run(forms[LOOP], *inputs, xla=False)
    alike[PLAIN_UNROLLED] = make_run(forms[UNROLLED], *inputs, xla=False)
    runs = {}
    short, long = (f"loop, {n} candidates" for n in (sizes.length // 2, 2 * sizes.length))
    # First, so that what a process sets up once does not count for the loop or a baseline.
    for name, length in ((short, sizes.length // 2), (long, 2 * sizes.length)):
        other = make_lists(dataclasses.replace(sizes, length=length), options.seed)
        runs[name] = make_run(forms[LOOP], *encoded_lists(model, other), xla=True)
    runs |= alike
    one_step = make_model(sizes, options.seed, scorer="one_step")
    for name, whole in ((WHOLE, model), (ONE_STEP, one_step)):
        # The positions alone: XLA leaves out what only the scores' log-probabilities need.
        runs[name] = make_run(lambda given, whole=whole: whole.best(given)[0], lists, xla=True)
    first, results = first_calls(runs)
    require_same_slates({name: results[name] for name in (*alike, WHOLE)})
    times = time_paired(runs, sizes.rounds, warm_up=1)
    compiling = {name: first[name] - times[name].median for name in runs}

    def ratio(name: str, baseline: str, limit: float | None = None) -> Figure:
        bound = None if limit is None else Bound(limit, "at most")
        value = times.ratio(name, baseline).of_medians
        return Figure(f"run, {name} / {baseline}", value, bound=bound, judged=not options.quick)

    return Section(
        title=f"greedy decoding of {sizes.length} candidates under tf.function(jit_compile=True), "
        f"batch {sizes.batch}, {sizes.units} units",
        baseline=LOOP,
        setup=sizes.setup(),
        timings=times.summary(LOOP),
        figures=(
            *(Figure(f"compile, {name}", compiling[name], "s") for name in forms),
            Figure(
                f"compile, {LOOP} / {UNROLLED}",
                compiling[LOOP] / compiling[UNROLLED],
                bound=Bound(0.15, "at most"),
                judged=not options.quick,
            ),
            ratio(LOOP, UNROLLED, 0.6),
            ratio(LOOP, PREFIX, 0.3),
            ratio(ONE_STEP, WHOLE, 0.35),
            ratio(long, short),
            Figure(f"compile, {long}", compiling[long], "s"),
            Figure(f"trace, {PLAIN_LOOP}", compiling[PLAIN_LOOP], "s"),
            Figure(f"trace, {PLAIN_UNROLLED}", compiling[PLAIN_UNROLLED], "s"),
            ratio(PLAIN_LOOP, PLAIN_UNROLLED),
            ratio(LOOP, PLAIN_LOOP),
        ),
        notes=(
            "All decoders chose the same slates; compile and trace: first call less a later one",
            "The decoders start from encoded lists; the whole models give positions only",
        ),
    )


def make_step(
    sizes: Sizes, seed: int, xla: bool, form: str = LOOP
) -> Callable[[], tuple[Any, list[Any]]]:
    """Loss and gradients along the greedy slate, cross-entropy at each step, on random clicks."""
    import tensorflow as tf

    from tfrz.losses.slate import step_cross_entropy, step_weights
    from tfrz.training.compilation import compiled_value_and_gradients

    model = make_model(sizes, seed)
    clicks = np.random.default_rng(seed).random((sizes.batch, sizes.length)) < 0.2
    looked_up = model.embed(make_lists(sizes, seed))
    # Not floats: no gradient of theirs is wanted.
    looked_up["labels"] = tf.constant(clicks, tf.int32)
    variables = model.trainable_variables

    def loss_of(given: dict[str, Any]) -> Any:
        x, valid = given["x"], given["valid"]
        slate = decoders(model.decoder)[form](x, *model.encoder.encode(x, valid), valid)
        losses = step_cross_entropy(slate.scores, slate.available, given["labels"])
        return tf.reduce_mean(tf.linalg.matvec(losses, step_weights(sizes.length)))

    @tf.function
    def plain(given: dict[str, Any]) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(given["x"])
            loss = loss_of(given)
        gradients, of_x = tape.gradient(loss, (variables, given["x"]))
        return loss, gradients, of_x

    value_and_gradients = compiled_value_and_gradients(loss_of, variables) if xla else plain

    def run() -> tuple[Any, list[Any]]:
        loss, gradients, _ = value_and_gradients(looked_up)
        return loss.numpy(), gradients

    return run


def measure_gradient(options: Options) -> Section:
    """Training steps by the length of the list, compiled or not."""
    sizes = Sizes.of(options)
    lengths = (3, 6) if options.quick else (10, 25, 50)
    runs = {
        f"{length} candidates, {word}": make_step(
            dataclasses.replace(sizes, length=length), options.seed, xla
        )
        for length in lengths
        for word, xla in (("XLA", True), ("no XLA", False))
    }
    names = [f"{length} candidates" for length in lengths]
    unrolled_step = f"{names[0]}, XLA, unrolled"
    shortest = dataclasses.replace(sizes, length=lengths[0])
    runs[unrolled_step] = make_step(shortest, options.seed, True, UNROLLED)
    first, _ = first_calls(runs)
    times = time_paired(runs, sizes.rounds, warm_up=1)
    looped_step = f"{names[0]}, XLA"
    compiling = {name: first[name] - times[name].median for name in (looped_step, unrolled_step)}
    ends = {word: (f"{names[-1]}, {word}", f"{names[0]}, {word}") for word in ("XLA", "no XLA")}
    return Section(
        title="loss and gradients of cross-entropy along the greedy slate, "
        f"batch {sizes.batch}, {sizes.units} units",
        baseline=f"{names[0]}, no XLA",
        setup=sizes.setup(lengths=list(lengths)),
        timings=times.summary(f"{names[0]}, no XLA"),
        figures=(
            *(Figure(f"first step, {name}", value, "s") for name, value in first.items()),
            *(
                Figure(
                    f"{name}, XLA / no XLA",
                    times.ratio(f"{name}, XLA", f"{name}, no XLA").of_medians,
                )
                for name in names
            ),
            *(
                Figure(f"{long} / {short}", times.ratio(long, short).of_medians)
                for long, short in ends.values()
            ),
            Figure(
                f"compile, {looped_step} / {unrolled_step}",
                compiling[looped_step] / compiling[unrolled_step],
            ),
            Figure(
                f"run, {looped_step} / {unrolled_step}",
                times.ratio(looped_step, unrolled_step).of_medians,
            ),
        ),
        notes=("Gradients of all weights and of the candidates; no optimizer",),
    )


def measure_beam(options: Options) -> Section:
    """What a beam of 4 costs, and what it finds beside greedy and sampled slates."""
    import tensorflow as tf

    sizes, width = Sizes.of(options), 4
    model = make_model(sizes, options.seed, beam_width=width)
    lists = make_lists(sizes, options.seed)
    greedy, beams = "greedy", f"beam {width}"
    runs = {}
    for word, xla in ((", XLA", True), (", no XLA", False)):
        runs[greedy + word] = make_run(lambda given: model.rerank(given)[0], lists, xla=xla)
        runs[beams + word] = make_run(lambda given: model.beams(given, width)[0], lists, xla=xla)
    times = time_paired(runs, sizes.rounds)
    many = make_lists(dataclasses.replace(sizes, batch=8 * sizes.batch), options.seed + 1)

    @tf.function
    def log_probabilities(given: Any, seed: Any) -> tuple[Any, ...]:
        sampled = model.rerank(given, method="sample", seed=seed)
        slates = model.rerank(given), sampled, model.best(given)
        totals = [tf.reduce_sum(slate.log_probabilities, axis=1) for slate in slates]
        return (*totals, model.beams(given, width).log_probability[:, 0])

    totals = log_probabilities(many, tf.constant([options.seed, 1]))
    at_greedy, at_sample, at_best, at_beam = (np.asarray(t, np.float64) for t in totals)
    unit, gain = "nats", at_beam - at_greedy
    return Section(
        title=f"beam {width} against greedy, {sizes.length} candidates, batch {sizes.batch}, "
        f"{sizes.units} units, untrained",
        baseline=f"{greedy}, XLA",
        setup=sizes.setup(beam_width=width, lists=len(at_greedy)),
        timings=times.summary(f"{greedy}, XLA"),
        figures=(
            *(
                Figure(
                    f"run, {beams} / {greedy}{word}",
                    times.ratio(beams + word, greedy + word).of_medians,
                )
                for word in (", XLA", ", no XLA")
            ),
            Figure(f"log-probability, {greedy}", float(at_greedy.mean()), unit),
            Figure("log-probability, sampled", float(at_sample.mean()), unit),
            Figure(f"log-probability, {beams}", float(at_beam.mean()), unit),
            Figure(f"log-probability, best of {beams} and {greedy}", float(at_best.mean()), unit),
            Figure(
                f"log-probability, best of {beams} and {greedy} less {greedy}",
                float(np.mean(at_best - at_greedy)),
                unit,
                Bound(0, "at least"),
                not options.quick,
            ),
            # Both are sums of float32; what is closer than this is the same slate.
            Figure(f"lists, {beams} above {greedy}", 100 * float(np.mean(gain > 1e-3)), "%"),
            Figure(f"lists, {beams} below {greedy}", 100 * float(np.mean(gain < -1e-3)), "%"),
        ),
        notes=("Log-probability of whole slates, the mean over lists; one sample a list",),
    )


def export_best(model: Any, folder: str) -> Any:
    """The signature of a SavedModel that gives the slate to show, loaded back."""
    import tensorflow as tf

    specs = {
        name: tf.TensorSpec([None, *shape], dtype, name)
        for name, shape, dtype in (
            ("features_xf", (model.length, model.num_features), tf.float32),
            ("mask_xf", (model.length,), tf.int64),
        )
    }
    module = tf.Module()
    module.weights = model.weights
    module.best = tf.function(
        lambda inputs: {"positions": model.best(inputs).positions}, input_signature=[specs]
    )
    tf.saved_model.save(module, folder, signatures={"serving_default": module.best})
    return tf.saved_model.load(folder).signatures["serving_default"]


def measure_serving(options: Options) -> Section:
    """One list through the exported model, sequential and in one step."""
    sizes = dataclasses.replace(Sizes.of(options), batch=1, rounds=10 if options.quick else 500)
    lists = make_lists(sizes, options.seed)
    runs = {}
    for scorer in ("sequential", "one_step"):
        with tempfile.TemporaryDirectory(prefix="tfrz-bench-") as folder:
            signature = export_best(make_model(sizes, options.seed, scorer=scorer), folder)
        runs[scorer] = lambda call=signature: call(**lists)["positions"].numpy()
    times = time_paired(runs, sizes.rounds, warm_up=5)
    return Section(
        title=f"one list of {sizes.length} candidates through a SavedModel, greedy, no XLA",
        baseline="sequential",
        setup=sizes.setup(),
        timings=times.summary("sequential"),
        figures=(
            *(Figure(f"{name}, p50", 1e3 * times[name].median, "ms") for name in runs),
            Figure("one_step / sequential", times.ratio("one_step", "sequential").of_medians),
        ),
        notes=("The signature in process, without a server",),
    )


PARTS: Mapping[str, Part] = {
    "decode": Part(measure_decode, "the loop against unrolled steps and prefixes run again"),
    "gradient": Part(measure_gradient, "loss and gradients by the length of the list"),
    "beam": Part(measure_beam, "beam 4 against greedy: time and log-probability"),
    "serving": Part(measure_serving, "p50 of one list through the exported model"),
}

if __name__ == "__main__":
    from benchmarks.runner import main

    raise SystemExit(main("pointer"))
