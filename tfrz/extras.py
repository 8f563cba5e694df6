"""Libraries that a part of the zoo needs and an installation may lack."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util

_INSTALL = "docs/install.md says how it is installed"


@dataclasses.dataclass(frozen=True)
class Library:
    """A library that is not needed to import layers and models.

    Attributes:
      title: as its authors write it.
      package: its name on PyPI.
      use: what needs it.
      install: how to get it.
    """

    title: str
    package: str
    use: str
    install: str


def _tfx(title: str, package: str) -> Library:
    return Library(title, package, "tfrz pipeline", _INSTALL)


def _core(title: str, package: str, use: str) -> Library:
    return Library(title, package, use, f"pip install {package}")


# By the name that is imported. Pipelines need everything that comes with TFX.
LIBRARIES: dict[str, Library] = {
    "tfx": _tfx("TFX", "tfx"),
    "tensorflow_transform": _tfx("TensorFlow Transform", "tensorflow-transform"),
    "tensorflow_model_analysis": _tfx("TensorFlow Model Analysis", "tensorflow-model-analysis"),
    "tensorflow_data_validation": _tfx("TensorFlow Data Validation", "tensorflow-data-validation"),
    "tensorflow_metadata": _tfx("TensorFlow Metadata", "tensorflow-metadata"),
    "ml_metadata": _tfx("ML Metadata", "ml-metadata"),
    "tfx_bsl": _tfx("TFX Basic Shared Libraries", "tfx-bsl"),
    "kfp": _tfx("Kubeflow Pipelines", "kfp"),
    "apache_beam": Library(
        "Apache Beam", "apache-beam", "tfrz pipeline, tfrz embeddings export", _INSTALL
    ),
    "tf_agents": Library("TF-Agents", "tf-agents", "tfrz.agents", _INSTALL),
    "tensorflow_ranking": Library(
        "TensorFlow Ranking", "tensorflow-ranking", "tests that compare losses with it", _INSTALL
    ),
    "tensorflow_recommenders": Library(
        "TensorFlow Recommenders",
        "tensorflow-recommenders",
        "benchmarks that compare layers with it",
        _INSTALL,
    ),
    "scann": Library("ScaNN", "scann", "export.index.kind=scann", _INSTALL),
    "lightgbm": Library(
        "LightGBM",
        "lightgbm",
        "data.lists.base_ranker=lambda_mart",
        "pip install 'tfrz[lambdamart]'",
    ),
    "keras_tuner": _core("Keras Tuner", "keras-tuner", "tfrz tune"),
    "tensorflow_serving": _core(
        "TF Serving's protocols", "tensorflow-serving-api", "tfrz serve, warm-up requests"
    ),
    "grpc": _core("gRPC", "grpcio", "tfrz serve, tfrz predict"),
    "grpc_health": _core("gRPC's health service", "grpcio-health-checking", "tfrz serve"),
    "aiohttp": _core("aiohttp", "aiohttp", "tfrz serve"),
    "pyarrow": _core("Arrow", "pyarrow", "reading data"),
    "scipy": _core("SciPy", "scipy", "some reports and experiments"),
}


def version_of(package: str) -> str | None:
    """The installed version of a package of PyPI, without importing it; None if there is none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def require_library(name: str) -> None:
    """Fails at once, rather than at some later import, where a library is not installed.

    Args:
      name: of `LIBRARIES`.

    Raises:
      ModuleNotFoundError: the command line turns it into one line.
    """
    if importlib.util.find_spec(name) is None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def missing(error: ModuleNotFoundError) -> Library | None:
    """The library that an import did not find, if it is one of these and is not installed."""
    name = (error.name or "").partition(".")[0]
    if name not in LIBRARIES or importlib.util.find_spec(name) is not None:
        return None
    return LIBRARIES[name]


def needs(what: str, library: Library) -> str:
    """One line: what needs the library, and how to get it."""
    # TFX's own parts are installed with it.
    title = "TFX" if library.use == LIBRARIES["tfx"].use else library.title
    return f"{what} needs {title}: {library.install}"
