"""`python -m tfx_pipelines.demo`: from simulated ratings to a served prediction."""

from __future__ import annotations

import argparse
import json
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

MODEL = "dcn_v2"
ROWS = 40_000
_READY_SECONDS = 120


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _request(base_path: str) -> tuple[dict[str, str], dict[str, list[float]], float]:
    """Serves a model and sends one request; returns the request, its answer and the latency."""
    port = _free_port()
    command = [sys.executable, "-m", "tfrz", "serve", base_path, "--name", MODEL]
    command += ["--port", "0", "--rest_api_port", str(port)]
    row = {
        "user": "user_7",
        "item": "item_3",
        "genre": "genre_12",
        "hour": "hour_20",
        "country": "country_1",
        "device": "device_2",
    }
    body = {"signature_name": "serving_raw", "instances": [row]}
    url = f"http://127.0.0.1:{port}/v1/models/{MODEL}:predict"
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as server:
        try:
            assert server.stdout is not None
            if not server.stdout.readline():
                raise RuntimeError(f"the server did not start: {' '.join(command)}")
            started = time.perf_counter()
            request = urllib.request.Request(url, json.dumps(body).encode())
            with urllib.request.urlopen(request, timeout=_READY_SECONDS) as answer:
                return row, json.load(answer), time.perf_counter() - started
        finally:
            server.terminate()


def main() -> int:
    """Runs the pipeline, serves the pushed model, sends a request and prints a summary."""
    from tfrz.cli.tables import format_table
    from tfrz.zoo.run_config import load_run_config

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", default="runs/demo", help="output folder (runs/demo)")
    parser.add_argument(
        "--setup-seconds", type=int, default=0, help="seconds of set-up to show in the summary"
    )
    args = parser.parse_args()
    from tfx_pipelines.local_runner import run_pipeline

    print(f"{MODEL} on {ROWS:,} simulated ratings, in {args.root}", file=sys.stderr, flush=True)
    config = load_run_config(MODEL, "simulated", [f"data.options={{rows: {ROWS}}}"])
    result = run_pipeline(config, "simulated", args.root)
    if result.pushed is None:
        print("\n".join(result.refusals or ["nothing was pushed"]), file=sys.stderr)
        return 1
    print("  serving the pushed model ...", file=sys.stderr, flush=True)
    row, answer, seconds = _request(str(Path(result.pushed).parent))
    print(f"\nrequest:    {json.dumps(row)}")
    print(f"prediction: {answer['predictions'][0]:.4f} (in {1000 * seconds:.0f} ms, the first)\n")
    rows = [(c.name, c.outcome, f"{c.seconds:.1f}") for c in result.components]
    print(format_table(("component", "outcome", "seconds"), rows))
    print()
    print(
        format_table(
            ("what", "value"),
            [
                ("AUC", f"{result.metrics['auc']:.4f}"),
                ("log loss", f"{result.metrics['log_loss']:.4f}"),
                ("seconds of set-up", args.setup_seconds),
                ("seconds of the pipeline", f"{result.seconds:.0f}"),
                ("pushed model", result.pushed),
                ("artifacts, metadata, logs", result.root),
                ("serve it again", f"tfrz serve {Path(result.pushed).parent} --name {MODEL}"),
            ],
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
