"""The registry: one row per system. Everything that runs over the zoo reads these rows.

A row names its parts by dotted path (`module:attribute`), so that listing the zoo imports neither
TensorFlow nor TFX. The command line, the pipeline, the conformance battery, the benchmarks, the
reproductions and the documentation pages find a system through its row and nowhere else.

What a system shares with others of its kind is in the row of its task: the record type it learns
from, what its SavedModel answers to, what it is measured by.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
from pathlib import Path
from typing import Any, Literal

from tfrz.config import did_you_mean, require
from tfrz.errors import InputError

PLAIN_RECIPE = "tfrz.training.fit:fit"

RecordType = Literal["impression", "history", "list", "logged_action", "timeline"]


@dataclasses.dataclass(frozen=True)
class Paper:
    """Where a system was published."""

    title: str
    authors: str
    venue: str
    url: str


@dataclasses.dataclass(frozen=True)
class TaskEntry:
    """The properties that systems with the same task share.

    Attributes:
      task: `module:class` of the `tfrz.zoo.task.Task`.
      record_type: the type of the training records (see `tfrz.data.records`).
      evaluator: `module:class` of the configuration section `evaluator`.
      signatures: the signatures of the task's SavedModels.
      metrics: the metrics that the Evaluator reports.
      taught: which settings of `distill` apply: those of yes-or-no labels (`clicks`), of slates
        (`lists`), of one item out of all (`items`), or out of those of a batch (`batch`).
    """

    task: str
    record_type: RecordType
    evaluator: str
    signatures: tuple[str, ...]
    metrics: tuple[str, ...]
    taught: Literal["clicks", "lists", "items", "batch"]


@dataclasses.dataclass(frozen=True)
class ModelEntry:
    """One system of the zoo.

    Attributes:
      name: the word that users type.
      title: one line for `tfrz list`.
      paper: the publication.
      task: the row of what it learns (`CLICK`, `NEXT_ITEM`, ...).
      model: `module:class` of the `keras.Model`.
      config: `module:class` of its configuration dataclass.
      layers: `module:class` of the layers it brings; each passes the conformance battery.
      losses: `module:class` of the losses it brings.
      bench: suites of `tfrz bench`.
      reproduce: modules of `tfrz reproduce`.
      recipe: `module:function` that trains it, called like `tfrz.training.fit:fit`, the plain loop.
      report: `module:function` that writes a report on a trained model into the folder
        of its run; called with the task, the model, what was prepared and the folder.
      stages: `module:class` of what its pipeline has beyond the others'; None for nothing.
      long_history: whether it can read stored embeddings of users (`features.long_history`).
      distillation: whether a teacher can train it (`distill.teacher`).
      notes: which parts of the implementation were verified against the paper.
      configs: folder of the YAML files `<dataset>.yaml`; the package's own if not given.
    """

    name: str
    title: str
    paper: Paper
    task: TaskEntry
    model: str
    config: str
    layers: tuple[str, ...] = ()
    losses: tuple[str, ...] = ()
    bench: tuple[str, ...] = ()
    reproduce: tuple[str, ...] = ()
    recipe: str = PLAIN_RECIPE
    report: str | None = None
    stages: str | None = None
    long_history: bool = False
    distillation: bool = False
    notes: str = ""
    configs: str | None = None

    def load(self, part: Literal["model", "config", "recipe"]) -> Any:
        """The object that the row's field `part` names."""
        return resolve(getattr(self, part))

    def new_task(self, config: Any) -> Any:
        """The `tfrz.zoo.task.Task` of one run, from its `RunConfig`."""
        return resolve(self.task.task)(self, config)

    @property
    def record_type(self) -> RecordType:
        """The type of the training records."""
        return self.task.record_type

    @property
    def signatures(self) -> tuple[str, ...]:
        """The signatures of its SavedModel."""
        return self.task.signatures

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics that the Evaluator reports."""
        return self.task.metrics

    @property
    def datasets(self) -> tuple[str, ...]:
        """The words of `--data`: `simulated`, and those with a configuration of their own."""
        found = {path.stem for path in self.config_directory.glob("*.yaml")}
        return ("simulated", *sorted(found - {"simulated", "default"}))

    @property
    def config_directory(self) -> Path:
        """The folder of the row's YAML configurations."""
        if self.configs is not None:
            return Path(self.configs)
        return Path(__file__).parent / "configs" / self.name


def resolve(path: str) -> Any:
    """The object at `module:attribute`."""
    module, _, attribute = path.partition(":")
    require(bool(module and attribute), path, "write a dotted path as module:attribute")
    return getattr(importlib.import_module(module), attribute)


CLICK = TaskEntry(
    task="tfrz.zoo.tasks.click:ClickTask",
    record_type="impression",
    evaluator="tfrz.zoo.run_config:EvaluatorConfig",
    signatures=(
        "serving_default",
        "serving_raw",
        "score",
        "classify",
        "regress",
        "transform_features",
    ),
    metrics=("auc", "log_loss", "calibration"),
    taught="clicks",
)

NEXT_ITEM = TaskEntry(
    task="tfrz.zoo.tasks.history:HistoryTask",
    record_type="history",
    evaluator="tfrz.zoo.run_config:RankingEvaluatorConfig",
    signatures=("serving_default", "serving_raw", "recommend", "transform_features"),
    metrics=("map_at_20", "precision_at_20", "recall_at_10", "recall_at_20", "ndcg_at_20"),
    taught="items",
)

SLATE = TaskEntry(
    task="tfrz.zoo.tasks.slate:SlateTask",
    record_type="list",
    evaluator="tfrz.zoo.run_config:SlateEvaluatorConfig",
    signatures=("serving_default", "serving_raw", "rerank", "rerank_elwc", "transform_features"),
    metrics=("ndcg_at_5", "ndcg_at_10", "map", "err_at_10"),
    taught="lists",
)

RETRIEVAL = TaskEntry(
    task="tfrz.zoo.tasks.retrieval:RetrievalTask",
    record_type="history",
    evaluator="tfrz.zoo.run_config:RankingEvaluatorConfig",
    signatures=(
        "serving_default",
        "serving_raw",
        "recommend",
        "encode",
        "encode_examples",
        "encode_items",
        "transform_features",
    ),
    metrics=(
        "recall_at_10",
        "recall_at_20",
        "recall_at_50",
        "ndcg_at_20",
        "coverage_at_20",
        "gini_at_20",
    ),
    taught="batch",
)

POLICY = TaskEntry(
    task="tfrz.zoo.tasks.reinforce:ReinforceTask",
    record_type="logged_action",
    evaluator="tfrz.zoo.run_config:PolicyEvaluatorConfig",
    signatures=("serving_default", "serving_raw", "recommend", "judge_log", "transform_features"),
    metrics=("recall_at_10", "recall_at_20", "ndcg_at_20", "coverage_at_20", "gini_at_20"),
    taught="items",
)

USER_VECTORS = TaskEntry(
    task="tfrz.zoo.tasks.timeline:TimelineTask",
    record_type="timeline",
    evaluator="tfrz.zoo.run_config:TimelineEvaluatorConfig",
    signatures=(
        "serving_default",
        "serving_raw",
        "encode",
        "score",
        "pool",
        "summarize",
        "transform_features",
    ),
    metrics=("normalized_entropy", "auc", "mse"),
    taught="clicks",
)

_DCN_V2 = ModelEntry(
    name="dcn_v2",
    title="Deep & Cross Network V2 with mixtures of low-rank cross layers",
    paper=Paper(
        title=(
            "DCN V2: Improved Deep & Cross Network and Practical Lessons for Web-scale "
            "Learning to Rank Systems"
        ),
        authors="Wang, Shivanna, Cheng, Jain, Lin, Hong, Chi",
        venue="WWW 2021",
        url="https://arxiv.org/abs/2008.13535",
    ),
    task=CLICK,
    model="tfrz.models.dcn_v2:DCNv2",
    config="tfrz.models.dcn_v2:DCNv2Config",
    layers=(
        "tfrz.layers.cross:Cross",
        "tfrz.layers.cross:LowRankCross",
        "tfrz.layers.cross:MixtureOfLowRankCross",
    ),
    bench=("cross", "serving"),
    reproduce=("tfrz.reproduce.dcn_v2",),
    long_history=True,
    distillation=True,
)

_M3 = ModelEntry(
    name="m3",
    title="Mixture of temporal ranges with a contextual gate: next items from long histories",
    paper=Paper(
        title="Towards Neural Mixture Recommender for Long Range Dependent User Sequences",
        authors="Tang, Belletti, Jain, Chen, Beutel, Xu, Chi",
        venue="WWW 2019",
        url="https://arxiv.org/abs/1902.08588",
    ),
    task=NEXT_ITEM,
    model="tfrz.models.m3:M3",
    config="tfrz.models.m3:M3Config",
    layers=(
        "tfrz.layers.temporal:TinyRangeEncoder",
        "tfrz.layers.temporal:ShortRangeEncoder",
        "tfrz.layers.temporal:LongRangeEncoder",
        "tfrz.layers.temporal:ContextualGate",
        "tfrz.layers.temporal:MultiTemporalRangeMixture",
        "tfrz.layers.baseline_encoders:CaserEncoder",
        "tfrz.layers.baseline_encoders:SelfAttentiveEncoder",
    ),
    losses=("tfrz.losses.retrieval:NegativeSampler",),
    bench=("temporal",),
    notes=(
        "The paper's full text was not at hand. Verified are: a mixture of encoders of different "
        "temporal ranges, and a learned gate that the context drives. Recalled, not checked: the "
        "equations of encoders, gate and objective, and that the recurrent variant is M3R and the "
        "convolutional one M3C. Chosen here: the cell, the kernel size, widths, the sampled "
        "softmax, the cold start. Each choice is a switch of the configuration. No figure of the "
        "paper's tables is quoted."
    ),
    reproduce=("tfrz.reproduce.m3",),
    long_history=True,
    distillation=True,
    report="tfrz.zoo.reports.gates:gate_report",
)

_SEQ2SLATE = ModelEntry(
    name="seq2slate",
    title="Pointer network that re-ranks a list, each choice depending on those before it",
    paper=Paper(
        title="Seq2Slate: Re-ranking and Slate Optimization with RNNs",
        authors="Bello, Kulkarni, Jain, Boutilier, Chi, Eban, Luo, Mackey, Meshi",
        venue="arXiv 2018",
        url="https://arxiv.org/abs/1810.02019",
    ),
    task=SLATE,
    model="tfrz.models.seq2slate:Seq2Slate",
    config="tfrz.models.seq2slate:Seq2SlateConfig",
    layers=(
        "tfrz.layers.pointer:ListEncoder",
        "tfrz.layers.pointer:PointerAttention",
        "tfrz.layers.pointer:PointerDecoder",
    ),
    bench=("pointer",),
    notes=(
        "The paper's full text was not at hand. Verified are: the factorisation, two LSTMs, the "
        "form of the pointer, the trained first input of the decoder, and that a cross-entropy and "
        "a hinge loss per step exist. Corroborated by re-implementations: the weights of the "
        "steps, the one-step decoder, diverse clicks. Recalled, not checked: REINFORCE as used, "
        "the decoder's start from the encoder's last state, similar clicks, widths. Chosen here: "
        "how padding is treated, the normalisation of the cross-entropy, that candidates beyond "
        "the model's length keep the base order. No figure of the paper's tables is quoted."
    ),
    reproduce=("tfrz.reproduce.seq2slate",),
    distillation=True,
    report="tfrz.zoo.reports.rerank:rerank_report",
)

_MULTI_INTEREST = ModelEntry(
    name="multi_interest",
    title="Two-tower retrieval with several vectors a user, trained so that the tail is served too",
    paper=Paper(
        title="Density Weighting for Multi-Interest Personalized Recommendation",
        authors="Mehta, Singh, Yi, Jain, Hong, Chi",
        venue="arXiv 2023",
        url="https://arxiv.org/abs/2308.01563",
    ),
    task=RETRIEVAL,
    model="tfrz.models.multi_interest:MultiInterest",
    config="tfrz.models.multi_interest:MultiInterestConfig",
    layers=(
        "tfrz.layers.interests:MultiInterestAttention",
        "tfrz.layers.interests:ShallowInterestEncoder",
        "tfrz.layers.interests:DeepInterestEncoder",
    ),
    bench=("retrieval",),
    reproduce=("tfrz.reproduce.multi_interest",),
    long_history=True,
    distillation=True,
    recipe="tfrz.training.density_weighting:fit_weighted",
    stages="tfx_pipelines.components.index:IndexStages",
    notes=(
        "The paper's body could not be opened; its abstract was read, and the formulas are those "
        "of the authors' code, which may use other settings than the paper. Chosen here: the "
        "removal of accidental hits, uniform negatives besides the batch's, positions counted from "
        "the last event, contexts and features of items, the density in principal components, the "
        "bound on weights, the split of the data (the authors' windows overlap those of the test). "
        "No figure of the paper's tables is quoted."
    ),
    report="tfrz.zoo.reports.interests:interest_report",
)

_TOPK_REINFORCE = ModelEntry(
    name="topk_reinforce",
    title="Policy gradient from the logs of other policies, corrected for pages of K items",
    paper=Paper(
        title="Top-K Off-Policy Correction for a REINFORCE Recommender System",
        authors="Chen, Beutel, Covington, Jain, Belletti, Chi",
        venue="WSDM 2019",
        url="https://arxiv.org/abs/1812.02353",
    ),
    task=POLICY,
    model="tfrz.models.topk_reinforce:TopKReinforce",
    config="tfrz.models.topk_reinforce:TopKReinforceConfig",
    layers=("tfrz.layers.recurrent:ChaosFreeRNN",),
    losses=("tfrz.losses.reinforce:TopKOffPolicyReinforce",),
    bench=("reinforce",),
    reproduce=("tfrz.reproduce.topk_reinforce",),
    stages="tfx_pipelines.components.off_policy:OffPolicyStages",
    notes=(
        "The equations were checked against a transcription of the paper. Not stated in what could "
        "be read: widths, the discount, the number of negatives, M and K' of serving, the "
        "optimiser. Chosen here: the cap before the multiplier, contexts added to action and "
        "state, that actions without reward update the state. The paper has no table of offline "
        "results; live results are not claimed."
    ),
    distillation=True,
    report="tfrz.zoo.reports.importance:importance_report",
)

_DV365 = ModelEntry(
    name="dv365",
    title="Users' whole histories as a few vectors, made offline for all other models",
    paper=Paper(
        title="DV365: Extremely Long User History Modeling at Instagram",
        authors=(
            "Lyu, Tyagi, Yang, Li, Somani, Shanmugasundaram, Andrejevic, Adeputra, Zeng, Singh, "
            "Ransan, Jain"
        ),
        venue="KDD 2025",
        url="https://arxiv.org/abs/2506.00450",
    ),
    task=USER_VECTORS,
    model="tfrz.models.dv365:DV365",
    config="tfrz.models.dv365:DV365Config",
    layers=(
        "tfrz.layers.history:MultiSlicePooling",
        "tfrz.layers.history:FunnelSummarizer",
        "tfrz.layers.history:LinearCompression",
        "tfrz.layers.history:LongHistoryAdapter",
    ),
    bench=("history",),
    reproduce=("tfrz.reproduce.dv365",),
    stages="tfx_pipelines.components.embeddings:EmbeddingStages",
    distillation=True,
    notes=(
        "The paper's body could not be opened. Read directly is its abstract; agreed on by several "
        "independent readings: the kinds of slices, mean pooling, compression along the tokens, "
        "the multi-task objective, the gap of 24 hours, 4 bits a value, 58 vectors of 256. Not "
        "published: layer sizes, thresholds, gamma. Chosen here: that attention runs over the "
        "dimensions (a switch), that funnel and linear compression are put side by side, the order "
        "of the packed words, the caps in whole chunks, the ranker's layers. No figure of the "
        "paper's tables is quoted."
    ),
)

_ENTRIES: dict[str, ModelEntry] = {
    entry.name: entry
    for entry in (_DCN_V2, _M3, _SEQ2SLATE, _MULTI_INTEREST, _TOPK_REINFORCE, _DV365)
}


def names() -> tuple[str, ...]:
    """The names of all systems, in the order of the registry."""
    return tuple(_ENTRIES)


def get(name: str) -> ModelEntry:
    """The row called `name`.

    Raises:
      InputError: there is none; the message names the nearest.
    """
    if name not in _ENTRIES:
        raise InputError(f"unknown model {name!r}{did_you_mean(name, _ENTRIES)}")
    return _ENTRIES[name]


def register(entry: ModelEntry) -> None:
    """Adds a row at run time: a model of your own joins the command line and the pipeline.

    Raises:
      InputError: the name is taken.
    """
    if entry.name in _ENTRIES:
        raise InputError(f"a model called {entry.name!r} is registered already: choose another")
    _ENTRIES[entry.name] = entry


def unregister(name: str) -> None:
    """Removes a row."""
    _ENTRIES.pop(name, None)


def load_plugins() -> None:
    """Imports the modules that `TFRZ_PLUGINS` names (comma separated); they call `register`.

    Raises:
      InputError: one of them cannot be imported.
    """
    for name in filter(None, os.environ.get("TFRZ_PLUGINS", "").split(",")):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise InputError(
                f"TFRZ_PLUGINS names {name}, which does not import: {error}"
            ) from error
