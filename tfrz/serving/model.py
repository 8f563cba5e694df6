"""One loaded version of a model: feeds and fetches tensors by name (contract 6.1).

A signature of `tf.saved_model.load` would convert dtypes and check shapes, which TF Serving does
not: a request must pass here if and only if it passes there.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import config_pb2

from tfrz.operations import load_required
from tfrz.serving.batching import BatchingRunner
from tfrz.serving.status import RequestError, invalid

_CODES = {code.value[0]: code for code in grpc.StatusCode if code is not grpc.StatusCode.OK}


_WORDS = {"float32": "float", "float64": "double", "float16": "half"}


def dtype_word(dtype: tf.DType) -> str:
    """Returns the name of a dtype in messages: `float`, `double`, `half`, `int64`, ..."""
    return _WORDS.get(dtype.name, dtype.name)


def is_saved_model(path: Path) -> bool:
    """Whether the folder contains a SavedModel."""
    return any((path / name).is_file() for name in ("saved_model.pb", "saved_model.pbtxt"))


@dataclasses.dataclass(frozen=True)
class Call:
    """The request that a run of the graph belongs to.

    Attributes:
      api: `Predict`, `Classify`, `Regress` or `MultiInference`.
      deadline: by the monotonic clock; None if there is none.
    """

    api: str = "Predict"
    deadline: float | None = None

    def check(self) -> None:
        """Checks the deadline.

        Raises:
          RequestError: DEADLINE_EXCEEDED.
        """
        if self.deadline is not None and time.monotonic() > self.deadline:
            raise RequestError(
                grpc.StatusCode.DEADLINE_EXCEEDED, "Timed out waiting for notification"
            )


@dataclasses.dataclass(frozen=True)
class _Plan:
    """How to run a signature with certain outputs.

    Attributes:
      order: names of the inputs, in the order of their feeds.
      feeds: names of the tensors to feed.
      dtypes: of the inputs.
      outputs: names of the outputs, in order.
      function: maps the values of the inputs to those of the outputs, both in order.
    """

    order: tuple[str, ...]
    feeds: tuple[str, ...]
    dtypes: tuple[tf.DType, ...]
    outputs: tuple[str, ...]
    function: Any


class LoadedModel:
    """A SavedModel in memory.

    Args:
      path: its folder.
      tags: of the meta graph.
      session_config: of TensorFlow's session.
      batching: joins runs that arrive close together; None runs each separately.
      on_run: called with the `Call` and the seconds of every successful run.
      check_method_names: accept only signatures marked for it in Classify and Regress.
    """

    def __init__(
        self,
        path: str | Path,
        tags: Sequence[str] = ("serve",),
        session_config: config_pb2.ConfigProto | None = None,
        batching: BatchingRunner | None = None,
        on_run: Callable[[Call, float], None] | None = None,
        check_method_names: bool = False,
    ) -> None:
        self.path = str(path)
        self.check_method_names = check_method_names
        self._batching, self._on_run = batching, on_run
        # By default a run stays on the thread of its request: requests run in parallel anyway, and
        # for a small graph a thread switch takes longer than the run.
        parallel = session_config is not None and session_config.inter_op_parallelism_threads
        self._pool = 0 if parallel else -1
        load_required(self.path)
        self._graph = tf.Graph()
        with self._graph.as_default():
            self._session = tf.compat.v1.Session(graph=self._graph, config=session_config)
            try:
                meta = tf.compat.v1.saved_model.loader.load(self._session, list(tags), self.path)
            except BaseException:
                self._session.close()
                raise
        self.signatures = dict(meta.signature_def)
        self._inputs = {name: set(one.inputs) for name, one in self.signatures.items()}
        self._plans: dict[tuple[str, tuple[str, ...]], _Plan] = {}
        self._lock = threading.Lock()

    def close(self) -> None:
        """Frees the memory; no request may be running."""
        self._session.close()

    def signature(self, name: str) -> Any:
        """Returns a signature; the empty name means `serving_default`.

        Raises:
          RequestError: FAILED_PRECONDITION, there is none.
        """
        name = name or "serving_default"
        if name not in self.signatures:
            raise RequestError(
                grpc.StatusCode.FAILED_PRECONDITION, f'Serving signature key "{name}" not found.'
            )
        return self.signatures[name]

    def _plan(self, name: str, output_filter: Sequence[str]) -> _Plan:
        key = (name, tuple(output_filter))
        plan = self._plans.get(key)
        if plan is None:
            signature = self.signatures[name]
            outputs = self._outputs(signature, output_filter)
            order = sorted(signature.inputs, key=lambda one: signature.inputs[one].name)
            feeds = tuple(signature.inputs[one].name for one in order)
            # Session.run would check the values against the shapes of the placeholders.
            options = config_pb2.CallableOptions(
                feed=feeds,
                fetch=[signature.outputs[output].name for output in outputs],
                run_options=config_pb2.RunOptions(inter_op_thread_pool=self._pool),
            )
            with self._lock:
                function = self._session._make_callable_from_options(options)
            dtypes = tuple(tf.dtypes.as_dtype(signature.inputs[one].dtype) for one in order)
            plan = _Plan(tuple(order), feeds, dtypes, outputs, function)
            self._plans[key] = plan
        return plan

    def run(
        self,
        name: str,
        inputs: Mapping[str, np.ndarray],
        output_filter: Sequence[str] = (),
        call: Call = Call(),
    ) -> dict[str, np.ndarray]:
        """Runs a signature.

        Args:
          name: of the signature.
          inputs: a value for each of its inputs, with the dtypes of the signature.
          output_filter: names of the outputs to compute; all if empty.
          call: the request.

        Returns:
          The value of each output.

        Raises:
          RequestError: with the codes and messages of the contract.
        """
        name = name or "serving_default"
        signature = self.signature(name)
        if inputs.keys() != self._inputs[name]:
            inputs = self._complete(signature, inputs)
        plan = self._plan(name, output_filter)
        arrays = []
        for i, (one, expected) in enumerate(zip(plan.order, plan.dtypes, strict=True)):
            array = inputs[one]
            arrays.append(array)
            given = tf.string if array.dtype == object else tf.dtypes.as_dtype(array.dtype)
            if given != expected:
                raise invalid(
                    f"Expects arg[{i}] to be {dtype_word(expected)} but {dtype_word(given)} "
                    "is provided"
                )
        call.check()
        start = time.perf_counter()
        if self._batching is None:
            results = _run(plan.function, arrays)
        else:
            results = self._batching.run(
                (plan.feeds, plan.outputs),
                lambda joined: _run(plan.function, joined),
                arrays,
                call.deadline,
            )
        if self._on_run is not None:
            self._on_run(call, time.perf_counter() - start)
        return dict(zip(plan.outputs, results, strict=True))

    @staticmethod
    def _complete(signature: Any, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """Adds the signature's defaults for missing inputs.

        Raises:
          RequestError: INVALID_ARGUMENT, an input is missing or unknown.
        """
        wanted, sent = sorted(signature.inputs), sorted(inputs)
        missing = sorted(set(wanted) - set(sent))
        if len(sent) > len(wanted) or (len(sent) < len(wanted) and not signature.defaults):
            extra = sorted(set(sent) - set(wanted))
            raise invalid(
                f"input size does not match signature: {len(sent)}!={len(wanted)} "
                f"len({{{','.join(sent)}}}) != len({{{','.join(wanted)}}}). "
                f"Sent extra: {{{','.join(extra)}}}. "
                f"Missing but required: {{{','.join(missing)}}}."
            )
        values = dict(inputs)
        for one in missing:
            if one not in signature.defaults:
                names = ",".join(wanted)
                raise invalid(
                    f"Signature input alias: {one}(feed name: {signature.inputs[one].name}) not "
                    "found in request and no default value provided. Inputs expected to be in "
                    f"the request {{{names}}}, or default input alias set: "
                    f"{','.join(sorted(signature.defaults))}"
                )
            values[one] = tf.make_ndarray(signature.defaults[one])
        surplus = set(sent) - set(wanted)
        if surplus:
            names = ",".join(sent)
            raise invalid(
                f"Inputs contains invalid name. Used request inputs: "
                f"{','.join(sorted(set(sent) - surplus))}, request input: {names}"
            )
        return values

    @staticmethod
    def _outputs(signature: Any, output_filter: Sequence[str]) -> tuple[str, ...]:
        for i, name in enumerate(output_filter):
            if name not in signature.outputs:
                names = ",".join(sorted(signature.outputs))
                raise invalid(
                    f"output tensor alias not found in signature: {name} Outputs expected to be "
                    f"in the set {{{names}}}."
                )
            if name in output_filter[:i]:
                raise invalid(f"duplicate output tensor alias: {name}")
        return tuple(output_filter) or tuple(sorted(signature.outputs))


def _run(function: Any, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    try:
        return [np.asarray(value) for value in function(*arrays)]
    except tf.errors.OpError as error:
        code = _CODES.get(error.error_code, grpc.StatusCode.UNKNOWN)
        raise RequestError(code, error.message) from error
