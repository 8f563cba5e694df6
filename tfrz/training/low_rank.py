"""Low-rank training: which ranks, which factors, and a trained model's layers replaced by them.

The mathematics is in `tfrz.training.low_rank_factors`; its names are here too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from tfrz.config import did_you_mean, require
from tfrz.errors import ConfigError
from tfrz.layers.cross import Cross
from tfrz.models.dcn_v2 import DCNv2
from tfrz.training.batches import ArrayBatches, Batches
from tfrz.training.low_rank_factors import (
    Factors,
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
    "RankSchedule",
    "activation_gain",
    "balanced",
    "bias_shift",
    "break_even_rank",
    "data_whitened",
    "diagonal_weighted",
    "factorizable_layers",
    "factorize",
    "frobenius_decay_gradients",
    "function_aware",
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

_BATCH = 4096


@dataclasses.dataclass(frozen=True)
class RankSchedule:
    """What `scheduled_ranks` returns.

    Attributes:
      ranks: of the layers to factorise; a layer that is not in it stays as it is.
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
      target: parameters of all these matrices together, biases left out.

    Raises:
      ConfigError: no layers, or a target that rank 1 everywhere is above.

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
    """What `factorize` did to a layer.

    Attributes:
      name: of the layer.
      kind: dense or cross.
      shape: of its matrix, `(dim, units)`.
      rank: that it has now; 0 where it stays as it was.
      parameters_before: of the layer, its bias included.
      parameters_after: likewise.
      output_error: `|after - before| / |before|` of the layer's outputs, on the inputs that the
        layer had in the model as it was; None without inputs or where it stays as it was.
      frobenius_error: `|W - U V^T|_F / |W|_F`; 0 where it stays as it was.
      skipped: why it stays as it was; empty where it does not.
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


def _value(weight: Any) -> np.ndarray:
    return np.asarray(tf.cast(tf.convert_to_tensor(weight), tf.float64))


def _matrix(layer: Any) -> np.ndarray:
    """The layer's matrix as `[dim, units]`; a cross layer stores the transpose."""
    return _value(layer.W).T if isinstance(layer, Cross) else _value(layer.kernel)


def _check_model(model: Any) -> DCNv2:
    if not isinstance(model, DCNv2):
        raise ConfigError(
            f"model: a {type(model).__name__} cannot be factorised as a whole; DCNv2 can"
        )
    return model


def _layers(model: DCNv2) -> dict[str, Any]:
    """The layers that have a matrix between embeddings and logit, by name."""
    return {layer.name: layer for layer in (*model.cross_layers, *model.hidden_layers)}


def _is_full(layer: Any) -> bool:
    return isinstance(layer, Cross | keras.layers.Dense)


def _shape(layer: Any) -> tuple[int, int]:
    if isinstance(layer, Cross):
        dim = int(layer.W.shape[0])
        return dim, dim
    if isinstance(layer, keras.layers.Dense):
        return int(layer.kernel.shape[0]), int(layer.kernel.shape[1])
    rows = int(layer.U.shape[0])
    if not hasattr(layer, "units"):  # Cross layers are square.
        return rows, rows
    return rows, int(layer.units)


def factorizable_layers(model: keras.Model) -> dict[str, tuple[int, int]]:
    """The full layers of a model that `factorize` could replace, name to `(dim, units)`.

    Hidden and cross layers of a DCN-V2; neither its embeddings, which are low-rank maps of one-hot
    inputs already, nor its logit.

    Raises:
      ConfigError: a model of another class.
    """
    layers = _layers(_check_model(model))
    return {name: _shape(layer) for name, layer in layers.items() if _is_full(layer)}


def _wanted(
    layers: Mapping[str, Any], ranks: int | Mapping[str, int], beyond: bool
) -> tuple[dict[str, int], dict[str, str]]:
    """Name to rank, and name to why there is none."""
    shapes = {name: _shape(layer) for name, layer in layers.items()}
    if isinstance(ranks, Mapping):
        for name in ranks:
            require(name in layers, f"ranks.{name}", f"no such layer{did_you_mean(name, layers)}")
        asked = dict(ranks)
    else:
        full = max((min(shape) for shape in shapes.values()), default=0)
        require(1 <= ranks <= full, "rank", f"{ranks} is not 1 to {full}, the full rank")
        asked = dict.fromkeys(layers, ranks)
    wanted, skipped = {}, {}
    for name, layer in layers.items():
        if name not in asked:
            skipped[name] = "no rank was asked for"
            continue
        rank, full = asked[name], min(shapes[name])
        if isinstance(ranks, Mapping):
            require(1 <= rank <= full, f"ranks.{name}", f"{rank} is not 1 to {full}, the full rank")
        even = break_even_rank(*shapes[name])
        if not _is_full(layer):
            skipped[name] = "is of low rank already"
        elif rank > full:
            skipped[name] = f"rank {rank} is above {full}, the full rank"
        elif rank >= even and not beyond:
            skipped[name] = f"rank {rank} is not below break-even, {even:.4g}"
        else:
            wanted[name] = rank
    crosses = {name for name, layer in layers.items() if isinstance(layer, Cross)}
    found = {wanted.get(name, 0) for name in crosses}
    require(len(found) <= 1, "ranks", "the cross layers of a DCN-V2 share one rank: give them one")
    return wanted, skipped


# A layer's name, its inputs (a cross layer's are x0 and x) and its output.
_Traced = tuple[str, tuple[tf.Tensor, ...], tf.Tensor]


def _trace(model: DCNv2, batch: Mapping[str, Any]) -> Iterator[_Traced]:
    """What each layer reads and gives, dropout off: the model's `interact`, step by step."""
    x0 = x = model.embed(batch)
    for layer in model.cross_layers:
        after = layer(x0, x)
        yield layer.name, (x0, x), after
        x = after
    h = x0 if model.config.structure == "parallel" else x
    for layer in model.hidden_layers:
        after = layer(h)
        yield layer.name, (h,), after
        h = after


@dataclasses.dataclass
class _Moments:
    """Of what a layer reads: `E[x x^T]` and `E[x]`; and what an error of each unit counts.

    That is `E[x0^2]` in a cross layer, and the share of examples that a ReLU lets through.
    """

    second: np.ndarray
    mean: np.ndarray
    weights: np.ndarray


def _float(tensor: tf.Tensor) -> np.ndarray:
    return np.asarray(tf.cast(tensor, tf.float32), np.float64)


def _measure(model: DCNv2, inputs: Batches) -> dict[str, _Moments]:
    sums: dict[str, tuple[np.ndarray, ...]] = {}
    rows = 0
    for batch in inputs.once():
        for name, read, output in _trace(model, batch):
            x = _float(read[-1])
            units = np.square(_float(read[0])) if len(read) == 2 else _float(output) > 0
            found = (x.T @ x, x.sum(axis=0), units.sum(axis=0))
            old = sums.get(name)
            sums[name] = tuple(a + b for a, b in zip(old, found, strict=True)) if old else found
        rows += len(x)
    return {name: _Moments(*(total / rows for total in found)) for name, found in sums.items()}


def _compare(
    model: DCNv2, inputs: Batches, layers: Mapping[str, Any]
) -> dict[str, tuple[float, float]]:
    """By name: the error of a new layer's outputs, and by how much its outputs are too small."""
    sums = {name: np.zeros(3) for name in layers}
    for batch in inputs.once():
        for name, read, output in _trace(model, batch):
            if name in layers:
                before, after = _float(output), _float(layers[name](*read))
                sums[name] += [np.square(v).sum() for v in (after - before, before, after)]
    found = {}
    for name, (error, before, after) in sums.items():
        relative = float(np.sqrt(error / before)) if before else 0.0
        gain = float(np.sqrt(before / after)) if before and after else 1.0
        found[name] = (relative, gain)
    return found


def _cross_factors(W: np.ndarray, rank: int, first: bool, moments: _Moments | None) -> Factors:
    """Of a cross layer's stored matrix, rows belonging to x0."""
    if moments is None:
        return diagonal_weighted(W, rank) if first else spectral(W, rank)
    # Row i of the error is multiplied by x0_i.
    V, U = data_whitened(W.T, rank, moments.second, unit_weights=moments.weights)
    return balanced(U, V)


def _assign(new: Any, old: Any, init: str, first: bool, moments: _Moments | None) -> None:
    """Gives a low-rank layer the factors of a full one's matrix."""
    rank = int(new.rank)
    if isinstance(old, Cross):
        used = moments if init == "data" else None
        U, V = _cross_factors(_value(old.W), rank, first, used)
        bias = _value(old.b) if old.use_bias else None
    else:
        W = _matrix(old)
        bias = _value(old.bias) if old.use_bias else None
        if init == "data" and moments is not None:
            mean = moments.mean if bias is not None else None
            U, V = data_whitened(W, rank, moments.second, mean, moments.weights)
            if bias is not None:
                bias = bias + bias_shift(W, U, V, moments.mean)
        elif init == "function":
            U, V = function_aware(W, rank, None if moments is None else moments.second)
        else:
            U, V = spectral(W, rank)
    new.U.assign(U)
    new.V.assign(V)
    if bias is not None:
        new.b.assign(bias)


def _successor(model: DCNv2, wanted: Mapping[str, int]) -> DCNv2:
    """A model with low-rank layers in the wanted places and the old weights in all others."""
    config = model.config
    hidden = tuple(
        wanted.get(layer.name, rank)
        for layer, rank in zip(model.hidden_layers, config.hidden_ranks, strict=True)
    )
    changes: dict[str, Any] = {}
    if any(layer.name in wanted for layer in model.hidden_layers):
        changes["hidden_rank"] = hidden
    crosses = [wanted[layer.name] for layer in model.cross_layers if layer.name in wanted]
    if crosses:
        changes |= {"cross": "low_rank", "rank": crosses[0]}
    values = model.get_config()
    values["config"] = {**values["config"], **changes}
    new = DCNv2.from_config(values)
    pairs = [
        *[(new.embeddings[name], layer) for name, layer in model.embeddings.items()],
        *zip(new.cross_layers, model.cross_layers, strict=True),
        *zip(new.hidden_layers, model.hidden_layers, strict=True),
        (new.logit, model.logit),
    ]
    if model.long_history_adapter is not None:
        pairs.append((new.long_history_adapter, model.long_history_adapter))
    for after, before in pairs:
        if before.name not in wanted:
            after.set_weights(before.get_weights())
    return new


def factorize(
    model: keras.Model,
    ranks: int | Mapping[str, int],
    init: Literal["spectral", "function", "data"] = "spectral",
    inputs: Mapping[str, Any] | Batches | None = None,
    repair_scale: bool = False,
    beyond_break_even: bool = False,
    say: Callable[[str], None] | None = None,
) -> tuple[DCNv2, tuple[LayerReport, ...]]:
    """A model's full layers as products of two thin matrices.

    Works on a `DCNv2` before or after training: its hidden layers become `LowRankDense`, its
    full-rank cross layers `LowRankCross`. Embeddings and logit are left alone. `model` itself is
    not changed.

    - spectral: the nearest matrix in the Frobenius norm.
    - function: `function_aware`, of hidden layers, under Gaussian inputs; of the measured second
      moment if there are inputs. Cross layers have no ReLU: spectral.
    - data: `data_whitened`. Of hidden layers, units weighted by how often they are not 0, and the
      bias moved; of cross layers, rows weighted by the mean square of x0. For trained layers this
      is the one.

    Without data, the first cross layer, whose two inputs are the same, has its diagonal weighted.

    Args:
      model: a built `DCNv2`.
      ranks: one for all layers, or name of the layer to rank (see `factorizable_layers` and
        `scheduled_ranks`); cross layers share one.
      init: spectral, function or data.
      inputs: raw inputs of the model, name to array, or batches of them: some thousand examples,
        of the training set. What each layer reads is measured on them, in the model as it was.
      repair_scale: multiply the factors of each hidden layer by its measured gain (see
        `activation_gain`), for models that are to be trained from here; `init="data"` needs none.
      beyond_break_even: also factorise layers that do not get smaller by it.
      say: takes a line for each layer that is skipped.

    Returns:
      The new model, and a report of each hidden and cross layer, those that were skipped among
      them.

    Raises:
      ConfigError: another model, a rank below 1 or above the full one, an unknown layer or init,
        cross layers with different ranks, or data to be measured and no inputs.
    """
    model = _check_model(model)
    require(init in INITS, "init", f"{init!r} is none of {', '.join(INITS)}")
    require(init != "data" or inputs is not None, "init", "data needs inputs to measure")
    require(not repair_scale or inputs is not None, "repair_scale", "needs inputs to measure")
    old = _layers(model)
    wanted, skipped = _wanted(old, ranks, beyond_break_even)
    batches = None
    if inputs is not None:
        batches = ArrayBatches(inputs, _BATCH) if isinstance(inputs, Mapping) else inputs
    moments = _measure(model, batches) if batches is not None and init != "spectral" else {}
    new = _successor(model, wanted)
    fresh = {name: layer for name, layer in _layers(new).items() if name in wanted}
    first = model.cross_layers[0].name if model.cross_layers else None
    for name, layer in fresh.items():
        _assign(layer, old[name], init, name == first, moments.get(name))
    errors = _compare(model, batches, fresh) if batches is not None else {}
    if repair_scale and batches is not None:
        for name, layer in fresh.items():
            if not isinstance(old[name], Cross):
                root = np.sqrt(errors[name][1])
                for factor in (layer.U, layer.V):
                    factor.assign(_value(factor) * root)
        errors = _compare(model, batches, fresh)
    reports = []
    for name, layer in old.items():
        report = _report(layer, fresh.get(name), errors.get(name), skipped.get(name, ""))
        if report.skipped and say is not None:
            say(f"{name} stays as it is: {report.skipped}")
        reports.append(report)
    return new, tuple(reports)


def _report(old: Any, new: Any, error: tuple[float, float] | None, skipped: str) -> LayerReport:
    before, after = int(old.count_params()), int((new or old).count_params())
    lost = 0.0
    if new is not None:
        U, V = _value(new.U), _value(new.V)
        W = _value(old.W) if isinstance(old, Cross) else _matrix(old)
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
