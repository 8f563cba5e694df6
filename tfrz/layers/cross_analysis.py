"""Analysis of a trained cross layer: interactions of fields, spectrum, low-rank equivalent."""

from __future__ import annotations

import dataclasses
import io
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tfrz.config import require
from tfrz.layers.cross import Cross, LowRankCross, MixtureOfLowRankCross
from tfrz.layers.low_rank_dense import as_float64, spectral_factors


def _mean_slope(layer: MixtureOfLowRankCross) -> float:
    """The slope of g at 0, the mean of both sides if they differ (ReLU)."""
    step = 1e-3
    values = np.asarray(layer.expert_activation(tf.constant([-step, step], tf.float64)))
    return float((values[1] - values[0]) / (2 * step))


def _usual_gates(layer: MixtureOfLowRankCross) -> NDArray[np.float64]:
    """The gates of an input that scores all experts 0."""
    value = {"softmax": 1 / layer.num_experts, "sigmoid": 0.5, "constant": layer.gate_constant}
    return np.full(layer.num_experts, value[layer.gate])


def _factors(
    layer: Any, gates: Sequence[float] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """`U` and `V` of the layer's matrix `U V^T`, a mixture's gates and inner maps within `U`."""
    U, V = as_float64(layer.U), as_float64(layer.V)
    if isinstance(layer, LowRankCross):
        return U, V
    experts, rank = layer.num_experts, layer.rank
    weights = _usual_gates(layer) if gates is None else np.asarray(gates, np.float64)
    require(weights.shape == (experts,), "gates", f"needs one value for each of {experts} experts")
    slope = _mean_slope(layer)
    split = U.reshape(-1, experts, rank)
    if layer.use_inner_map:
        split = np.einsum("dks,ksr->dkr", split, as_float64(layer.C)) * slope
    return (split * weights[:, None] * slope).reshape(U.shape), V


def cross_matrix(layer: Any, gates: Sequence[float] | None = None) -> NDArray[np.float64]:
    """The matrix W of a cross layer, rows belonging to `x0`.

    Formula: `W`, `U V^T`, or for a mixture `sum_i G_i U^i C^i V^i^T` times the slope of g at 0
    for each time it is applied: the linear part of the experts.

    Args:
      layer: a built `Cross`, `LowRankCross` or `MixtureOfLowRankCross`.
      gates: of a mixture, `[num_experts]`, for instance the mean of `layer.gates(x)` over some
        inputs; left out, those of an input that scores every expert 0.

    Returns:
      float64 `[dim, dim]`.

    Raises:
      ConfigError: `gates` has another length.
    """
    if isinstance(layer, Cross):
        return as_float64(layer.W)
    U, V = _factors(layer, gates)
    return U @ V.T


def interaction_norms(
    layer: Any, field_widths: Sequence[int], gates: Sequence[float] | None = None
) -> NDArray[np.float64]:
    """How strongly each pair of fields interacts: the norms of the blocks of W.

    Formula: `H_ij = ||W_ij||_F`, field i of `x0` with field j of `x_l`. Of factors,
    `||U_i V_j^T||_F^2 = trace((U_i^T U_i)(V_j^T V_j))`: the matrix itself is not formed.
    Norms compare only between fields of similar scale; the paper reads the first layer.

    Args:
      layer: a built cross layer of any of the three kinds.
      field_widths: of the consecutive fields of `x0`; they add up to `dim`.
      gates: see `cross_matrix`.

    Returns:
      float64 `[fields, fields]`.

    Raises:
      ConfigError: the widths do not add up to `dim`.

    Example:
      >>> layer = Cross(kernel_initializer="ones")
      >>> layer.build((None, 3))
      >>> print(interaction_norms(layer, [1, 2]).round(3))
      [[1.    1.414]
       [1.414 2.   ]]

    Reference:
      DCN V2 (arXiv 2008.13535), section 7.6, equation 7.
    """
    full = isinstance(layer, Cross)
    factors = (as_float64(layer.W),) if full else _factors(layer, gates)
    dim = len(factors[0])
    require(
        sum(field_widths) == dim and all(w > 0 for w in field_widths),
        "field_widths",
        f"must be positive and add up to {dim}, the layer's dim",
    )
    starts = np.cumsum([0, *field_widths[:-1]])
    if full:
        squares = np.add.reduceat(np.square(factors[0]), starts, axis=0)
        return np.asarray(np.sqrt(np.add.reduceat(squares, starts, axis=1)))
    grams = []
    for factor in factors:
        blocks = np.split(factor, starts[1:])
        grams.append(np.stack([block.T @ block for block in blocks]))
    # Rounding can leave a vanishing norm a hair below zero.
    return np.asarray(np.sqrt(np.maximum(np.einsum("irs,jrs->ij", *grams), 0.0)))


def plot_interactions(
    norms: NDArray[np.float64], field_names: Sequence[str], path: str | os.PathLike[str]
) -> None:
    """Draws `interaction_norms` as a heat map, a PNG at `path`.

    Args:
      norms: `[fields, fields]`.
      field_names: of the rows and columns.
      path: of the picture.

    Raises:
      ConfigError: not one name per field.
    """
    from matplotlib.figure import Figure

    from tfrz.files import atomic_write

    norms = np.asarray(norms)
    count = len(field_names)
    require(norms.shape == (count, count), "field_names", f"{count} names for {norms.shape} norms")
    size = 2.5 + 0.45 * count
    figure = Figure(figsize=(size + 1, size), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(norms, cmap="viridis")
    axes.set_xticks(range(count), field_names, rotation=90)
    axes.set_yticks(range(count), field_names)
    axes.set_xlabel("field of the layer's input")
    axes.set_ylabel("field of x0")
    figure.colorbar(image, ax=axes, label="norm of the block of W")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    atomic_write(path, picture.getvalue())


def singular_values(layer: Any, gates: Sequence[float] | None = None) -> NDArray[np.float64]:
    """Singular values of the layer's matrix, in descending order, float64.

    `[dim]` of a full-rank layer; of factors, at most their number of columns, without forming
    the matrix. `gates` as for `cross_matrix`.
    """
    if isinstance(layer, Cross):
        return np.asarray(np.linalg.svd(as_float64(layer.W), compute_uv=False))
    (_, left), (_, right) = (np.linalg.qr(factor) for factor in _factors(layer, gates))
    return np.asarray(np.linalg.svd(left @ right.T, compute_uv=False))


def numerical_rank(values: Sequence[float] | NDArray[np.float64], tolerance: float) -> int:
    """R_T: the smallest k, counted from 1, with `sigma_k < T sigma_1`; their number if none is.

    Args:
      values: singular values in descending order.
      tolerance: T, above 0 and at most 1.

    Raises:
      ConfigError: no values, or a tolerance outside that range.

    Example:
      >>> [numerical_rank([1, 0.6, 0.2, 0.04, 0.009], t) for t in (0.5, 0.1, 0.01)]
      [3, 4, 5]

    Reference:
      DCN V2 (arXiv 2008.13535), section 3.5.
    """
    sigma = np.asarray(values, np.float64)
    require(sigma.size > 0, "values", "needs at least one singular value")
    require(0 < tolerance <= 1, "tolerance", "must be above 0 and at most 1")
    below = np.flatnonzero(sigma < tolerance * sigma[0])
    return int(below[0]) + 1 if below.size else int(sigma.size)


@dataclasses.dataclass(frozen=True)
class LowRankConversion:
    """The result of `to_low_rank`.

    Attributes:
      layer: the low-rank layer.
      error: `||W - U V^T||_F`, which is `sqrt(sum_{k > rank} sigma_k^2)`.
      relative_error: the same divided by `||W||_F`; 0 where W is zero.
    """

    layer: LowRankCross
    error: float
    relative_error: float


def to_low_rank(layer: Cross, rank: int) -> LowRankConversion:
    """The low-rank layer nearest to a full-rank one.

    Formula: from the singular value decomposition `W = P S Q^T`, `U = P_r S_r^(1/2)` and
    `V = Q_r S_r^(1/2)`: no matrix of that rank is nearer in the Frobenius norm.

    Args:
      layer: a built full-rank layer.
      rank: of the result, 1 to `dim`.

    Returns:
      The layer, with the bias and the settings of `layer`, and the error made.

    Raises:
      ConfigError: a rank out of range.

    Example:
      >>> full = Cross(kernel_initializer="ones")
      >>> full.build((None, 4))
      >>> round(to_low_rank(full, rank=1).relative_error, 6)
      0.0
    """
    W = as_float64(layer.W)
    U, V = spectral_factors(W, rank)
    config = {**layer.get_config(), "name": f"{layer.name}_rank_{rank}"}
    converted = LowRankCross(rank, **config)
    converted.build((None, len(W)))
    converted.assign_factors(V, U)
    if layer.use_bias:
        converted.b.assign(tf.convert_to_tensor(layer.b))
    squares = np.square(singular_values(layer))
    error, norm = float(np.sqrt(squares[rank:].sum())), float(np.sqrt(squares.sum()))
    return LowRankConversion(converted, error, error / norm if norm else 0.0)
