"""Blessings of checks that the Evaluator's thresholds cannot express.

A check takes the blessing so far and gives the next: the Pusher sees the last, and one refusal is
enough.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tfx.components.evaluator import constants
from tfx.components.util import model_utils
from tfx.types import artifact_utils

from tfrz.files import atomic_write

REPORT = "check.json"


def bless(
    blessings: list[Any],
    model: Any,
    earlier: list[Any],
    reason: str | None,
    measured: dict[str, Any],
) -> bool:
    """Writes a check's blessing.

    Args:
      blessings: the output, one artifact.
      model: the artifact that was checked.
      earlier: the blessing so far, one artifact.
      reason: why the model is refused; None if it is not.
      measured: what was found, for `check.json` beside the blessing.

    Returns:
      Whether the model is blessed: by this check and by those before it.
    """
    blessing = artifact_utils.get_single_instance(blessings)
    before = model_utils.is_model_blessed(artifact_utils.get_single_instance(earlier))
    blessed = before and reason is None
    name = constants.BLESSED_FILE_NAME if blessed else constants.NOT_BLESSED_FILE_NAME
    folder = Path(blessing.uri)
    folder.mkdir(parents=True, exist_ok=True)
    report = {"passed": reason is None, "refused_before": not before, **measured}
    if reason is not None:
        report["reason"] = reason
    atomic_write(folder / REPORT, json.dumps(report, indent=1) + "\n")
    (folder / name).write_text("")
    blessing.set_int_custom_property(
        constants.ARTIFACT_PROPERTY_BLESSED_KEY,
        constants.BLESSED_VALUE if blessed else constants.NOT_BLESSED_VALUE,
    )
    blessing.set_string_custom_property(
        constants.ARTIFACT_PROPERTY_CURRENT_MODEL_URI_KEY, model.uri
    )
    blessing.set_int_custom_property(constants.ARTIFACT_PROPERTY_CURRENT_MODEL_ID_KEY, model.id)
    return blessed
