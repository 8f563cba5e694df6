"""Training steps of DV365 for suite `history`: slices pooled in several ways, XLA on and off."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from benchmarks import histories, history_world
from benchmarks.measure import (
    in_fresh_process,
    peak_resident_bytes,
    resident_bytes,
    time_paired,
)
from benchmarks.report import Figure, Section
from benchmarks.runner import Options
from tfrz.models.dv365 import DV365

MIB = 2**20

FLAT, FLAT_OF_PADDED = "flat gather + segment sum", "flat, of padded lists"
PADDED, RAGGED = "padded [batch, entries, dim] + mask", "RaggedTensor, reduce_sum"


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The shape of a training step.

    Attributes:
      batch: users.
      entries: of a table's slices together, in the mean.
      spread: deviation of the logarithm of a user's entries.
      ids: of each vocabulary.
      dim: of the slices' vectors.
      rounds: paired rounds.
    """

    batch: int = 64
    entries: int = 1000
    spread: float = 1.0
    ids: int = 20_000
    dim: int = 32
    rounds: int = 15

    @classmethod
    def of(cls, options: Options) -> Sizes:
        """Those of a report, or small ones."""
        return cls(4, 6, 0.5, 50, 8, 2) if options.quick else cls()


class PaddedDV365(DV365):
    """Pools as one writes it at first: rows of all entries of a padded batch, and masks."""

    def _sums(self, inputs: Mapping[str, Any], layer: Any) -> tuple[tf.Tensor, tf.Tensor]:
        ids, places, weights = _parts(inputs, layer)
        vectors = layer.rows_of(ids)
        counted = tf.where(tf.not_equal(ids, 0), weights, tf.zeros_like(weights))
        mask = tf.one_hot(places, layer.num_slices, axis=1) * counted[:, None, :]
        return tf.matmul(mask, vectors), tf.reduce_sum(mask, axis=2)


class RaggedDV365(DV365):
    """Pools by reductions of ragged tensors with a row for each slice of each user."""

    def _sums(self, inputs: Mapping[str, Any], layer: Any) -> tuple[tf.Tensor, tf.Tensor]:
        ids, places, weights = _parts(inputs, layer)
        if not isinstance(ids, tf.RaggedTensor):  # The task builds its model with padded zeros.
            return super()._sums(inputs, layer)
        slices, users = layer.num_slices, ids.nrows()
        # Entries are in the order of their slices.
        rows = ids.value_rowids() * slices + places.flat_values

        def reduced(values: tf.Tensor) -> tf.Tensor:
            by_slice = tf.RaggedTensor.from_value_rowids(values, rows, users * slices)
            return tf.reduce_sum(by_slice, axis=1)

        sums = reduced(weights.flat_values[:, None] * layer.rows_of(ids.flat_values))
        totals = reduced(weights.flat_values)
        return tf.reshape(sums, [users, slices, layer.dim]), tf.reshape(totals, [users, slices])


def _parts(inputs: Mapping[str, Any], layer: Any) -> list[Any]:
    return [inputs[f"{layer.name}_{part}_xf"] for part in ("ids", "places", "weights")]


def make_step(form: str, sizes: Sizes, seed: int, xla: bool = False) -> Callable[[], float]:
    """Returns a training step with one way to pool; it returns the loss before the update."""
    import keras

    from tfrz.zoo import registry
    from tfrz.zoo.run_config import load_run_config

    with tempfile.TemporaryDirectory(prefix="tfrz-bench-") as folder:
        slices = Path(folder) / "slices.yaml"
        slices.write_text(history_world.SLICES)
        settings = (f"data.timeline.slices={slices}", "data.timeline.recent=0")
        config = load_run_config("dv365", "default", [*settings, f"model.dim={sizes.dim}"])
    classes = {PADDED: PaddedDV365, RAGGED: RaggedDV365}
    one = classes.get(form, DV365)
    entry = dataclasses.replace(registry.get("dv365"), model=f"{one.__module__}:{one.__name__}")
    task = entry.new_task(config)
    spec, _ = task.example_spec(history_world.event_spec())
    kinds = {f"{feature.name}_xf": sizes.ids for feature in spec.vocabularies}
    keras.utils.set_random_seed(seed)
    model = task.build(task.model_inputs(spec, kinds))
    batch = make_batch(spec, sizes, seed)
    if form in (PADDED, FLAT_OF_PADDED):
        batch = {
            name: value.to_tensor() if isinstance(value, tf.RaggedTensor) else value
            for name, value in batch.items()
        }
    return histories.step_of(task, model, batch, xla)


def make_batch(spec: Any, sizes: Sizes, seed: int) -> dict[str, Any]:
    """Transformed examples with random entries: lists as ragged tensors, and outcomes."""
    rng = np.random.default_rng(seed)
    activity = np.exp(sizes.spread * rng.standard_normal(sizes.batch) - sizes.spread**2 / 2)
    columns: dict[str, Any] = {}
    for one in spec.lists:
        many = one.name.startswith("slices_")
        lengths = np.maximum(1, np.round(activity * sizes.entries)).astype(int) if many else 1
        lengths = np.broadcast_to(lengths, sizes.batch)
        # Few ids are frequent.
        drawn = (sizes.ids - 1) * rng.random(lengths.sum()) ** 3
        places = [np.sort(rng.integers(0, one.places, length)) for length in lengths]
        values = {
            "ids": 1 + drawn.astype(np.int64),
            "places": np.concatenate(places),
            "weights": rng.integers(1, 4, lengths.sum()).astype(np.float32),
        }
        for part, flat in values.items():
            columns[f"{one.name}_{part}_xf"] = tf.RaggedTensor.from_row_lengths(flat, lengths)
    for task in spec.tasks:
        outcomes = rng.integers(0, 2, (sizes.batch, 1)).astype(np.float32)
        columns[f"label_{task}_xf"] = tf.constant(outcomes)
    return columns


def child_memory(form: str, sizes: dict[str, Any], seed: int) -> dict[str, float]:
    """In a separate process: the memory of three steps above that of the model."""
    step = make_step(form, Sizes(**sizes), seed)
    before = resident_bytes()
    for _ in range(3):
        step()
    return {"bytes": float(peak_resident_bytes() - before)}


def measure_pooling(options: Options) -> Section:
    """A training step with the slices pooled in three ways, with equal losses."""
    sizes = Sizes.of(options)
    forms = (FLAT, FLAT_OF_PADDED, PADDED, RAGGED)
    steps = {form: make_step(form, sizes, options.seed) for form in forms}
    losses = {form: [step() for _ in range(3)] for form, step in steps.items()}
    for form in forms:
        np.testing.assert_allclose(losses[form], losses[FLAT], rtol=1e-4, err_msg=form)
    times = time_paired(steps, sizes.rounds)
    memory = {
        form: in_fresh_process(
            "benchmarks.history_pooling:child_memory",
            form=form,
            sizes=dataclasses.asdict(sizes),
            seed=options.seed,
        )["bytes"]
        for form in (() if options.quick else (FLAT, PADDED, RAGGED))
    }
    others = (PADDED, RAGGED, FLAT_OF_PADDED)
    return Section(
        title=f"training step of DV365, batch {sizes.batch}, {sizes.entries} entries a table in "
        f"the mean, dim {sizes.dim}",
        baseline=FLAT,
        setup=dataclasses.asdict(sizes),
        timings=times.summary(FLAT),
        figures=(
            Figure(f"{FLAT}, step", 1e3 * times[FLAT].median, "ms"),
            *(Figure(f"{FLAT} / {o}, time", times.ratio(FLAT, o).of_medians) for o in others),
            *(Figure(f"{form}, memory of a step", m / MIB, "MiB") for form, m in memory.items()),
        ),
        notes=(
            "All give the same losses. Lengths of users differ: the padded forms read the longest "
            "of a batch for all",
            "Memory is the peak of a fresh process above what it had with the model built",
        ),
    )


def measure_xla(options: Options) -> Section:
    """A training step with the dense part compiled and not."""
    sizes = Sizes.of(options)
    steps = {
        name: make_step(FLAT, sizes, options.seed, xla)
        for name, xla in (("XLA", True), ("no XLA", False))
    }
    losses = {name: [step() for _ in range(2)] for name, step in steps.items()}
    np.testing.assert_allclose(losses["XLA"], losses["no XLA"], rtol=1e-4)
    times = time_paired(steps, sizes.rounds)
    return Section(
        title="training step of DV365 with XLA on against off, on the CPU"
        f", batch {sizes.batch}, dim {sizes.dim}",
        baseline="no XLA",
        setup=dataclasses.asdict(sizes),
        timings=times.summary("no XLA"),
        figures=(Figure("step, on / off", times.ratio("XLA", "no XLA").of_medians),),
        notes=("Compiled is what lies between the pooled vectors and the loss",),
    )
