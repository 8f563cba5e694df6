"""The folders of a pipeline, and its configuration as the text that TFX stores."""

from __future__ import annotations

import dataclasses
import json

from tfrz.zoo.run_config import RunConfig, run_config_from_mapping, run_config_to_mapping


def pipeline_name(model: str) -> str:
    """The name of a model's pipeline; Kubeflow does not accept underscores."""
    return model.replace("_", "-")


def config_to_json(config: RunConfig) -> str:
    """The configuration as a component's parameter: one line of JSON."""
    return json.dumps(run_config_to_mapping(config), sort_keys=True)


def config_from_json(text: str) -> RunConfig:
    """The configuration that `config_to_json` wrote."""
    return run_config_from_mapping(json.loads(text))


@dataclasses.dataclass(frozen=True)
class Places:
    """The folders under `--root`, as the URIs that TFX takes (`gs://` stays `gs://`).

    Attributes:
      root: the folder that contains all the others.
    """

    root: str

    @property
    def artifacts(self) -> str:
        """Outputs of the components."""
        return f"{self.root}/artifacts"

    @property
    def metadata(self) -> str:
        """The ML Metadata database of a local run."""
        return f"{self.root}/metadata.sqlite"

    @property
    def logs(self) -> str:
        """Logs of the libraries, one file per run."""
        return f"{self.root}/logs"

    @property
    def schema(self) -> str:
        """The imported schema, if `pipeline.schema=imported`."""
        return f"{self.root}/schema"

    @property
    def corrupt_lines(self) -> str:
        """Lines of the source that could not be read, as JSON."""
        return f"{self.root}/corrupt_lines.jsonl"

    @property
    def embeddings(self) -> str:
        """The store of user embeddings."""
        return f"{self.root}/embeddings"

    @property
    def teachers(self) -> str:
        """Copies of teachers that come from outside any pipeline."""
        return f"{self.root}/teachers"

    def serving(self, model: str) -> str:
        """TF Serving's base path of a model: one folder per pushed version."""
        return f"{self.root}/serving/{model}"


def splits_of(test_fraction: float) -> tuple[str, ...]:
    """The splits of a pipeline's examples; the last one judges the model."""
    return ("train", "eval", "test") if test_fraction > 0 else ("train", "eval")
