"""Who teaches a run: found, checked against the data, asked.

A teacher of impressions is any SavedModel that scores raw examples: it is asked once for each, and
what it says travels with the example. A teacher of other records is a model of the zoo with the
student's vocabularies: it reads the very batches that the student learns from.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import pyarrow as pa
import tensorflow as tf
from numpy.typing import NDArray

from tfrz.config import read_yaml
from tfrz.data.columns import one_each, raw_sparse, to_examples
from tfrz.data.impressions.spec import FeatureSpec
from tfrz.data.spec import MISSING, transformed_name
from tfrz.errors import InputError
from tfrz.training.batches import Batches
from tfrz.training.distiller import DistillConfig
from tfrz.training.fit import make_strategy
from tfrz.training.warm_start import warm_start
from tfrz.zoo.building import build_like
from tfrz.zoo.run_config import RunConfig, run_config_from_mapping
from tfrz.zoo.task import LiveTeacher, Prepared, Task

logger = logging.getLogger(__name__)

# The raw feature that carries what a teacher says of an impression, a probability.
TEACHER_SCORE = "teacher_score"
_ROWS_AT_ONCE = 65_536
_ASKED = 16


def find_teacher(place: str | Path, where: str = "distill.teacher") -> Path:
    """The SavedModel that a `distill.teacher` names.

    Args:
      place: a SavedModel; the folder of its versions, of which the newest counts; a run of
        `tfrz train`; or the root of a pipeline that serves one model.
      where: what named it, for messages.

    Raises:
      InputError: there is none, or a root has models of several names.
    """
    folder = Path(place)
    if (folder / "saved_model.pb").exists():
        return folder
    served = sorted(path for path in folder.glob("serving/*") if _newest(path) is not None)
    if len(served) > 1:
        names = ", ".join(path.name for path in served)
        raise InputError(f"{folder} serves {names}: name one of them, e.g. {served[0]}")
    for versions in (folder, folder / "model", *served):
        newest = _newest(versions)
        if newest is not None:
            return newest
    raise InputError(
        f"{where}: no SavedModel in {folder}: name one, the folder of its versions, a run "
        "of tfrz train, or the root of a pipeline that pushed one"
    )


def _newest(versions: Path) -> Path | None:
    folders = (path.parent for path in versions.glob("*/saved_model.pb"))
    numbered = {int(folder.name): folder for folder in folders if folder.name.isdecimal()}
    return numbered[max(numbered)] if numbered else None


# Impressions: any SavedModel, asked once.


def logits_of(scores: tf.Tensor) -> tf.Tensor:
    """Probabilities as logits, float32; 0 and 1 as what float32 can tell from them."""
    p = tf.clip_by_value(tf.cast(scores, tf.float32), 1e-7, 1 - 1e-7)
    return tf.math.log(p) - tf.math.log1p(-p)


def with_teacher(distill: DistillConfig, spec: FeatureSpec) -> FeatureSpec:
    """The spec of impressions that come with what their teacher says.

    Raises:
      ConfigError: the data already have a feature of that name.
    """
    if distill.teacher is None:
        return spec
    return dataclasses.replace(spec, outcomes=(*spec.outcomes, TEACHER_SCORE))


class ScoringTeacher:
    """A SavedModel that returns the probability of a click for each impression.

    Args:
      place: as `distill.teacher`.
      spec: the raw features of the data, `TEACHER_SCORE` among their outcomes.

    Raises:
      InputError: it cannot be loaded, has no such scores, or reads what the data lack.
    """

    def __init__(self, place: str, spec: FeatureSpec) -> None:
        self.directory, self._spec = find_teacher(place), spec
        loaded = _loaded(self.directory)
        # By name where it can be: serialising a million examples takes minutes.
        self._signature = loaded.signatures.get("serving_raw") or loaded.signatures.get(
            "serving_default"
        )
        self._loaded = loaded
        if self._signature is None:
            raise InputError(f"{self.directory} has neither serving_raw nor serving_default")
        outputs = self._signature.structured_outputs
        if "scores" not in outputs or outputs["scores"].shape.rank not in (1, None):
            raise InputError(
                f"{self.directory} answers with {', '.join(sorted(outputs))}: a teacher of clicks "
                "gives 'scores', a probability for each example"
            )
        self._inputs = self._signature.structured_input_signature[1]
        self._named = "serving_raw" in loaded.signatures
        if self._named:
            self._check_names({feature.name: feature.dtype for feature in spec.features})
        elif [given.dtype for given in self._inputs.values()] != [tf.string]:
            raise InputError(
                f"serving_default of {self.directory} reads {', '.join(sorted(self._inputs))}: a "
                "teacher of clicks reads serialised tf.Examples by it, or names by serving_raw"
            )

    def _check_names(self, known: Mapping[str, str]) -> None:
        for name, given in self._inputs.items():
            if name not in known:
                raise InputError(
                    f"the teacher in {self.directory} reads the feature {name!r}, which is "
                    f"missing from the data: they have {', '.join(sorted(known))}"
                )
            if given.dtype.name != known[name]:
                raise InputError(
                    f"the teacher in {self.directory} reads {name!r} as {given.dtype.name}, the "
                    f"data have it as {known[name]}: change the feature's dtype"
                )

    def _asked(self, table: pa.Table) -> NDArray[Any]:
        if not self._named:
            (name,) = self._inputs
            examples = to_examples(table, self._spec, table.num_rows)
            return self._signature(**{name: tf.constant(examples, tf.string)})["scores"].numpy()
        sparse = raw_sparse(table.select(list(self._inputs)), self._raw(), label=False)
        inputs = {}
        for name, spec in self._inputs.items():
            missing = {tf.string: "string", tf.int64: "int64"}.get(spec.dtype, "float32")
            dense = tf.sparse.to_dense(sparse[name], MISSING[missing])
            inputs[name] = dense if spec.shape.rank == 2 else dense[:, 0]
        return self._signature(**inputs)["scores"].numpy()

    def _raw(self) -> FeatureSpec:
        kept = tuple(f for f in self._spec.features if f.name in self._inputs)
        return dataclasses.replace(self._spec, features=kept, outcomes=(), long_history=None)

    def scored(self, table: pa.Table) -> pa.Table:
        """The examples with the teacher's probabilities as a column.

        Raises:
          InputError: its scores are not probabilities.
        """
        started = time.perf_counter()
        parts = [np.zeros(0, np.float32)]
        for start in range(0, table.num_rows, _ROWS_AT_ONCE):
            try:
                parts.append(np.ravel(self._asked(table.slice(start, _ROWS_AT_ONCE))))
            except tf.errors.OpError as error:
                reason = next(iter(error.message.strip().splitlines()), "")
                raise InputError(
                    f"the teacher in {self.directory} cannot read these examples: {reason}"
                ) from error
        scores = np.concatenate(parts).astype(np.float32)
        sound = (scores >= 0) & (scores <= 1)
        if len(scores) != table.num_rows or not sound.all():
            found = f"{scores[~sound][0]}" if len(scores) == table.num_rows else f"{len(scores)}"
            raise InputError(
                f"the teacher in {self.directory} gave {found} among the scores of "
                f"{table.num_rows} examples: it must give each a probability"
            )
        logger.info(
            "teacher %s: %s examples scored (%.1f s)",
            self.directory,
            f"{len(scores):,}",
            time.perf_counter() - started,
        )
        return table.append_column(TEACHER_SCORE, one_each(pa.array(scores), "float32"))


def check_scores(batches: Batches) -> None:
    """Refuses examples whose teacher gave no probabilities; looks at the first batches.

    Raises:
      InputError: names one that is none.
    """
    for batch in batches.once().take(8):
        scores = batch[transformed_name(TEACHER_SCORE)].numpy()
        wrong = scores[~((scores >= 0) & (scores <= 1))]
        if len(wrong):
            raise InputError(
                f"the teacher gave {wrong[0]} to an example: it must give each a probability"
            )


def pinned_teacher(config: RunConfig) -> RunConfig:
    """The configuration with the very SavedModel that its place has now.

    A run that is resumed after a newer one was pushed there would else change its teacher.

    Raises:
      InputError: there is none.
    """
    place = config.distill.teacher
    if place is None:
        return config
    distill = dataclasses.replace(config.distill, teacher=str(find_teacher(place)))
    return dataclasses.replace(config, distill=distill)


def open_teacher(distill: DistillConfig, spec: FeatureSpec) -> ScoringTeacher | None:
    """The teacher of impressions that a run names; None for none."""
    return None if distill.teacher is None else ScoringTeacher(distill.teacher, spec)


def _loaded(directory: Path) -> Any:
    try:
        return tf.saved_model.load(str(directory))
    except (OSError, ValueError, tf.errors.OpError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"the teacher in {directory} cannot be loaded: {reason}") from error


# Other records: a model of the zoo, with the student's vocabularies.


class Words(NamedTuple):
    """How messages about a trained model that does not fit its data are worded."""

    where: str = "distill.teacher"
    model: str = "teacher"
    data: str = "student"
    remedy: str = "train both on the same data"


_WORDS = Words()


def load_teacher(place: str, student: Task[Any, Any], data: Prepared[Any, Any]) -> LiveTeacher:
    """A trained model of the zoo, built anew for a student's inputs.

    Args:
      place: as `distill.teacher`.
      student: the student's task.
      data: what the student learns from.

    Raises:
      InputError: it is no model of the zoo, is another model than the student, has other
        vocabularies, or answers otherwise on the student's transformed features.
    """
    directory = find_teacher(place)
    config = trained_config(directory, "distill.teacher")
    own = student.entry
    if config.name != own.name:
        raise InputError(
            f"distill.teacher: {directory} holds {config.name}, whose outputs are not those of "
            f"{own.name}: take a {own.name}"
        )
    return load_trained(directory, own.new_task(config), data)


def trained_config(directory: Path, where: str) -> RunConfig:
    """The configuration that a SavedModel was trained with.

    Args:
      directory: the SavedModel.
      where: what named it, for messages.

    Raises:
      InputError: it is no model of the zoo.
    """
    try:
        return run_config_from_mapping(read_yaml(directory / "assets" / "run_config.yaml"))
    except InputError as error:
        raise InputError(f"{where}: {directory} is no model that tfrz exported: {error}") from error


def load_trained(
    directory: Path, task: Task[Any, Any], data: Prepared[Any, Any], words: Words = _WORDS
) -> LiveTeacher:
    """A trained model of the zoo, built anew for the same data or such with its vocabularies.

    Args:
      directory: its SavedModel.
      task: with its own configuration.
      data: what it is to read.
      words: of messages.

    Raises:
      InputError: it has other vocabularies or shapes, or answers otherwise than its SavedModel.
    """
    try:
        terms = json.loads((directory / "assets" / "vocabularies.json").read_text())
    except (OSError, ValueError) as error:
        raise InputError(
            f"{words.where}: {directory} is no model that tfrz exported: {error}"
        ) from error
    _check_vocabularies(directory, terms, data.vocabularies, words)
    model = build_like(task, data.inputs, task.config)
    report = warm_start(model, task, data.vocabularies, directory)
    if report.fresh:
        raise InputError(
            f"{words.where}: the weights {', '.join(report.fresh[:3])} of {directory} have another "
            f"shape for these data (another length, other features?): {words.remedy}"
        )
    _check_answers(directory, task, model, data, words.where)
    return LiveTeacher(directory, task, model)


def _check_vocabularies(
    directory: Path,
    theirs: Mapping[str, Sequence[str]],
    ours: Mapping[str, Sequence[str]],
    words: Words,
) -> None:
    for name in sorted({*theirs, *ours}):
        old, new = theirs.get(name), ours.get(name)
        if old is None or new is None:
            which = words.data if old is None else words.model
            raise InputError(f"{words.where}: only the {which} reads {name}: {directory}")
        alone = sorted(set(old) ^ set(new))
        if alone:
            which = words.model if alone[0] in set(old) else words.data
            raise InputError(
                f"{words.where}: the vocabulary of {name} in {directory} is another, "
                f"{len(old):,} terms against {len(new):,}; only the {which} has {alone[0]!r}: "
                f"{words.remedy}"
            )


def _check_answers(
    directory: Path, task: Task[Any, Any], model: keras.Model, data: Prepared[Any, Any], where: str
) -> None:
    """Holds the model, on these transformed features, to what its SavedModel says."""
    if not data.examples:
        return
    asked = tf.constant(list(data.examples[:_ASKED]), tf.string)
    loaded = _loaded(directory)
    # What is recommended depends on a catalogue too; vectors of users do not.
    name = "encode_examples" if "encode_examples" in loaded.signatures else "serving_default"
    answer = loaded.signatures[name]
    signatures = task.signatures(model, data.transform, data.spec, data.vocabularies)
    expected, again, found = answer(asked), answer(asked), signatures[name](asked)
    for name, value in expected.items():
        drawn = not np.array_equal(again[name].numpy(), value.numpy())
        if drawn or not value.dtype.is_floating:
            continue
        if not np.allclose(found[name].numpy(), value.numpy(), rtol=1e-3, atol=1e-3):
            raise InputError(
                f"{where}: {directory} gives other {name} on these data than it was "
                "trained to give: its examples were made otherwise (length, scaling, contexts)"
            )


def attach_teacher(
    task: Task[Any, Any], data: Prepared[Any, Any], place: str | None = None
) -> None:
    """Gives a task its live teacher, if its run has one.

    Args:
      task: the student's; before its model is built.
      data: what it learns from.
      place: of the teacher, where it is not that of the configuration.

    Raises:
      InputError: the teacher does not fit.
      ConfigError: k is above the number of classes.
    """
    distill = task.config.distill
    if not distill.active or not task.live_teacher:
        return
    classes = task.num_classes(data.inputs)
    if classes is not None:
        distill.check_classes(classes)
    if distill.teacher is not None:
        with make_strategy(task.config.trainer.strategy).scope():
            task.teacher = load_teacher(place or distill.teacher, task, data)
