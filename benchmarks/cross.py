"""Suite `cross`: the mixture of low-rank cross layers of DCN-V2, and what is built on it.

A training step is everything that the layers cost inside a model: forward pass, loss, gradients of
all weights and of x0 (in a model x0 comes from embeddings, so its gradient is always needed), and
Adam's update.

    python -m benchmarks.cross --layer-only --json FILE
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks import cross_pipeline
from benchmarks.measure import (
    PairedTimings,
    forget_peak_resident_bytes,
    in_fresh_process,
    peak_resident_bytes,
    resident_bytes,
    time_paired,
)
from benchmarks.report import Bound, Figure, Section
from benchmarks.runner import Options, Part, main

TITLE = "Mixture of low-rank cross layers (DCN-V2)"

MIXTURE = "mixture"
LOOP = "loop over experts"
BROADCAST = "[batch, experts, dim]"
FACTORED_LOOP = "loop, x0 factored out"
EXPERT_MAJOR = "[experts, batch, dim]"
FULL = "Cross (full rank)"
TFRS = "TFRS Cross (full rank)"
TFRS_LOW_RANK = "TFRS Cross (low rank)"
SQUARE = "GEMM square"


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The shape of one measurement.

    Attributes:
      batch: examples in a step.
      dim: width of x0.
      num_experts: experts.
      rank: of each expert.
      num_layers: cross layers in the stack.
      square: side of the square matrix product that gives the GEMM peak.
      rounds: paired rounds.
    """

    batch: int = 4096
    dim: int = 416
    num_experts: int = 4
    rank: int = 64
    num_layers: int = 3
    square: int = 2048
    rounds: int = 15

    @classmethod
    def of(cls, options: Options) -> Sizes:
        """The sizes of the bounds, or small ones."""
        if not options.quick:
            return cls()
        return cls(batch=64, dim=48, num_experts=4, rank=8, num_layers=2, square=128, rounds=3)

    @property
    def forward_flops(self) -> int:
        """Multiplications and additions of the matrix products of a forward pass."""
        width = self.num_experts * self.rank
        # V and U; the inner maps C; the gate scores. Activations and sums are not counted: what
        # they cost is what keeps the layer from the peak.
        products = 2 * self.dim * width + width * self.rank + self.dim * self.num_experts
        return 2 * self.batch * self.num_layers * products

    def setup(self) -> dict[str, Any]:
        """For the report."""
        return {
            **dataclasses.asdict(self),
            "activation": "tanh",
            "gate": "softmax",
            "inner_map": True,
            "optimizer": "adam",
        }


def _synchronize() -> None:
    import tensorflow as tf

    if tf.config.list_physical_devices("GPU"):
        tf.test.experimental.sync_devices()


def make_mixture(sizes: Sizes, dtype: str = "float32") -> Any:
    """The layer that the suite is about, as eq. 4 with all its parts."""
    from tfrz.layers.cross import MixtureOfLowRankCross

    return MixtureOfLowRankCross(
        num_experts=sizes.num_experts,
        rank=sizes.rank,
        gate="softmax",
        expert_activation="tanh",
        use_inner_map=True,
        dtype=dtype,
    )


def _tfrs_cross() -> Any:
    """The layer class of TFRS; None, with a line that says so, where it is not installed."""
    try:
        from tensorflow_recommenders.layers.feature_interaction.dcn import Cross
    except ImportError:
        print("TFRS is not installed: its layers are left out", file=sys.stderr)
        return None
    return Cross


def _baselines() -> dict[str, Any]:
    from benchmarks import cross_baselines

    return {
        LOOP: cross_baselines.LoopMixture,
        BROADCAST: cross_baselines.BroadcastMixture,
        FACTORED_LOOP: cross_baselines.FactoredLoopMixture,
        EXPERT_MAJOR: cross_baselines.ExpertMajorMixture,
    }


def make_stacks(
    sizes: Sizes, seed: int, names: Sequence[str] | None = None
) -> dict[str, list[Any]]:
    """One stack of layers for each candidate (all of them, or those named).

    The mixture and its other forms start from the same weights. TFRS is left out where it is not
    installed.
    """
    import keras
    import tensorflow as tf

    from benchmarks.cross_baselines import MixtureWeights
    from tfrz.layers.cross import Cross

    keras.utils.set_random_seed(seed)
    mixtures = [make_mixture(sizes) for _ in range(sizes.num_layers)]
    for layer in mixtures:
        layer(tf.zeros((1, sizes.dim)))
    weights = [MixtureWeights.of(layer) for layer in mixtures]
    stacks = {MIXTURE: mixtures}
    stacks |= {name: [kind(w) for w in weights] for name, kind in _baselines().items()}
    stacks[FULL] = [Cross() for _ in mixtures]
    wanted = set(stacks) | {TFRS, TFRS_LOW_RANK} if names is None else set(names)
    if wanted & {TFRS, TFRS_LOW_RANK} and (tfrs_cross := _tfrs_cross()) is not None:
        stacks[TFRS] = [tfrs_cross() for _ in mixtures]
        # As many parameters as U and V of the mixture.
        projection = sizes.num_experts * sizes.rank
        stacks[TFRS_LOW_RANK] = [tfrs_cross(projection_dim=projection) for _ in mixtures]
    return {name: stack for name, stack in stacks.items() if name in wanted}


def apply_stack(layers: Sequence[Any], x0: Any) -> Any:
    """x_1 = layer(x0, x0), x_2 = layer(x0, x_1), …, in the dtype that the layers compute in."""
    import tensorflow as tf

    x0 = tf.cast(x0, layers[0].compute_dtype)
    x = x0
    for layer in layers:
        x = layer(x0, x)
    return x


def make_forward(layers: Sequence[Any], x0: Any, xla: bool = False) -> Callable[[], Any]:
    """A compiled forward pass on fixed inputs."""
    import tensorflow as tf

    forward = tf.function(lambda x: apply_stack(layers, x), jit_compile=xla)

    def run() -> Any:
        output = forward(x0)
        _synchronize()
        return output

    return run


def make_step(
    layers: Sequence[Any], x0: Any, target: Any, xla: bool = False, learning_rate: float = 1e-3
) -> Callable[..., float]:
    """A compiled training step, on these inputs or others; returns the loss before the update."""
    import keras
    import tensorflow as tf

    from tfrz.keras_versions import make_optimizer
    from tfrz.training.compilation import compiled_value_and_gradients

    apply_stack(layers, x0[:1])
    variables = [v for layer in layers for v in layer.trainable_variables]
    # Keras would compile the update with XLA on GPUs; all candidates must run the same update.
    optimizer = make_optimizer(keras.optimizers.Adam, learning_rate=learning_rate)
    optimizer.build(variables)

    def loss_of(x: Any, y: Any) -> Any:
        crossed = tf.cast(apply_stack(layers, x), tf.float32)
        predicted = tf.reduce_sum(crossed, axis=1) * crossed.shape[-1] ** -0.5
        return tf.reduce_mean(tf.square(predicted - y))

    compiled = compiled_value_and_gradients(lambda d: loss_of(d["x"], d["y"]), variables)

    @tf.function
    def step(x: Any, y: Any) -> tuple[Any, Any]:
        if xla:
            loss, gradients, inner = compiled({"x": x, "y": y})
            of_x0 = inner["x"]
        else:
            with tf.GradientTape() as tape:
                tape.watch(x)
                loss = loss_of(x, y)
            *gradients, of_x0 = tape.gradient(loss, [*variables, x])
        optimizer.apply_gradients(zip(gradients, variables, strict=True))
        return loss, of_x0

    def run(x: Any = x0, y: Any = target) -> float:
        loss, _ = step(x, y)
        _synchronize()
        return float(loss)

    return run


def _inputs(sizes: Sizes, seed: int) -> tuple[Any, Any]:
    import tensorflow as tf

    # The same task for every seed: a product of two linear forms, which a cross layer can learn.
    direction = np.random.default_rng(0).normal(size=sizes.dim) / sizes.dim**0.5
    rng = np.random.default_rng(seed)
    x0 = rng.normal(0.0, 0.5, (sizes.batch, sizes.dim)).astype("float32")
    target = (1.0 + x0 @ direction) * np.sum(x0, axis=1) / sizes.dim**0.5
    target += rng.normal(0.0, 0.1, sizes.batch)
    return tf.constant(x0), tf.constant(target.astype("float32"))


def _on_cpu() -> bool:
    import tensorflow as tf

    return not tf.config.list_physical_devices("GPU")


def ratio_figures(
    timings: PairedTimings, bounds: Mapping[str, Bound], judged: bool
) -> tuple[Figure, ...]:
    """The mixture's time over that of each other candidate, with the bounds there are."""
    return tuple(
        Figure(
            f"{MIXTURE} / {name}",
            timings.ratio(MIXTURE, name).of_medians,
            bound=bounds.get(name),
            judged=judged,
        )
        for name in timings.timings
        if name != MIXTURE
    )


def _judged(options: Options) -> bool:
    # The bounds were set for the sizes of the full run on a CPU.
    return not options.quick and _on_cpu()


def measure_step(options: Options) -> Section:
    """Training steps of all candidates in one paired run."""
    sizes = Sizes.of(options)
    x0, target = _inputs(sizes, options.seed)
    stacks = make_stacks(sizes, options.seed)
    steps = {name: make_step(layers, x0, target) for name, layers in stacks.items()}
    timings = time_paired(steps, sizes.rounds)
    bounds = {LOOP: Bound(0.80, "at most"), BROADCAST: Bound(0.50, "at most")}
    return Section(
        title="training step (forward, loss, gradients of weights and x0, Adam)",
        baseline=LOOP,
        setup=sizes.setup(),
        timings=timings.summary(LOOP),
        figures=ratio_figures(timings, bounds, _judged(options)),
    )


def gemm_candidates(sizes: Sizes, seed: int) -> dict[str, tuple[Callable[[], Any], int]]:
    """float32 matrix products, with the floating-point operations of each.

    The layer's own shapes, and a big square.
    """
    import tensorflow as tf

    generator = tf.random.Generator.from_seed(seed)
    width = sizes.num_experts * sizes.rank
    shapes = {
        "GEMM down": (sizes.batch, sizes.dim, width),
        "GEMM up": (sizes.batch, width, sizes.dim),
        SQUARE: (sizes.square,) * 3,
    }
    matmul = tf.function(tf.matmul)

    def make(rows: int, inner: int, columns: int) -> Callable[[], Any]:
        left, right = generator.normal((rows, inner)), generator.normal((inner, columns))

        def run() -> Any:
            product = matmul(left, right)
            _synchronize()
            return product

        return run

    return {
        name: (make(*shape), 2 * shape[0] * shape[1] * shape[2]) for name, shape in shapes.items()
    }


def measure_forward(options: Options) -> Section:
    """Forward passes of all candidates and matrix products in one paired run."""
    sizes = Sizes.of(options)
    x0, _ = _inputs(sizes, options.seed)
    forwards = {
        name: make_forward(layers, x0) for name, layers in make_stacks(sizes, options.seed).items()
    }
    products = gemm_candidates(sizes, options.seed)
    timings = time_paired(
        {**forwards, **{n: run for n, (run, _) in products.items()}}, sizes.rounds
    )
    rates = {name: flops / timings[name].median for name, (_, flops) in products.items()}
    peak = max(rates.values())
    rate = sizes.forward_flops / timings[MIXTURE].median
    layers_only = PairedTimings({name: timings[name] for name in forwards})
    return Section(
        title="forward pass, against the GEMM peak of the same run",
        baseline=LOOP,
        setup={**sizes.setup(), "forward_flops": sizes.forward_flops},
        timings=timings.summary(LOOP),
        figures=(
            Figure(
                f"{MIXTURE}, share of the GEMM peak",
                100 * rate / peak,
                "%",
                Bound(55.0, "at least"),
                _judged(options),
            ),
            Figure(f"{MIXTURE}, rate of its matrix products", rate / 1e9, "GFLOP/s"),
            *(Figure(name, value / 1e9, "GFLOP/s") for name, value in rates.items()),
            *ratio_figures(layers_only, {}, _judged(options)),
        ),
        notes=("peak: the fastest of the GEMM shapes, by medians",),
    )


def child_peak_memory(name: str, sizes: dict[str, int], seed: int) -> dict[str, float]:
    """In a separate process: the most memory that training steps of one candidate take.

    Returns:
      `bytes` above what the process had before the first step.
    """
    import tensorflow as tf

    shape = Sizes(**sizes)
    x0, target = _inputs(shape, seed)
    step = make_step(make_stacks(shape, seed, (name,))[name], x0, target)
    gpu = bool(tf.config.list_physical_devices("GPU"))
    if gpu:
        tf.config.experimental.reset_memory_stats("GPU:0")
    forget_peak_resident_bytes()
    before = resident_bytes()
    for _ in range(3):
        step()
    if gpu:
        return {"bytes": float(tf.config.experimental.get_memory_info("GPU:0")["peak"])}
    return {"bytes": float(peak_resident_bytes() - before)}


def measure_memory(options: Options) -> Section:
    """Peak memory of a training step, each candidate in a fresh process."""
    sizes = Sizes.of(options)
    used = {
        name: in_fresh_process(
            "benchmarks.cross:child_peak_memory",
            name=name,
            sizes=dataclasses.asdict(sizes),
            seed=options.seed,
        )["bytes"]
        for name in (MIXTURE, LOOP, BROADCAST)
    }
    return Section(
        title="peak memory of a training step",
        baseline=LOOP,
        setup=sizes.setup(),
        figures=(
            *(Figure(name, value / 2**20, "MiB") for name, value in used.items()),
            Figure(f"{MIXTURE} / {LOOP}", used[MIXTURE] / max(used[LOOP], 1.0)),
            Figure(f"{MIXTURE} / {BROADCAST}", used[MIXTURE] / max(used[BROADCAST], 1.0)),
        ),
        notes=("memory above what the process held before the first step",),
    )


def loss_curve(sizes: Sizes, dtype: str, steps: int, seed: int) -> list[float]:
    """Losses of a small noisy regression, a new batch each step.

    Initial weights and batches are the same for every `dtype`.
    """
    import keras

    keras.utils.set_random_seed(seed)
    layers = [make_mixture(sizes, dtype) for _ in range(sizes.num_layers)]
    step = make_step(layers, *_inputs(sizes, seed), learning_rate=1e-2)
    return [step(*_inputs(sizes, seed + 1 + i)) for i in range(steps)]


def curve_gap(reference: Sequence[float], other: Sequence[float]) -> float:
    """How far two loss curves are apart: the greatest gap as a share of the reference's loss."""
    gaps = np.abs(np.subtract(reference, other)) / np.abs(reference)
    return float(np.max(gaps))


def measure_bfloat16(options: Options) -> Section:
    """The same stack in `float32` and in `mixed_bfloat16`: speed, and do they learn alike?"""
    sizes = Sizes.of(options)
    x0, target = _inputs(sizes, options.seed)
    dtypes = ("float32", "mixed_bfloat16")
    candidates: dict[str, Callable[[], Any]] = {}
    for dtype in dtypes:
        layers = [make_mixture(sizes, dtype) for _ in range(sizes.num_layers)]
        candidates[f"step {dtype}"] = make_step(layers, x0, target)
        candidates[f"forward {dtype}"] = make_forward(layers, x0)
    timings = time_paired(candidates, sizes.rounds)
    small = dataclasses.replace(sizes, batch=512, dim=64, rank=16)
    curves = {
        dtype: loss_curve(small, dtype, 20 if options.quick else 100, options.seed)
        for dtype in dtypes
    }
    faster = Bound(1.0, "below")
    step = timings.ratio("step mixed_bfloat16", "step float32")
    forward = timings.ratio("forward mixed_bfloat16", "forward float32")
    reference, other = curves["float32"], curves["mixed_bfloat16"]
    return Section(
        title="mixed_bfloat16 against float32",
        baseline="step float32",
        setup=sizes.setup(),
        timings=timings.summary("step float32"),
        figures=(
            Figure("step, bfloat16 / float32", step.of_medians, "x", faster, _judged(options)),
            Figure("forward, bfloat16 / float32", forward.of_medians, "x"),
            Figure(
                "loss curves, greatest gap of a step",
                100 * curve_gap(reference, other),
                "%",
                Bound(5.0, "at most"),
                not options.quick,
            ),
            Figure("float32, last loss / first", reference[-1] / reference[0]),
            Figure("bfloat16, last loss / first", other[-1] / other[0]),
        ),
        details={"loss_curves": curves},
    )


def measure_xla(options: Options) -> Section:
    """The dense part of the step compiled by XLA or not, on this machine's device."""
    sizes = Sizes.of(options)
    x0, target = _inputs(sizes, options.seed)
    candidates: dict[str, Callable[[], Any]] = {}
    for word, xla in (("XLA off", False), ("XLA on", True)):
        layers = make_stacks(sizes, options.seed, (MIXTURE,))[MIXTURE]
        candidates[f"step {word}"] = make_step(layers, x0, target, xla)
        candidates[f"forward {word}"] = make_forward(layers, x0, xla)
    timings = time_paired(candidates, max(3, sizes.rounds // 2))
    return Section(
        title=f"XLA on against off, on the {'CPU' if _on_cpu() else 'GPU'}",
        baseline="step XLA off",
        setup=sizes.setup(),
        timings=timings.summary("step XLA off"),
        figures=(
            Figure("step, on / off", timings.ratio("step XLA on", "step XLA off").of_medians),
            Figure(
                "forward, on / off", timings.ratio("forward XLA on", "forward XLA off").of_medians
            ),
        ),
        notes=("trainer.xla=auto compiles on accelerators only",),
    )


PARTS: Mapping[str, Part] = {
    "step": Part(measure_step, "training step against the baselines"),
    "forward": Part(measure_forward, "forward pass against the baselines and the GEMM peak"),
    "memory": Part(measure_memory, "peak memory of a training step"),
    "bfloat16": Part(measure_bfloat16, "mixed_bfloat16 against float32"),
    "xla": Part(measure_xla, "XLA on against off"),
    "train": Part(
        cross_pipeline.measure_train,
        "examples per second of `tfrz train`",
        layer=False,
        needs=("pyarrow",),
        in_quick=False,
    ),
    "transform": Part(
        cross_pipeline.measure_transform,
        "rows per second of the Beam + TFT stage",
        layer=False,
        needs=("apache_beam", "tensorflow_transform", "tfx_bsl"),
        in_quick=False,
    ),
}

if __name__ == "__main__":
    sys.exit(main("cross"))
