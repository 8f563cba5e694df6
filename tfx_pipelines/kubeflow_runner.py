"""Compiles a pipeline for Kubeflow Pipelines v2 (and Vertex AI), offline."""

from __future__ import annotations

from pathlib import Path

from tfrz.files import atomic_write
from tfrz.zoo.run_config import RunConfig
from tfrz.zoo.run_folder import pinned_spans
from tfrz.zoo.user_embeddings import pinned
from tfx_pipelines.configs import Places
from tfx_pipelines.local_runner import open_checked


def compile_pipeline(
    config: RunConfig, data: str, root: str, out: str | Path, features: str | None, image: str
) -> None:
    """Writes the pipeline's specification as JSON.

    Args:
      config: the run's configuration.
      data: as `--data` of the command line; the cluster must be able to read the path.
      root: folder for the cluster's artifacts, e.g. `gs://bucket/pipelines`.
      out: the file to write.
      features: feature spec of a file of the user's own.
      image: container image with tfrz and the packages of its lock file.

    Raises:
      InputError: bad input.
    """
    config = pinned_spans(pinned(config), data)
    run = open_checked(config, data, features)
    # TFX loads slowly, and a refusal does not need it.
    from tfx import v1 as tfx

    from tfx_pipelines.pipeline import create_pipeline

    pipeline = create_pipeline(run, Places(root.rstrip("/")), here=False)
    part = Path(out).with_name(Path(out).name + ".part.json")
    runner = tfx.orchestration.experimental.KubeflowV2DagRunner(
        config=tfx.orchestration.experimental.KubeflowV2DagRunnerConfig(default_image=image),
        output_dir=str(part.parent),
        output_filename=part.name,
    )
    runner.run(pipeline)
    text = part.read_text()
    part.unlink()
    atomic_write(out, text)
