"""Where a pipeline's things are."""

from __future__ import annotations

import dataclasses


def pipeline_name(model: str) -> str:
    """The name of a model's pipeline; Kubeflow takes no underscore."""
    return model.replace("_", "-")


@dataclasses.dataclass(frozen=True)
class Places:
    """The folders under `--root`, as the URIs that TFX takes (`gs://` stays `gs://`).

    Attributes:
      root: of everything.
    """

    root: str

    @property
    def artifacts(self) -> str:
        """What the components wrote."""
        return f"{self.root}/artifacts"

    @property
    def metadata(self) -> str:
        """The ML Metadata database of a run on this machine."""
        return f"{self.root}/metadata.sqlite"

    @property
    def logs(self) -> str:
        """The libraries' logs, a file a run."""
        return f"{self.root}/logs"

    @property
    def schema(self) -> str:
        """The imported schema, where one is asked for."""
        return f"{self.root}/schema"

    @property
    def corrupt_lines(self) -> str:
        """Lines of the source that could not be read, as JSON."""
        return f"{self.root}/corrupt_lines.jsonl"

    @property
    def embeddings(self) -> str:
        """The store of users' embeddings."""
        return f"{self.root}/embeddings"

    @property
    def teachers(self) -> str:
        """Copies of teachers that are no pipeline's."""
        return f"{self.root}/teachers"

    def serving(self, model: str) -> str:
        """TF Serving's base path of a model: a folder per pushed version."""
        return f"{self.root}/serving/{model}"
