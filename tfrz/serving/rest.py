"""The HTTP interface: paths, bodies and errors of section 7 of the contract."""

from __future__ import annotations

import json
import logging
import re
import socket
import urllib.parse
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from google.protobuf import json_format
from tensorflow_serving.apis import get_model_metadata_pb2

from tfrz.serving import examples, json_tensors
from tfrz.serving.manager import ModelManager, State
from tfrz.serving.status import RequestError, invalid

logger = logging.getLogger(__name__)

_MODEL = r"/v1/models/(?P<model>[^/:]+)(?:/versions/(?P<version>\d+)|/labels/(?P<label>[^/:]+))?"
_GET = re.compile(_MODEL + r"(?P<metadata>/metadata)?", re.IGNORECASE)
_POST = re.compile(_MODEL + r":(?P<verb>(?-i:predict|classify|regress))", re.IGNORECASE)
_MAX_UNPACKED = 100 << 20


class _Refused(Exception):
    """An answer without the usual JSON error."""

    def __init__(self, status: int, body: bytes, content_type: str = "application/json") -> None:
        self.status, self.body, self.content_type = status, body, content_type


class RestServer(ThreadingHTTPServer):
    """Serves the models of a manager over HTTP.

    Args:
      address: host and port.
      manager: the models.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], manager: ModelManager) -> None:
        self.manager = manager
        super().__init__(address, _Handler)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Headers and body leave in one packet: two small ones would wait for each other's
    # acknowledgement on a connection that is kept alive.
    wbufsize = -1
    server: RestServer

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def log_message(self, format: str, *args: Any) -> None:
        logger.debug(format, *args)

    def _answer(self, status: int, body: bytes, content_type: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.wfile.flush()

    def _handle(self) -> None:
        body = self._body()
        try:
            if not self.path.lower().startswith("/v1/"):
                page = (
                    b"<html><head><title>404 Not Found</title></head><body>Not Found</body></html>"
                )
                raise _Refused(404, page, "text/html")
            if self.command == "OPTIONS":
                origin = self.headers.get("Origin", "")
                raise _Refused(200 if origin.startswith(("http://", "https://")) else 400, b"")
            self._answer(200, self._dispatch(body))
        except _Refused as refused:
            self._answer(refused.status, refused.body, refused.content_type)
        except RequestError as error:
            text = json.dumps({"error": error.message}, ensure_ascii=False)
            self._answer(error.http_status, text.encode("utf-8", "surrogateescape"))
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        except Exception as error:  # a request must not end the server
            logger.exception("the request failed")
            self._answer(500, json.dumps({"error": str(error)}).encode())

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = do_OPTIONS = _handle

    def _body(self) -> bytes:
        try:
            length = int(self.headers.get("Content-Length") or 0)
        except ValueError:
            length = 0
            self.close_connection = True
        body = self.rfile.read(length) if length > 0 else b""
        if "gzip" in self.headers.get("Content-Encoding", ""):
            try:
                unpacker = zlib.decompressobj(zlib.MAX_WBITS | 16)
                body = unpacker.decompress(body, _MAX_UNPACKED)
                if unpacker.unconsumed_tail or not unpacker.eof:
                    body = b""
            except zlib.error:
                body = b""
        return body

    def _dispatch(self, body: bytes) -> bytes:
        if self.command == "GET":
            match = _GET.fullmatch(self.path)
            if match:
                return self._metadata(match) if match["metadata"] else self._status(match)
            if self.path.lower() == "/v1/models":
                raise invalid("Missing model name in request.")
        elif self.command == "POST":
            match = _POST.fullmatch(self.path)
            if match and match["verb"] == "predict":
                return self._predict(match, body)
            if match:
                return self._examples(match, body)
        raise invalid(f"Malformed request: {self.command} {self.path}")

    @staticmethod
    def _spec(match: re.Match[str]) -> tuple[str, int | None, str | None]:
        model = urllib.parse.unquote(match["model"])
        version = None if match["version"] is None else int(match["version"])
        if version is not None and version >= 2**63:
            raise _Refused(400, b"")
        label = None if match["label"] is None else urllib.parse.unquote(match["label"])
        return model, version, label

    def _status(self, match: re.Match[str]) -> bytes:
        model, version, _ = self._spec(match)
        codes = {0: "OK"}
        rows = []
        for number, state, code, message in self.server.manager.status(model, version):
            word = codes.get(code) or _code_name(code)
            rows.append(
                {
                    "version": str(number),
                    "state": State.Name(state),
                    "status": {"error_code": word, "error_message": message},
                }
            )
        return json.dumps({"model_version_status": rows}, indent=1).encode()

    def _metadata(self, match: re.Match[str]) -> bytes:
        model, version, label = self._spec(match)
        with self.server.manager.use(model, version, label) as (number, loaded):
            signatures = get_model_metadata_pb2.SignatureDefMap()
            for name, signature in loaded.signatures.items():
                signatures.signature_def[name].CopyFrom(signature)
        options: dict[str, Any] = {
            "including_default_value_fields": True,
            "preserving_proto_field_name": True,
        }
        described = json_format.MessageToDict(signatures, **options)
        for signature in described["signature_def"].values():
            for info in (*signature["inputs"].values(), *signature["outputs"].values()):
                info["tensor_shape"].setdefault("dim", [])
        spec = {"name": model, "signature_name": "", "version": str(number)}
        return json.dumps(
            {"model_spec": spec, "metadata": {"signature_def": described}}, indent=1
        ).encode()

    def _predict(self, match: re.Match[str], body: bytes) -> bytes:
        model, version, label = self._spec(match)
        document, name = _document(body)
        with self.server.manager.use(model, version, label) as (_, loaded):
            if name not in loaded.signatures:
                raise invalid(f'Serving signature name: "{name}" not found in signature def')
            row_form, inputs = json_tensors.predict_inputs(document, loaded.signatures[name], name)
            return json_tensors.predict_answer(row_form, loaded.run(name, inputs))

    def _examples(self, match: re.Match[str], body: bytes) -> bytes:
        model, version, label = self._spec(match)
        document, name = _document(body)
        rows = examples.serialized(examples.input_from_json(document))
        with self.server.manager.use(model, version, label) as (_, loaded):
            if match["verb"] == "classify":
                return examples.classify_answer(examples.classify(loaded, name, rows))
            return examples.regress_answer(examples.regress(loaded, name, rows))


def _document(body: bytes) -> tuple[dict[str, Any], str]:
    """The JSON of a request and the name of the signature that it asks for."""
    document = json_tensors.parse(body)
    name = document.get("signature_name", "serving_default")
    if not isinstance(name, str):
        raise invalid(
            f"JSON Value: {json_tensors.show(document)} not formatted correctly. "
            "'signature_name' key must be a string value."
        )
    return document, name or "serving_default"


def _code_name(code: int) -> str:
    import grpc

    return next((c.name for c in grpc.StatusCode if c.value[0] == code), "UNKNOWN")
