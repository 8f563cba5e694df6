"""`tfrz pipeline run|compile MODEL`: the TFX pipeline."""

from __future__ import annotations

import argparse

from tfrz.cli.configuration import add_configuration_arguments, overrides_of

HELP = "run a model's TFX pipeline locally, or compile it for Kubeflow"


def _common(parser: argparse.ArgumentParser) -> None:
    add_configuration_arguments(parser)
    parser.add_argument(
        "--beam-arg",
        action="append",
        default=[],
        metavar="OPTION",
        help="a Beam option, e.g. --beam-arg=--direct_num_workers=2",
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    commands = parser.add_subparsers(dest="action", required=True, metavar="run|compile")
    run_parser = commands.add_parser("run", help="run it with TFX's LocalDagRunner")
    _common(run_parser)
    run_parser.add_argument("--root", required=True, help="folder of artifacts and pushed models")
    run_parser.add_argument("--seed", type=int, help="sets data.seed and trainer.seed")
    run_parser.add_argument("--json", action="store_true", help="print the result as JSON")
    run_parser.add_argument("--quiet", action="store_true", help="print no progress")
    compile_parser = commands.add_parser("compile", help="write the Kubeflow v2 specification")
    _common(compile_parser)
    compile_parser.add_argument("--out", required=True, help="the JSON file to write")
    compile_parser.add_argument(
        "--root", default="gs://your-bucket/tfrz", help="folder or URI for the cluster's artifacts"
    )
    compile_parser.add_argument(
        "--image", default="your-registry/tfrz:0.1.0", help="container image to run"
    )


def _compared(comparison: dict[str, dict[str, float]]) -> str:
    """Models as rows, their common metrics as columns."""
    from tfrz.cli.tables import format_table

    everyone = list(comparison.values())
    names = [n for n in everyone[0] if n != "example_count" and all(n in one for one in everyone)]
    rows = [(who, *(f"{found[n]:.4f}" for n in names)) for who, found in comparison.items()]
    return format_table(("model", *names), rows)


def run(args: argparse.Namespace) -> int:
    """Runs or compiles the pipeline.

    Returns:
      0, or 1 if the model was not pushed.
    """
    import json

    from tfrz.cli.tables import format_table
    from tfrz.extras import require_library
    from tfrz.zoo.run_config import load_run_config

    require_library("tfx")

    overrides = overrides_of(args)
    if args.beam_arg:
        overrides.append(f"pipeline.beam_args={json.dumps(args.beam_arg)}")
    config = load_run_config(args.model, args.data.partition(":")[0], overrides, args.config)
    if args.action == "compile":
        from tfx_pipelines.kubeflow_runner import compile_pipeline

        compile_pipeline(config, args.data, args.root, args.out, args.features, args.image)
        print(args.out)
        return 0
    from tfx_pipelines.local_runner import result_to_json, run_pipeline

    result = run_pipeline(config, args.data, args.root, args.features, progress=not args.quiet)
    if args.json:
        print(result_to_json(result))
        return 0 if result.pushed else 1
    rows = []
    for component in result.components:
        outcome = component.outcome
        if component.name == "Evaluator":
            outcome += ", blessed" if result.evaluated else ", NOT blessed"
        check = result.checks.get(component.name)
        if check is not None:
            outcome += ", passed" if check["passed"] else ", NOT passed"
        if component.name == "Pusher" and not result.pushed:
            outcome += ", nothing pushed"
        rows.append((component.name, outcome, f"{component.seconds:.1f}"))
    print(format_table(("component", "outcome", "seconds"), rows))
    print()
    print(
        format_table(
            ("metric", "value"),
            [(n, f"{v:.4f}") for n, v in result.metrics.items() if n != "example_count"],
        )
    )
    if result.comparison:
        print()
        print(_compared(result.comparison))
    for name, check in result.checks.items():
        shown = {k: v for k, v in check.items() if k not in ("passed", "refused_before", "reason")}
        values = ", ".join(
            f"{k} {v:.4f}" if isinstance(v, float) else f"{k} {v}" for k, v in shown.items()
        )
        print(f"{name}: {values}")
    for undefined in result.undefined:
        print(f"undefined: {undefined}, so no bound applies")
    print(f"\n{result.seconds:.0f} s in all; log: {result.log}")
    if result.pushed:
        print(f"pushed: {result.pushed}")
        return 0
    for refusal in result.refusals:
        print(f"not blessed: {refusal}")
    print("nothing was pushed")
    return 1
