"""Transform's callback."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfrz.config import from_mapping
from tfrz.data.features import FeatureSpec
from tfrz.data.preprocessing import preprocess
from tfrz.data.transform_analyzers import TransformAnalyzers


def preprocessing_fn(
    inputs: dict[str, tf.SparseTensor], custom_config: dict[str, Any]
) -> dict[str, Any]:
    """`tfrz.data.preprocessing.preprocess` with Beam's analyzers."""
    spec = from_mapping(FeatureSpec, custom_config["feature_spec"])
    return preprocess(inputs, spec, TransformAnalyzers())
