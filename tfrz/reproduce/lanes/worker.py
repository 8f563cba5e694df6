"""One task of a comparison of the lanes, in a process of its own.

`python -m tfrz.reproduce.lanes.worker TASK.json OUT.json` reads one file and writes the other. The
task file has `do`, a name of `TASKS`, and the arguments of that function.
"""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

import tfrz
from tfrz.data.spec import MISSING_INT
from tfrz.errors import InputError
from tfrz.export.saved_model import weight_names
from tfrz.keras_versions import LANE
from tfrz.training.batches import Batches
from tfrz.training.density_weighting import WeightedTask, fit_weighted, start_equal
from tfrz.training.fit import evaluate, step_losses
from tfrz.zoo.building import build_for_training
from tfrz.zoo.run import export, open_run, train_prepared
from tfrz.zoo.run_config import load_run_config

Arrays = dict[str, NDArray[Any]]

_DATA = "simulated"
# Requests of a comparison of answers.
_REQUESTS = 64


def digest(batches: Iterable[Mapping[str, Any]]) -> str:
    """A digest of batches: of each column's name, dtype, shape and bytes.

    Args:
      batches: of tensors or ragged tensors.
    """
    found = hashlib.sha256()
    for batch in batches:
        for name in sorted(batch):
            column = batch[name]
            parts = [column]
            if isinstance(column, tf.RaggedTensor):
                parts = [column.flat_values, *column.nested_row_splits]
            for part in parts:
                array = part.numpy()
                found.update(f"{name} {part.dtype.name} {array.shape};".encode())
                if array.dtype == object:
                    for text in array.flat:
                        found.update(f"{len(text)}:".encode() + text)
                else:
                    found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def first_batches(train: Batches, steps: int) -> Iterator[Mapping[str, Any]]:
    """The batches that the first steps of a training read."""
    for epoch in range(-(-steps // train.steps_per_epoch)):
        left = steps - epoch * train.steps_per_epoch
        yield from train.epoch(epoch).take(left)


def _source() -> str:
    """A digest of the source of tfrz."""
    root, found = Path(tfrz.__file__).resolve().parent, hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        found.update(f"{path.relative_to(root)}:".encode() + path.read_bytes())
    return found.hexdigest()


def about() -> dict[str, Any]:
    """Which lane this is, and on what it stands."""
    versions = {
        "Python": platform.python_version(),
        "TensorFlow": tf.__version__,
        "keras": keras.__version__,
    }
    return {"lane": LANE, "versions": versions, "source": _source()}


def _load(weights: Mapping[str, tf.Variable], path: str) -> None:
    """Assigns all weights from a file, by name."""
    with np.load(path) as stored:
        different = sorted(set(weights) ^ set(stored.files))
        if different:
            raise InputError(f"the lanes have weights of other names: {', '.join(different[:5])}")
        for name, weight in weights.items():
            weight.assign(stored[name])


def losses(
    model: str, overrides: Sequence[str], steps: int, weights: str, write: bool
) -> dict[str, Any]:
    """Trains for some steps from given weights.

    Args:
      model: a name of the registry.
      overrides: of its configuration on simulated data.
      steps: of the training.
      weights: file of the initial weights.
      write: whether this lane writes them; otherwise it reads them.

    Returns:
      `digest` of the batches, the `losses`, and how many `weights` there are.
    """
    run = open_run(load_run_config(model, _DATA, overrides), _DATA)
    sets = run.prepare()
    built, _ = build_for_training(run.task, sets.inputs, run.config, sets.train)
    if run.entry.load("recipe") is fit_weighted:
        start_equal(built, cast(WeightedTask, run.task), sets.train)
    named = weight_names(built)
    if write:
        np.savez(weights, **{name: weight.numpy() for name, weight in named.items()})
    else:
        _load(named, weights)
    return {
        "digest": digest(first_batches(sets.train, steps)),
        "losses": step_losses(built, run.task, sets.train, run.config.trainer, steps),
        "weights": len(named),
        "examples": sets.train.num_examples,
    }


def metrics(model: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Trains by the model's recipe and evaluates on the test set.

    Args:
      model: a name of the registry.
      overrides: of its configuration on simulated data.

    Returns:
      The task's `objective`, all `metrics` of the test set, and the number of `steps`.
    """
    run = open_run(load_run_config(model, _DATA, overrides), _DATA)
    sets = run.prepare()
    trained = train_prepared(run.task, sets, None, progress=False)
    assert sets.test is not None
    return {
        "objective": run.task.objective,
        "metrics": evaluate(trained.model, run.task, sets.test),
        "steps": trained.result.steps_run,
        "test_examples": sets.test.num_examples,
    }


def export_model(model: str, overrides: Sequence[str], to: str) -> dict[str, Any]:
    """Trains and exports a model.

    Args:
      model: a name of the registry.
      overrides: of its configuration on simulated data.
      to: folder for the SavedModel `1` and requests `examples.tfrecord`.

    Returns:
      The number of `requests`, and the name of the raw signature, `product`.
    """
    run = open_run(load_run_config(model, _DATA, overrides), _DATA)
    sets = run.prepare()
    trained = train_prepared(run.task, sets, None, progress=False)
    folder = Path(to)
    export(folder / "1", trained.model, run.task, sets, run.config, _DATA, {}, replace=True)
    requests = sets.examples[:_REQUESTS]
    with tf.io.TFRecordWriter(str(folder / "examples.tfrecord")) as writer:
        for example in requests:
            writer.write(example)
    return {"requests": len(requests), "product": run.task.product}


def raw_features(
    examples: Sequence[bytes], signature: Mapping[str, tf.TensorSpec]
) -> dict[str, tf.Tensor]:
    """The features of serialised examples as a raw signature takes them.

    Args:
      examples: `tf.train.Example`s.
      signature: the inputs of the signature, `[batch]` or `[batch, values]` each.
    """
    missing = {tf.string: "", tf.int64: MISSING_INT, tf.float32: float("nan")}
    parse = {name: tf.io.VarLenFeature(spec.dtype) for name, spec in signature.items()}
    found = {}
    for name, value in tf.io.parse_example(list(examples), parse).items():
        dense = tf.sparse.to_dense(value, missing[value.dtype])
        if signature[name].shape.rank == 1:
            padding = tf.fill([len(examples), 1], tf.constant(missing[value.dtype], value.dtype))
            dense = tf.concat([dense, padding], axis=1)[:, 0]
        found[name] = dense
    return found


def _plain(outputs: Mapping[str, tf.Tensor], prefix: str) -> Arrays:
    """Outputs of a signature as arrays that can be stored."""
    found = {f"{prefix}/{name}": value.numpy() for name, value in outputs.items()}
    return {
        name: array.astype(np.bytes_) if array.dtype == object else array
        for name, array in found.items()
    }


def answers(model: str, folder: str, to: str) -> dict[str, Any]:
    """Loads a SavedModel by `tf.saved_model.load` and answers the requests beside it.

    Args:
      model: its folder in `folder`, of `export_model`.
      folder: of all exports of a lane.
      to: file for the answers of `serving_default` and `serving_raw`.

    Returns:
      The names of the `outputs`.
    """
    exported = Path(folder, model)
    loaded = tf.saved_model.load(str(exported / "1"))
    records = tf.data.TFRecordDataset(str(exported / "examples.tfrecord"))
    examples = [record.numpy() for record in records]
    default, raw = (loaded.signatures[name] for name in ("serving_default", "serving_raw"))
    found = _plain(default(examples=tf.constant(examples)), "serving_default")
    features = raw_features(examples, raw.structured_input_signature[1])
    found |= _plain(raw(**features), "serving_raw")
    np.savez(to, **found)
    return {"outputs": sorted(found)}


def _keras_models() -> dict[str, Callable[[], keras.Model]]:
    """Small models of Keras with a layer of the zoo in each; the first has none."""
    from tfrz.layers import Cross, LowRankDense, MultiInterestAttention

    def sequential(*layers: keras.layers.Layer, shape: tuple[int, ...] = (8,)) -> keras.Model:
        return keras.Sequential([keras.layers.Input(shape), *layers])

    def functional() -> keras.Model:
        x = keras.layers.Input((8,))
        return keras.Model(x, keras.layers.Dense(2)(Cross()(x)))

    return {
        "Dense alone": lambda: sequential(keras.layers.Dense(3)),
        "Cross": lambda: sequential(Cross(), keras.layers.Dense(2)),
        "LowRankDense": lambda: sequential(LowRankDense(6, 2, activation="relu")),
        "MultiInterestAttention": lambda: sequential(MultiInterestAttention(2), shape=(5, 8)),
        "Cross, functional": functional,
    }


def keras_names() -> list[str]:
    """The models that `keras_save` saves."""
    return list(_keras_models())


def _keras_file(folder: str, number: int) -> Path:
    return Path(folder, f"{number}.keras")


def keras_save(folder: str) -> dict[str, Any]:
    """Saves each of the small Keras models as a `.keras` file, with inputs and outputs.

    Args:
      folder: for the files.

    Returns:
      The `names` of the models.
    """
    keras.utils.set_random_seed(0)
    Path(folder).mkdir(parents=True, exist_ok=True)
    for number, build in enumerate(_keras_models().values()):
        model = build()
        x = np.random.default_rng(number).normal(size=(4, *model.input_shape[1:]))
        # Biases that start as zeros would hide that they were not loaded.
        for weight in model.weights:
            weight.assign(weight + 0.1)
        model.save(_keras_file(folder, number))
        x = x.astype(np.float32)
        np.savez(Path(folder, f"{number}.npz"), x=x, y=np.asarray(model(x)))
    return {"names": keras_names()}


def keras_load(folder: str) -> dict[str, Any]:
    """Loads the files of `keras_save`.

    Args:
      folder: of the files.

    Returns:
      For each model `error`, the largest difference of its outputs relative to their size; or
      `refused`, what Keras says.
    """
    found: dict[str, dict[str, Any]] = {}
    for number, name in enumerate(keras_names()):
        with np.load(Path(folder, f"{number}.npz")) as stored:
            x, y = stored["x"], stored["y"]
        try:
            model = keras.models.load_model(_keras_file(folder, number))
        except Exception as error:  # Keras raises errors of any class here.
            says = " ".join(f"{type(error).__name__}: {error}".split())
            found[name] = {"refused": says[:300]}
            continue
        difference = np.abs(np.asarray(model(x)) - y).max() / np.abs(y).max()
        found[name] = {"error": float(difference)}
    return {"models": found}


TASKS: dict[str, Callable[..., dict[str, Any]]] = {
    "about": about,
    "losses": losses,
    "metrics": metrics,
    "export": export_model,
    "answers": answers,
    "keras_save": keras_save,
    "keras_load": keras_load,
}


def main(arguments: Sequence[str]) -> int:
    """Does the task of a file and writes what it returns.

    Args:
      arguments: the files of the task and of its result.
    """
    asked, answered = arguments
    task = json.loads(Path(asked).read_text())
    try:
        found = TASKS[task.pop("do")](**task)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    Path(answered).write_text(json.dumps(found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
