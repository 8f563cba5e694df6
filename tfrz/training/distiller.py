"""Training a student with a teacher: the settings, and a Keras model that does it.

The zoo's own loop takes the same settings as the section `distill` of a run's configuration.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfrz.config import require
from tfrz.losses.distillation import (
    Kind,
    Scale,
    binary_distillation_loss,
    distillation_loss,
    relaxed_ranking_loss,
    soft_targets,
)

_RELATIONS = ("similarity", "partial_similarity")


@dataclasses.dataclass(frozen=True)
class DistillConfig:
    """The teacher of a model, and how the model learns from it.

    Attributes:
      teacher: a SavedModel, the folder of its versions, a run of `tfrz train`, or the root of a
        pipeline, whose newest pushed model it is. Null for none.
      factor: the part of the teacher's distribution that is kept; see `tfrz.losses.soft_targets`.
        `label_smoothing` needs no teacher.
      weight: lambda, the weight of the teacher's term, 0 to 1.
      temperature: T, which divides the logits of both before the softmax.
      scale: scale of the teacher's term: `squared` for T^2, or `one`.
      k: of `topk`: classes that keep the teacher's probability; of lists, places of the teacher's
        slate whose order counts. Null for all places.
      sharpness: alpha of the two factors with class relations.
      compare: in the pipeline, train the same model without its teacher too, and evaluate both and
        the teacher.
    """

    teacher: str | None = None
    factor: Kind = "full"
    weight: float = 0.5
    temperature: float = 1.0
    scale: Scale = "squared"
    k: int | None = None
    sharpness: float = 0.3
    compare: bool = True

    def __post_init__(self) -> None:
        require(0 <= self.weight <= 1, "distill.weight", f"must be 0 to 1, not {self.weight}")
        for name in ("temperature", "sharpness"):
            value = getattr(self, name)
            require(0 < value < math.inf, f"distill.{name}", f"must be above 0, not {value}")
        require(self.k is None or self.k >= 1, "distill.k", "must be at least 1, or null")

    @property
    def active(self) -> bool:
        """Whether the loss has a teacher's term."""
        return self.teacher is not None or self.factor == "label_smoothing"

    def check_clicks(self) -> None:
        """Refuses factors that need more than one logit.

        Raises:
          ConfigError: a factor with class relations, or k above the two classes.
        """
        require(
            self.factor not in _RELATIONS,
            "distill.factor",
            f"{self.factor} needs class vectors, and a click has one logit: take full or partial",
        )
        require(
            self.k is None or self.k <= 2,
            "distill.k",
            f"{self.k} is above 2, the classes of a click",
        )

    def check_classes(self, classes: int) -> None:
        """Refuses a k above the number of classes.

        Raises:
          ConfigError: `topk` without k, or k above the number of classes.
        """
        if self.factor == "topk":
            given = "null" if self.k is None else self.k
            require(
                self.k is not None and self.k <= classes,
                "distill.k",
                f"must be 1 to {classes}, the number of classes, not {given}",
            )

    def check_lists(self) -> None:
        """Refuses factors that need more than the order of a slate.

        Raises:
          ConfigError: another factor than `full` or `topk`.
        """
        require(
            self.factor in ("full", "topk"),
            "distill.factor",
            f"{self.factor} needs the probabilities of classes, and the teacher of a list has only "
            "an order: take full or topk",
        )

    def mixed(self, hard: tf.Tensor, soft: tf.Tensor) -> tf.Tensor:
        """`(1 - lambda) hard + lambda soft`: a loss by labels, and a teacher's term."""
        if self.weight == 0:  # Without a product: 0 times NaN is NaN.
            return hard
        return (1 - self.weight) * hard + self.weight * tf.cast(soft, hard.dtype)

    def click_term(self, logits: tf.Tensor, teacher_logits: tf.Tensor | None) -> tf.Tensor:
        """The teacher's term of one logit an example, `[...]`, s_T included.

        With two classes `partial` and `topk` are `full`.
        """
        if self.factor == "label_smoothing" or teacher_logits is None:
            teacher_logits = tf.zeros_like(logits)
        labels = tf.zeros_like(logits)  # Of no weight.
        return binary_distillation_loss(
            logits, labels, teacher_logits, 1.0, self.temperature, self.scale
        )

    def class_term(
        self,
        logits: tf.Tensor,
        labels: tf.Tensor,
        teacher_logits: tf.Tensor | None,
        class_vectors: Any = None,
    ) -> tf.Tensor:
        """The teacher's term against `tfrz.losses.soft_targets`, `[...]`, s_T included.

        Args:
          logits: `[..., classes]`.
          labels: `[...]`.
          teacher_logits: `[..., classes]`; None for label smoothing.
          class_vectors: the teacher's, `[classes, dim]`, for the factors with class relations.
        """
        rho = soft_targets(
            self.factor,
            tf.zeros_like(logits) if teacher_logits is None else teacher_logits,
            labels,
            self.temperature,
            self.k if self.factor == "topk" else None,
            class_vectors,
            self.sharpness,
        )
        return distillation_loss(logits, labels, rho, 1.0, self.temperature, self.scale)

    def places(self, length: int) -> int:
        """The number of places of a teacher's slate that count."""
        return length if self.factor == "full" or self.k is None else min(self.k, length)

    def order_term(self, scores: tf.Tensor, order: tf.Tensor) -> tf.Tensor:
        """The teacher's term of lists: `tfrz.losses.relaxed_ranking_loss`, `[batch]`.

        Args:
          scores: the student's, `[batch, list]`.
          order: rows of the candidates as the teacher ranks them, `[batch, list]`, -1 for none.
        """
        places, standing = self.places(int(order.shape[1])), order >= 0
        ordered = tf.gather(scores, tf.maximum(order, 0), batch_dims=1)
        return relaxed_ranking_loss(
            ordered[:, :places], ordered[:, places:], standing[:, :places], standing[:, places:]
        )


class Distiller(keras.Model):
    """Trains a student on labels and on a teacher with Keras' own `fit`.

    Formula: the loss of `tfrz.losses.distillation_loss`, or of `binary_distillation_loss` for a
    student with one logit an example, averaged over the batch, plus the student's own penalties.

    Args:
      student: a model that returns logits, `[batch, classes]`, `[batch, 1]` or `[batch]`.
      teacher: a model or function that returns logits of the same shape for the same inputs. It is
        not trained. None if the data contain the teacher's logits (see below), and for label
        smoothing.
      config: the settings; its `teacher` is not used.
      class_vectors: the teacher's, `[classes, dim]`, for the factors with class relations.
      **kwargs: Keras' own.

    Call arguments:
      inputs: inputs of the student.
      training: whether the student is in training mode.

    Returns:
      The student's logits. `fit` takes `(inputs, labels)`, or without a teacher
      `(inputs, (labels, teacher_logits))` with stored logits for each row.

    Raises:
      ConfigError: the settings do not fit the number of classes.

    Example:
      >>> student = keras.Sequential([keras.layers.Dense(3)])
      >>> teacher = keras.Sequential([keras.layers.Dense(3)])
      >>> distiller = Distiller(student, teacher, DistillConfig(weight=0.7, temperature=2.0))
      >>> distiller.compile(optimizer="adam")
      >>> rows, labels = tf.random.normal([8, 4]), tf.constant([0, 1, 2, 0, 1, 2, 0, 1])
      >>> history = distiller.fit(rows, labels, batch_size=4, verbose=0)
      >>> sorted(history.history)
      ['loss']

    Reference:
      Hinton et al., "Distilling the Knowledge in a Neural Network" (2015); the factors are those of
      Tang, Shivanna et al. (arXiv 2002.03532).
    """

    def __init__(
        self,
        student: keras.Model,
        teacher: Callable[..., tf.Tensor] | None = None,
        config: DistillConfig = DistillConfig(),
        class_vectors: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.student, self.config = student, config
        arguments = {"training": False} if isinstance(teacher, keras.Model) else {}
        # Keras does not track layers inside partial functions: they are neither trained nor saved.
        self._ask = None if teacher is None else functools.partial(teacher, **arguments)
        self._of_classes = functools.partial(config.class_term, class_vectors=class_vectors)
        # In a function for the same reason: a metric's variables are no weights.
        mean_loss = keras.metrics.Mean(name="loss")
        self._mean_loss_metric: Callable[[], Any] = lambda: mean_loss

    def call(self, inputs: Any, training: bool = False) -> tf.Tensor:
        """The student's logits."""
        return self.student(inputs, training=training)

    def _taught(self, inputs: Any, labels: Any) -> tuple[tf.Tensor, tf.Tensor | None]:
        if self._ask is not None:
            return labels, tf.stop_gradient(self._ask(inputs))
        if isinstance(labels, tuple | list):
            labels, said = labels
            return labels, tf.stop_gradient(said)
        require(
            self.config.factor == "label_smoothing",
            "teacher",
            "is missing: pass one, or labels as (labels, teacher_logits)",
        )
        return labels, None

    def loss_of(
        self, logits: tf.Tensor, labels: tf.Tensor, teacher_logits: tf.Tensor | None
    ) -> tf.Tensor:
        """A loss per example, `[batch]`."""
        classes = int(logits.shape[-1]) if logits.shape.rank > 1 else 1
        if classes > 1:
            self.config.check_classes(classes)
            logits = tf.cast(logits, tf.float32)
            hard = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
            return self.config.mixed(hard, self._of_classes(logits, labels, teacher_logits))
        self.config.check_clicks()
        flat = tf.cast(tf.reshape(logits, [-1]), tf.float32)
        clicks = tf.cast(tf.reshape(labels, [-1]), tf.float32)
        taught = teacher_logits
        if taught is not None:
            taught = tf.reshape(tf.cast(taught, tf.float32), [-1])
        hard = tf.nn.sigmoid_cross_entropy_with_logits(clicks, flat)
        return self.config.mixed(hard, self.config.click_term(flat, taught))

    def _mean_loss(self, logits: Any, labels: Any, taught: Any, weights: Any) -> tf.Tensor:
        """The mean over the batch, and the student's penalties."""
        losses = self.loss_of(logits, labels, taught)
        if weights is not None:
            losses *= tf.cast(weights, losses.dtype)
        return tf.reduce_mean(losses) + tf.add_n([tf.constant(0.0), *self.student.losses])

    def train_step(self, data: Any) -> dict[str, Any]:
        """One step of the student."""
        inputs, labels, weights = keras.utils.unpack_x_y_sample_weight(data)
        labels, taught = self._taught(inputs, labels)
        with tf.GradientTape() as tape:
            logits = self.student(inputs, training=True)
            loss = self._mean_loss(logits, labels, taught, weights)
            # The optimiser sums over replicas.
            shared = loss / tf.distribute.get_strategy().num_replicas_in_sync
        variables = self.student.trainable_variables
        gradients = tape.gradient(shared, variables)
        self.optimizer.apply_gradients(zip(gradients, variables, strict=True))
        return self._measured(inputs, labels, logits, weights, loss)

    def test_step(self, data: Any) -> dict[str, Any]:
        """The metrics of a batch."""
        inputs, labels, weights = keras.utils.unpack_x_y_sample_weight(data)
        labels, taught = self._taught(inputs, labels)
        logits = self.student(inputs, training=False)
        loss = self._mean_loss(logits, labels, taught, weights)
        return self._measured(inputs, labels, logits, weights, loss)

    def _measured(
        self, inputs: Any, labels: Any, logits: Any, weights: Any, loss: tf.Tensor
    ) -> dict[str, Any]:
        """The mean loss so far, and the metrics of `compile`, from the labels alone."""
        mean = self._mean_loss_metric()
        mean.update_state(loss, sample_weight=tf.shape(logits)[0])
        return {**self.compute_metrics(inputs, labels, logits, weights), "loss": mean.result()}

    @property
    def metrics(self) -> list[Any]:
        """The mean loss and the metrics of `compile`; Keras resets them for each epoch."""
        return [self._mean_loss_metric(), *(m for m in super().metrics if m.name != "loss")]
