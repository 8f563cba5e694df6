"""The task of a run: what a model learns from one type of records, from a source to signatures.

`Task` defines once what all record types share: reading and preparing, vocabularies, signatures,
warm-up requests. What differs is a hook, and every hook is declared here; callers ask a task for
nothing else. The tasks of the zoo are in `tfrz.zoo.tasks`, a module each; which one a model learns
is in its row of the registry.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar, cast

import keras
import pyarrow as pa
import tensorflow as tf
from numpy.typing import NDArray

from tfrz.data.arrow_files import Partitions
from tfrz.data.columns import to_examples
from tfrz.data.records import RECORD_TYPES
from tfrz.data.sources.reader import Reader, read_table
from tfrz.data.spec import Feature, Spec, raw_feature_spec, transformed_name
from tfrz.data.splits import SPLITS
from tfrz.data.transform import Analyzers, Preprocessor, TableTransform, densify
from tfrz.data.user_embeddings import EmbeddingJoin, joined
from tfrz.errors import InputError
from tfrz.export.raw_inputs import (
    check_lengths,
    raw_input_signature,
    to_sparse,
    without_opaque,
)
from tfrz.metrics import direction
from tfrz.training.batches import ArrayBatches, Batches
from tfrz.zoo.user_embeddings import with_user_embeddings

if TYPE_CHECKING:
    from tfrz.zoo.registry import ModelEntry
    from tfrz.zoo.run_config import RunConfig

Tensors = dict[str, tf.Tensor]
# What to do about an empty set.
_MORE = "bring more data, or split it in another way (section data)"

Transform = Callable[[dict[str, tf.SparseTensor]], dict[str, Any]]
Parts = dict[str, pa.Table]


def refuse_empty_training(count: int) -> None:
    """Checks that there are training examples.

    Raises:
      InputError: there is none.
    """
    if not count:
        raise InputError(f"the training set is empty: {_MORE}")


class Inputs(Protocol):
    """The transformed inputs of a model."""

    @property
    def names(self) -> tuple[str, ...]:
        """All inputs of the model."""


SpecT = TypeVar("SpecT", bound=Spec)
InputsT = TypeVar("InputsT", bound=Inputs)


@dataclasses.dataclass(frozen=True)
class ExampleSource(Generic[SpecT]):
    """A source of records, and what its examples are to hold; resolved once a run.

    Attributes:
      reader: of the source.
      spec: the raw features of an example, those that the run adds included.
      join: adds stored embeddings of users to examples; None for none.
    """

    reader: Reader
    spec: SpecT
    join: EmbeddingJoin | None = None


@dataclasses.dataclass(frozen=True)
class Prepared(Generic[SpecT, InputsT]):
    """Sets of examples, and what the model and its export need to know of them.

    Attributes:
      train: the training set.
      validation: chooses the weights and the end of training.
      test: reported once, at the end; None where there is none.
      inputs: what the task's `build` takes.
      transform: raw sparse features to transformed ones.
      vocabularies: transformed name to terms in the order of their ids from 1.
      spec: the raw features.
      examples: serialised raw examples, for warm-up requests.
      corrupt_lines: lines of the source that were left out.
    """

    train: Batches
    validation: Batches
    test: Batches | None
    inputs: InputsT
    transform: tf.Module
    vocabularies: dict[str, list[str]]
    spec: SpecT
    examples: list[bytes]
    corrupt_lines: int = 0


@dataclasses.dataclass(frozen=True)
class LiveTeacher:
    """A trained model of the zoo that reads a student's batches.

    Attributes:
      directory: of its SavedModel.
      task: its own, with its own configuration.
      model: with the trained weights.
    """

    directory: Path
    task: Task[Any, Any]
    model: keras.Model


@dataclasses.dataclass(frozen=True)
class Served(Generic[SpecT]):
    """A trained model with everything that its signatures read.

    Attributes:
      model: the trained model.
      transform: raw sparse features to transformed ones.
      spec: the raw features.
      vocabularies: transformed name to terms in the order of their ids from 1.
    """

    model: keras.Model
    transform: Transform
    spec: SpecT
    vocabularies: Mapping[str, Sequence[str]]

    def features(self, raw: dict[str, tf.SparseTensor]) -> Tensors:
        """Raw features, as `tf.io.parse_example` returns them, to what the model takes."""
        return densify(self.transform({f.name: raw[f.name] for f in self.spec.features}))


class Task(abc.ABC, Generic[SpecT, InputsT]):
    """The task of a run: how a model learns from one type of records.

    A subclass sets the class attributes and defines the abstract methods. The other hooks have the
    default that their docstring states.

    Args:
      entry: the model's row in the registry.
      config: the run's configuration.

    Attributes:
      objective: the metric that chooses the weights.
      product: the signature that `serving_raw` is exported as a second time.
      evaluation_batch: examples that are evaluated at once.
      slice_features: features that `transform_features` adds, by which the Evaluator can slice.
      prepare_reads: values of the configuration that decide what `prepare` returns, beyond the
        sections `data` and `features`.
      live_teacher: whether a teacher is a model of the zoo that reads the student's batches.
        Otherwise it is any SavedModel, asked once for each raw example.
      describes_targets: whether `transform_features` reads the label and the outcomes too.
      shorter_lists: whether lists of an example may be shorter than the one they are aligned with.
      teacher: the live teacher of the run; None for none.
      parts: what the signatures read beyond the model's weights; saved along.
    """

    objective: ClassVar[str]
    product: ClassVar[str]
    evaluation_batch: ClassVar[int] = 256
    slice_features: ClassVar[tuple[str, ...]] = ()
    prepare_reads: ClassVar[tuple[str, ...]] = ()
    live_teacher: ClassVar[bool] = True
    describes_targets: ClassVar[bool] = True
    shorter_lists: ClassVar[bool] = True

    def __init__(self, entry: ModelEntry, config: RunConfig) -> None:
        self.entry, self.config = entry, config
        self.teacher: LiveTeacher | None = None
        self.parts: list[Any] = []

    @property
    def objective_direction(self) -> str:
        """Whether the objective is to be small ("min") or large ("max")."""
        return str(direction(self.objective))

    # Data.

    @property
    def spec_class(self) -> type[Spec]:
        """Class of the raw features."""
        return RECORD_TYPES[self.entry.record_type].spec

    def resolve(self, reader: Reader) -> ExampleSource[SpecT]:
        """The source of a run.

        Raises:
          InputError: no user has an embedding, or the store is of another version than the run.
          ConfigError: the configuration needs features that the source does not have.
        """
        return ExampleSource(reader, *self.example_spec(reader.feature_spec()))

    def example_spec(self, source: Spec) -> tuple[SpecT, EmbeddingJoin | None]:
        """The raw features of examples from those of the source; and what joins embeddings."""
        assert isinstance(source, self.spec_class)
        return with_user_embeddings(self.config.features, cast(SpecT, source))

    def open_catalogue(self, opened: Callable[[], Reader]) -> None:
        """Reads the source's catalogue of items; does nothing by default.

        Args:
          opened: opens the source.
        """

    @abc.abstractmethod
    def make_examples(self, records: pa.Table, source: ExampleSource[SpecT]) -> tuple[Parts, int]:
        """Examples of each split from all records, and how many records were left out."""

    @property
    def partition_key(self) -> str | None:
        """The column by which records beyond memory are parted on disk.

        Examples of a part need no record of another. None if all records are held in memory.
        """
        return None

    def settled(self, records: Partitions, spec: SpecT) -> Partitions:
        """Records in parts without those that only all parts together tell; all by default."""
        del spec
        return records

    def examples_of_part(
        self, records: pa.Table, source: ExampleSource[SpecT]
    ) -> tuple[Parts, int]:
        """As `make_examples`, of one part of the settled records, which may give no example."""
        return self.make_examples(records, source)

    def check_examples(self, counts: Mapping[str, int], source: ExampleSource[SpecT]) -> None:
        """Refuses splits without examples, by the number of each; accepts all by default.

        Raises:
          InputError: says which.
        """

    @abc.abstractmethod
    def fit_transform(self, examples: pa.Table, spec: SpecT) -> Preprocessor[Any, Any]:
        """The transform with the vocabularies and moments of the training examples."""

    def transform_of(
        self,
        spec: SpecT,
        vocabularies: Mapping[str, list[bytes]],
        moments: Mapping[str, tuple[float, float]],
    ) -> Preprocessor[Any, Any]:
        """The transform of vocabularies and moments that `fit_transform` found before.

        Defined where there is a `partition_key`.
        """
        raise NotImplementedError(type(self).__name__)

    def transformer(
        self, transform: Preprocessor[Any, Any], spec: SpecT, split: str
    ) -> Callable[[pa.Table], dict[str, Any]]:
        """What transforms examples of a split, to columns as `ArrayBatches` takes them."""
        del spec, split
        return TableTransform(transform)

    @abc.abstractmethod
    def preprocess(
        self, inputs: Mapping[str, tf.SparseTensor], spec: SpecT, analyzers: Analyzers
    ) -> dict[str, Any]:
        """Raw features and targets to transformed ones, for the pipeline's Transform."""

    def examples(self, source: ExampleSource[SpecT]) -> tuple[Parts, int]:
        """Reads a source: its examples by split, and how many of its records were left out.

        Raises:
          InputError: the source cannot be read, too many of its lines are corrupt, or nothing is
            left to learn from.
        """
        self.open_catalogue(lambda: source.reader)
        records, corrupt = read_table(source.reader, self.config.data.max_corrupt_fraction)
        return self.examples_of(records, source, len(corrupt))

    def examples_of(
        self, records: pa.Table, source: ExampleSource[SpecT], corrupt: int
    ) -> tuple[Parts, int]:
        """As `examples`, of all records and the number of corrupt lines beside them."""
        parts, left_out = self.make_examples(records, source)
        tables = joined(source.join, [parts[name] for name in SPLITS])
        return dict(zip(SPLITS, tables, strict=True)), corrupt + left_out

    def prepared(
        self, spec: SpecT, parts: Mapping[str, pa.Table], left_out: int = 0
    ) -> Prepared[SpecT, InputsT]:
        """Examples by split as sets that a model is trained and evaluated on.

        Raises:
          InputError: there is nothing to train on.
        """
        refuse_empty_training(parts["train"].num_rows)
        transform, trainer = self.fit_transform(parts["train"], spec), self.config.trainer
        columns = {n: self.transformer(transform, spec, n)(parts[n]) for n in SPLITS}
        sets: dict[str, Batches] = {
            name: ArrayBatches(columns[name], self.evaluation_batch) for name in SPLITS[1:]
        }
        sets["train"] = ArrayBatches(columns["train"], trainer.batch_size, trainer.seed)
        examples = to_examples(parts["validation"], spec, limit=1000)
        return self.of_sets(spec, transform, sets, examples, left_out)

    def of_sets(
        self,
        spec: SpecT,
        transform: Preprocessor[Any, Any],
        sets: Mapping[str, Batches],
        examples: list[bytes],
        left_out: int,
    ) -> Prepared[SpecT, InputsT]:
        """What a model is trained on, from the transformed examples of each split."""
        vocabularies = {
            transformed_name(name): terms for name, terms in transform.vocabularies.items()
        } | self.catalogue_vocabularies
        inputs = self.inputs_of(spec, transform.vocabulary_sizes, vocabularies)
        return Prepared(
            train=sets["train"],
            validation=sets["validation"],
            test=sets["test"] if sets["test"].num_examples else None,
            inputs=inputs,
            transform=transform,
            vocabularies=vocabularies,
            spec=spec,
            examples=examples,
            corrupt_lines=left_out,
        )

    def prepare(self, reader: Reader) -> Prepared[SpecT, InputsT]:
        """Reads, splits and transforms a source in this process.

        Vocabularies and moments come from the training part alone.

        Raises:
          InputError: as of `resolve` and `examples`.
        """
        return self.prepared_source(self.resolve(reader))

    def prepared_source(
        self, source: ExampleSource[SpecT], cache: Path | None = None
    ) -> Prepared[SpecT, InputsT]:
        """Reads, splits and transforms a resolved source.

        Args:
          source: of `resolve`.
          cache: folder for examples that a task encodes as it reads; the others build them in
            memory. For more records see `tfrz.zoo.partitioned`.

        Raises:
          InputError: as of `examples`.
        """
        del cache
        return self.prepared(source.spec, *self.examples(source))

    def check_sets(self, prepared: Prepared[SpecT, InputsT]) -> None:
        """Refuses sets from which nothing can be learned or chosen, before anything is trained.

        It warns of what training does not need: a metric that a set leaves undefined.

        Raises:
          InputError: the training or the validation set is empty, by default.
        """
        sets = {"training": prepared.train, "validation": prepared.validation}
        for name, some in sets.items():
            if not some.num_examples:
                raise InputError(f"the {name} set is empty: {_MORE}")

    # The model.

    @abc.abstractmethod
    def model_inputs(self, spec: SpecT, vocabulary_sizes: Mapping[str, int]) -> InputsT:
        """The argument of `build`, from the raw features and the fitted vocabularies."""

    def with_catalogue(self, inputs: InputsT, vocabularies: Mapping[str, Sequence[str]]) -> InputsT:
        """The inputs with what the catalogue says of the items; unchanged by default."""
        del vocabularies
        return inputs

    @property
    def catalogue_vocabularies(self) -> dict[str, list[str]]:
        """The terms of the items' features, for a later warm start; none by default."""
        return {}

    def inputs_of(
        self,
        spec: SpecT,
        vocabulary_sizes: Mapping[str, int],
        vocabularies: Mapping[str, Sequence[str]],
    ) -> InputsT:
        """The argument of `build`, with the catalogue's features of the items."""
        return self.with_catalogue(self.model_inputs(spec, vocabulary_sizes), vocabularies)

    @abc.abstractmethod
    def construct(self, inputs: InputsT) -> keras.Model:
        """The model, before it has any variables."""

    @staticmethod
    @abc.abstractmethod
    def example_inputs(inputs: InputsT, batch_size: int = 2) -> Tensors:
        """A batch of zeros (of strings, empty ones) of the right shapes and dtypes."""

    def build(self, inputs: InputsT) -> keras.Model:
        """A model with all its variables made."""
        model = self.construct(inputs)
        model(self.example_inputs(inputs))
        return model

    @abc.abstractmethod
    def vocabulary_weights(self, model: keras.Model) -> dict[str, list[tf.Variable]]:
        """The tables whose rows are the ids of each vocabulary, for a warm start."""

    # Training.

    @abc.abstractmethod
    def lookup(self, model: keras.Model, batch: Tensors) -> Tensors:
        """Embedding lookups and all else that XLA is not to compile."""

    @abc.abstractmethod
    def dense_loss(self, model: keras.Model, looked_up: Tensors) -> tuple[tf.Tensor, tf.Tensor]:
        """Loss per example `[batch]`, and the regularisation of the step, a scalar."""

    @abc.abstractmethod
    def predict(self, model: keras.Model, batch: Tensors) -> Tensors:
        """The inputs of `metrics` from one batch, `[batch, ...]` each."""

    @abc.abstractmethod
    def metrics(self, outputs: dict[str, NDArray[Any]]) -> dict[str, float]:
        """Metrics of the concatenated outputs."""

    # A teacher.

    def num_classes(self, inputs: InputsT) -> int | None:
        """How many classes a softmax is over; None, the default, where there is none."""
        del inputs
        return None

    def teacher_metrics(self, batches: Batches) -> dict[str, float]:
        """The metrics of the run's teacher on a set of examples."""
        from tfrz.training.fit import evaluate

        assert self.teacher is not None
        return evaluate(self.teacher.model, self.teacher.task, batches)

    def class_logits(
        self, model: keras.Model, batch: Tensors
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor] | None:
        """Logits of student and teacher `[rows, classes]` and the true classes `[rows]`.

        None, the default, where examples are not of one class out of several.
        """
        del model, batch
        return None

    # The export.

    @abc.abstractmethod
    def outputs(self, model: keras.Model, features: Tensors) -> Tensors:
        """The model's answer to transformed features, `[batch, ...]` each."""

    def answers(self, served: Served[SpecT]) -> Callable[[dict[str, tf.SparseTensor]], Tensors]:
        """From raw features of requests to what the client gets; `outputs` by default."""
        return lambda raw: self.outputs(served.model, served.features(raw))

    def request_spec(self, spec: SpecT) -> SpecT:
        """The raw features of a request; those of an example by default."""
        return spec

    def aligned_lists(self, spec: SpecT) -> Sequence[Sequence[str]]:
        """Groups of raw lists with a common order, the one that counts first; none by default."""
        del spec
        return ()

    def parsed(
        self, examples: tf.Tensor, spec: SpecT, label: bool = False
    ) -> dict[str, tf.SparseTensor]:
        """Raw features of serialised `tf.Example`s, whose aligned lists agree in length."""
        raw: dict[str, tf.SparseTensor] = tf.io.parse_example(
            examples, raw_feature_spec(spec, label=label)
        )
        for names in self.aligned_lists(spec):
            raw = check_lengths(raw, names, self.shorter_lists)
        return raw

    def to_sparse(self, features: Tensors, spec: SpecT) -> dict[str, tf.SparseTensor]:
        """Named raw tensors as `tf.io.parse_example` returns them."""
        del spec
        return to_sparse(features)

    def described(
        self, served: Served[SpecT], raw: dict[str, tf.SparseTensor], features: Tensors
    ) -> Tensors:
        """The result of `transform_features`; the transformed features by default."""
        del served, raw
        return features

    def further_signatures(self, served: Served[SpecT]) -> dict[str, Callable[..., Tensors]]:
        """Signatures beyond those that all tasks have; none by default."""
        del served
        return {}

    def signatures(
        self,
        model: keras.Model,
        transform: Transform,
        spec: SpecT,
        vocabularies: Mapping[str, Sequence[str]],
    ) -> dict[str, Callable[..., Tensors]]:
        """The signatures of a SavedModel.

        Args:
          model: the trained model.
          transform: raw sparse features to transformed ones.
          spec: the raw features.
          vocabularies: transformed name to terms in the order of their ids from 1.

        Returns:
          Names to functions with an input signature. `serving_default` takes serialised
          `tf.Example`s `[batch]` as `examples`; `serving_raw`, and the same under the name of the
          task's product, raw features as named tensors. `transform_features` takes serialised
          examples and returns what the Evaluator reads. The subclass says what else there is.
        """
        served = Served(model, transform, spec, vocabularies)
        requests = self.request_spec(spec)
        request = dataclasses.replace(served, spec=requests)
        answer = self.answers(request)
        examples = tf.TensorSpec([None], tf.string, name="examples")

        @tf.function(input_signature=[examples])
        def serving_default(examples: tf.Tensor) -> Tensors:
            return answer(self.parsed(examples, requests))

        @tf.function(input_signature=[raw_input_signature(requests)])
        def serving_raw(features: Tensors) -> Tensors:
            return answer(self.to_sparse(features, requests))

        @tf.function(input_signature=[examples])
        def transform_features(examples: tf.Tensor) -> Tensors:
            raw = self.parsed(examples, spec, self.describes_targets)
            return self.described(served, raw, without_opaque(served.features(raw), spec))

        return {
            "serving_default": serving_default,
            "serving_raw": serving_raw,
            self.product: serving_raw,
            "transform_features": transform_features,
            **self.further_signatures(served),
        }

    def request_length(self, feature: Feature, row: int) -> int:
        """Values of a feature in the warm-up request `row`; 1 by default."""
        del feature, row
        return 1

    def request_terms(
        self, feature: Feature, spec: SpecT, vocabularies: Mapping[str, Sequence[str]]
    ) -> Sequence[str]:
        """Terms of a feature in warm-up requests; those of its vocabulary by default."""
        del spec
        return vocabularies.get(transformed_name(feature.name), ())

    def warmup_examples(
        self, vocabularies: Mapping[str, Sequence[str]], spec: SpecT, limit: int
    ) -> list[bytes]:
        """Requests for the warm-up, from the most frequent terms of each vocabulary."""
        requests = self.request_spec(spec)
        serialized = []
        for row in range(limit):
            example = tf.train.Example()
            for feature in requests.features:
                if feature.kind == "opaque":
                    continue
                stored = example.features.feature[feature.name]
                terms = self.request_terms(feature, requests, vocabularies) or [""]
                for i in range(self.request_length(feature, row)):
                    term = terms[(row + i) % len(terms)]
                    if feature.kind == "time":
                        stored.int64_list.value.append(1_600_000_000 + 60 * i)
                    elif feature.dtype == "float32":
                        stored.float_list.value.append(1.0 + row + i)
                    elif feature.dtype == "int64":
                        stored.int64_list.value.append(int(term or 0))
                    else:
                        stored.bytes_list.value.append(term.encode())
            serialized.append(example.SerializeToString())
        return serialized

    # The Evaluator.

    @abc.abstractmethod
    def eval_config(self, spec: SpecT, has_baseline: bool) -> Any:
        """TFMA's `EvalConfig`: metrics, slices and the thresholds of a blessing.

        Args:
          spec: the raw features.
          has_baseline: whether there is a blessed model to compare with.
        """
