"""Predictions from a server over REST or gRPC, or from a SavedModel on disk, by the same request.

Requests and responses have the format of TF Serving's REST API, whatever the transport:
`{"instances": ...}` returns `{"predictions": ...}`, and `{"inputs": ...}` returns
`{"outputs": ...}`.
"""

from __future__ import annotations

import abc
import http.client
import json
import re
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from tfrz.errors import InputError

_HTTP = re.compile(r"https?://[^/]+/v1/models/[^/:]+(/(versions|labels)/[^/:]+)?")
_GRPC = re.compile(
    r"grpc://(?P<address>[^/]+)/(?P<model>[^/]+)"
    r"(/versions/(?P<version>\d+)|/labels/(?P<label>[^/:]+))?"
)
_MAX_MESSAGE = (1 << 31) - 1
PREDICT = "/tensorflow.serving.PredictionService/Predict"


def predict(
    target: str, request: Mapping[str, Any], signature: str | None = None, timeout: float = 30.0
) -> dict[str, Any]:
    """Sends a request to a server or a SavedModel.

    Args:
      target: see `connect`.
      request: in the format of TF Serving's REST API.
      signature: overrides the request's `signature_name`; `serving_default` if neither is given.
      timeout: seconds to wait for a server.

    Returns:
      The response, in the format of TF Serving's REST API.

    Raises:
      InputError: `target` does not respond or is not a model, or the request is refused.
    """
    document = dict(request)
    if signature is not None:
        document["signature_name"] = signature
    with connect(target, timeout) as client:
        return client.predict(document)


class Client(abc.ABC):
    """Sends requests to one target; a context manager."""

    @abc.abstractmethod
    def predict(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the response to one request.

        Raises:
          InputError: the target does not respond, or the request is refused.
        """

    @abc.abstractmethod
    def inputs(self, signature: str) -> dict[str, tuple[str, int | None]]:
        """Returns the type of each input of a signature, as TensorFlow calls it, and its rank.

        Raises:
          InputError: the target does not respond, or has no such signature.
        """

    @abc.abstractmethod
    def outputs(self, signature: str) -> list[str]:
        """Returns the names of the outputs of a signature.

        Raises:
          InputError: the target does not respond, or has no such signature.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Closes the connection, or unloads the model."""

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.close()


def connect(target: str, timeout: float = 30.0) -> Client:
    """Returns a client of a target.

    Args:
      target: `http://HOST:PORT/v1/models/NAME[/versions/N|/labels/L]`,
        `grpc://HOST:PORT/NAME[/versions/N|/labels/L]`, or a folder: a SavedModel, or a folder of
        versions, of which the latest is used.
      timeout: seconds to wait for a server.

    Raises:
      InputError: the target has another form.
    """
    if target.startswith(("http://", "https://")):
        return _HttpClient(target, timeout)
    if target.startswith("grpc://"):
        return GrpcClient(target, timeout)
    return _DiskClient(target)


class _HttpClient(Client):
    def __init__(self, target: str, timeout: float) -> None:
        if not _HTTP.fullmatch(target):
            raise InputError(f"{target}: write http://HOST:PORT/v1/models/NAME[/versions/N]")
        parts = urllib.parse.urlsplit(target)
        kind = (
            http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        )
        self._target, self._path = target, f"{parts.path}:predict"
        self._connection = kind(parts.netloc, timeout=timeout)
        self._signatures: Mapping[str, Any] | None = None

    def predict(self, document: Mapping[str, Any]) -> dict[str, Any]:
        try:
            self._connection.request("POST", self._path, json.dumps(document).encode())
            response = self._connection.getresponse()
            body = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise InputError(
                f"no response from {self._target} ({error}): is the server running?"
            ) from error
        answer = _answer(self._target, body)
        if response.status != 200:
            reason = _line(answer.get("error", response.reason))
            raise InputError(f"{self._target} refused: {reason}")
        return answer

    def _described(self, signature: str) -> Any:
        """A signature; all are requested once."""
        if self._signatures is None:
            self._signatures = self._of_server()
        return _signature(self._signatures, signature)

    def _of_server(self) -> Mapping[str, Any]:
        path = f"{self._path.removesuffix(':predict')}/metadata"
        try:
            self._connection.request("GET", path)
            body = self._connection.getresponse().read()
        except (OSError, http.client.HTTPException) as error:
            raise InputError(
                f"no response from {self._target} ({error}): is the server running?"
            ) from error
        answer = _answer(self._target, body)
        try:
            known: dict[str, Any] = answer["metadata"]["signature_def"]["signature_def"]
        except (KeyError, TypeError):
            reason = _line(answer.get("error", "it has no metadata"))
            raise InputError(f"{self._target} refused: {reason}") from None
        return known

    def inputs(self, signature: str) -> dict[str, tuple[str, int | None]]:
        described = self._described(signature)["inputs"]
        return {
            name: (
                one["dtype"].removeprefix("DT_"),
                None
                if one["tensor_shape"].get("unknown_rank")
                else len(one["tensor_shape"].get("dim", ())),
            )
            for name, one in described.items()
        }

    def outputs(self, signature: str) -> list[str]:
        return sorted(self._described(signature)["outputs"])

    def close(self) -> None:
        self._connection.close()


def _signature(known: Mapping[str, Any], name: str) -> Any:
    if name not in known:
        raise InputError(f"the model has no signature {name!r}: it has {', '.join(sorted(known))}")
    return known[name]


def _inputs_of(known: Mapping[str, Any], name: str) -> dict[str, tuple[str, int | None]]:
    import tensorflow as tf

    return {
        key: (
            tf.dtypes.as_dtype(one.dtype).name.upper(),
            None if one.tensor_shape.unknown_rank else len(one.tensor_shape.dim),
        )
        for key, one in dict(_signature(known, name).inputs).items()
    }


def _answer(target: str, body: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(body)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise InputError(f"{target} does not speak TF Serving's REST protocol: check the address")
    return answer


def _line(message: object) -> str:
    """A server's message, which may be a page of nested JSON, as one line."""
    text = " ".join(str(message).split())
    return text if len(text) <= 400 else text[:397] + "..."


def _decode(document: Mapping[str, Any], signatures: Mapping[str, Any]) -> Any:
    """Returns the name of the signature, whether the request is in row form, and the arrays."""
    from tfrz.serving import json_tensors

    name = document.get("signature_name") or "serving_default"
    signature = _signature(signatures, name)
    return name, *json_tensors.predict_inputs(document, signature, name)


class GrpcClient(Client):
    """A client of `PredictionService`.

    Args:
      target: `grpc://HOST:PORT/NAME[/versions/N|/labels/L]`.
      timeout: seconds to wait for a response.

    Raises:
      InputError: the target has another form.
    """

    def __init__(self, target: str, timeout: float = 30.0) -> None:
        match = _GRPC.fullmatch(target)
        if not match:
            raise InputError(f"{target}: write grpc://HOST:PORT/NAME[/versions/N]")
        import grpc

        # Imports TensorFlow now, so that the first request does not include its start.
        import tfrz.serving.json_tensors  # noqa: F401

        self.address = match["address"]
        self._target, self._match, self._timeout = target, match, timeout
        options = [
            ("grpc.max_send_message_length", _MAX_MESSAGE),
            ("grpc.max_receive_message_length", _MAX_MESSAGE),
        ]
        self._channel = grpc.insecure_channel(self.address, options=options)
        self._signatures: Mapping[str, Any] | None = None

    def close(self) -> None:
        """Closes the channel."""
        self._channel.close()

    def _model(self, spec: Any) -> None:
        spec.name = self._match["model"]
        if self._match["version"] is not None:
            spec.version.value = int(self._match["version"])
        if self._match["label"] is not None:
            spec.version_label = self._match["label"]

    def _of_server(self) -> Mapping[str, Any]:
        """The signatures, which are requested once."""
        if self._signatures is None:
            from tensorflow_serving.apis import (
                get_model_metadata_pb2,
                prediction_service_pb2_grpc,
            )

            asked = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
            self._model(asked.model_spec)
            stub = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)
            metadata = stub.GetModelMetadata(asked, timeout=self._timeout)
            signatures = get_model_metadata_pb2.SignatureDefMap()
            metadata.metadata["signature_def"].Unpack(signatures)
            self._signatures = signatures.signature_def
        return self._signatures

    def encode(self, document: Mapping[str, Any]) -> tuple[Any, bool]:
        """Returns the `PredictRequest` of a request, and whether it is in row form.

        Raises:
          InputError: the server does not respond, or the request does not fit the model.
        """
        import grpc
        from tensorflow_serving.apis import predict_pb2

        from tfrz.serving.status import RequestError
        from tfrz.serving.tensors import to_proto

        sent = predict_pb2.PredictRequest()
        self._model(sent.model_spec)
        try:
            name, in_rows, arrays = _decode(document, self._of_server())
        except grpc.RpcError as error:
            raise self._failure(error) from error
        except RequestError as error:
            raise InputError(f"the request is wrong: {_line(error.message)}") from error
        sent.model_spec.signature_name = name
        for key, array in arrays.items():
            to_proto(array, sent.inputs[key])
        return sent, in_rows

    def _failure(self, error: Any) -> InputError:
        import grpc

        if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
            return InputError(
                f"no response from {self._target} ({error.code().name}): is the server running?"
            )
        return InputError(f"{self._target} refused: {_line(error.details())}")

    def inputs(self, signature: str) -> dict[str, tuple[str, int | None]]:
        """See `Client`."""
        import grpc

        try:
            return _inputs_of(self._of_server(), signature)
        except grpc.RpcError as error:
            raise self._failure(error) from error

    def outputs(self, signature: str) -> list[str]:
        """See `Client`."""
        import grpc

        try:
            return sorted(_signature(self._of_server(), signature).outputs)
        except grpc.RpcError as error:
            raise self._failure(error) from error

    def predict(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the response to one request, in the format of the REST API.

        Raises:
          InputError: the server does not respond, or the request is refused.
        """
        import grpc
        from tensorflow_serving.apis import prediction_service_pb2_grpc

        from tfrz.serving import json_tensors
        from tfrz.serving.tensors import from_proto

        sent, in_rows = self.encode(document)
        stub = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)
        try:
            outputs = stub.Predict(sent, timeout=self._timeout).outputs
        except grpc.RpcError as error:
            raise self._failure(error) from error
        tensors = {key: from_proto(key, outputs[key]) for key in sorted(outputs)}
        return _answer(self._target, json_tensors.predict_answer(in_rows, tensors))


def saved_model_folder(path: str | Path) -> Path:
    """Returns the SavedModel at `path`: the folder itself, or the latest version in it.

    Raises:
      InputError: there is none.
    """
    from tfrz.serving.manager import list_versions
    from tfrz.serving.model import is_saved_model

    folder = Path(path)
    if not folder.is_dir():
        raise InputError(f"{path} is not a folder: pass a SavedModel, http://... or grpc://...")
    if is_saved_model(folder):
        return folder
    versions = {n: Path(v) for n, v in list_versions(str(folder)).items()}
    versions = {n: v for n, v in versions.items() if is_saved_model(v)}
    if not versions:
        raise InputError(
            f"{path} holds no SavedModel: expected saved_model.pb in it or in a folder "
            "whose name is a version number"
        )
    return versions[max(versions)]


class _DiskClient(Client):
    def __init__(self, target: str) -> None:
        folder = saved_model_folder(target)
        from tfrz.serving.model import LoadedModel

        self._target, self._loaded = target, LoadedModel(folder)

    def predict(self, document: Mapping[str, Any]) -> dict[str, Any]:
        from tfrz.serving import json_tensors
        from tfrz.serving.status import RequestError

        try:
            name, in_rows, arrays = _decode(document, self._loaded.signatures)
            outputs = self._loaded.run(name, arrays)
            return _answer(self._target, json_tensors.predict_answer(in_rows, outputs))
        except RequestError as error:
            raise InputError(f"the request is wrong: {_line(error.message)}") from error

    def inputs(self, signature: str) -> dict[str, tuple[str, int | None]]:
        return _inputs_of(self._loaded.signatures, signature)

    def outputs(self, signature: str) -> list[str]:
        return sorted(_signature(self._loaded.signatures, signature).outputs)

    def close(self) -> None:
        self._loaded.close()
