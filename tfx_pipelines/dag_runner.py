"""TFX's LocalDagRunner, one component at a time."""

from __future__ import annotations

import datetime
from collections.abc import Callable

from ml_metadata.metadata_store import ListOptions, OrderByField
from ml_metadata.proto.metadata_store_pb2 import Execution
from tfx.dsl.compiler.constants import PIPELINE_RUN_ID_PARAMETER_NAME
from tfx.orchestration.local.local_dag_runner import LocalDagRunner
from tfx.orchestration.metadata import Metadata, sqlite_metadata_connection_config
from tfx.orchestration.portable.runtime_parameter_utils import substitute_runtime_parameter
from tfx.proto.orchestration import pipeline_pb2

_LAST = ListOptions(limit=1, order_by=OrderByField.ID, is_asc=False)


class WatchedDagRunner(LocalDagRunner):
    """Tells what each component did; LocalDagRunner has no hook for it.

    Args:
      database: the ML Metadata database.
      started: called with a component's name before it runs.
      finished: called with its name and whether its outputs came from the cache.
    """

    def __init__(
        self, database: str, started: Callable[[str], None], finished: Callable[[str, bool], None]
    ) -> None:
        super().__init__()
        self._metadata = Metadata(sqlite_metadata_connection_config(database))
        self._started, self._finished = started, finished

    def _last(self) -> tuple[int, int]:
        """ID and state of the newest execution."""
        with self._metadata as handle:
            found = handle.store.get_executions(_LAST)
        return (found[0].id, found[0].last_known_state) if found else (0, Execution.UNKNOWN)

    def run_with_ir(
        self, pipeline: pipeline_pb2.Pipeline, run_options: pipeline_pb2.RunOptions | None = None
    ) -> None:
        """See the base class."""
        # All components must have the same run ID.
        run_id = {PIPELINE_RUN_ID_PARAMETER_NAME: datetime.datetime.now().isoformat()}
        substitute_runtime_parameter(pipeline, run_id)
        nodes = list(pipeline.nodes)
        for node in nodes:
            name, before = node.pipeline_node.node_info.id, self._last()
            self._started(name)
            part = pipeline_pb2.Pipeline()
            part.CopyFrom(pipeline)
            del part.nodes[:]
            part.nodes.append(node)
            super().run_with_ir(part, run_options)
            after = self._last()
            # A node without work records no execution.
            self._finished(name, after[0] != before[0] and after[1] == Execution.CACHED)
