"""The XLA policy: which part of a training step is compiled, and why.

Compiled is the dense part of the step: everything between the looked-up embeddings and the loss.
Lookups and their sparse gradients stay outside, because XLA turns them into dense ones. `auto`
compiles on a GPU or TPU only: on a CPU, XLA makes the step slower. Exported signatures are never
compiled, because the stock TF Serving binary has no CPU compiler.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

logger = logging.getLogger(__name__)


def accelerator() -> str:
    """The best kind of device that TensorFlow sees: GPU, TPU or CPU."""
    for kind in ("GPU", "TPU"):
        if tf.config.list_logical_devices(kind):
            return kind
    return "CPU"


def compiles(setting: str) -> bool:
    """Whether `trainer.xla` = `setting` compiles on this machine."""
    return setting == "on" or (setting == "auto" and accelerator() != "CPU")


def use_xla(setting: str) -> bool:
    """As `compiles`, and logs the decision."""
    compiled = compiles(setting)
    logger.info(
        "XLA: %s (trainer.xla=%s, device %s)",
        "the dense part of the step is compiled; embedding lookups are not"
        if compiled
        else "nothing is compiled",
        setting,
        accelerator(),
    )
    return compiled


def compiled_value_and_gradients(
    loss_of: Callable[[dict[str, tf.Tensor]], tf.Tensor], variables: Sequence[tf.Variable]
) -> Callable[
    [dict[str, tf.Tensor]], tuple[tf.Tensor, list[tf.Tensor | None], dict[str, tf.Tensor]]
]:
    """The loss and its gradients as one XLA computation.

    The gradients are computed inside the compiled function, because the values that a recurrent
    network keeps for its backward pass cannot leave it.

    Args:
      loss_of: from looked-up tensors to a scalar.
      variables: the variables to differentiate by.

    Returns:
      A function from looked-up tensors to the loss, its gradients by the variables (None for
      variables that the loss does not read), and its gradients by the floating-point tensors.
    """
    reached: list[bool] = []

    @tf.function(jit_compile=True, reduce_retracing=True)
    def inside(looked_up: dict[str, tf.Tensor]) -> tuple[Any, list[Any], dict[str, Any]]:
        floats = {n: v for n, v in looked_up.items() if v.dtype.is_floating}
        with tf.GradientTape() as tape:
            tape.watch(floats)
            loss = loss_of({**looked_up, **floats})
        dense, inner = tape.gradient(loss, (list(variables), floats))
        reached[:] = [gradient is not None for gradient in dense]
        return (
            loss,
            [tf.convert_to_tensor(gradient) for gradient in dense if gradient is not None],
            {name: gradient for name, gradient in inner.items() if gradient is not None},
        )

    def value_and_gradients(
        looked_up: dict[str, tf.Tensor],
    ) -> tuple[Any, list[Any], dict[str, Any]]:
        loss, found, inner = inside(looked_up)
        following = iter(found)
        return loss, [next(following) if one else None for one in reached], inner

    return value_and_gradients
