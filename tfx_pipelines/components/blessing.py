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
from tfx.dsl.input_resolution.strategies.latest_blessed_model_strategy import (
    LatestBlessedModelStrategy,
)
from tfx.types import artifact_utils, standard_artifacts

from tfrz.files import atomic_write

REPORT = "check.json"


class LatestPassedModelStrategy(LatestBlessedModelStrategy):
    """The latest model whose last blessing is one: no check after the Evaluator refused it."""

    def resolve_artifacts(
        self, store: Any, input_dict: dict[str, list[Any]]
    ) -> dict[str, list[Any]] | None:
        """See the base class."""
        last: dict[int, Any] = {}
        kept = dict(input_dict)
        for name, artifacts in input_dict.items():
            if artifacts and isinstance(artifacts[0], standard_artifacts.ModelBlessing):
                for blessing in sorted(artifacts, key=lambda a: a.id):
                    model = blessing.get_int_custom_property(
                        constants.ARTIFACT_PROPERTY_CURRENT_MODEL_ID_KEY
                    )
                    last[model] = blessing
                kept[name] = list(last.values())
        return super().resolve_artifacts(store, kept)


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
