"""Encoders: each turns one modality of a dataset folder into one vector per item.

It must not know questions, the language model, or any edge outside the training split.
"""

from .base import Encoded, ItemEncoder, Problem, Report
from .batches import BatchEncoder, Reading
from .descriptors import ImageDescriptor, SoundDescriptor
from .encode import ModalitySummary, encode_folder
from .media import UnreadableFileError
from .relational import BundleItemLightGCN, BundleItemSVD, UserItemLightGCN, UserItemSVD
from .specs import ENCODERS
from .textual import TfidfEncoder

__all__ = [
    "BatchEncoder",
    "BundleItemLightGCN",
    "BundleItemSVD",
    "ENCODERS",
    "Encoded",
    "ImageDescriptor",
    "ItemEncoder",
    "ModalitySummary",
    "Problem",
    "Reading",
    "Report",
    "SoundDescriptor",
    "TfidfEncoder",
    "UnreadableFileError",
    "UserItemLightGCN",
    "UserItemSVD",
    "encode_folder",
]
