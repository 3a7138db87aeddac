"""Encoders: each turns one modality of a dataset folder into one vector per item.

It must not know questions, the language model, or any edge outside the training split.
"""

from bundle_mllm.encoders.base import Encoded, ItemEncoder, Problem, Report
from bundle_mllm.encoders.batches import BatchEncoder, Reading
from bundle_mllm.encoders.descriptors import ImageDescriptor, SoundDescriptor
from bundle_mllm.encoders.encode import ModalitySummary, encode_folder
from bundle_mllm.encoders.media import UnreadableFileError
from bundle_mllm.encoders.registry import ENCODERS
from bundle_mllm.encoders.relational import BundleItemLightGCN, BundleItemSVD, UserItemLightGCN, UserItemSVD
from bundle_mllm.encoders.textual import TfidfEncoder

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
