"""`tfrz doctor`: what this installation is, what it can do, and what is missing for the rest."""

from __future__ import annotations

import argparse
import platform

HELP = "show the lane, versions, devices and missing libraries of this installation"

_STANDS_ON = ("tensorflow", "keras", "numpy", "pyarrow")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")


def versions() -> str:
    """`tfrz --version`: the versions of tfrz and of what it stands on, in one line."""
    import tfrz
    from tfrz.extras import version_of

    named = [("Python", platform.python_version())]
    named += [(name, version_of(name) or "not installed") for name in (*_STANDS_ON, "tfx")]
    return f"tfrz {tfrz.__version__} ({', '.join(' '.join(one) for one in named)})"


def _xla() -> str:
    """Whether XLA compiles a function here, and on which device."""
    import tensorflow as tf

    from tfrz.cli.quiet import held_stderr

    @tf.function(jit_compile=True)
    def double(x: tf.Tensor) -> tf.Tensor:
        return x + x

    try:
        with held_stderr():
            return f"compiles on {double(tf.constant(1.0)).device.rpartition(':')[0][-3:]}"
    except Exception as error:
        return f"does not compile: {str(error).splitlines()[0]}"


def run(args: argparse.Namespace) -> int:
    """Prints what it finds.

    Returns:
      0, or 1 if what every command needs does not work.
    """
    import json

    from tfrz.cli.tables import format_table
    from tfrz.extras import LIBRARIES, version_of

    if not args.json:
        print(versions())
    try:
        import tensorflow as tf

        from tfrz.keras_versions import lane
    except ImportError as error:
        print(f"TensorFlow or Keras does not import: {str(error).splitlines()[0]}")
        return 1
    from tfrz.operations import scann_problem

    facts = {
        "lane": lane(),
        "devices": ", ".join(
            f"{d.device_type}:{d.name.rpartition(':')[2]}"
            for d in tf.config.list_physical_devices()
        ),
        "XLA": _xla(),
    }
    rows = []
    for module, library in LIBRARIES.items():
        version = version_of(library.package)
        problem = scann_problem() if module == "scann" and version is not None else None
        found = version or "not installed"
        rows.append(
            {
                "library": library.title,
                "version": f"{found}, does not load" if problem else found,
                "needed for": library.use,
                "how to get it": "" if version and not problem else library.install,
            }
        )
    if args.json:
        print(json.dumps({"versions": versions(), **facts, "libraries": rows}, indent=1))
        return 0
    for name, fact in facts.items():
        print(f"{name + ':':<9}{fact}")
    print()
    print(format_table(tuple(rows[0]), [tuple(row.values()) for row in rows]))
    return 0
