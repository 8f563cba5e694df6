"""`tfrz serving-config DIR --out DIR`: writes TF Serving's configuration files for a model."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

HELP = "write TF Serving's configuration files (models, batching, monitoring) for a model"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    parser.add_argument(
        "directory", metavar="DIR", help="the model's base path: a folder per version"
    )
    parser.add_argument("--out", required=True, help="folder for the three files")
    parser.add_argument("--name", help="name of the model in requests (the zoo model's name)")
    parser.add_argument(
        "--base-path",
        metavar="PATH",
        help="base path of the versions on the server, e.g. /models/dcn_v2 or gs://... (DIR)",
    )
    parser.add_argument(
        "--keep", type=int, default=1, metavar="N", help="serve the N latest versions (1)"
    )
    parser.add_argument(
        "--label",
        action="append",
        default=[],
        metavar="NAME=VERSION",
        help="label a version; only labelled versions are then served",
    )
    parser.add_argument(
        "--max-batch-size", type=int, default=256, metavar="ROWS", help="rows of a batch (256)"
    )
    parser.add_argument(
        "--batch-timeout-micros",
        type=int,
        default=0,
        metavar="N",
        help="how long an incomplete batch waits for more requests (0)",
    )


def _labels(words: list[str], versions: dict[int, Any], where: str) -> dict[str, int]:
    from tfrz.errors import InputError

    labels: dict[str, int] = {}
    for word in words:
        name, equals, number = word.partition("=")
        if not equals or not name or not number.isdecimal():
            raise InputError(f"--label {word}: write NAME=VERSION, e.g. stable=3")
        if int(number) not in versions:
            raise InputError(
                f"--label {word}: {where} has no version {number}, it has "
                f"{', '.join(map(str, sorted(versions)))}"
            )
        labels[name] = int(number)
    return labels


def run(args: argparse.Namespace) -> int:
    """Writes the files and prints how to start a server with them."""
    from tfrz.errors import InputError
    from tfrz.serving.client import saved_model_folder
    from tfrz.serving.manager import list_versions

    folder = Path(args.directory).resolve()
    latest = saved_model_folder(folder)
    if latest == folder:
        raise InputError(f"{args.directory} is a single version: pass its parent folder")
    if args.keep < 1 or args.max_batch_size < 1 or args.batch_timeout_micros < 0:
        raise InputError(
            "--keep and --max-batch-size must be positive, --batch-timeout-micros >= 0"
        )
    name = args.name or _zoo_name(latest)
    base_path = args.base_path or str(folder)
    if not base_path.startswith("/") and "://" not in base_path:
        raise InputError(f"--base-path {base_path}: TF Serving needs an absolute path or a URI")
    labels = _labels(args.label, list_versions(str(folder)), args.directory)

    from tfrz.files import atomic_write
    from tfrz.serving.operator_files import operator_files

    files = operator_files(
        name, base_path, args.keep, labels, args.max_batch_size, args.batch_timeout_micros
    )
    out = Path(args.out)
    for file, text in files.items():
        atomic_write(out / file, text)
        print(out / file)
    flags = (
        f"--model_config_file={out / 'models.config'} --enable_batching "
        f"--batching_parameters_file={out / 'batching.config'} "
        f"--monitoring_config_file={out / 'monitoring.config'} --rest_api_port=8501"
    )
    print(f"start with: tensorflow_model_server {flags}", file=sys.stderr)
    print(f"or here:    tfrz serve {flags}", file=sys.stderr)
    if labels:
        print(
            "labels in a start configuration also need "
            "--allow_version_labels_for_unavailable_models",
            file=sys.stderr,
        )
    return 0


def _zoo_name(version: Path) -> str:
    from tfrz.errors import InputError

    path = version / "assets" / "run_config.yaml"
    if path.is_file():
        import yaml

        name = (yaml.safe_load(path.read_text()) or {}).get("name")
        if isinstance(name, str):
            return name
    raise InputError(f"{version} was not exported by tfrz: give the model's --name")
