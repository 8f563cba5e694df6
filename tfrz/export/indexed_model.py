"""A SavedModel of a retrieval model with an index of a catalogue."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tfrz.config import write_yaml
from tfrz.data.columns import to_sparse
from tfrz.data.histories.catalogue import Catalogue
from tfrz.data.spec import MISSING
from tfrz.errors import InputError
from tfrz.export.index import IndexConfig, RecommendationIndex, recommending
from tfrz.export.saved_model import save_options, write_required_ops
from tfrz.files import atomic_directory
from tfrz.operations import REQUIRED_OPS, load_required

logger = logging.getLogger(__name__)

_ITEMS_AT_ONCE = 65_536
_EXAMPLES_AT_ONCE = 256
_NEEDED = ("encode", "encode_examples", "encode_items", "transform_features")


class IndexedModel:
    """An exported two-tower model.

    Args:
      path: the SavedModel.

    Raises:
      InputError: it lacks the signatures of a retrieval model.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        load_required(self.path)
        try:
            self.loaded = tf.saved_model.load(str(path))
            text = (self.path / "assets" / "vocabularies.json").read_text()
            terms = json.loads(text)
        except (OSError, ValueError, tf.errors.OpError) as error:
            raise InputError(f"{path} is not a SavedModel that tfrz exported: {error}") from error
        self.signatures = self.loaded.signatures
        missing = [name for name in _NEEDED if name not in self.signatures]
        if missing:
            raise InputError(f"{path} has no signature {missing[0]}: it does not encode items")
        self.vocabulary: list[str] = terms["item_xf"]

    def inputs_of(self, signature: str) -> dict[str, tf.TensorSpec]:
        """The named inputs of a signature."""
        return dict(self.signatures[signature].structured_input_signature[1])

    def encode_catalogue(self, catalogue: Catalogue) -> tuple[list[bytes], NDArray[Any]]:
        """Items and their vectors, the most popular in training first.

        Items that the model was not trained on come last if it reads features of items; otherwise
        they are left out.

        Raises:
          InputError: the catalogue lacks a column that the model reads.
        """
        wanted = self.inputs_of("encode_items")
        columns = {feature.name: feature for feature in catalogue.spec.columns}
        by_name = len(wanted) == 1
        if by_name:  # The column of the items may have another name in this catalogue.
            names = {next(iter(wanted)): catalogue.spec.item}
        else:
            names = {name: name for name in wanted}
        for column in names.values():
            if column not in columns:
                raise InputError(f"the catalogue has no column {column!r}, which the model reads")
        for name, column in names.items():
            given_type = tf.dtypes.as_dtype(columns[column].dtype)
            if given_type != wanted[name].dtype:
                raise InputError(
                    f"the catalogue's column {column!r} is {given_type.name}, the model reads "
                    f"{wanted[name].dtype.name}"
                )
        vectors, ranks = [], []
        for start in range(0, catalogue.table.num_rows, _ITEMS_AT_ONCE):
            part = catalogue.table.slice(start, _ITEMS_AT_ONCE)
            given = {}
            for name, column in names.items():
                if column == catalogue.spec.item:
                    given[name] = tf.constant(part[column].to_pylist(), tf.string)
                    continue
                dense = tf.sparse.to_dense(to_sparse(part[column]), MISSING[columns[column].dtype])
                given[name] = dense if columns[column].multivalent else dense[:, 0]
            answer = self.signatures["encode_items"](**given)
            vectors.append(answer["embedding"].numpy())
            ranks.append(answer["rank"].numpy())
        rank = np.concatenate(ranks)
        order = np.argsort(rank, kind="stable")
        if by_name:
            order = order[rank[order] <= len(self.vocabulary)]
        items = catalogue.items
        logger.info(
            "index: %d of %d items of the catalogue, %d of them never trained on",
            len(order),
            len(items),
            int((rank[order] > len(self.vocabulary)).sum()),
        )
        return [items[row] for row in order], np.concatenate(vectors)[order]


def export_indexed(
    trained: IndexedModel, catalogue: Catalogue, config: Any, path: str | Path
) -> None:
    """Writes the model with an index of a catalogue.

    Args:
      trained: the model.
      catalogue: the items that can be recommended.
      config: the configuration of the run.
      path: where to write the new SavedModel.

    Raises:
      InputError: the vector of an item is not finite, `export.top_k` is above the number of items,
        or the path cannot be written.
    """
    items, vectors = trained.encode_catalogue(catalogue)
    index = RecommendationIndex(items, vectors, config.export.index, config.export.top_k)
    drop_seen = config.export.drop_seen
    examples = tf.TensorSpec([None], tf.string, name="examples")
    signatures = trained.signatures

    serving_default = tf.function(
        recommending(
            lambda examples: signatures["encode_examples"](examples=examples), index, drop_seen
        ),
        input_signature=[examples],
        autograph=False,
    )
    serving_raw = tf.function(
        recommending(lambda features: signatures["encode"](**features), index, drop_seen),
        input_signature=[trained.inputs_of("encode")],
        autograph=False,
    )

    @tf.function(input_signature=[examples], autograph=False)
    def transform_features(examples: tf.Tensor) -> dict[str, tf.Tensor]:
        features = dict(signatures["transform_features"](examples=examples))
        features["catalogue_size"] = tf.fill(tf.shape(examples), index.count)
        return features

    module = tf.Module()
    module.trained, module.parts = trained.loaded, [index]
    module.weights = trained.loaded.weights
    with atomic_directory(path, replace=True) as folder:
        tf.saved_model.save(
            module,
            str(folder),
            signatures={
                "serving_default": serving_default,
                "serving_raw": serving_raw,
                "recommend": serving_raw,
                "encode": signatures["encode"],
                "encode_examples": signatures["encode_examples"],
                "encode_items": signatures["encode_items"],
                "transform_features": transform_features,
            },
            options=save_options(config),
        )
        for kind in ("assets", "assets.extra"):
            for source in sorted((trained.path / kind).glob("*")):
                target = folder / kind / source.name
                target.parent.mkdir(exist_ok=True)
                if not target.exists():
                    shutil.copyfile(source, target)
        (folder / "assets" / "run_config.yaml").write_text(write_yaml(config))
        (folder / REQUIRED_OPS).unlink(missing_ok=True)
        write_required_ops(folder, config)


def exact_answers(
    model: IndexedModel, catalogue: Catalogue, config: Any, examples: Sequence[bytes]
) -> tuple[list[list[bytes]], list[list[bytes]]]:
    """The recommendations of a model, and those of an exact search of the same items.

    Args:
      model: a model with an index.
      catalogue: the indexed items.
      config: the configuration of the run.
      examples: serialised `tf.Example`s.

    Returns:
      For each example the ids that the model lists, and the exact ones, without empty places.
    """
    items, vectors = model.encode_catalogue(catalogue)
    exact = RecommendationIndex(items, vectors, IndexConfig(), config.export.top_k)
    found: list[list[bytes]] = []
    wanted: list[list[bytes]] = []
    for start in range(0, len(examples), _EXAMPLES_AT_ONCE):
        batch = tf.constant(list(examples[start : start + _EXAMPLES_AT_ONCE]))
        answer = model.signatures["serving_default"](examples=batch)
        encoded = model.signatures["encode_examples"](examples=batch)
        best = exact.recommend(
            encoded["embedding"], encoded["seen"] if config.export.drop_seen else None
        )
        for lists, outputs in ((found, answer), (wanted, best)):
            lists += [[i for i in row if i] for row in outputs["item_ids"].numpy().tolist()]
    return found, wanted
