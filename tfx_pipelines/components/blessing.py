"""Blessings from checks that the Evaluator's thresholds cannot express.

Every check takes the blessing so far and writes the next one with `bless`. The Pusher reads the
last one, so a single refusal stops a push.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tensorflow as tf
from ml_metadata.metadata_store import MetadataStore
from tfx.components.evaluator import constants
from tfx.components.util import model_utils
from tfx.dsl.input_resolution.strategies.latest_blessed_model_strategy import (
    LatestBlessedModelStrategy,
)
from tfx.types import Artifact, artifact_utils
from tfx.types.standard_artifacts import Examples, Model, ModelBlessing

from tfrz.files import atomic_write

REPORT = "check.json"


class LatestPassedModelStrategy(LatestBlessedModelStrategy):
    """The latest model that passed the Evaluator and every later check."""

    def resolve_artifacts(
        self, store: MetadataStore, input_dict: dict[str, list[Artifact]]
    ) -> dict[str, list[Artifact]] | None:
        """See the base class."""
        last: dict[int, Artifact] = {}
        kept = dict(input_dict)
        for name, artifacts in input_dict.items():
            if artifacts and isinstance(artifacts[0], ModelBlessing):
                for blessing in sorted(artifacts, key=lambda a: int(a.id)):
                    model = blessing.get_int_custom_property(
                        constants.ARTIFACT_PROPERTY_CURRENT_MODEL_ID_KEY
                    )
                    last[model] = blessing
                kept[name] = list(last.values())
        resolved: dict[str, list[Artifact]] | None = super().resolve_artifacts(store, kept)
        return resolved


def judged_records(examples: Examples) -> tf.data.Dataset:
    """The serialized examples of the split that judges a model: `test`, or `eval` without one."""
    splits = artifact_utils.decode_split_names(examples.split_names)
    folder = artifact_utils.get_split_uri([examples], "test" if "test" in splits else "eval")
    files = sorted(str(path) for path in Path(folder).glob("*"))
    return tf.data.TFRecordDataset(files, compression_type="GZIP")


def set_blessed(blessing: ModelBlessing, blessed: bool) -> None:
    """Marks a blessing as the Evaluator does: a property, and an empty file beside it."""
    folder = Path(blessing.uri)
    folder.mkdir(parents=True, exist_ok=True)
    names = (constants.NOT_BLESSED_FILE_NAME, constants.BLESSED_FILE_NAME)
    (folder / names[not blessed]).unlink(missing_ok=True)
    (folder / names[blessed]).write_text("")
    blessing.set_int_custom_property(
        constants.ARTIFACT_PROPERTY_BLESSED_KEY,
        constants.BLESSED_VALUE if blessed else constants.NOT_BLESSED_VALUE,
    )


def bless(
    blessing: ModelBlessing,
    model: Model,
    earlier: ModelBlessing,
    reason: str | None,
    measured: dict[str, Any],
) -> bool:
    """Writes the blessing of a check.

    Args:
      blessing: the check's output.
      model: the model that was checked.
      earlier: the blessing so far.
      reason: why the model is refused; None if it is not.
      measured: the check's measurements, for `check.json` beside the blessing.

    Returns:
      Whether the model is blessed, by this check and by those before it.
    """
    before = bool(model_utils.is_model_blessed(earlier))
    blessed = before and reason is None
    report = {"passed": reason is None, "refused_before": not before, **measured}
    if reason is not None:
        report["reason"] = reason
    set_blessed(blessing, blessed)
    atomic_write(Path(blessing.uri) / REPORT, json.dumps(report, indent=1) + "\n")
    blessing.set_string_custom_property(
        constants.ARTIFACT_PROPERTY_CURRENT_MODEL_URI_KEY, model.uri
    )
    blessing.set_int_custom_property(constants.ARTIFACT_PROPERTY_CURRENT_MODEL_ID_KEY, model.id)
    return blessed
