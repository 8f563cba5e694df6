"""Low-rank training: which ranks, which factors, and a model's layers replaced by them.

The mathematics is in `tfrz.training.matrix_factors`; its names are here too.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tfrz.config import did_you_mean, require
from tfrz.errors import ConfigError
from tfrz.keras_versions import layers_within
from tfrz.layers.low_rank_dense import FullMatrix, LowRankDense, as_float64, as_rows, full_matrix
from tfrz.models.factorizable import (
    Factorizable,
    low_rank_layers,
    low_rank_like,
    placed_layers,
    replace_layer,
)
from tfrz.training.batches import ArrayBatches, Batches
from tfrz.training.config import LowRankConfig
from tfrz.training.matrix_factors import (
    activation_gain,
    balanced,
    bias_shift,
    break_even_rank,
    data_whitened,
    diagonal_weighted,
    frobenius_decay_gradients,
    function_aware,
    rank_for_ratio,
    refined,
    relu_error,
    relu_kernel,
    sampled,
    spectral,
    weighted_cross_error,
    with_diagonal,
)

__all__ = [
    "LayerReport",
    "LowRankConfig",
    "RankSchedule",
    "activation_gain",
    "balanced",
    "bias_shift",
    "break_even_rank",
    "data_whitened",
    "diagonal_weighted",
    "factorizable_layers",
    "factorize",
    "factorize_for_training",
    "first_examples",
    "frobenius_decay_gradients",
    "function_aware",
    "low_rank_config",
    "rank_for_ratio",
    "refined",
    "relu_error",
    "relu_kernel",
    "sampled",
    "scheduled_ranks",
    "spectral",
    "weighted_cross_error",
    "with_diagonal",
]

INITS = ("spectral", "function", "data")

# Rows per call of a model: some models score all their items for each row.
_BATCH = 512

_MEASURED = 8192

# The output layers of the zoo's models: a low rank there limits everything before them.
_OUTPUTS = ("logit", "logits", "output_score")

Batch = Mapping[str, tf.Tensor]
Layers = Mapping[str, keras.layers.Layer]
Inputs = Batch | Batches | Sequence[Batch]


@dataclasses.dataclass(frozen=True)
class RankSchedule:
    """The result of `scheduled_ranks`.

    Attributes:
      ranks: names of the layers to factorise to their ranks; the other layers stay full.
      rank_scale: rank over `min(dim, units)`, before rounding, the same for all layers.
      parameters: of all the layers' matrices with these ranks.
    """

    ranks: dict[str, int]
    rank_scale: float
    parameters: int


def scheduled_ranks(shapes: Mapping[str, tuple[int, int]], target: int) -> RankSchedule:
    """One scale of ranks for all layers, such that their matrices have a number of parameters (c9).

    Formula: `r = max(1, round(scale * min(d, m)))`, the largest scale by bisection at which
    `sum r (d + m) <= target`. A layer whose rank is at or above break-even stays dense.

    Args:
      shapes: name to `(dim, units)`, as of `factorizable_layers`.
      target: number of parameters of all these matrices together, without biases.

    Raises:
      ConfigError: there are no layers, or the target is below rank 1 in every layer.

    Example:
      >>> found = scheduled_ranks({"a": (64, 256), "b": (256, 64)}, target=8000)
      >>> found.ranks, found.parameters
      ({'a': 12, 'b': 12}, 7680)

    Reference:
      Khodak et al. (ICLR 2021) choose ranks this way in their code.
    """
    require(bool(shapes), "shapes", "no layer to choose a rank for")

    def at(scale: float) -> RankSchedule:
        ranks, parameters = {}, 0
        for name, (dim, units) in shapes.items():
            rank = max(1, round(scale * min(dim, units)))
            if rank < break_even_rank(dim, units):
                ranks[name] = rank
                parameters += rank * (dim + units)
            else:
                parameters += dim * units
        return RankSchedule(ranks, scale, parameters)

    least = at(0.0)
    require(
        least.parameters <= target,
        "target",
        f"{target} parameters are fewer than the {least.parameters} of rank 1 in every layer",
    )
    if at(1.0).parameters <= target:
        return at(1.0)
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = 0.5 * (low + high)
        if at(middle).parameters <= target:
            low = middle
        else:
            high = middle
    return at(low)


@dataclasses.dataclass(frozen=True)
class LayerReport:
    """The result of `factorize` for one layer.

    Attributes:
      name: of the layer.
      kind: dense or cross.
      shape: of its matrix, `(dim, units)`.
      rank: the new rank; 0 if the layer stays full.
      parameters_before: number of parameters of the old layer, bias included.
      parameters_after: number of parameters of the new layer, bias included.
      output_error: `|after - before| / |before|` of the layer's outputs, on its inputs in the old
        model; None without inputs, or if the layer stays full.
      frobenius_error: `|W - U V^T|_F / |W|_F`; 0 if the layer stays full.
      skipped: why the layer stays full; empty if it does not.
    """

    name: str
    kind: Literal["dense", "cross"]
    shape: tuple[int, int]
    rank: int
    parameters_before: int
    parameters_after: int
    output_error: float | None
    frobenius_error: float
    skipped: str = ""


def _layers(model: keras.Model) -> dict[str, keras.layers.Layer]:
    """The layers that have a matrix between embeddings and output, by name."""
    if isinstance(model, keras.Sequential):
        raise ConfigError("model: a Sequential cannot be factorised: its layers have no attributes")
    if isinstance(model, Factorizable):
        return model.factorizable()
    dense = (keras.layers.Dense, LowRankDense)
    found = [m for m in (*placed_layers(model), *layers_within(model)) if isinstance(m, dense)]
    return {layer.name: layer for layer in found if layer.built}


def _full(layers: Layers) -> dict[str, FullMatrix]:
    """The full matrices of layers, by name."""
    found = {name: full_matrix(layer) for name, layer in layers.items()}
    return {name: matrix for name, matrix in found.items() if matrix is not None}


def _refused(model: keras.Model, layers: Layers) -> dict[str, str]:
    """Full layers that cannot be replaced, and why."""
    if isinstance(model, Factorizable):
        return {}
    places = [id(layer) for layer in placed_layers(model)]
    reasons = {}
    for name in _full(layers):
        layer = layers[name]
        if name in _OUTPUTS:
            reasons[name] = "computes the model's output"
        elif id(layer) not in places:
            reasons[name] = "is inside another layer"
        elif places.count(id(layer)) > 1:
            reasons[name] = "is shared by two places"
        elif layer.kernel_regularizer is not None or layer.kernel_constraint is not None:
            reasons[name] = "has a regulariser or constraint of its matrix"
    return reasons


def _shape(layer: keras.layers.Layer) -> tuple[int, int]:
    matrix = full_matrix(layer)
    if matrix is not None:
        return matrix.shape
    rows = int(layer.U.shape[0])
    return rows, int(getattr(layer, "units", rows))  # Cross layers are square.


def factorizable_layers(model: keras.Model) -> dict[str, tuple[int, int]]:
    """The full layers of a model that `factorize` could replace, name to `(dim, units)`.

    These are the hidden and cross layers of a DCN-V2, and the `keras.layers.Dense` in the
    attributes of other models, but neither embeddings, which are low-rank maps of one-hot inputs
    already, nor logits, nor the matrices of recurrent cells and attention.

    Raises:
      ConfigError: the model does not hold its layers in attributes.
    """
    layers = _layers(model)
    refused = _refused(model, layers)
    return {name: full.shape for name, full in _full(layers).items() if name not in refused}


def _wanted(
    layers: Layers,
    refused: Mapping[str, str],
    ranks: int | Mapping[str, int],
    beyond: bool,
) -> tuple[dict[str, int], dict[str, str]]:
    """Names of layers to their ranks, and names of the other layers to the reasons."""
    shapes = {name: _shape(layer) for name, layer in layers.items()}
    if isinstance(ranks, Mapping):
        for name in ranks:
            require(name in layers, f"ranks.{name}", f"no such layer{did_you_mean(name, layers)}")
        asked = dict(ranks)
    else:
        able = [min(shape) for name, shape in shapes.items() if name not in refused]
        full = max(able, default=ranks)
        require(1 <= ranks <= full, "rank", f"{ranks} is not 1 to {full}, the full rank")
        asked = dict.fromkeys(layers, ranks)
    wanted, skipped = {}, {}
    for name, layer in layers.items():
        if name in refused or name not in asked:
            skipped[name] = refused.get(name, "no rank was asked for")
            continue
        rank, full = asked[name], min(shapes[name])
        if isinstance(ranks, Mapping):
            require(1 <= rank <= full, f"ranks.{name}", f"{rank} is not 1 to {full}, the full rank")
        even = break_even_rank(*shapes[name])
        if full_matrix(layer) is None:
            skipped[name] = "is of low rank already"
        elif rank > full:
            skipped[name] = f"rank {rank} is above {full}, the full rank"
        elif rank >= even and not beyond:
            skipped[name] = f"rank {rank} is not below break-even, {even:.4g}"
        else:
            wanted[name] = rank
    crosses = {name for name, full in _full(layers).items() if full.kind == "cross"}
    found = {wanted.get(name, 0) for name in crosses}
    require(len(found) <= 1, "ranks", "the cross layers of a DCN-V2 share one rank: give them one")
    return wanted, skipped


# A layer's name, its inputs (a cross layer's are x0 and x) and its output.
_Traced = tuple[str, tuple[tf.Tensor, ...], tf.Tensor]


@contextlib.contextmanager
def _listening(layers: Layers) -> Iterator[list[_Traced]]:
    """Records every call of some layers, for as long as the block lasts."""
    heard: list[_Traced] = []

    def listened(name: str, call: Callable[..., tf.Tensor]) -> Callable[..., tf.Tensor]:
        def heard_call(*read: tf.Tensor, **options: Any) -> tf.Tensor:
            output = call(*read, **options)
            heard.append((name, read, output))
            return output

        return heard_call

    try:
        for name, layer in layers.items():
            layer.call = listened(name, layer.call)
        yield heard
    finally:
        for layer in layers.values():
            vars(layer).pop("call", None)


def _trace(model: keras.Model, layers: Layers, batch: Batch) -> list[_Traced]:
    """The inputs and outputs of layers when the model is called with a batch."""
    with _listening(layers) as heard:
        model(batch, training=False)
    return heard


def _batches(inputs: Inputs) -> Iterable[Batch]:
    """Batches that can be read more than once."""
    if isinstance(inputs, Sequence):
        return inputs
    batches: Iterable[Batch]
    batches = (ArrayBatches(inputs, _BATCH) if isinstance(inputs, Mapping) else inputs).once()
    return batches


def first_examples(train: Batches, count: int = _MEASURED) -> list[Batch]:
    """About `count` examples of the first epoch of a training set, as small batches in memory."""
    batches = -(-count // train.batch_size)
    return list(train.epoch(0).take(batches).rebatch(min(_BATCH, train.batch_size)))


@dataclasses.dataclass
class _Moments:
    """Moments of the inputs x of a layer, and the mean of `FullMatrix.unit_weights`.

    Attributes:
      second: `E[x x^T]`.
      mean: `E[x]`.
      weights: `E[x0^2]` in a cross layer, the share of positive outputs before a ReLU.
    """

    second: NDArray[np.float64]
    mean: NDArray[np.float64]
    weights: NDArray[np.float64]


def _measure(model: keras.Model, layers: Layers, batches: Iterable[Batch]) -> dict[str, _Moments]:
    sums: dict[str, tuple[NDArray[np.float64] | int, ...]] = {}
    full = _full(layers)
    for batch in batches:
        for name, read, output in _trace(model, layers, batch):
            x, units = as_rows(read[-1]), full[name].unit_weights(read, output)
            found = (x.T @ x, x.sum(axis=0), units.sum(axis=0), len(x))
            old = sums.get(name)
            sums[name] = tuple(a + b for a, b in zip(old, found, strict=True)) if old else found
    return {
        name: _Moments(*(total / rows for total in found)) for name, (*found, rows) in sums.items()
    }


def _compare(
    model: keras.Model,
    old: Layers,
    new: Layers,
    batches: Iterable[Batch],
) -> dict[str, tuple[float, float]]:
    """Names of layers to the error of the new outputs, and the factor that restores their size."""
    sums: dict[str, NDArray[np.float64]] = {}
    for batch in batches:
        for name, read, output in _trace(model, old, batch):
            before, after = as_rows(output), as_rows(new[name](*read))
            found = [np.square(v).sum() for v in (after - before, before, after)]
            sums[name] = sums.get(name, 0.0) + np.array(found)
    errors = {}
    for name, (error, before, after) in sums.items():
        relative = float(np.sqrt(error / before)) if before else 0.0
        gain = float(np.sqrt(before / after)) if before and after else 1.0
        errors[name] = (relative, gain)
    return errors


def _assign(
    new: keras.layers.Layer, full: FullMatrix, init: str, first: bool, moments: _Moments | None
) -> None:
    """Gives a low-rank layer the factors of a full one's matrix."""
    W, rank = full.values, int(new.rank)
    bias = None if full.bias is None else as_float64(full.bias)
    if init == "data" and moments is not None:
        # A cross layer's bias is multiplied by x0, and cannot make up for an error of the mean.
        mean = moments.mean if bias is not None and full.kind == "dense" else None
        U, V = data_whitened(W, rank, moments.second, mean, moments.weights)
        if bias is not None and mean is not None:
            bias = bias + bias_shift(W, U, V, mean)
    elif init == "function" and full.is_relu:
        U, V = function_aware(W, rank, None if moments is None else moments.second)
    else:
        U, V = diagonal_weighted(W, rank) if first else spectral(W, rank)
    new.assign_factors(U, V)
    if bias is not None:
        new.b.assign(bias)


def _successor(
    model: keras.Model,
    wanted: Mapping[str, int],
    decay: float,
    batch: Batch | None,
) -> tuple[keras.Model, dict[str, str]]:
    """A model of any class with its layers replaced, and the layers that could not be."""
    new = type(model).from_config(model.get_config())
    if batch is not None:
        new(batch, training=False)
    new.set_weights(model.get_weights())
    dense, refused = _layers(new), {}
    for name, rank in wanted.items():
        made = low_rank_like(dense[name], rank, decay)
        replace_layer(new, dense[name], made)
        try:
            if batch is not None:
                new(batch, training=False)
        except AttributeError:
            replace_layer(new, made, dense[name])
            refused[name] = "has weights that another layer reads"
    return new, refused


def factorize(
    model: keras.Model,
    ranks: int | Mapping[str, int],
    init: Literal["spectral", "function", "data"] = "spectral",
    inputs: Inputs | None = None,
    repair_scale: bool = False,
    beyond_break_even: bool = False,
    say: Callable[[str], None] | None = None,
    frobenius_decay: float = 0.0,
) -> tuple[keras.Model, tuple[LayerReport, ...]]:
    """A model's full layers as products of two thin matrices.

    Works before or after training. The hidden layers of a `DCNv2` become `LowRankDense`, its
    full-rank cross layers `LowRankCross`; of any other model, the `keras.layers.Dense` in its
    attributes become `LowRankDense` of the same name (see `factorizable_layers`). Embeddings and
    logits stay full. `model` itself does not change.

    - spectral: the nearest matrix in the Frobenius norm.
    - function: `function_aware` for ReLU layers under Gaussian inputs, with the measured second
      moment if there are inputs; spectral for the others.
    - data: `data_whitened`, and the bias is moved. Units of ReLU layers are weighted by how often
      they are positive, those of cross layers by the mean square of x0. This is the best choice for
      trained layers. Spectral for layers that read none of the inputs.

    Without data, `diagonal_weighted` is used for the first cross layer, whose two inputs are equal.

    Args:
      model: a built model. Your own class needs `get_config` and `from_config`, and must hold its
        layers in attributes, lists or dicts.
      ranks: one rank for all layers, or names of layers to ranks (see `factorizable_layers` and
        `scheduled_ranks`); cross layers share one rank.
      init: spectral, function or data.
      inputs: raw inputs of the model, name to array, or batches of them: some thousand examples,
        of the training set, on which the inputs of each layer are measured in the old model.
        Padding counts like any other step.
      repair_scale: multiply the factors of each dense layer by its measured gain (see
        `activation_gain`), for models that are trained afterwards; not needed with `init="data"`.
      beyond_break_even: also factorise layers that do not become smaller.
      say: called with a line for each layer that is skipped.
      frobenius_decay: decay of the new dense layers, see `LowRankDense`; 0 keeps that of the model.
        It becomes the `deep_decay` of a `DCNv2`.

    Returns:
      The new model, and a report of each dense and cross layer, skipped ones included.

    Raises:
      ConfigError: a model without layers in attributes, a rank below 1 or above the full one, an
        unknown layer or init, cross layers with different ranks, or inputs that are missing.
    """
    require(init in INITS, "init", f"{init!r} is none of {', '.join(INITS)}")
    require(init != "data" or inputs is not None, "init", "data needs inputs to measure")
    require(not repair_scale or inputs is not None, "repair_scale", "needs inputs to measure")
    old = _layers(model)
    wanted, skipped = _wanted(old, _refused(model, old), ranks, beyond_break_even)
    batches = None if inputs is None else _batches(inputs)
    if isinstance(model, Factorizable):
        new = model.successor(wanted, frobenius_decay)
    else:
        first_batch = None if batches is None else next(iter(batches))
        new, refused = _successor(model, wanted, frobenius_decay, first_batch)
        skipped |= refused
    fresh = {name: layer for name, layer in _layers(new).items() if name not in skipped}
    replaced = {name: old[name] for name in fresh}
    full = _full(replaced)
    moments = {}
    if batches is not None and init != "spectral":
        moments = _measure(model, replaced, batches)
    # The first cross layer of a model reads x0 twice.
    first = next((name for name, matrix in _full(old).items() if matrix.kind == "cross"), None)
    for name, layer in fresh.items():
        _assign(layer, full[name], init, name == first, moments.get(name))
    errors = _compare(model, replaced, fresh, batches) if batches is not None else {}
    if repair_scale and batches is not None:
        for name, layer in fresh.items():
            if full[name].kind == "dense" and name in errors:
                root = np.sqrt(errors[name][1])
                layer.assign_factors(*(factor * root for factor in layer.factors))
        errors = _compare(model, replaced, fresh, batches)
    reports = []
    for name, layer in old.items():
        report = _report(layer, fresh.get(name), errors.get(name), skipped.get(name, ""))
        if report.skipped and say is not None:
            say(f"{name} stays full: {report.skipped}")
        reports.append(report)
    return new, tuple(reports)


def _report(
    old: keras.layers.Layer,
    new: keras.layers.Layer | None,
    error: tuple[float, float] | None,
    skipped: str,
) -> LayerReport:
    before, after = int(old.count_params()), int((new or old).count_params())
    lost, full = 0.0, full_matrix(old)
    if new is not None and full is not None:
        (U, V), W = new.factors, full.values
        norm = float(np.linalg.norm(W))
        lost = float(np.linalg.norm(W - U @ V.T)) / norm if norm else 0.0
    kind: Literal["dense", "cross"] = "dense" if hasattr(old, "units") else "cross"
    return LayerReport(
        old.name,
        kind,
        _shape(old),
        0 if new is None else int(new.rank),
        before,
        after,
        None if error is None else error[0],
        lost,
        skipped,
    )


def factorize_for_training(
    model: keras.Model, config: LowRankConfig, inputs: Inputs, where: str = "low_rank"
) -> tuple[keras.Model, tuple[LayerReport, ...]]:
    """Calls `factorize` with the settings of a configuration.

    Args:
      model: built.
      config: the ranks and the initial factors; `config.enabled` is true.
      inputs: some thousand examples of the training set, see `first_examples`.
      where: the option that gave the ranks, for messages.

    Raises:
      ConfigError: no layer becomes smaller, or as in `factorize`.
    """
    ranks: int | dict[str, int] = config.layers if config.rank is None else config.rank
    shapes = factorizable_layers(model)
    if config.target_parameters is not None and shapes:
        ranks = scheduled_ranks(shapes, config.target_parameters).ranks
    new, reports = factorize(
        model,
        ranks,
        config.init,
        inputs,
        config.repair_scale,
        frobenius_decay=config.frobenius_decay,
    )
    if not any(report.rank for report in reports):
        kept = "; ".join(f"{r.name}: {r.skipped}" for r in reports)
        kept = kept or "it has no dense layer; embeddings, recurrent cells and attention stay full"
        raise ConfigError(
            f"{where}: no layer of this {type(model).__name__} becomes smaller ({kept})"
        )
    return new, reports


def low_rank_config(model: keras.Model) -> LowRankConfig:
    """The configuration that, with the one of the model, builds the same structure again.

    It is off for a model whose own configuration describes the ranks of its layers.
    """
    layers = low_rank_layers(model).get("low_rank", {})
    decays = [values["frobenius_decay"] for values in layers.values()]
    return LowRankConfig(
        layers={name: values["rank"] for name, values in layers.items()},
        frobenius_decay=max(decays, default=0.0),
    )
