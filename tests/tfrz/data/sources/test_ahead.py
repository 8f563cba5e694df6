"""Items that a thread computes ahead of their use."""

from __future__ import annotations

import threading

import pytest

from tfrz.data.sources.ahead import ahead


def test_items_come_in_order():
    assert list(ahead(iter(range(50)))) == list(range(50))
    assert list(ahead(iter(()))) == []


def test_an_error_is_raised_after_the_items_before_it():
    def items():
        yield 1
        raise KeyError("broken")

    found = ahead(items())
    assert next(found) == 1
    with pytest.raises(KeyError, match="broken"):
        next(found)


def test_the_thread_ends_with_its_user():
    before, closed = threading.active_count(), []

    def items():
        try:
            yield from range(1000)
        finally:
            closed.append(True)

    given = items()
    found = ahead(given)
    assert next(found) == 0
    found.close()
    assert threading.active_count() == before
    given.close()
    assert closed


def test_only_a_few_items_wait():
    made = []

    def items():
        for item in range(100):
            made.append(item)
            yield item

    found = ahead(items(), count=2)
    assert next(found) == 0
    found.close()
    assert len(made) <= 5
