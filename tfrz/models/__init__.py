"""The systems of the zoo as Keras models, each with the dataclass that configures it."""

import tfrz.keras_versions  # noqa: F401  (refuses other backends)
from tfrz.models.base import ZooModel
from tfrz.models.click import ClickModel
from tfrz.models.dcn_v2 import DCNv2, DCNv2Config
from tfrz.models.dv365 import DV365, DV365Config
from tfrz.models.m3 import M3, M3Config
from tfrz.models.multi_interest import MultiInterest, MultiInterestConfig
from tfrz.models.next_item import HistoryModel, NextItemConfig, NextItemModel
from tfrz.models.seq2slate import Seq2Slate, Seq2SlateConfig
from tfrz.models.topk_reinforce import TopKReinforce, TopKReinforceConfig

__all__ = [
    "DV365",
    "M3",
    "ClickModel",
    "DCNv2",
    "DCNv2Config",
    "DV365Config",
    "HistoryModel",
    "M3Config",
    "MultiInterest",
    "MultiInterestConfig",
    "NextItemConfig",
    "NextItemModel",
    "Seq2Slate",
    "Seq2SlateConfig",
    "TopKReinforce",
    "TopKReinforceConfig",
    "ZooModel",
]
