"""Encoders: each turns one modality of a dataset folder into one vector per item.

It must not know questions, the language model, or any edge outside the training split.
"""

from .base import Encoded, ItemEncoder, Problem
from .descriptors import ImageDescriptor, SoundDescriptor
from .encode import ModalitySummary, encode_folder
from .relational import BundleItemSVD, UserItemSVD

__all__ = [
    "BundleItemSVD",
    "Encoded",
    "ImageDescriptor",
    "ItemEncoder",
    "ModalitySummary",
    "Problem",
    "SoundDescriptor",
    "UserItemSVD",
    "encode_folder",
]
