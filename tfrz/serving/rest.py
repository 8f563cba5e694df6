"""The HTTP interface: paths, bodies and errors of section 7 of the contract.

`RestSurface.answer` implements it, from the parts of a request to those of a response; `RestServer`
serves it on a port. The event loop only moves bytes: a thread pool parses, runs and serialises
requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import inspect
import json
import logging
import re
import time
import urllib.parse
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from aiohttp import web
from google.protobuf import json_format
from tensorflow_serving.apis import get_model_metadata_pb2

from tfrz.serving import examples, json_tensors
from tfrz.serving import metrics as names
from tfrz.serving.manager import ModelManager, State
from tfrz.serving.metrics import Metrics
from tfrz.serving.model import Call
from tfrz.serving.status import RequestError, code_name, invalid

# The option that writes fields with default values; releases 5 and later of protobuf renamed it.
_PRINT_DEFAULTS = (
    "always_print_fields_with_no_presence"
    if "always_print_fields_with_no_presence"
    in inspect.signature(json_format.MessageToDict).parameters
    else "including_default_value_fields"
)

logger = logging.getLogger(__name__)
# The library logs every malformed request with a stack trace; the response already has the reason.
_quiet = logging.getLogger(f"{__name__}.http")
_quiet.setLevel(logging.CRITICAL + 1)

_MODEL = r"/v1/models/(?P<model>[^/:]+)(?:/versions/(?P<version>[0-9]+)|/labels/(?P<label>[^/:]+))?"
_GET = re.compile(_MODEL + r"(?P<metadata>/metadata)?", re.IGNORECASE)
_POST = re.compile(_MODEL + r":(?P<verb>(?-i:predict|classify|regress))", re.IGNORECASE)
_MAX_UNPACKED = 100 << 20
_NOT_FOUND = b"<html><head><title>404 Not Found</title></head><body>Not Found</body></html>"
_CORS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "POST, GET",
    "Access-Control-Allow-Headers": "Content-Type",
}

# Our own limits: larger requests are refused before they use memory.
MAX_BODY = 64 << 20
MAX_CONNECTIONS = 1024
_BACKLOG = 128  # accepted at once; the number of connections may exceed the limit by this
_WAITING_PER_THREAD = 64
_IDLE_SECONDS = 75.0
_BODY_SECONDS = 60.0
_OVERRUN_SECONDS = 0.25


@dataclasses.dataclass(frozen=True)
class Answer:
    """An HTTP response.

    Attributes:
      status: 200, ...
      body: of the response.
      content_type: of the body.
      model: the requested name; empty if the path is malformed, None outside `/v1/`.
      api: `predict`, `classify`, `regress`, or empty.
      code: the canonical status.
    """

    status: int
    body: bytes
    content_type: str = "application/json"
    model: str | None = ""
    api: str = ""
    code: str = "OK"


class _Refused(Exception):
    """A response without the usual JSON error."""

    def __init__(self, status: int, body: bytes) -> None:
        self.status, self.body = status, body


def _error(error: RequestError) -> bytes:
    text = json.dumps({"error": error.message}, ensure_ascii=False)
    return text.encode("utf-8", "surrogateescape")


def _as_request_error(failure: Exception) -> RequestError:
    if isinstance(failure, RequestError):
        return failure
    if isinstance(failure, RecursionError):
        return json_tensors.too_deep()
    logger.error("the request failed", exc_info=failure)
    return RequestError(grpc.StatusCode.INTERNAL, str(failure))


def unpack(body: bytes, encoding: str) -> bytes:
    """Returns the decompressed body of a request; empty if it is not valid gzip."""
    if "gzip" not in encoding:
        return body
    unpacker = zlib.decompressobj(zlib.MAX_WBITS | 16)
    try:
        unpacked = unpacker.decompress(body, _MAX_UNPACKED)
    except zlib.error:
        return b""
    return unpacked if unpacker.eof and not unpacker.unconsumed_tail else b""


class RestSurface:
    """The HTTP interface to the models of a manager.

    Args:
      manager: the models.
      metrics: of the server.
      metrics_path: path of the metrics endpoint; None for none.
    """

    def __init__(
        self, manager: ModelManager, metrics: Metrics, metrics_path: str | None = None
    ) -> None:
        self._manager, self._metrics, self._metrics_path = manager, metrics, metrics_path

    def answer(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: bytes,
        deadline: float | None = None,
    ) -> Answer:
        """Returns the response to one request; a failure is a response too.

        Args:
          method: `GET`, ...
          path: of the request line, with the query string.
          headers: of the request, with names in any case.
          body: of the request.
          deadline: by the monotonic clock.
        """
        start = time.perf_counter()
        answer = self._answer(method, path, headers, body, deadline)
        if answer.model is not None:
            self._metrics.count(names.REQUEST_COUNT, answer.model, answer.code)
            if answer.code == "OK":
                self._metrics.observe(
                    names.REQUEST_LATENCY,
                    answer.model,
                    answer.api,
                    "REST",
                    value=1e6 * (time.perf_counter() - start),
                )
        return answer

    def _answer(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: bytes,
        deadline: float | None,
    ) -> Answer:
        if self._metrics_path is not None and path.partition("?")[0] == self._metrics_path:
            if "?" in path:
                return Answer(400, b"", "text/plain", None)
            return Answer(200, self._metrics.render(), "text/plain", None)
        if not path.lower().startswith("/v1/"):
            return Answer(404, _NOT_FOUND, "text/html", None)
        if method == "OPTIONS":
            allowed = headers.get("Origin", "").startswith(("http://", "https://"))
            return Answer(200 if allowed else 400, b"", model=None)
        match = (_POST if method == "POST" else _GET).fullmatch(path)
        if method not in ("GET", "POST"):
            match = None
        model = urllib.parse.unquote(match["model"]) if match else ""
        api = match["verb"] if match and method == "POST" else ""
        try:
            if match is None:
                if method == "GET" and path.lower() == "/v1/models":
                    raise invalid("Missing model name in request.")
                raise invalid(f"Malformed request: {method} {path}")
            version, label = _choice(match)
            if method == "GET" and match["metadata"]:
                found = self._metadata(model, version, label)
            elif method == "GET":
                found = self._status(model, version)
            else:
                unpacked = unpack(body, headers.get("Content-Encoding", ""))
                call = Call(api.capitalize(), deadline)
                found = self._verb(call, model, version, label, unpacked)
            return Answer(200, found, model=model, api=api)
        except _Refused as refused:
            return Answer(
                refused.status, refused.body, model=model, api=api, code="INVALID_ARGUMENT"
            )
        except Exception as failure:  # a request must not end the server
            error = _as_request_error(failure)
            code = code_name(error.code)
            return Answer(error.http_status, _error(error), model=model, api=api, code=code)

    def _status(self, model: str, version: int | None) -> bytes:
        rows = [
            {
                "version": str(number),
                "state": State.Name(state),
                "status": {
                    "error_code": "OK" if code == 0 else code_name(code),
                    "error_message": message,
                },
            }
            for number, state, code, message in self._manager.status(model, version)
        ]
        return json.dumps({"model_version_status": rows}, indent=1).encode()

    def _metadata(self, model: str, version: int | None, label: str | None) -> bytes:
        with self._manager.use(model, version, label) as (number, loaded):
            signatures = get_model_metadata_pb2.SignatureDefMap()
            for name, signature in loaded.signatures.items():
                signatures.signature_def[name].CopyFrom(signature)
        options: dict[str, Any] = {_PRINT_DEFAULTS: True, "preserving_proto_field_name": True}
        described = json_format.MessageToDict(signatures, **options)
        for signature in described["signature_def"].values():
            for info in (*signature["inputs"].values(), *signature["outputs"].values()):
                info["tensor_shape"].setdefault("dim", [])
        spec = {"name": model, "signature_name": "", "version": str(number)}
        return json.dumps(
            {"model_spec": spec, "metadata": {"signature_def": described}}, indent=1
        ).encode()

    def _verb(
        self, call: Call, model: str, version: int | None, label: str | None, body: bytes
    ) -> bytes:
        document, name = _document(body)
        if call.api == "Predict":
            with self._manager.use(model, version, label) as (_, loaded):
                if name not in loaded.signatures:
                    raise invalid(f'Serving signature name: "{name}" not found in signature def')
                row_form, inputs = json_tensors.predict_inputs(
                    document, loaded.signatures[name], name
                )
                outputs = loaded.run(name, inputs, call=call)
            return json_tensors.predict_answer(row_form, outputs)
        rows = examples.serialized(examples.input_from_json(document))
        with self._manager.use(model, version, label) as (_, loaded):
            if call.api == "Classify":
                found = examples.classify_answer(examples.classify(loaded, name, rows, call))
            else:
                found = examples.regress_answer(examples.regress(loaded, name, rows, call))
        self._metrics.observe(names.EXAMPLE_COUNTS, model, value=len(rows))
        self._metrics.count(names.EXAMPLE_COUNT_TOTAL, model, by=len(rows))
        return found


def _choice(match: re.Match[str]) -> tuple[int | None, str | None]:
    """Returns the version and the label in a path."""
    version = match["version"]
    if version is not None and (len(version.lstrip("0")) > 19 or int(version) >= 2**63):
        raise _Refused(400, b"")
    label = match["label"]
    return (
        None if version is None else int(version),
        None if label is None else urllib.parse.unquote(label),
    )


def _document(body: bytes) -> tuple[dict[str, Any], str]:
    """Returns the JSON of a request and the name of the requested signature."""
    document = json_tensors.parse(body)
    name = document.get("signature_name", "serving_default")
    if not isinstance(name, str):
        raise invalid(
            f"JSON Value: {json_tensors.show(document)} not formatted correctly. "
            "'signature_name' key must be a string value."
        )
    return document, name or "serving_default"


class RestServer:
    """A `RestSurface` on a port.

    Args:
      surface: responds to the requests.
      threads: number of parallel requests; a bounded number of others waits.
      timeout: seconds for one request.
      cors: send the headers that allow requests from pages of other origins.
    """

    def __init__(
        self, surface: RestSurface, threads: int, timeout: float, cors: bool = False
    ) -> None:
        self._surface, self._threads, self._timeout = surface, threads, timeout
        self._headers = _CORS if cors else {}
        self._pool = ThreadPoolExecutor(threads, "rest")
        self._pending = 0
        self._connections: web.Server | None = None
        self._listener: asyncio.AbstractServer | None = None

    async def start(self, host: str, port: int) -> None:
        """Listens.

        Raises:
          OSError: the port cannot be had.
        """
        self._connections = web.Server(
            self._handle,
            access_log=None,
            logger=_quiet,
            auto_decompress=False,
            keepalive_timeout=_IDLE_SECONDS,
            lingering_time=1.0,
        )
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(self._connect, host, port, backlog=_BACKLOG)

    def _connect(self) -> asyncio.Protocol:
        assert self._connections is not None
        if len(self._connections.connections) >= MAX_CONNECTIONS:
            return _Full()
        return self._connections()

    async def stop(self, drain_seconds: float) -> None:
        """Stops accepting connections, and waits this long for running requests."""
        if self._listener is not None:
            self._listener.close()
        if self._connections is not None:
            await self._connections.shutdown(drain_seconds)
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        answer = await self._answer(request)
        headers = {"Content-Type": answer.content_type, **self._headers}
        return web.Response(status=answer.status, body=answer.body, headers=headers)

    async def _answer(self, request: web.BaseRequest) -> Answer:
        try:
            body = await asyncio.wait_for(_read(request), _BODY_SECONDS)
        except RequestError as error:
            return self._give_up(request, Answer(413, _error(error)))
        except TimeoutError:
            late = RequestError(grpc.StatusCode.DEADLINE_EXCEEDED, "The body did not arrive")
            return self._give_up(request, Answer(408, _error(late)))
        if self._pending >= self._threads * (1 + _WAITING_PER_THREAD):
            full = RequestError(grpc.StatusCode.UNAVAILABLE, "Too many requests are waiting")
            return Answer(503, _error(full))
        deadline = time.monotonic() + self._timeout
        loop = asyncio.get_running_loop()
        self._pending += 1
        work = self._pool.submit(
            self._surface.answer,
            request.method,
            request.raw_path,
            request.headers,
            body,
            deadline,
        )
        work.add_done_callback(lambda _: loop.call_soon_threadsafe(self._done))
        try:
            # The thread gives the better reason if it can: let it be first.
            return await asyncio.wait_for(
                asyncio.wrap_future(work), self._timeout + _OVERRUN_SECONDS
            )
        except TimeoutError:
            late = RequestError(
                grpc.StatusCode.DEADLINE_EXCEEDED, "Timed out waiting for notification"
            )
            return Answer(late.http_status, _error(late))

    def _done(self) -> None:
        self._pending -= 1

    @staticmethod
    def _give_up(request: web.BaseRequest, answer: Answer) -> Answer:
        """Closes the connection behind an answer to a request that was not read to its end."""
        with contextlib.suppress(AttributeError):
            request.protocol.keep_alive(False)
        return answer


class _Full(asyncio.Protocol):
    """A connection too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


async def _read(request: web.BaseRequest) -> bytes:
    """The body.

    Raises:
      RequestError: it is too large.
    """
    if not request.can_read_body:
        return b""
    too_large = RequestError(
        grpc.StatusCode.RESOURCE_EXHAUSTED, f"The body is larger than {MAX_BODY} bytes"
    )
    if (request.content_length or 0) > MAX_BODY:
        raise too_large
    if request.headers.get("Expect", "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0
    parts, size = [], 0
    async for part in request.content.iter_any():
        size += len(part)
        if size > MAX_BODY:
            raise too_large
        parts.append(part)
    return b"".join(parts)
