"""Asking for predictions: a server over REST or gRPC, or a SavedModel on disk, all by one request.

A request is what TF Serving's REST API takes, `{"instances": ...}` or `{"inputs": ...}`, and the
answer is what it gives, `{"predictions": ...}` or `{"outputs": ...}`, whichever way it went.
"""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tfrz.errors import InputError

_HTTP = re.compile(r"https?://[^/]+/v1/models/[^/:]+(/(versions|labels)/[^/:]+)?")
_GRPC = re.compile(r"grpc://(?P<address>[^/]+)/(?P<model>[^/]+)(/versions/(?P<version>\d+))?")
_MAX_MESSAGE = (1 << 31) - 1


def predict(
    target: str, request: Mapping[str, Any], signature: str | None = None, timeout: float = 30.0
) -> dict[str, Any]:
    """The answer of `target` to `request`.

    Args:
      target: `http://HOST:PORT/v1/models/NAME[/versions/N|/labels/L]`,
        `grpc://HOST:PORT/NAME[/versions/N]`, or a folder: a SavedModel, or versions of one, of
        which the latest is taken.
      request: as TF Serving's REST API takes it.
      signature: overrides the request's `signature_name`; `serving_default` if neither is given.
      timeout: seconds to wait for a server.

    Returns:
      As TF Serving's REST API answers.

    Raises:
      InputError: nothing answers at `target`, it is no model, or the request is refused.
    """
    document = dict(request)
    if signature is not None:
        document["signature_name"] = signature
    if target.startswith(("http://", "https://")):
        return _over_http(target, document, timeout)
    if target.startswith("grpc://"):
        return _over_grpc(target, document, timeout)
    return _on_disk(target, document)


def _over_http(target: str, document: Mapping[str, Any], timeout: float) -> dict[str, Any]:
    if not _HTTP.fullmatch(target):
        raise InputError(f"{target}: write http://HOST:PORT/v1/models/NAME[/versions/N]")
    request = urllib.request.Request(f"{target}:predict", json.dumps(document).encode())
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return _answer(target, answer.read())
    except urllib.error.HTTPError as error:
        body = _answer(target, error.read())
        raise InputError(f"{target} refused: {_line(body.get('error', error.reason))}") from error
    except (urllib.error.URLError, OSError) as error:
        reason = getattr(error, "reason", error)
        raise InputError(f"nothing answers at {target} ({reason}): is the server up?") from error


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
    """Name of the signature, whether rows were sent, and the arrays."""
    from tfrz.serving import json_tensors

    name = document.get("signature_name") or "serving_default"
    if name not in signatures:
        raise InputError(
            f"the model has no signature {name!r}: it has {', '.join(sorted(signatures))}"
        )
    return name, *json_tensors.predict_inputs(document, signatures[name], name)


def _over_grpc(target: str, document: Mapping[str, Any], timeout: float) -> dict[str, Any]:
    match = _GRPC.fullmatch(target)
    if not match:
        raise InputError(f"{target}: write grpc://HOST:PORT/NAME[/versions/N]")
    import grpc
    from tensorflow_serving.apis import (
        get_model_metadata_pb2,
        predict_pb2,
        prediction_service_pb2_grpc,
    )

    from tfrz.serving import json_tensors
    from tfrz.serving.status import RequestError
    from tfrz.serving.tensors import from_proto, to_proto

    options = [
        ("grpc.max_send_message_length", _MAX_MESSAGE),
        ("grpc.max_receive_message_length", _MAX_MESSAGE),
    ]
    with grpc.insecure_channel(match["address"], options=options) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        asked = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
        sent = predict_pb2.PredictRequest()
        for spec in (asked.model_spec, sent.model_spec):
            spec.name = match["model"]
            if match["version"] is not None:
                spec.version.value = int(match["version"])
        try:
            metadata = stub.GetModelMetadata(asked, timeout=timeout)
            signatures = get_model_metadata_pb2.SignatureDefMap()
            metadata.metadata["signature_def"].Unpack(signatures)
            name, in_rows, arrays = _decode(document, signatures.signature_def)
            sent.model_spec.signature_name = name
            for key, array in arrays.items():
                sent.inputs[key].CopyFrom(to_proto(array))
            outputs = stub.Predict(sent, timeout=timeout).outputs
            tensors = {key: from_proto(key, outputs[key]) for key in sorted(outputs)}
            return _answer(target, json_tensors.predict_answer(in_rows, tensors))
        except grpc.RpcError as error:
            if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                raise InputError(
                    f"nothing answers at {target} ({error.code().name}): is the server up?"
                ) from error
            raise InputError(f"{target} refused: {_line(error.details())}") from error
        except RequestError as error:
            raise InputError(f"the request is wrong: {_line(error.message)}") from error


def saved_model_folder(path: str | Path) -> Path:
    """The SavedModel at `path`: itself, or the latest version in it.

    Raises:
      InputError: there is none.
    """
    from tfrz.serving.manager import list_versions
    from tfrz.serving.model import is_saved_model

    folder = Path(path)
    if not folder.is_dir():
        raise InputError(f"{path} is not a folder: name a SavedModel, http://... or grpc://...")
    if is_saved_model(folder):
        return folder
    versions = {n: v for n, v in list_versions(folder).items() if is_saved_model(v)}
    if not versions:
        raise InputError(
            f"{path} holds no SavedModel: expected saved_model.pb in it or in a folder "
            "whose name is a version number"
        )
    return versions[max(versions)]


def _on_disk(target: str, document: Mapping[str, Any]) -> dict[str, Any]:
    folder = saved_model_folder(target)
    from tfrz.serving import json_tensors
    from tfrz.serving.model import LoadedModel
    from tfrz.serving.status import RequestError

    model = LoadedModel(folder)
    try:
        name, in_rows, arrays = _decode(document, model.signatures)
        return _answer(target, json_tensors.predict_answer(in_rows, model.run(name, arrays)))
    except RequestError as error:
        raise InputError(f"the request is wrong: {_line(error.message)}") from error
    finally:
        model.close()
