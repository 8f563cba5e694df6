"""The XLA policy: what of a training step is compiled, and why.

Compiled is the dense part of the step: everything between the looked-up embeddings and the loss.
Lookups and their sparse gradients stay outside, because XLA turns them into dense ones. `auto`
compiles on a GPU or TPU only: on a CPU, XLA makes the step slower. Exported signatures are never
compiled, because the stock TF Serving binary has no CPU compiler.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import tensorflow as tf

logger = logging.getLogger(__name__)


def accelerator() -> str:
    """The kind of device, GPU, TPU or CPU: the best kind of device that TensorFlow sees."""
    for kind in ("GPU", "TPU"):
        if tf.config.list_logical_devices(kind):
            return kind
    return "CPU"


def use_xla(setting: str) -> bool:
    """Whether `trainer.xla` = `setting` compiles on this machine; says so in the log."""
    device = accelerator()
    compiled = setting == "on" or (setting == "auto" and device != "CPU")
    logger.info(
        "XLA: %s (trainer.xla=%s, device %s)",
        "the dense part of the step is compiled; embedding lookups are not"
        if compiled
        else "nothing is compiled",
        setting,
        device,
    )
    return compiled


def compile_dense(function: Callable[..., Any], compiled: bool) -> Callable[..., Any]:
    """`function` as an XLA computation if `compiled`, else `function` itself.

    Gradients taken through it are compiled as well.
    """
    if not compiled:
        return function
    return tf.function(function, jit_compile=True, reduce_retracing=True)
