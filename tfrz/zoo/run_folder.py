"""What a run keeps of its source, for the commands that follow it: its data and feature spec."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from tfrz.config import from_mapping, read_yaml, require, write_yaml
from tfrz.data.sources.locations import is_uri
from tfrz.data.sources.spans import SpansConfig, chosen_spans, has_spans
from tfrz.errors import ConfigError, InputError
from tfrz.files import atomic_write
from tfrz.zoo.run_config import RunConfig

FEATURES = "features.yaml"
FINGERPRINT = "data_fingerprint"


def kept_features(features: str | Path) -> str:
    """The text of a feature spec as a run keeps it.

    A catalogue that it names relative to itself is named by its whole path.

    Raises:
      InputError: the spec cannot be read.
    """
    mapping = read_yaml(features)
    candidates = mapping.get("candidates")
    file = candidates.get("file") if isinstance(candidates, dict) else None
    if isinstance(file, str) and not is_uri(file) and not Path(file).is_absolute():
        assert isinstance(candidates, dict)
        candidates["file"] = str((Path(features).parent / file).resolve())
        return write_yaml(mapping)
    try:
        return Path(features).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {features}: {error}") from error


def refuse_other_features(out: Path, features: str | Path | None) -> None:
    """Refuses to resume a run with another feature spec than it began with.

    Raises:
      ConfigError: the folder keeps another one.
    """
    stored = out / FEATURES
    if features is None or not stored.exists() or not (out / "config.yaml").exists():
        return
    text = kept_features(features)
    if text != stored.read_text():
        raise ConfigError(
            f"{out} holds a run with another feature spec, {stored}: repeat it to resume the run, "
            "or choose another --out"
        )


def keep_features(out: Path, features: str | Path | None) -> None:
    """Writes the feature spec of a run to its folder; nothing for a known source."""
    if features is not None:
        atomic_write(out / FEATURES, kept_features(features))


def refuse_other_contents(out: Path, data: str, fingerprint: str) -> None:
    """Refuses to resume a run whose source has changed since it began.

    Args:
      out: the folder of the run.
      data: as `--data` of the command line.
      fingerprint: of the source, as `Reader.fingerprint` returns it.

    Raises:
      InputError: the folder keeps another one.
    """
    stored = out / FINGERPRINT
    if not stored.exists() or not (out / "config.yaml").exists():
        return
    if stored.read_text().strip() != fingerprint:
        raise InputError(
            f"{data} has changed since the run in {out} began: its examples would not be those "
            "that the run has seen; choose another --out"
        )


def keep_source(out: Path, features: str | Path | None, fingerprint: str) -> None:
    """Writes what a run is to know of its source: the fingerprint, and the spec if there is one."""
    keep_features(out, features)
    atomic_write(out / FINGERPRINT, fingerprint + "\n")


def pinned_spans(config: RunConfig, data: str, out: Path | None = None) -> RunConfig:
    """The configuration with the range of spans that it reads now.

    Args:
      config: of the run.
      data: as `--data` of the command line.
      out: folder of a run to resume, which goes on with its own spans.

    Raises:
      ConfigError: the data have no spans to choose from.
      InputError: no span is there.
    """
    spans = config.data.spans
    if not has_spans(data):
        require(spans is None, "data.spans", "--data has neither {SPAN} nor {YYYY}, {MM} and {DD}")
        return config
    if spans is not None and None not in spans.bounds:
        return config
    count = 1 if spans is None or spans.latest is None else spans.latest
    stored = None if out is None else out / "config.yaml"
    pinned = None
    if stored is not None and stored.exists():
        kept = (read_yaml(stored).get("data") or {}).get("spans")
        pinned = None if kept is None else from_mapping(SpansConfig, kept, "data.spans")
        first, last = (None, None) if pinned is None else pinned.bounds
        if first is None or last is None or (first and last - first + 1 != count):
            pinned = None  # The run in the folder was told something else.
    if pinned is None:
        newest = chosen_spans(data)[-1].number
        pinned = SpansConfig(start=max(newest - count + 1, 0), end=newest)
    return dataclasses.replace(config, data=dataclasses.replace(config.data, spans=pinned))


def run_of(saved_model: str | Path) -> Path:
    """The folder of the run that exported a SavedModel, `RUN/model/VERSION`."""
    return Path(saved_model).resolve().parent.parent


def data_of(saved_model: str | Path) -> str:
    """The data of the run that exported a SavedModel.

    Raises:
      ConfigError: no run is around it.
    """
    stored = run_of(saved_model) / "config.yaml"
    data = read_yaml(stored).get("data_source") if stored.exists() else None
    where = f"no run of tfrz train is around {saved_model}: name its data"
    require(data is not None, "--data", where)
    return str(data)


def features_of(saved_model: str | Path, features: str | None = None) -> str | None:
    """Path of the feature spec: the one given, or that of the run around a SavedModel.

    Args:
      saved_model: its folder.
      features: as `--features` of the command line.

    Returns:
      None if the run has none.
    """
    if features is not None:
        return features
    stored = run_of(saved_model) / FEATURES
    return str(stored) if stored.exists() else None
