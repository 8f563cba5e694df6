"""Rows of an embedding follow their terms into a new vocabulary."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfrz.errors import InputError
from tfrz.training.warm_start import remap_rows, warm_start

TERMS = st.lists(st.text(min_size=1, max_size=3), unique=True, min_size=1, max_size=8)


@settings(max_examples=100, deadline=None)
@given(old_terms=TERMS, new_terms=TERMS, old_buckets=st.integers(1, 3), buckets=st.integers(1, 4))
def test_every_row_comes_from_where_it_should(old_terms, new_terms, old_buckets, buckets):
    rows = 1 + len(old_terms) + old_buckets
    old = np.random.default_rng(0).normal(size=(rows, 2)).astype(np.float32)
    new, found = remap_rows(old, old_terms, new_terms, 1 + len(new_terms) + buckets)
    assert new.shape == (1 + len(new_terms) + buckets, 2)
    assert new.dtype == old.dtype
    assert found == len(set(old_terms) & set(new_terms))
    unseen = old[1 + len(old_terms) :].mean(axis=0)
    np.testing.assert_array_equal(new[0], old[0])
    for i, term in enumerate(new_terms, start=1):
        expected = old[1 + old_terms.index(term)] if term in old_terms else unseen
        np.testing.assert_array_equal(new[i], expected)
    for bucket in range(buckets):
        row = new[1 + len(new_terms) + bucket]
        kept = bucket < old_buckets
        np.testing.assert_array_equal(row, old[1 + len(old_terms) + bucket] if kept else unseen)


def test_what_is_no_model_of_the_zoo_is_refused(tmp_path):
    with pytest.raises(InputError, match="is not a SavedModel that tfrz exported"):
        warm_start(None, None, {}, tmp_path)
