"""The systems as Keras models, each with the dataclass that configures it."""

from tfrz.models.dcn_v2 import DCNv2, DCNv2Config

__all__ = ["DCNv2", "DCNv2Config"]
