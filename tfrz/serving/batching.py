"""Dynamic batching: joins runs that arrive close together (section 10 of the contract).

A `Scheduler` owns the threads, which all models share; a `BatchingRunner` belongs to one version
and keeps a queue for each set of tensors. A free thread takes the oldest batch of the next queue in
turn; while all threads are busy, requests gather. Batches therefore grow with the load even if
`batch_timeout_micros` is 0.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math
import os
import threading
import time
from collections.abc import Callable, Sequence

import grpc
import numpy as np

from tfrz.serving import metrics as names
from tfrz.serving.metrics import Metrics
from tfrz.serving.status import RequestError, invalid

# One run of a graph: values of the inputs in order, values of the outputs in order.
Runner = Callable[[Sequence[np.ndarray]], Sequence[np.ndarray]]


@dataclasses.dataclass(frozen=True)
class BatchingParameters:
    """Sizes and times of batches.

    Attributes:
      max_batch_size: maximum number of rows of a request and of a batch.
      batch_timeout_micros: how long an incomplete batch waits for more requests.
      max_enqueued_batches: maximum number of batches in a queue; more are refused.
      num_batch_threads: number of batches that run in parallel, over all models.
      thread_pool_name: a label of the metrics.
      allowed_batch_sizes: ascending; batches are padded to the next of these sizes.
      pad_variable_length_inputs: pad inputs that differ in dimensions other than the first.
      enable_large_batch_splitting: run at most `max_execution_batch_size` rows at a time.
      max_execution_batch_size: 0 means `max_batch_size`.

    Raises:
      RequestError: INVALID_ARGUMENT.
    """

    max_batch_size: int = 1000
    batch_timeout_micros: int = 0
    max_enqueued_batches: int = 10
    num_batch_threads: int = dataclasses.field(default_factory=lambda: os.cpu_count() or 1)
    thread_pool_name: str = "batch_threads"
    allowed_batch_sizes: tuple[int, ...] = ()
    pad_variable_length_inputs: bool = False
    enable_large_batch_splitting: bool = False
    max_execution_batch_size: int = 0

    def __post_init__(self) -> None:
        for name in ("max_batch_size", "max_enqueued_batches", "num_batch_threads"):
            if getattr(self, name) < 1:
                raise invalid(f"{name} must be positive; was {getattr(self, name)}")
        if self.batch_timeout_micros < 0:
            raise invalid(
                f"batch_timeout_micros must be non-negative; was {self.batch_timeout_micros}"
            )
        if self.execution_size > self.max_batch_size or self.execution_size < 1:
            raise invalid(
                f"max_execution_batch_size must be in 1 .. max_batch_size "
                f"({self.max_batch_size}); was {self.max_execution_batch_size}"
            )
        sizes = self.allowed_batch_sizes
        if sizes and (sizes[0] < 1 or any(a >= b for a, b in itertools.pairwise(sizes))):
            raise invalid("allowed_batch_sizes entries must be monotonically increasing")
        if sizes and sizes[-1] != self.execution_size:
            what = "max_batch_size"
            if self.enable_large_batch_splitting:
                what = "max_execution_batch_size"
            raise invalid(
                f"Last entry in allowed_batch_sizes must match {what}; last entry was "
                f"{sizes[-1]}; expected {self.execution_size}"
            )

    @property
    def execution_size(self) -> int:
        """Maximum number of rows of one run of the graph."""
        if self.enable_large_batch_splitting and self.max_execution_batch_size:
            return self.max_execution_batch_size
        return self.max_batch_size

    def padded(self, rows: int) -> int:
        """Returns the size that a batch with this number of rows is padded to."""
        return next((size for size in self.allowed_batch_sizes if size >= rows), rows)


class _Task:
    """One request's run."""

    def __init__(self, inputs: Sequence[np.ndarray], rows: int) -> None:
        self.inputs, self.rows = inputs, rows
        self.start = time.monotonic()
        self.taken = False
        self.done = threading.Event()
        self.outputs: list[np.ndarray] = []
        self.error: RequestError | None = None

    def finish(self, outputs: list[np.ndarray] | None, error: RequestError | None = None) -> None:
        self.outputs, self.error = outputs or [], error
        self.done.set()


class _Batch:
    def __init__(self) -> None:
        self.tasks: list[_Task] = []
        self.rows = 0
        self.start = time.monotonic()


class _Queue:
    """Batches of one version and one set of tensors; the last one is open."""

    def __init__(self, parameters: BatchingParameters, runner: Runner) -> None:
        self.parameters, self.runner = parameters, runner
        self.batches: collections.deque[_Batch] = collections.deque()

    def add(self, task: _Task) -> None:
        limit = self.parameters.max_batch_size
        if not self.batches or self.batches[-1].rows + task.rows > limit:
            if len(self.batches) >= self.parameters.max_enqueued_batches:
                raise RequestError(
                    grpc.StatusCode.UNAVAILABLE,
                    "The batch scheduling queue to which this task was submitted is full",
                )
            self.batches.append(_Batch())
        batch = self.batches[-1]
        batch.tasks.append(task)
        batch.rows += task.rows

    def ready_at(self) -> float:
        """The time when the oldest batch may run, by the monotonic clock; 0 for at once."""
        oldest = self.batches[0]
        if len(self.batches) > 1 or oldest.rows >= self.parameters.max_batch_size:
            return 0.0
        return oldest.start + self.parameters.batch_timeout_micros / 1e6


class Scheduler:
    """The threads that run batches.

    Args:
      threads: number of threads.
      name: `thread_pool_name` of the metrics.
      metrics: of the server.
    """

    def __init__(self, threads: int, name: str, metrics: Metrics) -> None:
        self._metrics, self._name = metrics, name
        self._changed = threading.Condition()
        self._queues: collections.deque[_Queue] = collections.deque()
        self._stopped = False
        self._threads = [
            threading.Thread(target=self._work, name=f"batch-{i}", daemon=True)
            for i in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Ends the threads once the queues are empty."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def submit(self, queue: _Queue, task: _Task) -> None:
        """Adds a task to a queue.

        Raises:
          RequestError: UNAVAILABLE, the queue is full.
        """
        with self._changed:
            if not queue.batches:
                self._queues.append(queue)
            try:
                queue.add(task)
            finally:
                if not queue.batches:
                    self._queues.remove(queue)
            self._changed.notify()

    def withdraw(self, task: _Task) -> bool:
        """Cancels a task; returns False if a thread has already taken it."""
        with self._changed:
            withdrawn = not task.taken
            task.taken = True
            return withdrawn

    def _next(self) -> tuple[_Queue, _Batch] | None:
        """Waits for the next batch that may run; returns None to end the thread."""
        with self._changed:
            while True:
                wake = math.inf
                now = time.monotonic()
                for _ in range(len(self._queues)):
                    queue = self._queues.popleft()
                    ready = 0.0 if self._stopped else queue.ready_at()
                    if ready <= now:
                        batch = queue.batches.popleft()
                        if queue.batches:
                            self._queues.append(queue)
                            self._changed.notify()
                        batch.tasks = [task for task in batch.tasks if not task.taken]
                        for task in batch.tasks:
                            task.taken = True
                        return queue, batch
                    self._queues.append(queue)
                    wake = min(wake, ready)
                if self._stopped:
                    return None
                self._changed.wait(None if wake == math.inf else wake - now)

    def _work(self) -> None:
        while (found := self._next()) is not None:
            queue, batch = found
            if batch.tasks:
                now = time.monotonic()
                for task in batch.tasks:
                    self._metrics.observe(
                        names.QUEUING_LATENCY, self._name, value=1e6 * (now - task.start)
                    )
                self._run(queue, batch.tasks)

    def _run(self, queue: _Queue, tasks: list[_Task]) -> None:
        try:
            joined = _join([task.inputs for task in tasks], queue.parameters)
            outputs: list[list[np.ndarray]] = []
            rows = sum(task.rows for task in tasks)
            step = queue.parameters.execution_size
            for begin in range(0, max(rows, 1), step):
                piece = [value[begin : begin + step] for value in joined]
                outputs.append(_run_padded(queue, piece))
                self._metrics.count(names.WRAPPED_RUN_COUNT)
            whole = outputs[0]
            if len(outputs) > 1:
                whole = [np.concatenate(parts) for parts in zip(*outputs, strict=True)]
            begin = 0
            for task in tasks:
                task.finish([value[begin : begin + task.rows] for value in whole])
                begin += task.rows
        except RequestError as error:
            for task in tasks:
                task.finish(None, error)
        except Exception as error:  # a batch must not end its thread
            for task in tasks:
                task.finish(None, RequestError(grpc.StatusCode.INTERNAL, str(error)))


def _join(
    requests: Sequence[Sequence[np.ndarray]], parameters: BatchingParameters
) -> list[np.ndarray]:
    """Concatenates the inputs of all requests."""
    joined = []
    for values in zip(*requests, strict=True):
        if len({value.shape[1:] for value in values}) > 1:
            if not parameters.pad_variable_length_inputs or len({v.ndim for v in values}) > 1:
                raise RequestError(
                    grpc.StatusCode.FAILED_PRECONDITION,
                    "Tensors with the same name from different tasks have different shapes and "
                    "padding is turned off. Set pad_variable_length_inputs to true, or ensure "
                    "that all tensors with the same name have equal dimensions starting with the "
                    "second dim.",
                )
            largest = np.max([value.shape for value in values], axis=0)
            values = tuple(_pad(value, largest) for value in values)
        joined.append(np.concatenate(values) if len(values) > 1 else values[0])
    return joined


def _pad(value: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """Pads with zeros (or empty strings) at the end of every dimension but the first."""
    widths = [(0, 0)] + [(0, int(a - b)) for a, b in zip(shape[1:], value.shape[1:], strict=True)]
    fill = b"" if value.dtype == object else value.dtype.type(0)
    return np.pad(value, widths, constant_values=fill)


def _run_padded(queue: _Queue, inputs: list[np.ndarray]) -> list[np.ndarray]:
    """Runs the graph once, padded to an allowed size with copies of the first row."""
    rows = len(inputs[0])
    size = queue.parameters.padded(rows)
    if size > rows:
        inputs = [
            np.concatenate([value, np.repeat(value[:1], size - rows, axis=0)]) for value in inputs
        ]
    outputs = []
    for value in queue.runner(inputs):
        if value.ndim == 0:
            raise RequestError(
                grpc.StatusCode.FAILED_PRECONDITION, "Batched output tensor has 0 dimensions"
            )
        if len(value) != size:
            raise RequestError(
                grpc.StatusCode.FAILED_PRECONDITION,
                "Batched output tensor's 0th dimension does not equal the sum of the 0th "
                "dimension sizes of the input tensors",
            )
        outputs.append(value[:rows])
    return outputs


class BatchingRunner:
    """Joins the runs of one version.

    Args:
      scheduler: runs the batches.
      parameters: sizes and times.
    """

    def __init__(self, scheduler: Scheduler, parameters: BatchingParameters) -> None:
        self._scheduler, self._parameters = scheduler, parameters
        self._queues: dict[object, _Queue] = {}
        self._lock = threading.Lock()

    def run(
        self,
        key: object,
        runner: Runner,
        inputs: Sequence[np.ndarray],
        deadline: float | None = None,
    ) -> list[np.ndarray]:
        """Runs `runner` on these inputs together with others of the same `key`.

        Args:
          key: the set of tensors fed and fetched.
          runner: runs the joined inputs.
          inputs: of this request, each `[rows, ...]`.
          deadline: by the monotonic clock.

        Raises:
          RequestError: as section 10 of the contract says.
        """
        if not inputs:
            raise invalid("Batching Run() must have at least one input tensor")
        if any(value.ndim == 0 for value in inputs):
            raise invalid("Batching Run() input tensors must have at least one dimension")
        rows = len(inputs[0])
        if any(len(value) != rows for value in inputs):
            raise invalid("Batching Run() input tensors must have equal 0th-dimension size")
        if rows > self._parameters.max_batch_size:
            raise invalid(
                f"Task size {rows} is larger than maximum input batch size "
                f"{self._parameters.max_batch_size}"
            )
        if rows == 0 and self._parameters.allowed_batch_sizes:
            raise invalid("Batching Run() input tensors must have at least one row")
        with self._lock:
            if key not in self._queues:
                self._queues[key] = _Queue(self._parameters, runner)
            queue = self._queues[key]
        task = _Task(inputs, rows)
        self._scheduler.submit(queue, task)
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        if not task.done.wait(left):
            if self._scheduler.withdraw(task):
                raise RequestError(
                    grpc.StatusCode.RESOURCE_EXHAUSTED,
                    "Run() timeout exceeded while waiting in batching queue",
                )
            raise RequestError(
                grpc.StatusCode.DEADLINE_EXCEEDED, "Timed out waiting for notification"
            )
        if task.error is not None:
            raise task.error
        return task.outputs
