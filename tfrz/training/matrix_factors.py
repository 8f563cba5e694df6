"""Low-rank approximation of a layer: what is approximated, and by which factors.

Plain mathematics, in NumPy float64. `W` is `[dim, units]`: column j makes unit j of
`relu(x W)`, as a Keras kernel is stored. `U` is `[dim, rank]`, `V` `[units, rank]`, and
`Y = U V^T`.

The numbers c1 to c10 are those of the specification that this was written from. The body of
arXiv 2202.00834 was not available: this is Gaussian calculus, not a claim about the algorithm of
the paper.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from tfrz.config import require
from tfrz.layers.low_rank_dense import spectral_factors as spectral

__all__ = [
    "activation_gain",
    "balanced",
    "bias_shift",
    "break_even_rank",
    "data_whitened",
    "diagonal_weighted",
    "frobenius_decay_gradients",
    "function_aware",
    "rank_for_ratio",
    "refined",
    "relu_error",
    "relu_kernel",
    "sampled",
    "spectral",
    "weighted_cross_error",
    "with_diagonal",
]

Factors = tuple[NDArray[np.float64], NDArray[np.float64]]

# A column with a smaller share than this inside the subspace is orthogonal to it.
_ORTHOGONAL = 1e-12
# Directions of the inputs with a smaller share of the energy than this do not occur.
_FLAT = 1e-12
_LEAST_WEIGHT = 1e-6


def _excess(rho: NDArray[np.float64]) -> NDArray[np.float64]:
    """`h(rho) - max(rho, 0)` to full precision: `(sin a - a cos a) / pi`, `a = arccos |rho|`."""
    angle = np.arccos(np.minimum(np.abs(rho), 1.0))
    # Both terms lose their common digits near 0: the series does not.
    series = angle**3 * (1 / 3 - angle**2 * (1 / 30 - angle**2 * (1 / 840 - angle**2 / 45360)))
    exact = np.sin(angle) - angle * np.cos(angle)
    return np.asarray(np.where(angle < 0.05, series, exact) / np.pi)


def relu_kernel(rho: NDArray[np.float64] | float) -> NDArray[np.float64]:
    """The normalised ReLU kernel (c2).

    Formula: `h(rho) = (sqrt(1 - rho^2) + rho (pi - arccos rho)) / pi`; of `x ~ N(0, I)` and
    vectors with cosine rho, `E[relu(w x) relu(y x)] = |w| |y| h(rho) / 2`.

    Args:
      rho: cosines; values beyond -1 or 1 by rounding are taken as -1 or 1.

    Returns:
      float64, of the same shape: 0 at -1, `1 / pi` at 0, 1 at 1.

    Example:
      >>> print(relu_kernel(np.array([-1.0, 0.0, 0.5, 1.0])).round(6))
      [0.       0.31831  0.608998 1.      ]
    """
    cosines = np.clip(np.asarray(rho, np.float64), -1.0, 1.0)
    return np.asarray(np.maximum(cosines, 0.0) + _excess(cosines))


def _slope(rho: NDArray[np.float64]) -> NDArray[np.float64]:
    """The derivative of h."""
    return np.asarray((np.pi - np.arccos(np.clip(rho, -1.0, 1.0))) / np.pi)


def _lengths(columns: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.linalg.norm(columns, axis=0))


def _units(columns: NDArray[np.float64], lengths: NDArray[np.float64]) -> NDArray[np.float64]:
    """Columns of length 1; those that are zero stay so."""
    return np.asarray(columns / np.where(lengths > 0, lengths, 1.0))


def relu_error(W: NDArray[np.float64], Y: NDArray[np.float64]) -> float:
    """The expected squared error of a ReLU layer under Gaussian inputs (c3).

    Formula: `R = E |relu(x W) - relu(x Y)|^2`, `x ~ N(0, I)`, which is
    `1/2 sum_j [|w_j|^2 + |y_j|^2 - 2 |w_j| |y_j| h(rho_j)]`.

    Args:
      W: `[dim, units]`.
      Y: its approximation, of the same shape.

    Raises:
      ConfigError: another shape.

    Example:
      >>> W = np.array([[1.0, 0, 2, -1], [0, 1, 1, 1], [1, 1, 0, 2]])
      >>> relu_error(W, 0 * W)
      7.5
    """
    W, Y = np.asarray(W, np.float64), np.asarray(Y, np.float64)
    require(W.shape == Y.shape, "Y", f"has shape {Y.shape}, W {W.shape}")
    w, y = _lengths(W), _lengths(Y)
    # 1 - rho as the squared distance of unit vectors: exact where rho is near 1.
    apart = 0.5 * np.square(_units(W, w) - _units(Y, y)).sum(axis=0)
    rho = 1.0 - apart
    short = np.where(rho >= 0, apart, 1.0) - _excess(rho)
    return float(0.5 * np.sum(np.square(w - y) + 2.0 * w * y * short))


def balanced(A: NDArray[np.float64], B: NDArray[np.float64]) -> Factors:
    """Factors of `A B^T` with equal singular values: `U^T U = V^T V`.

    Adam is not invariant to how a product is split; balanced factors are the safe start.

    Args:
      A: `[dim, rank]`.
      B: `[units, rank]`.

    Returns:
      U `[dim, rank]` and V `[units, rank]`; the `dim x units` product is never formed.
    """
    left, small_left = np.linalg.qr(A)
    right, small_right = np.linalg.qr(B)
    P, values, R = np.linalg.svd(small_left @ small_right.T)
    root = np.sqrt(values)
    # Thinner than the rank where dim or units are: the columns that lack are zero.
    U, V = np.zeros(A.shape), np.zeros(B.shape)
    U[:, : len(root)] = (left @ P)[:, : len(root)] * root
    V[:, : len(root)] = (right @ R.T)[:, : len(root)] * root
    return U, V


def _check_rank(W: NDArray[np.float64], rank: int) -> NDArray[np.float64]:
    W = np.asarray(W, np.float64)
    full = min(W.shape)
    require(1 <= rank <= full, "rank", f"{rank} is not 1 to {full}, the full rank")
    return W


def _roots(second_moment: NDArray[np.float64], dim: int) -> Factors:
    """`Sigma^(1/2)` and its pseudo-inverse."""
    sigma = np.asarray(second_moment, np.float64)
    require(
        sigma.shape == (dim, dim), "second_moment", f"has shape {sigma.shape}, not {(dim, dim)}"
    )
    values, vectors = np.linalg.eigh(0.5 * (sigma + sigma.T))
    real = values > _FLAT * max(values[-1], 0.0)
    root = np.sqrt(np.where(real, values, 0.0))
    inverse = np.where(real, 1.0 / np.where(real, root, 1.0), 0.0)
    return (vectors * root) @ vectors.T, (vectors * inverse) @ vectors.T


def _rescaled(W: NDArray[np.float64], Q: NDArray[np.float64]) -> NDArray[np.float64]:
    """c4: B such that `Q B` is the best approximation of relu(x W) with columns in span(Q)."""
    Z = Q.T @ W
    w, z = _lengths(W), _lengths(Z)
    rho = np.minimum(z / np.where(w > 0, w, 1.0), 1.0)
    lost = rho <= _ORTHOGONAL
    directions = _units(Z, z)
    # A column orthogonal to the subspace may point anywhere in it: its length is what counts.
    directions[:, lost] = 0.0
    directions[0, lost] = 1.0
    return np.asarray(directions * w * relu_kernel(np.where(lost, 0.0, rho)))


def function_aware(
    W: NDArray[np.float64], rank: int, second_moment: NDArray[np.float64] | None = None
) -> Factors:
    """The closed form for ReLU layers: the singular subspace, each column rescaled (c4, c6).

    Formula: with Q the first left singular vectors and `rho_j = |Q^T w_j| / |w_j|`,
    `y_j = h(rho_j) / rho_j Q Q^T w_j`. With a second moment Sigma, of `Sigma^(1/2) W`, and back.
    The length is the best for the subspace; the subspace is a good one, not the best (`refined`).

    Args:
      W: `[dim, units]`.
      rank: 1 to the full rank.
      second_moment: `E[x x^T]`, `[dim, dim]`; the identity if left out. The inputs are taken as
        Gaussian and the bias as 0: for trained layers `data_whitened` is better.

    Returns:
      U and V, balanced.

    Raises:
      ConfigError: a rank out of range.

    Example:
      >>> W = np.array([[1.0, 0, 2, -1], [0, 1, 1, 1], [1, 1, 0, 2]])
      >>> (U, V), (P, R) = function_aware(W, rank=1), spectral(W, rank=1)
      >>> round(relu_error(W, U @ V.T), 6), round(relu_error(W, P @ R.T), 6)
      (3.11549, 3.351657)
    """
    W = _check_rank(W, rank)
    if second_moment is None:
        Q = np.linalg.svd(W, full_matrices=False)[0][:, :rank]
        return balanced(Q, _rescaled(W, Q).T)
    root, inverse = _roots(second_moment, len(W))
    whitened = root @ W
    Q = np.linalg.svd(whitened, full_matrices=False)[0][:, :rank]
    return balanced(inverse @ Q, _rescaled(whitened, Q).T)


def refined(
    W: NDArray[np.float64],
    rank: int,
    iterations: int = 200,
    start: NDArray[np.float64] | None = None,
) -> Factors:
    """A better subspace for `function_aware`: gradient ascent over subspaces (c4).

    Formula: maximises `F(Q) = sum_j |w_j|^2 h(|Q^T w_j| / |w_j|)^2`. Each step goes along the
    Riemannian gradient as far as F rises: the error never does.

    Args:
      W: `[dim, units]`.
      rank: 1 to the full rank.
      iterations: steps at most.
      start: a subspace to start from, `[dim, rank]`; the singular one if left out. There are local
        optima.

    Returns:
      U and V, balanced.

    Raises:
      ConfigError: a rank out of range, or a start of another shape.
    """
    W = _check_rank(W, rank)
    if start is None:
        Q = np.linalg.svd(W, full_matrices=False)[0][:, :rank]
    else:
        require(np.shape(start) == (len(W), rank), "start", f"must have shape {(len(W), rank)}")
        Q = np.linalg.qr(np.asarray(start, np.float64))[0]
    lengths = _lengths(W)
    directions, energies = _units(W, lengths), np.square(lengths)
    total = energies.sum()

    def gain(subspace: NDArray[np.float64]) -> float:
        cosines = np.minimum(_lengths(subspace.T @ directions), 1.0)
        return float(energies @ np.square(relu_kernel(cosines)))

    value, step = gain(Q), 1.0
    for _ in range(iterations):
        P = Q.T @ directions
        rho = np.clip(_lengths(P), _ORTHOGONAL, 1.0)
        weights = energies * relu_kernel(rho) * _slope(rho) / rho
        gradient = (directions * weights) @ P.T
        gradient -= Q @ (Q.T @ gradient)
        steepness = float(np.square(gradient).sum())
        # F scales with the energies of the columns, and so must the step.
        while steepness > 0 and step > 1e-12:
            moved = np.linalg.qr(Q + step / total * gradient)[0]
            after = gain(moved)
            if after > value + 1e-4 * step / total * steepness:
                break
            step *= 0.5
        else:
            break
        Q, value, step = moved, after, 2.0 * step
    return balanced(Q, _rescaled(W, Q).T)


def data_whitened(
    W: NDArray[np.float64],
    rank: int,
    second_moment: NDArray[np.float64],
    mean: NDArray[np.float64] | None = None,
    unit_weights: NDArray[np.float64] | None = None,
) -> Factors:
    """The best low-rank matrix in the metric of the inputs that were measured.

    Formula: minimises `E|x (W - Y)|^2 = |Sigma^(1/2) (W - Y)|_F^2` exactly: with R the first right
    singular vectors of `Sigma^(1/2) W`, `Y = W R R^T`. (Of a ReLU's output this is an upper bound.)

    Args:
      W: `[dim, units]`.
      rank: 1 to the full rank.
      second_moment: `E[x x^T]`, `[dim, dim]`.
      mean: `E[x]`, `[dim]`: if given, what Y errs by on the mean is left to the bias, which must
        then be moved by `bias_shift`. With that the error is never larger.
      unit_weights: what an error of each unit counts, `[units]`, for instance how often a ReLU is
        not 0; all alike if left out. Less than a millionth of the largest counts as that.

    Returns:
      U and V, balanced.

    Raises:
      ConfigError: a rank out of range, or a second moment or weights of another shape.
    """
    W = _check_rank(W, rank)
    sigma = np.asarray(second_moment, np.float64)
    if mean is not None:
        sigma = sigma - np.outer(mean, mean)
    scales = np.ones(W.shape[1])
    if unit_weights is not None:
        weights = np.asarray(unit_weights, np.float64)
        require(
            weights.shape == scales.shape and weights.min() >= 0,
            "unit_weights",
            f"must be {len(scales)} numbers, none negative",
        )
        if weights.max() > 0:
            scales = np.sqrt(np.maximum(weights, _LEAST_WEIGHT * weights.max()))
    root, _ = _roots(sigma, len(W))
    R = np.linalg.svd(root @ (W * scales), full_matrices=False)[2][:rank].T
    return balanced((W * scales) @ R, R / scales[:, None])


def bias_shift(
    W: NDArray[np.float64],
    U: NDArray[np.float64],
    V: NDArray[np.float64],
    mean: NDArray[np.float64],
) -> NDArray[np.float64]:
    """What to add to the bias so that the mean of the layer's linear part stays: `(W - Y)^T E[x]`.

    Returns:
      float64 `[units]`.
    """
    mean = np.asarray(mean, np.float64)
    return np.asarray(mean @ np.asarray(W, np.float64) - (mean @ U) @ V.T)


_ACTIVATIONS: dict[
    str, tuple[Callable[..., NDArray[np.float64]], Callable[..., NDArray[np.float64]]]
] = {
    # The function, and its derivative from its argument and value.
    "linear": (lambda z: z, lambda z, a: np.ones_like(z)),
    "relu": (lambda z: np.maximum(z, 0.0), lambda z, a: (z > 0).astype(z.dtype)),
    "sigmoid": (lambda z: 0.5 * (1.0 + np.tanh(0.5 * z)), lambda z, a: a * (1.0 - a)),
    "tanh": (np.tanh, lambda z, a: 1.0 - np.square(a)),
}


def _activation(
    name: str,
) -> tuple[Callable[..., NDArray[np.float64]], Callable[..., NDArray[np.float64]]]:
    known = ", ".join(_ACTIVATIONS)
    require(name in _ACTIVATIONS, "activation", f"{name!r} is none of {known}")
    return _ACTIVATIONS[name]


def sampled(
    W: NDArray[np.float64],
    b: NDArray[np.float64] | float,
    rank: int,
    inputs: NDArray[np.float64],
    activation: str = "relu",
    steps: int = 1000,
    learning_rate: float = 0.02,
    batch_size: int = 256,
    seed: int = 0,
) -> Factors:
    """Factors by Adam on inputs that were measured: for any activation and bias.

    Formula: minimises the mean of `|act(x W + b) - act(x U V^T + b)|^2`, from `data_whitened`
    with each unit's mean squared slope as weight. The learning rate falls to 0 as a cosine. The
    best factors met are taken: never worse on `inputs` than the start.

    Args:
      W: `[dim, units]`.
      b: the bias, `[units]`.
      rank: 1 to the full rank.
      inputs: `[rows, dim]`.
      activation: linear, relu, sigmoid or tanh.
      steps: of Adam.
      learning_rate: of the first step, as a share of the size of the start's entries.
      batch_size: rows of a step.
      seed: of the batches.

    Returns:
      U and V, balanced.

    Raises:
      ConfigError: a rank out of range or an unknown activation.
    """
    W, x = _check_rank(W, rank), np.asarray(inputs, np.float64)
    require(
        x.ndim == 2 and x.shape[1] == len(W) and len(x) > 0,
        "inputs",
        f"have shape {x.shape}, not (rows, {len(W)})",
    )
    function, derivative = _activation(activation)
    z = x @ W + b
    target = function(z)
    # To first order an error of a unit counts by the square of its activation's slope.
    slopes = np.square(derivative(z, target)).mean(axis=0)
    factors = list(data_whitened(W, rank, x.T @ x / len(x), unit_weights=slopes))

    def error() -> float:
        return float(np.mean(np.square(function((x @ factors[0]) @ factors[1].T + b) - target)))

    rng = np.random.default_rng([seed, 2202])
    scale = learning_rate * float(np.sqrt(np.mean(np.square(factors[0]))))
    first = [np.zeros_like(f) for f in factors]
    second = [np.zeros_like(f) for f in factors]
    best, kept = error(), [f.copy() for f in factors]
    rows = min(batch_size, len(x))
    for step in range(1, steps + 1):
        picked = rng.integers(0, len(x), rows)
        U, V = factors
        batch, inner = x[picked], x[picked] @ U
        z = inner @ V.T + b
        a = function(z)
        back = 2.0 / rows * (a - target[picked]) * derivative(z, a)
        rate = scale * 0.5 * (1.0 + np.cos(np.pi * (step - 1) / steps))
        for i, gradient in enumerate((batch.T @ (back @ V), back.T @ inner)):
            first[i] += 0.1 * (gradient - first[i])
            second[i] += 0.001 * (np.square(gradient) - second[i])
            slope = first[i] / (1.0 - 0.9**step)
            spread = np.sqrt(second[i] / (1.0 - 0.999**step))
            factors[i] = factors[i] - rate * slope / (spread + 1e-12)
        if step % max(1, steps // 20) == 0:
            found = error()
            if found < best:
                best, kept = found, [f.copy() for f in factors]
    return balanced(*kept)


def activation_gain(
    W: NDArray[np.float64],
    U: NDArray[np.float64],
    V: NDArray[np.float64],
    inputs: NDArray[np.float64],
    b: NDArray[np.float64] | float = 0.0,
    activation: str = "relu",
) -> float:
    """By what the factors' product is to be multiplied to keep the size of the layer's output.

    Low-rank starts shrink activations layer by layer; without normalisation a deep stack loses its
    signal.

    Formula: `rms(act(x W + b)) / rms(act(x U V^T + b))`. It restores the size exactly where the
    layer is positively homogeneous: ReLU or linear, without a bias.

    Args:
      W: `[dim, units]`.
      U: `[dim, rank]`.
      V: `[units, rank]`.
      inputs: `[rows, dim]`: what the layer reads.
      b: the bias.
      activation: linear, relu, sigmoid or tanh.

    Returns:
      The gain; 1 where one of the outputs is zero.
    """
    x = np.asarray(inputs, np.float64)
    function, _ = _activation(activation)
    before = float(np.sqrt(np.mean(np.square(function(x @ np.asarray(W, np.float64) + b)))))
    after = float(np.sqrt(np.mean(np.square(function((x @ U) @ V.T + b)))))
    return before / after if before > 0 and after > 0 else 1.0


def _truncated(W: NDArray[np.float64], rank: int) -> tuple[NDArray[np.float64], Factors]:
    U, V = spectral(W, rank)
    return U @ V.T, (U, V)


def weighted_cross_error(delta: NDArray[np.float64]) -> float:
    """The expected squared error of a first cross layer (c10).

    Formula: `E|x * (Delta x)|^2 = |Delta|_F^2 + 2 sum_i Delta_ii^2`, `x ~ N(0, I)`: the diagonal
    counts three times.

    Args:
      delta: what the matrix errs by, `[dim, dim]`.
    """
    delta = np.asarray(delta, np.float64)
    return float(np.square(delta).sum() + 2.0 * np.square(np.diag(delta)).sum())


def _square(W: NDArray[np.float64], rank: int) -> NDArray[np.float64]:
    W = _check_rank(W, rank)
    require(W.shape[0] == W.shape[1], "W", f"has shape {W.shape}; a cross layer's is square")
    return W


def _expectation_maximisation(
    W: NDArray[np.float64], rank: int, iterations: int, share: float, Y: NDArray[np.float64]
) -> tuple[Factors, list[float]]:
    """Low rank with weight `share` off the diagonal and 1 on it, or the other way round.

    Each step fills in what a weight below 1 hides, by the approximation of the step before: the
    weighted error never rises.

    Args:
      W: `[dim, dim]`.
      rank: of the result.
      iterations: at most.
      share: weight of the off-diagonal relative to the diagonal's 1; 0 turns it round: the
        diagonal has none, the rest 1.
      Y: the start.
    """
    on = np.eye(len(W), dtype=bool)
    weights = np.where(on, 1.0, share) if share else np.where(on, 0.0, 1.0)
    factors, errors = spectral(Y, rank), [float((weights * np.square(W - Y)).sum())]
    for _ in range(iterations):
        Y, found = _truncated(Y + weights * (W - Y), rank)
        error = float((weights * np.square(W - Y)).sum())
        if error > errors[-1]:  # Rounding at the fixed point.
            break
        factors = found
        errors.append(error)
        if errors[-2] - error <= 1e-15 * errors[0]:
            break
    return factors, errors


def diagonal_weighted(W: NDArray[np.float64], rank: int, iterations: int = 1000) -> Factors:
    """Low-rank matrix for a first cross layer: the diagonal weighs three times (c10).

    Formula: minimises `weighted_cross_error(W - U V^T)` by
    `Y <- svd_r(Y + Omega * (W - Y) / 3)`, Omega being 3 on the diagonal and 1 elsewhere; the error
    never rises.

    Args:
      W: `[dim, dim]`, as a cross layer stores it: rows belong to x0.
      rank: 1 to dim.
      iterations: at most; it stops when nothing changes.

    Returns:
      U and V, balanced.

    Raises:
      ConfigError: a rank out of range, or a matrix that is not square.

    Example:
      >>> W = np.array([[2.0, 1.0], [1.0, 1.0]])
      >>> U, V = diagonal_weighted(W, rank=1)
      >>> print((U @ V.T).round(6))
      [[1.936312 1.287374]
       [1.287374 0.855922]]
    """
    W = _square(W, rank)
    start, _ = _truncated(W, rank)
    return _expectation_maximisation(W, rank, iterations, 1 / 3, start)[0]


def with_diagonal(
    W: NDArray[np.float64], rank: int, iterations: int = 1000
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Low rank plus a diagonal: `W ~ U V^T + diag(c)` (c10).

    With c free the diagonal is exact, and U and V have the rest to approximate alone.

    Args:
      W: `[dim, dim]`.
      rank: 1 to dim.
      iterations: at most.

    Returns:
      U and V, balanced, and c `[dim]`.

    Raises:
      ConfigError: a rank out of range, or a matrix that is not square.
    """
    W = _square(W, rank)
    U, V = diagonal_weighted(W, rank, iterations)
    U, V = _expectation_maximisation(W, rank, iterations, 0.0, U @ V.T)[0]
    return U, V, np.diag(W) - np.einsum("ir,ir->i", U, V)


def break_even_rank(dim: int, units: int) -> float:
    """The rank from which on two factors are no smaller than the matrix: `d m / (d + m)` (c9).

    Example:
      >>> break_even_rank(64, 64)
      32.0
    """
    return dim * units / (dim + units)


def rank_for_ratio(dim: int, units: int, ratio: float) -> int:
    """The largest rank, at least 1, whose factors have at most that share of the parameters.

    Args:
      dim: rows of the matrix.
      units: its columns.
      ratio: above 0 and below 1.

    Raises:
      ConfigError: a ratio out of range, or one that not even rank 1 keeps to.

    Example:
      >>> rank_for_ratio(256, 256, 0.5)
      64
    """
    require(0 < ratio < 1, "ratio", "must be above 0 and below 1")
    rank = int(ratio * break_even_rank(dim, units) + 1e-9)
    require(rank >= 1, "ratio", f"rank 1 of {dim} x {units} has more than {ratio:g} of it")
    return rank


def frobenius_decay_gradients(
    U: NDArray[np.float64], V: NDArray[np.float64], decay: float
) -> Factors:
    """The gradients of `decay / 2 * |U V^T|_F^2` (c8): `decay U (V^T V)` and `decay V (U^T U)`.

    Example:
      >>> U = np.array([[1.0, 0.0], [2.0, -1.0]])
      >>> V = np.array([[0.5, 1.0], [0.0, 2.0], [1.0, -1.0]])
      >>> print(frobenius_decay_gradients(U, V, 1.0)[0])
      [[ 1.25 -0.5 ]
       [ 3.   -7.  ]]
    """
    return decay * (U @ (V.T @ V)), decay * (V @ (U.T @ U))
