"""The embeddings that a run reads: opened, held to one version, joined with the examples."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from tfrz.config import did_you_mean, read_yaml, require
from tfrz.data.impressions.spec import FeatureSpec
from tfrz.data.spec import USER_EMBEDDING, USER_EMBEDDING_VERSION, UserEmbedding
from tfrz.data.user_embeddings import EmbeddingJoin, Embeddings
from tfrz.errors import InputError
from tfrz.zoo.run_config import FeaturesConfig, RunConfig


def open_store(features: FeaturesConfig) -> Embeddings:
    """The store of `features.long_history`.

    Raises:
      InputError: it is none, or of another version than `features.long_history_version`.
    """
    # Loads Arrow and its files, which a run without embeddings need not wait for.
    from tfrz.embeddings.store import open_embeddings

    assert features.long_history is not None
    store: Embeddings = open_embeddings(features.long_history)
    _refuse_other(features, store.version, features.long_history_version, "this run")
    return store


def _refuse_other(
    features: FeaturesConfig, stored: str | None, trained: str | None, whose: str
) -> None:
    """Embeddings of two models have different coordinates."""
    if features.any_version or trained is None or stored == trained:
        return
    raise InputError(
        f"{features.long_history} holds embeddings of version {stored}, {whose} was trained on "
        f"version {trained}: train anew, read a store of version {trained}, or set "
        "features.any_version=true"
    )


def pinned(config: RunConfig, out: Path | None = None) -> RunConfig:
    """The configuration with the version of the embeddings that its store holds.

    Args:
      config: of the run.
      out: folder of a run to resume, whose version counts.

    Raises:
      InputError: the store is none, or of another version than the run.
    """
    features = config.features
    if features.long_history is None:
        return config
    stored = None if out is None else out / "config.yaml"
    if features.long_history_version is None and stored is not None and stored.exists():
        features = dataclasses.replace(features, long_history_version=_version_in(stored))
    version = open_store(features).version
    return dataclasses.replace(
        config, features=dataclasses.replace(features, long_history_version=version)
    )


def _version_in(path: Path) -> str | None:
    """The version in a saved configuration."""
    version = (read_yaml(path).get("features") or {}).get("long_history_version")
    return None if version is None else str(version)


def check_warm_start(config: RunConfig, saved_model_directory: str | Path) -> None:
    """Refuses to go on from a model that was trained on embeddings of another version.

    Raises:
      InputError: names both versions.
    """
    path = Path(saved_model_directory) / "assets" / "run_config.yaml"
    features = config.features
    if features.long_history is not None and path.exists():
        trained, whose = _version_in(path), f"the model in {saved_model_directory}"
        _refuse_other(features, features.long_history_version, trained, whose)


def with_user_embeddings(features: FeaturesConfig, spec: Any) -> tuple[Any, EmbeddingJoin | None]:
    """The raw features of examples with embeddings, and what joins them; None without any.

    Args:
      features: says where the embeddings are.
      spec: the raw features of the source.

    Raises:
      InputError: the store is none, or of another version than the run.
      ConfigError: the source has no such user, or a feature of the same name.
    """
    if features.long_history is None:
        return spec, None
    store = open_store(features)
    described = UserEmbedding(
        store.version, store.num_vectors, store.dim, features.any_version, store.generated_at
    )
    for name in (USER_EMBEDDING, USER_EMBEDDING_VERSION):
        taken = name in [f.name for f in spec.features]
        require(not taken, f"feature {name}", "is what features.long_history adds: rename it")
    if not isinstance(spec, FeatureSpec):
        join = EmbeddingJoin(
            store, features.long_history, "user", "request_time" if spec.time is not None else None
        )
        return dataclasses.replace(spec, long_history=described), join
    keys = [f.name for f in spec.categorical if not f.multivalent]
    near = did_you_mean(features.user, keys)
    require(
        features.user in keys,
        "features.user",
        f"the data has no feature {features.user!r} with one user{near}",
    )
    wider = dataclasses.replace(
        spec, features=(*spec.features, *described.features), long_history=described
    )
    return wider, EmbeddingJoin(store, features.long_history, features.user)


def adapter_arguments(
    features: FeaturesConfig, long_history: UserEmbedding | None, units: bool = False
) -> dict[str, Any]:
    """Constructor arguments of a model that reads stored embeddings; none without any.

    Args:
      features: says how a model reads them.
      long_history: the embedding that comes with an example.
      units: whether the width of what is read is the configuration's to set.
    """
    if long_history is None:
        return {}
    width = {"adapter_units": features.adapter_units} if units else {}
    return {"long_history": long_history, "adapter": features.adapter, **width}
