"""The systems as Keras models, each with the dataclass that configures it."""

from tfrz.models.dcn_v2 import DCNv2, DCNv2Config
from tfrz.models.m3 import M3, M3Config

__all__ = ["M3", "DCNv2", "DCNv2Config", "M3Config"]
