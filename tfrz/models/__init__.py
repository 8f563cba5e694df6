"""The systems as Keras models, each with the dataclass that configures it."""

from tfrz.models.dcn_v2 import DCNv2, DCNv2Config
from tfrz.models.m3 import M3, M3Config
from tfrz.models.multi_interest import MultiInterest, MultiInterestConfig
from tfrz.models.seq2slate import Seq2Slate, Seq2SlateConfig
from tfrz.models.topk_reinforce import TopKReinforce, TopKReinforceConfig

__all__ = [
    "M3",
    "DCNv2",
    "DCNv2Config",
    "M3Config",
    "MultiInterest",
    "MultiInterestConfig",
    "Seq2Slate",
    "Seq2SlateConfig",
    "TopKReinforce",
    "TopKReinforceConfig",
]
