"""Transform's callback."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfrz.config import from_mapping
from tfrz.data.tft_analyzers import TransformAnalyzers
from tfrz.zoo import registry
from tfrz.zoo.run_config import run_config_from_mapping


def preprocessing_fn(
    inputs: dict[str, tf.SparseTensor], custom_config: dict[str, Any]
) -> dict[str, Any]:
    """The task's transform with Beam's analyzers."""
    config = run_config_from_mapping(custom_config["run_config"])
    task = registry.get(config.name).new_task(config)
    spec = from_mapping(task.spec_class, custom_config["feature_spec"])
    return dict(task.preprocess(inputs, spec, TransformAnalyzers()))
