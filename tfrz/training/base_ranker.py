"""The base ranker of the experiments: LambdaMART, by LightGBM."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tfrz.data.columns import codes_of
from tfrz.data.lists.spec import ListSpec
from tfrz.errors import InputError
from tfrz.extras import LIBRARIES, needs

_FOLDS = 5
_TREES = 100
# LightGBM has gains for these.
_MAX_GRADE = 30


def with_lambda_mart(
    documents: pa.Table, spec: ListSpec, splits: NDArray[Any], seed: int = 0
) -> pa.Table:
    """Documents with the scores of LambdaMART in place of the source's.

    The model is fitted to the grades of the training queries. The training queries themselves are
    scored in five folds by models that have not seen them: otherwise a re-ranker would learn to
    trust an order that is too good.

    Args:
      documents: as of `tfrz.data.lists.examples.build_lists`.
      spec: what their columns are; numeric features are used.
      splits: of each row, as of `tfrz.data.lists.examples.splits_of`.
      seed: of the folds and the trees.

    Raises:
      InputError: LightGBM is not installed, there are fewer training queries than folds, no numeric
        features, or grades that LambdaMART does not take.
    """
    try:
        import lightgbm
    except ImportError as error:
        library = LIBRARIES["lightgbm"]
        raise InputError(needs(library.use, library)) from error
    if not spec.numeric:
        raise InputError("LambdaMART needs numeric features: bring a score as a column instead")
    queries = codes_of(documents["query"])
    features = np.stack([documents[f.name].to_numpy() for f in spec.numeric], axis=1)
    grades = documents["relevance"].to_numpy()
    if grades.max() > _MAX_GRADE or (grades != np.rint(grades)).any():
        raise InputError(
            f"LambdaMART takes whole grades of 0 to {_MAX_GRADE}: bring a score instead"
        )
    train = np.flatnonzero(splits == "train")
    known = np.unique(queries[train])
    if len(known) < _FOLDS:
        raise InputError(f"{len(known)} training queries are too few for LambdaMART: bring scores")

    settings = {
        "objective": "lambdarank",
        "num_leaves": 15,
        "learning_rate": 0.05,
        "seed": seed,
        "num_threads": 1,
        "deterministic": True,
        "force_row_wise": True,
        "verbose": -1,
    }

    def fitted(rows: NDArray[Any]) -> lightgbm.Booster:
        rows = rows[np.argsort(queries[rows], kind="stable")]
        _, sizes = np.unique(queries[rows], return_counts=True)
        lists = lightgbm.Dataset(features[rows], grades[rows].astype(int), group=sizes)
        return lightgbm.train(settings, lists, num_boost_round=_TREES)

    scores = np.zeros(len(grades), np.float32)
    others = np.flatnonzero(splits != "train")
    if len(others):
        scores[others] = fitted(train).predict(features[others])
    folds = np.zeros(queries.max() + 1, int)
    folds[np.random.default_rng(seed).permutation(known)] = np.arange(len(known)) % _FOLDS
    for fold in range(_FOLDS):
        held = folds[queries[train]] == fold
        scores[train[held]] = fitted(train[~held]).predict(features[train[held]])
    place = documents.schema.get_field_index("score")
    return documents.set_column(place, "score", pa.array(scores))
