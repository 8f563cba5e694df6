"""What `tfrz.data.histories.examples` does for a table, for events on disk in parts by user."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tfrz.data.arrow_files import Partitions
from tfrz.data.columns import codes_of, whole
from tfrz.data.histories.examples import drop_duplicates, not_settled, nothing_left
from tfrz.data.histories.spec import HistoryConfig
from tfrz.data.transform import ValueCounts


def without_duplicates(events: Partitions) -> Partitions:
    """Applies `drop_duplicates`."""
    return events.changed(drop_duplicates)


def without_rare(events: Partitions, config: HistoryConfig) -> Partitions:
    """Applies `drop_rare`; items are counted over all parts.

    Raises:
      InputError: As of `drop_rare`.
    """
    if config.min_item_count == 1 and config.min_user_count == 1:
        return events
    counts = ValueCounts(pa.binary())
    before = 0
    for part in events:
        counts.add(whole(part["item"]))
        before += part.num_rows
    for _ in range(config.max_passes):
        table = counts.table()
        often = whole(
            table["value"].filter(pc.greater_equal(table["count"], config.min_item_count))
        )
        counts = ValueCounts(pa.binary())

        def without(
            part: pa.Table, often: pa.Array = often, counts: ValueCounts = counts
        ) -> pa.Table:
            part = part.filter(pc.is_in(whole(part["item"]), value_set=often))
            users = codes_of(part["user"])
            frequent = np.bincount(users, minlength=1)[users] >= config.min_user_count
            part = part.filter(pa.array(frequent))
            counts.add(whole(part["item"]))
            return part

        events = events.changed(without)
        kept = sum(part.num_rows for part in events)
        if config.min_count_passes == 1 or kept == before:
            break
        before = kept
    else:
        raise not_settled(config)
    if not kept:
        raise nothing_left(config)
    return events
