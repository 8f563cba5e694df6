"""A whole source through the SavedModel of a run: what `tfrz predict --data` does.

What is asked follows from the type of the records. Of impressions each row is a request. Of
histories, logged actions and timelines each user is one: what comes after the user's last event.
Of lists each query is one. Labels are not read.

Requests are Arrow tables of the raw features of the run's spec, as lists, a row each; `dense` makes
them the named tensors of the signature `serving_raw`, without a Python object a row but the
strings that TensorFlow takes.
"""

from __future__ import annotations

import abc
import base64
import dataclasses
import logging
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from tqdm import tqdm

from tfrz.config import did_you_mean, require
from tfrz.data.columns import codes_of, filled, first_values, one_each, runs, whole
from tfrz.data.histories.examples import drop_duplicates
from tfrz.data.histories.spec import HistorySpec
from tfrz.data.lists.examples import build_lists
from tfrz.data.records import open_source
from tfrz.data.sources.files import CorruptLines
from tfrz.data.sources.reader import Reader
from tfrz.data.sources.tabular import COPIED, Tabular, TabularFile
from tfrz.data.spec import MISSING, Feature, Spec
from tfrz.data.timelines.examples import clean, in_order, users_of
from tfrz.data.timelines.slicing import Events, slice_user
from tfrz.data.user_embeddings import EmbeddingJoin, Found
from tfrz.errors import InputError
from tfrz.files import atomic_file
from tfrz.serving.client import Client, connect
from tfrz.serving.model import LoadedModel
from tfrz.serving.status import RequestError
from tfrz.zoo import registry
from tfrz.zoo.run_config import RunConfig
from tfrz.zoo.run_folder import features_of
from tfrz.zoo.task import Task
from tfrz.zoo.teacher import find_teacher, trained_config

logger = logging.getLogger(__name__)

T = TypeVar("T")
Arrays = dict[str, NDArray[Any]]

_BATCH = 8192
# What stands for a missing value, by NumPy's letter of its type.
_MISSING_OF = {"f": MISSING["float32"], "i": MISSING["int64"]}


@dataclasses.dataclass(frozen=True)
class Asked:
    """What a request has that is not in the data.

    Attributes:
      time: Unix seconds at which users are asked about; None for the second after the newest
        event of the source.
      context: value of each context of the request; others are missing.
      keep: columns to copy to the answers of impressions; None for the features with one value
        that are categorical.
      batch_size: requests that are answered at once.
    """

    time: int | None = None
    context: Mapping[str, str] = dataclasses.field(default_factory=dict)
    keep: tuple[str, ...] | None = None
    batch_size: int = _BATCH

    def __post_init__(self) -> None:
        require(self.batch_size >= 1, "--batch-size", f"must be at least 1, not {self.batch_size}")


# The model.


@dataclasses.dataclass(frozen=True)
class AskedModel(abc.ABC):
    """A model that answers, and how it was trained.

    Attributes:
      place: of the model, for messages.
      config: that it was trained with.
      task: what it learned.
      features: path of the feature spec; None for a known source.
    """

    place: str
    config: RunConfig
    task: Task[Any, Any]
    features: str | None

    @property
    def record_type(self) -> str:
        """Of the records that it was trained on."""
        return str(self.task.entry.record_type)

    @abc.abstractmethod
    def inputs(self, signature: str) -> list[str]:
        """The names of the inputs of a signature.

        Raises:
          InputError: the model does not have it.
        """

    @abc.abstractmethod
    def outputs(self, signature: str) -> list[str]:
        """The names of the outputs of a signature.

        Raises:
          InputError: the model does not have it.
        """

    @abc.abstractmethod
    def ask(self, signature: str, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """The outputs of a signature.

        Raises:
          InputError: the model refuses.
        """

    def check_features(self, spec: Spec) -> None:
        """Checks that a spec has the features that the model reads.

        Raises:
          InputError: names one that is missing.
        """
        known = [feature.name for feature in spec.features]
        for name in self.inputs("serving_raw"):
            if name not in known:
                raise InputError(
                    f"{self.place} reads the feature {name!r}, which "
                    f"{self.features or 'the data'} does not have{did_you_mean(name, known)}: "
                    "give the feature spec that the model was trained with"
                )


@dataclasses.dataclass(frozen=True)
class StoredModel(AskedModel):
    """A SavedModel of tfrz.

    Attributes:
      loaded: the SavedModel in memory.
    """

    loaded: LoadedModel

    def inputs(self, signature: str) -> list[str]:
        """As of `AskedModel`."""
        return sorted(self.loaded.signature(signature).inputs)

    def outputs(self, signature: str) -> list[str]:
        """As of `AskedModel`."""
        return sorted(self.loaded.signature(signature).outputs)

    def ask(self, signature: str, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """As of `AskedModel`."""
        try:
            return dict(self.loaded.run(signature, inputs))
        except RequestError as error:
            reason = " ".join(str(error.message).split())[:300]
            raise InputError(f"{self.place} refused: {reason}") from error


@dataclasses.dataclass(frozen=True)
class ServedModel(AskedModel):
    """A model behind an address of TF Serving's protocols.

    Attributes:
      client: of the server.
    """

    client: Client

    def inputs(self, signature: str) -> list[str]:
        """As of `AskedModel`."""
        return sorted(self.client.inputs(signature))

    def outputs(self, signature: str) -> list[str]:
        """As of `AskedModel`."""
        return self.client.outputs(signature)

    def ask(self, signature: str, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """As of `AskedModel`."""
        sent = {name: _sent(values) for name, values in inputs.items()}
        answer = self.client.predict({"signature_name": signature, "inputs": sent})
        names, outputs = self.outputs(signature), answer.get("outputs")
        if len(names) == 1:
            outputs = {names[0]: outputs}
        if not isinstance(outputs, dict) or not outputs.keys() >= set(names):
            raise InputError(f"{self.place} does not answer {', '.join(names)}, as it says it does")
        return {name: _received(outputs[name]) for name in names}


def _sent(values: NDArray[Any]) -> Any:
    """An array as TF Serving's REST API takes it."""
    if values.ndim == 2 and not values.shape[1]:
        # JSON has no lists of no width; one missing value says the same.
        missing: Any = _MISSING_OF.get(values.dtype.kind, b"")
        values = np.full((len(values), 1), missing, values.dtype)
    if values.dtype == object:
        flat = [{"b64": base64.b64encode(value).decode()} for value in values.ravel()]
        array = np.empty(len(flat), object)
        array[:] = flat
        return array.reshape(values.shape).tolist()
    return values.tolist()


def _received(values: Any) -> NDArray[Any]:
    """An array of TF Serving's REST API, texts as bytes."""
    array = np.array(values)
    if array.dtype.kind not in "OU":
        return array
    texts = np.array(values, object)
    flat = [
        base64.b64decode(one["b64"]) if isinstance(one, dict) else str(one).encode()
        for one in texts.ravel()
    ]
    found = np.empty(len(flat), object)
    found[:] = flat
    return found.reshape(texts.shape)


def open_served(
    address: str, run: str | Path, features: str | None = None, timeout: float = 60.0
) -> ServedModel:
    """A model behind an address.

    Args:
      address: as `tfrz.serving.client.connect` takes it.
      run: a run or SavedModel of the same model on disk: its configuration and feature spec say how
        records become requests.
      features: feature spec of a file of the user's own; that of the run if left out.
      timeout: seconds to wait for an answer.

    Raises:
      InputError: the run is none, or the server does not respond or does not have the model.
    """
    folder = find_teacher(run, "--run")
    config = trained_config(folder, "--run")
    task = registry.get(config.name).new_task(config)
    client = connect(address, timeout)
    return ServedModel(address, config, task, features_of(folder, features), client)


def open_model(target: str | Path, features: str | None = None) -> StoredModel:
    """Opens the SavedModel of a run.

    Args:
      target: a run of `tfrz train`, a SavedModel, or the folder of its versions.
      features: feature spec of a file of the user's own; that of the run if left out.

    Raises:
      InputError: there is none, or tfrz did not export it.
    """
    folder = find_teacher(target, "TARGET")
    config = trained_config(folder, "TARGET")
    task = registry.get(config.name).new_task(config)
    try:
        loaded = LoadedModel(folder)
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"{folder} cannot be loaded: {str(error).splitlines()[0]}") from error
    return StoredModel(str(folder), config, task, features_of(folder, features), loaded)


def open_reader(model: AskedModel, data: str, labelled: bool = False) -> Reader:
    """Opens a source of the records that a model was trained on.

    Args:
      model: the model.
      data: as `--data` of the command line.
      labelled: whether labels are read from files of the user's own.

    Raises:
      InputError: as of `open_source`.
    """
    # Options are of a known source: that of the run.
    options = model.config.data.options if model.features is None else {}
    reader = open_source(data, model.features, model.record_type, **options)
    if isinstance(reader, TabularFile) and not labelled:
        return reader.unlabelled()
    return reader


# Arrow columns and the tensors of a signature.


def _missing_filled(values: pa.Array, dtype: str) -> NDArray[Any]:
    found: NDArray[Any] = filled(values, dtype).to_numpy(zero_copy_only=False)
    return found


def _one_each(lists: pa.ListArray, dtype: str) -> NDArray[Any]:
    """The first value of each list, `[rows]`."""
    offsets = lists.offsets.to_numpy()
    if len(lists) and (np.diff(offsets) == 1).all():
        return _missing_filled(lists.values.slice(offsets[0], len(lists)), dtype)
    return _missing_filled(first_values(lists), dtype)


def padded(lists: pa.ListArray, dtype: str) -> NDArray[Any]:
    """Lists as `[rows, values]`, shorter ones padded with what stands for a missing value."""
    offsets = lists.offsets.to_numpy().astype(np.int64)
    lengths = np.diff(offsets)
    width = int(lengths.max(initial=0))
    missing: Any = b"" if dtype == "string" else MISSING[dtype]
    kind = {"string": object, "int64": np.int64, "float32": np.float32}[dtype]
    dense = np.full((len(lengths), width), missing, kind)
    values = lists.values.slice(offsets[0], offsets[-1] - offsets[0])
    dense[np.arange(width)[None, :] < lengths[:, None]] = _missing_filled(values, dtype)
    return dense


def dense(table: pa.Table, features: Iterable[Feature]) -> Arrays:
    """Raw features of requests as the arrays of `serving_raw`.

    Args:
      table: Lists, a column for each feature.
      features: Those that a request has.
    """
    arrays = {}
    for feature in features:
        lists = whole(table[feature.name])
        convert = padded if feature.multivalent else _one_each
        arrays[feature.name] = convert(lists, feature.dtype)
    return arrays


def as_text(values: pa.Array) -> pa.Array:
    """Bytes as text; where they are no UTF-8, as bytes."""
    if not pa.types.is_binary(values.type):
        return values
    try:
        return values.cast(pa.string())
    except pa.ArrowInvalid:
        return values


def _answer_column(values: NDArray[Any], there: NDArray[Any] | None) -> pa.Array:
    """An output of a signature as a column; lists end before the first place that is empty."""
    if values.ndim > 2:
        rows = _answer_column(values.reshape(-1, values.shape[-1]), None)
        offsets = np.arange(len(values) + 1, dtype=np.int32) * values.shape[1]
        return pa.ListArray.from_arrays(pa.array(offsets), rows)
    if values.ndim == 2:
        kept = np.ones(values.shape, bool) if there is None else there
        offsets = np.concatenate([[0], np.cumsum(kept.sum(axis=1))]).astype(np.int32)
        return pa.ListArray.from_arrays(pa.array(offsets), _answer_column(values[kept], None))
    if values.dtype == object:
        return as_text(pa.array(values, pa.binary()))
    return pa.array(values)


_NAMES = {"item_ids": "items"}


def answer_columns(outputs: Mapping[str, NDArray[Any]]) -> dict[str, pa.Array]:
    """The outputs of `serving_raw` as columns; recommended `item_ids` are called `items`."""
    items = outputs.get("item_ids")
    there = None if items is None else items != b""
    return {
        _NAMES.get(name, name): _answer_column(
            values, there if there is not None and values.shape == there.shape else None
        )
        for name, values in sorted(outputs.items())
    }


# Requests by type of record.


class Form(abc.ABC):
    """How records of one type become requests.

    Args:
      model: that is asked.
      reader: of the records.
      asked: what is not in the data.

    Attributes:
      source_spec: the raw features of the records.
      spec: those of an example, which the run adds included.
      join: adds stored embeddings of users to requests; None for none.
      keys: columns of the requests that are copied to the answers.
    """

    keys: tuple[str, ...] = ()

    def __init__(self, model: AskedModel, reader: Reader, asked: Asked) -> None:
        self.model, self.reader, self.asked = model, reader, asked
        self.source_spec: Any = reader.feature_spec()
        self.spec: Any
        self.join: EmbeddingJoin | None
        self.spec, self.join = model.task.example_spec(self.source_spec)
        self.request_spec = model.task.request_spec(self.spec)
        model.check_features(self.request_spec)
        named = model.inputs("serving_raw")
        self.features = [f for f in self.request_spec.features if f.name in named]

    @abc.abstractmethod
    def requests(self, corrupt: CorruptLines) -> Iterator[pa.Table]:
        """Yields the requests, some at a time, and gathers the corrupt lines."""

    @abc.abstractmethod
    def labelled(self, records: pa.Table) -> pa.Table:
        """Examples of all records with their labels, for an evaluation."""

    def total(self) -> int | None:
        """The number of requests, for a progress bar; None if nobody knows yet."""
        return None

    def read(self, corrupt: CorruptLines) -> pa.Table:
        """All records of the source.

        Raises:
          InputError: it has none.
        """
        batches = list(self.reader.batches(corrupt))
        if not batches:
            corrupt.check(self.reader.name, 1.0)
        return pa.Table.from_batches(batches)


class ImpressionForm(Form):
    """A row is a request."""

    def __init__(self, model: AskedModel, reader: Reader, asked: Asked) -> None:
        super().__init__(model, reader, asked)
        single = [f for f in reader.feature_spec().features if not f.multivalent]
        keep = asked.keep
        if keep is None:
            keep = tuple(f.name for f in single if f.kind == "categorical")
        if isinstance(reader, Tabular):
            self.reader = reader.copying(keep)
            self.keys = tuple(COPIED + name for name in dict.fromkeys(keep))
        else:
            known = [f.name for f in single]
            for name in keep:
                require(name in known, "--keep", f"the data has no column {name!r} with one value")
            self.keys = tuple(dict.fromkeys(keep))

    def requests(self, corrupt: CorruptLines) -> Iterator[pa.Table]:
        """As of `Form`."""
        for batch in self.reader.batches(corrupt):
            yield pa.Table.from_batches([batch])

    def labelled(self, records: pa.Table) -> pa.Table:
        """As of `Form`."""
        return records

    def total(self) -> int | None:
        """As of `Form`."""
        if not isinstance(self.reader, TabularFile) or self.reader.format != "parquet":
            return None
        firsts = [shard for shard in self.reader.shards() if shard.start == 0]
        return sum(int(self.reader.raw.metadata(shard).num_rows) for shard in firsts)


class HistoryForm(Form):
    """A user is a request: what comes after the user's events."""

    keys = ("user",)

    def __init__(self, model: AskedModel, reader: Reader, asked: Asked) -> None:
        super().__init__(model, reader, asked)
        assert isinstance(self.spec, HistorySpec)
        contexts = {f.name: f for f in self.spec.context if f.name not in self.spec.outcomes}
        self.context = {}
        for name, text in asked.context.items():
            known = name in contexts
            near = did_you_mean(name, contexts)
            require(known, "--context", f"the model has no context {name!r}{near}")
            self.context[name] = _typed(contexts[name], text)

    def requests(self, corrupt: CorruptLines) -> Iterator[pa.Table]:
        """As of `Form`."""
        events = self.read(corrupt)
        config = self.model.config.data.history
        assert config is not None
        if config.drop_duplicates:
            events = drop_duplicates(events)
        newest = pc.max(events["time"]).as_py() if events.num_rows else 0
        at = self.asked.time
        if at is None:
            at = newest + 1
        else:
            # What happens later is not known then.
            events = events.filter(pc.less(events["time"], at)) if self.spec.time else events
        codes = codes_of(events["user"])
        order = np.lexsort((events["position"].to_numpy(), events["time"].to_numpy(), codes))
        events, codes = events.take(pa.array(order)), codes[order]
        starts = np.flatnonzero(np.concatenate([[True], codes[1:] != codes[:-1]])[: len(codes)])
        ends = np.append(starts[1:], len(codes)).astype(np.int64)
        first = np.maximum(starts, ends - config.kept)
        columns = {name: whole(events[name]) for name in events.column_names}
        columns |= {
            f.name: filled(columns[f.name], f.dtype)
            for f in self.spec.context
            if f.name not in self.spec.outcomes
        }
        for start in range(0, len(starts), self.asked.batch_size):
            some = slice(start, start + self.asked.batch_size)
            yield self._users(columns, first[some], ends[some], at)

    def _users(
        self, columns: Mapping[str, pa.Array], first: NDArray[Any], end: NDArray[Any], at: int
    ) -> pa.Table:
        count = len(first)
        row: dict[str, Any] = {
            "user": columns["user"].take(pa.array(first)),
            "history": runs(columns["item"], first, end),
        }
        if self.spec.time is not None:
            row["history_time"] = runs(columns["time"], first, end)
            row["request_time"] = one_each(np.full(count, at, np.int64), "int64")
        for feature in self.spec.context:
            if feature.name in self.spec.outcomes:
                continue
            row[f"history_{feature.name}"] = runs(columns[feature.name], first, end)
            value = self.context.get(feature.name)
            kind = {"string": pa.binary(), "int64": pa.int64(), "float32": pa.float32()}
            row[feature.name] = one_each(
                pa.array([value] * count, kind[feature.dtype]), feature.dtype
            )
        return pa.table(row)

    def labelled(self, records: pa.Table) -> pa.Table:
        """The last event of each user with two or more as the target."""
        from tfrz.data.histories.examples import build_examples

        config = self.model.config.data.history
        assert config is not None
        if config.drop_duplicates:
            records = drop_duplicates(records)
        every = dataclasses.replace(config, split="users")
        found = build_examples(records, self.source_spec, every, (0.0, 1.0))["test"]
        if not found.num_rows:
            raise InputError(f"{self.reader.name}: no user has two events: nothing to evaluate on")
        return found


def _typed(feature: Feature, text: str) -> Any:
    """A value of the command line."""
    try:
        if feature.dtype == "string":
            return text.encode()
        return int(text) if feature.dtype == "int64" else float(text)
    except ValueError:
        where = f"--context {feature.name}={text}"
        raise InputError(f"{where}: {feature.name} is {feature.dtype}") from None


class ListForm(Form):
    """A query is a request."""

    keys = ("query",)

    def requests(self, corrupt: CorruptLines) -> Iterator[pa.Table]:
        """As of `Form`."""
        yield self.labelled(self.read(corrupt))

    def labelled(self, records: pa.Table) -> pa.Table:
        """As of `Form`."""
        config = self.model.config.data.lists
        assert config is not None
        if config.base_ranker != "source":
            logger.warning(
                "candidates are in the order of the source: the base ranker of the training "
                "(data.lists.base_ranker) is not part of the model"
            )
        every = dataclasses.replace(config, drop_empty=False, base_ranker="source")
        if not getattr(self.reader, "labelled", True):
            every = dataclasses.replace(every, clicks=None)
        parts = build_lists(records, self.source_spec, every, (0.0, 1.0))
        return pa.concat_tables([part for part in parts.values() if part.num_rows])


class TimelineForm(Form):
    """A user is a request: all events before a time."""

    keys = ("user",)

    def requests(self, corrupt: CorruptLines) -> Iterator[pa.Table]:
        """As of `Form`."""
        events = self.read(corrupt)
        newest = pc.max(events["time"]).as_py()
        at = newest + 1 if self.asked.time is None else self.asked.time
        events, left_out = clean(events, self.source_spec, at)
        for reason, count in left_out.items():
            logger.warning("%s: %d events left out: %s", self.reader.name, count, reason)
        config = self.model.config.data.timeline
        assert config is not None
        slices = config.slices
        rows: dict[str, list[Any]] = {}
        for user in users_of(in_order(events)):
            sketches = slice_user(slices, Events(user, slices.gamma), at)
            rows.setdefault("user", []).append(user["user"][0].as_py())
            for table in slices.tables:
                one = sketches.get(table)
                places, ids, weights = one.entries() if one is not None else ([], [], [])
                for part, values in (("ids", ids), ("places", places), ("weights", weights)):
                    rows.setdefault(f"slices_{table}_{part}", []).append(list(values))
            if len(rows["user"]) == self.asked.batch_size:
                yield self._table(rows)
                rows = {}
        if rows:
            yield self._table(rows)

    def _table(self, rows: Mapping[str, list[Any]]) -> pa.Table:
        kinds = {"string": pa.binary(), "int64": pa.int64(), "float32": pa.float32()}
        columns: dict[str, pa.Array] = {"user": pa.array(rows["user"], pa.binary())}
        for feature in self.features:
            columns[feature.name] = pa.array(rows[feature.name], pa.list_(kinds[feature.dtype]))
        return pa.table(columns)

    def labelled(self, records: pa.Table) -> pa.Table:
        """Every event with an outcome that the run's configuration chooses as a target."""
        from tfrz.data.timelines.examples import build_examples

        config = self.model.config.data.timeline
        assert config is not None
        events, _ = clean(records, self.source_spec)
        found = build_examples(events, self.spec, config, (0.0, 1.0))
        parts = [part for part in found.values() if part.num_rows]
        if not parts:
            raise InputError(f"{self.reader.name}: no event has an outcome: nothing to evaluate on")
        return pa.concat_tables(parts)


FORMS: dict[str, type[Form]] = {
    "impression": ImpressionForm,
    "history": HistoryForm,
    "logged_action": HistoryForm,
    "list": ListForm,
    "timeline": TimelineForm,
}


def form_of(model: AskedModel, reader: Reader, asked: Asked) -> Form:
    """How the records of a reader become requests to a model."""
    return FORMS[model.record_type](model, reader, asked)


# Reading and asking at the same time.


class _Failed:
    def __init__(self, error: BaseException) -> None:
        self.error = error


def ahead(items: Callable[[], Iterator[T]], depth: int = 2) -> Iterator[T]:
    """Yields the items of an iterator that runs in a thread of its own, a few items ahead.

    Args:
      items: makes the iterator.
      depth: items that may wait.
    """
    waiting: queue.Queue[Any] = queue.Queue(depth)
    end, stopped = object(), threading.Event()

    def put(item: Any) -> None:
        while not stopped.is_set():
            try:
                waiting.put(item, timeout=0.1)
                return
            except queue.Full:
                continue

    def run() -> None:
        try:
            for item in items():
                put(item)
                if stopped.is_set():
                    return
            put(end)
        except BaseException as error:
            put(_Failed(error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        while (item := waiting.get()) is not end:
            if isinstance(item, _Failed):
                raise item.error
            yield item
    finally:
        stopped.set()
        thread.join()


def slices_of(tables: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    """Tables of at most `rows` rows."""
    for table in tables:
        for start in range(0, table.num_rows, rows):
            yield table.slice(start, rows)


class Asking:
    """Asks a model about requests, and counts.

    Args:
      form: how records become requests.

    Attributes:
      found: what the join with stored embeddings of users found.
    """

    def __init__(self, form: Form) -> None:
        self.form = form
        self.found = Found()

    def prepared(self, tables: Iterable[pa.Table]) -> Iterator[tuple[pa.Table, Arrays]]:
        """Requests with their tensors, in batches."""
        join = self.form.join
        for table in slices_of(tables, self.form.asked.batch_size):
            if join is not None:
                table, found = join(table)
                self.found += found
            yield table, dense(table, self.form.features)

    def answers(
        self, tables: Callable[[], Iterable[pa.Table]]
    ) -> Iterator[tuple[pa.Table, Arrays]]:
        """Requests and what the model answers to them, in batches."""
        for table, inputs in ahead(lambda: self.prepared(tables())):
            yield table, self.form.model.ask("serving_raw", inputs)


def _keys(form: Form, table: pa.Table) -> dict[str, pa.Array]:
    columns = {}
    for name in form.keys:
        column = whole(table[name])
        if not name.startswith(COPIED) and pa.types.is_list(column.type):
            column = first_values(column)
        columns[name.removeprefix(COPIED)] = as_text(column)
    return columns


def _fitting(batch: pa.Table, schema: pa.Schema) -> pa.Table:
    """A batch in the types of the first."""
    columns = []
    for field in schema:
        column = batch[field.name]
        if column.type != field.type:
            try:
                column = column.cast(field.type)
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                raise InputError(
                    f"column {field.name} is {field.type} in a part of the data and {column.type} "
                    "in another: leave it out with --keep, or write one type"
                ) from error
        columns.append(column)
    return pa.Table.from_arrays(columns, schema=schema)


def predict_file(
    target: str | Path,
    data: str,
    out: str | Path,
    features: str | None = None,
    asked: Asked | None = None,
    max_corrupt_fraction: float | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Writes a model's answer to every row, user or query of a source.

    Args:
      target: a run of `tfrz train`, a SavedModel, or the folder of its versions.
      data: as `--data` of the command line.
      out: the Parquet file to write; a file that is there is replaced, in one step at the end.
      features: feature spec of a file of the user's own; that of the run if left out.
      asked: what requests have that is not in the data.
      max_corrupt_fraction: tolerated share of corrupt lines; that of the run if left out.
      progress: show a bar on standard error.

    Returns:
      `rows` written, `corrupt_lines`, the first of them, the file, its `columns`.

    Raises:
      InputError: bad input of any kind; nothing is written then.
    """
    asked = asked or Asked()
    require(str(out).endswith(".parquet"), "--out", f"write a .parquet file, not {out}")
    model = open_model(target, features)
    form = form_of(model, open_reader(model, data), asked)
    if max_corrupt_fraction is None:
        max_corrupt_fraction = model.config.data.max_corrupt_fraction
    corrupt, asking = CorruptLines(), Asking(form)
    rows, schema, writer = 0, None, None
    with atomic_file(out) as part:
        bar = tqdm(
            total=form.total(), unit=" rows", unit_scale=True, mininterval=1, disable=not progress
        )
        try:
            for table, outputs in asking.answers(lambda: form.requests(corrupt)):
                answer = pa.table({**_keys(form, table), **answer_columns(outputs)})
                if writer is None:
                    schema = answer.schema
                    writer = pq.ParquetWriter(str(part), schema)
                writer.write_table(_fitting(answer, schema))
                rows += answer.num_rows
                bar.update(answer.num_rows)
        finally:
            bar.close()
            if writer is not None:
                writer.close()
        corrupt.check(form.reader.name, max_corrupt_fraction)
        if form.join is not None:
            form.join.check(asking.found)
        if writer is None:
            raise InputError(f"{data} has nothing to ask about")
    assert schema is not None
    return {
        "out": str(out),
        "model": model.place,
        "rows": rows,
        "columns": list(schema.names),
        "corrupt_lines": len(corrupt),
        "first_corrupt": str(corrupt[0]) if len(corrupt) else None,
    }
