"""Weights of training examples by the density of the items around their target.

Weighting by inverse frequency raises the weight of every rare item. Density weighting raises the
weight of items that are far from others in the space of the item tower. It alternates between
estimating the density of the items and training on examples weighted by its inverse. At the end the
user tower alone is trained on the natural distribution, with the item tower frozen.

The recipe takes any two-tower model that has `item_embeddings()`, the layers `item_tower`, and
the weights `target_counts` and `target_weights`, a row for each id.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Protocol

import keras
import numpy as np
from numpy.typing import NDArray

from tfrz.config import check_range, require
from tfrz.errors import InputError
from tfrz.files import atomic_write
from tfrz.training.batches import Batches
from tfrz.training.config import TrainerConfig
from tfrz.training.curves import save_curves
from tfrz.training.fit import FitResult, Trainable, fit

logger = logging.getLogger(__name__)

# Directions with a smaller share of the variance do not count.
_FLAT = 1e-12


@dataclasses.dataclass(frozen=True)
class WeightingConfig:
    """How training examples are weighted by their target.

    Attributes:
      kind: none, frequency (inverse frequency of the target), or density (iterative density
        weighting).
      iterations: largest number of estimates of the density.
      momentum: m, the share of the old weights that is kept.
      tolerance: stop when no weight moves by more than this.
      epochs: largest number of epochs of each iteration, which ends with the first epoch that does
        not improve `metric`.
      metric: validation metric that ends an iteration.
      samples: items drawn for the density estimate.
      noise: standard deviation of the noise that is added to their vectors; without it, equal
        vectors have no density.
      relative_noise: `noise` is a multiple of the vectors' mean standard deviation.
      floor: added to every density.
      components: principal components in which the density is estimated; null for all. In more
        than about ten dimensions every item is alone and the floor decides.
      max_weight: bound on the weight of an example, whose mean is 1; null for none.
      block_size: densities computed at a time: bounds the memory.
      calibrate: whether the user tower is trained on the natural distribution afterwards.
      calibration_rate: learning rate of this training, as a share of `trainer.learning_rate`.
      calibration_epochs: largest number of epochs of this training; null for `trainer.epochs`.
      seed: seed of the drawn items and of the noise.
    """

    kind: Literal["none", "frequency", "density"] = "none"
    iterations: int = 5
    momentum: float = 0.8
    tolerance: float = 2e-4
    epochs: int = 5
    metric: str = "recall_at_50_tail"
    samples: int = 10_000
    noise: float = 0.1
    relative_noise: bool = False
    floor: float = 1e-4
    components: int | None = None
    max_weight: float | None = None
    block_size: int = 4096
    calibrate: bool = True
    calibration_rate: float = 0.1
    calibration_epochs: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        names = ("iterations", "epochs", "block_size", "components", "max_weight")
        check_range(self, "weighting", *names, "calibration_epochs", at_least=1)
        check_range(self, "weighting", "samples", at_least=2)
        check_range(self, "weighting", "momentum", at_least=0, at_most=1)
        check_range(self, "weighting", "tolerance", "noise", at_least=0)
        check_range(self, "weighting", "floor", "calibration_rate", above=0)


def weighted_kernel_density(
    points: NDArray[np.float64],
    queries: NDArray[np.float64],
    covariance: NDArray[np.float64] | float,
    weights: NDArray[np.float64] | None = None,
    block_size: int = 4096,
) -> NDArray[np.float64]:
    """A Gaussian kernel density, computed a block of queries at a time.

    Formula: `rho(e) = sum_j w_j N(e; e_j, Sigma)`.

    Args:
      points: e_j, `[points, dim]`.
      queries: e, `[queries, dim]`.
      covariance: Sigma of a kernel, `[dim, dim]`, or a variance for `sigma^2 I`.
      weights: w, `[points]`, summing to 1; equal ones if left out.
      block_size: queries at a time; the memory is `8 * points * block_size` bytes.

    Returns:
      float64 `[queries]`.

    Raises:
      InputError: the covariance is singular: all points lie in a plane.

    Example:
      >>> e = np.array([[0.0], [0.1], [3.0]])
      >>> weights = np.array([0.8, 0.15, 0.05])
      >>> print(weighted_kernel_density(e, e, 0.25, weights).round(6))
      [0.75562  0.745351 0.039894]
    """
    points = np.atleast_2d(np.asarray(points, np.float64))
    queries = np.atleast_2d(np.asarray(queries, np.float64))
    count, dim = points.shape
    sigma = np.asarray(covariance, np.float64)
    if sigma.ndim == 0:
        sigma = sigma * np.eye(dim)
    spread = np.linalg.eigvalsh(sigma)
    if not spread[0] > _FLAT * spread[-1]:
        raise InputError(
            "the density of the items cannot be estimated, their vectors lie in a plane: raise "
            "weighting.noise or lower weighting.components"
        )
    root = np.linalg.cholesky(sigma)
    # Distances of whitened vectors are Mahalanobis distances; centred, they lose fewer digits.
    centre = points.mean(axis=0)
    points = np.linalg.solve(root, (points - centre).T).T
    queries = np.linalg.solve(root, (queries - centre).T).T
    log_norm = -0.5 * dim * math.log(2 * math.pi) - float(np.log(np.diag(root)).sum())
    mass = np.full(count, 1.0 / count) if weights is None else np.asarray(weights, np.float64)
    squares = 0.5 * np.square(points).sum(axis=1)
    densities = np.empty(len(queries))
    # One buffer for all blocks: keeping the old product during the next would double the memory.
    buffer = np.empty((min(block_size, len(queries)), count))
    for start in range(0, len(queries), block_size):
        block = queries[start : start + block_size]
        exponents = np.matmul(block, points.T, out=buffer[: len(block)])
        exponents -= squares
        exponents -= 0.5 * np.square(block).sum(axis=1)[:, None]
        np.minimum(exponents, 0.0, out=exponents)
        np.exp(exponents, out=exponents)
        densities[start : start + block_size] = exponents @ mass
    return np.asarray(densities * math.exp(log_norm))


def scott_covariance(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """The kernel's covariance by Scott's rule: `n^(-2 / (dim + 4))` times that of the points."""
    points = np.atleast_2d(np.asarray(points, np.float64))
    count, dim = points.shape
    covariance = np.atleast_2d(np.cov(points, rowvar=False))
    return np.asarray(covariance * count ** (-2.0 / (dim + 4)))


def item_densities(
    embeddings: NDArray[np.float64],
    weights: NDArray[np.float64],
    config: WeightingConfig,
    iteration: int = 0,
) -> NDArray[np.float64]:
    """The density of the items at each item, from a sample by weight with noise.

    Formula: `rho_i = KDE(e_j + noise, j ~ w)(e_i) + floor`, Scott's bandwidth, full covariance.

    Args:
      embeddings: e, `[items, dim]`.
      weights: w, `[items]`, summing to 1.
      config: samples, noise, floor, components, block size, seed.
      iteration: part of the seed.

    Returns:
      float64 `[items]`.
    """
    e = np.asarray(embeddings, np.float64)
    if not np.isfinite(e).all():
        raise InputError("an item's vector is not finite: lower trainer.learning_rate")
    if config.components is not None and config.components < e.shape[1]:
        centred = e - e.mean(axis=0)
        _, _, directions = np.linalg.svd(centred.T @ centred)
        e = centred @ directions[: config.components].T
    rng = np.random.default_rng([config.seed, 2308, iteration])
    drawn = rng.choice(len(e), config.samples, p=weights / weights.sum())
    scale = config.noise * (float(e.std(axis=0).mean()) if config.relative_noise else 1.0)
    points = e[drawn] + scale * rng.standard_normal((config.samples, e.shape[1]))
    covariance = scott_covariance(points)
    densities = weighted_kernel_density(points, e, covariance, None, config.block_size)
    return densities + config.floor


def updated_weights(
    weights: NDArray[np.float64], densities: NDArray[np.float64], momentum: float
) -> NDArray[np.float64]:
    """The item weights after one step.

    Formula: `w' = m w + (1 - m) g` with `g_i = (1 / rho_i) / sum_j (1 / rho_j)`.

    Example:
      >>> w = np.array([0.8, 0.15, 0.05])
      >>> rho = np.array([0.755720, 0.745451, 0.039994])
      >>> print(updated_weights(w, rho, 0.8).round(6))
      [0.649565 0.129697 0.220738]
    """
    inverse = 1.0 / np.asarray(densities, np.float64)
    return np.asarray(momentum * np.asarray(weights) + (1 - momentum) * inverse / inverse.sum())


def example_weights(
    weights: NDArray[np.float64], counts: NDArray[np.float64], max_weight: float | None = None
) -> NDArray[np.float64]:
    """The weight of an example with each target; its mean over all examples is 1.

    Formula: `omega_i = N w_i / n_i`; 0 for items that are never a target.

    Args:
      weights: w, `[items]`, summing to 1.
      counts: n, how often each item is a target, `[items]`.
      max_weight: upper bound, at least 1; the excess is shared among the other examples.

    Returns:
      float64 `[items]`.
    """
    counts = np.asarray(counts, np.float64)
    seen = counts > 0
    total = counts.sum()
    omega = np.where(seen, total * np.asarray(weights) / np.maximum(counts, 1), 0.0)
    capped = np.zeros(len(omega), bool)
    while True:
        # Sharing the excess among the others may lift some of them above the bound.
        rest = seen & ~capped
        left = total - (counts[capped].sum() * max_weight if max_weight is not None else 0.0)
        mass = float((omega * counts)[rest].sum())
        if mass > 0:
            omega = np.where(rest, omega * (left / mass), omega)
        if max_weight is None or not (rest & (omega > max_weight)).any():
            return np.asarray(omega)
        capped |= rest & (omega > max_weight)
        omega = np.where(capped, max_weight, omega)


def inverse_frequency_weights(
    counts: NDArray[np.float64], max_weight: float | None = None
) -> NDArray[np.float64]:
    """`omega_i = 1 / (p_i K)`, K being the items that are a target; 1 in the mean over examples."""
    seen = np.asarray(counts) > 0
    return example_weights(seen / max(int(seen.sum()), 1), counts, max_weight)


def effective_sample_size(omega: NDArray[np.float64], counts: NDArray[np.float64]) -> float:
    """`(sum_b omega_b)^2 / sum_b omega_b^2` over all training examples."""
    total, squares = (omega * counts).sum(), (np.square(omega) * counts).sum()
    return float(total**2 / squares) if squares else 0.0


class WeightedTask(Trainable, Protocol):
    """A task whose training examples can be weighted."""

    weighting: WeightingConfig
    metric_names: tuple[str, ...]

    def start(self, model: keras.Model, train: Batches) -> None:
        """Sets the statistics of the training set in the model, at least `target_counts`."""


Stage = Callable[[str, keras.Model], None]


class _Stages:
    """Consecutive runs of the loop, each in a folder of its own, resumed as one."""

    def __init__(
        self,
        model: keras.Model,
        task: WeightedTask,
        train: Batches,
        validation: Batches,
        directory: Path | None,
        progress: bool,
        after: Stage | None,
    ) -> None:
        self.model, self._task = model, task
        self._train, self._validation = train, validation
        self._directory, self._progress, self._after = directory, progress, after
        self.history: list[dict[str, Any]] = []
        self.results: list[FitResult] = []

    def run(self, name: str, config: TrainerConfig, keep_optimizer: bool = False) -> FitResult:
        """Trains with the weights that the model has now."""
        folder = None
        if self._directory is not None:
            folder = self._directory / "stages" / f"{len(self.results)}-{name}"
            folder.mkdir(parents=True, exist_ok=True)
        before = self.results[-1].optimizer if keep_optimizer else None
        result = fit(
            self.model,
            self._task,
            self._train,
            self._validation,
            config,
            folder,
            self._progress,
            optimizer=before,
        )
        steps = sum(r.steps_run for r in self.results)
        epochs = self.history[-1]["epoch"] if self.history else 0.0
        for row in result.history:
            moved = {"step": row["step"] + steps, "epoch": row["epoch"] + epochs}
            self.history.append({**row, **moved, "stage": name})
        self.results.append(result)
        if self._after is not None:
            self._after(name, self.model)
        return result

    def whole(self) -> FitResult:
        """All runs as one; the weights are those of the last."""
        if self._directory is not None:
            atomic_write(
                self._directory / "history.json", json.dumps(self.history, indent=1) + "\n"
            )
            numbers = [{k: v for k, v in r.items() if k != "stage"} for r in self.history]
            save_curves(numbers, self._directory / "curves.png")
        return dataclasses.replace(
            self.results[-1],
            history=self.history,
            steps_run=sum(r.steps_run for r in self.results),
            epochs_run=sum(r.epochs_run for r in self.results),
            resumed_from=sum(r.resumed_from for r in self.results),
        )


def _assign(model: keras.Model, omega: NDArray[np.float64]) -> None:
    """Sets the weights of the ids 1..V; other targets weigh nothing."""
    rows = np.zeros(int(model.target_weights.shape[0]), np.float32)
    rows[1 : 1 + len(omega)] = omega
    model.target_weights.assign(rows)


def start_equal(
    model: keras.Model, task: WeightedTask, train: Batches
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sets the statistics of the training set in the model, and equal weights of its examples.

    Args:
      model: a two-tower model, as described in the module.
      task: whose `start` counts the targets.
      train: the training set.

    Returns:
      How often each item is a target, and its weight, `[items]` each.

    Raises:
      InputError: no training example has a known target.
    """
    task.start(model, train)
    counts = model.target_counts.numpy()[1 : 1 + model.num_items].astype(np.float64)
    if not counts.sum():
        raise InputError("no training example has a known target: nothing to learn from")
    equal = example_weights(counts / counts.sum(), counts)
    _assign(model, equal)
    return counts, equal


def fit_weighted(
    model: keras.Model,
    task: WeightedTask,
    train: Batches,
    validation: Batches,
    config: TrainerConfig,
    directory: Path | None = None,
    progress: bool = True,
    after_stage: Stage | None = None,
) -> FitResult:
    """Trains a two-tower model with the weighting of its task.

    Without weighting, or with weighting by frequency, this is one run of the loop. Density
    weighting is a first run with equal weights, iterations that estimate the density and continue
    with the same optimiser, and a run with the item tower frozen. A run that was killed can be
    resumed and ends with the same bits.

    Args:
      model: a two-tower model, as described in the module.
      task: losses, metrics and `weighting`.
      train: the training set.
      validation: the set that chooses the weights and stops the training.
      config: the settings of the loop.
      directory: as in `fit`; each stage has a folder in `stages/`, and `weighting.json` records how
        the weights moved.
      progress: show a bar on standard error.
      after_stage: called with the name of each stage when it ends.

    Raises:
      InputError: as in `fit`.
    """
    weighting: WeightingConfig = task.weighting
    if weighting.kind == "density":
        known = ", ".join(task.metric_names)
        require(weighting.metric in task.metric_names, "weighting.metric", f"is none of {known}")
        require(
            config.learning_rate_schedule != "cosine",
            "trainer.learning_rate_schedule",
            "cosine ends at 0, but density weighting continues with the same optimiser",
        )
    counts, equal = start_equal(model, task, train)
    by_frequency = weighting.kind == "frequency"
    first = inverse_frequency_weights(counts, weighting.max_weight) if by_frequency else equal
    _assign(model, first)
    if weighting.kind == "none" or (by_frequency and not weighting.calibrate):
        result = fit(model, task, train, validation, config, directory, progress)
        if after_stage is not None:
            after_stage("train", model)
        return result
    stages = _Stages(model, task, train, validation, directory, progress, after_stage)
    stages.run("train", config)
    moves: list[dict[str, float]] = []
    if weighting.kind == "density":
        _iterate(stages, model, weighting, counts, config, moves)
    if weighting.calibrate:
        _assign(model, equal)
        frozen = [layer for layer in model.item_tower if layer.trainable]
        for layer in frozen:
            layer.trainable = False
        try:
            calibration = dataclasses.replace(
                config,
                learning_rate=config.learning_rate * weighting.calibration_rate,
                epochs=weighting.calibration_epochs or config.epochs,
                early_stopping_patience=1,
            )
            stages.run("calibrate", calibration)
        finally:
            for layer in frozen:
                layer.trainable = True
    if directory is not None:
        atomic_write(directory / "weighting.json", json.dumps(moves, indent=1) + "\n")
    return stages.whole()


def _iterate(
    stages: _Stages,
    model: keras.Model,
    weighting: WeightingConfig,
    counts: NDArray[np.float64],
    config: TrainerConfig,
    moves: list[dict[str, float]],
) -> None:
    """The stages of density weighting between the first run and the calibration."""
    some = counts > 0  # Items that are never a target have no weight.
    weights = counts[some] / counts.sum()
    settings = dataclasses.replace(
        config,
        epochs=weighting.epochs,
        early_stopping_patience=1,
        early_stopping_metric=weighting.metric,
    )
    for iteration in range(weighting.iterations):
        embeddings = model.item_embeddings()[some]
        densities = item_densities(embeddings, weights, weighting, iteration)
        updated = updated_weights(weights, densities, weighting.momentum)
        moved = float(np.abs(updated - weights).max())
        if moved < weighting.tolerance:
            break
        weights, whole = updated, np.zeros_like(counts)
        whole[some] = updated
        omega = example_weights(whole, counts, weighting.max_weight)
        moves.append(
            {
                "iteration": iteration,
                "largest_move": moved,
                "largest_weight": float(omega.max()),
                "effective_sample_size": effective_sample_size(omega, counts),
            }
        )
        logger.info("density weighting: %s", moves[-1])
        _assign(model, omega)
        stages.run(f"density{iteration}", settings, keep_optimizer=True)


__all__ = [
    "Trainable",
    "WeightedTask",
    "WeightingConfig",
    "effective_sample_size",
    "example_weights",
    "fit_weighted",
    "inverse_frequency_weights",
    "item_densities",
    "scott_covariance",
    "updated_weights",
    "weighted_kernel_density",
]
