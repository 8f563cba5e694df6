"""Where a pipeline's things are."""

from __future__ import annotations

import dataclasses
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Places:
    """The folders under `--root`.

    Attributes:
      root: of everything.
    """

    root: Path

    @property
    def artifacts(self) -> Path:
        """What the components wrote."""
        return self.root / "artifacts"

    @property
    def metadata(self) -> Path:
        """The ML Metadata database."""
        return self.root / "metadata.sqlite"

    @property
    def logs(self) -> Path:
        """The libraries' logs, a file a run."""
        return self.root / "logs"

    @property
    def corrupt_lines(self) -> Path:
        """Lines of the source that could not be read, as JSON."""
        return self.root / "corrupt_lines.jsonl"

    def serving(self, model: str) -> Path:
        """TF Serving's base path of a model: a folder per pushed version."""
        return self.root / "serving" / model
