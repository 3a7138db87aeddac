"""Encoders: each turns one modality of a dataset folder into one vector per item.

Knows nothing about questions, the language model, or bundles outside the training split.
"""

from typing import TYPE_CHECKING

from bundle_mllm.lazy import lazy_names

if TYPE_CHECKING:
    from bundle_mllm.encoders.base import Encoded as Encoded
    from bundle_mllm.encoders.base import IssueGroup as IssueGroup
    from bundle_mllm.encoders.base import ItemEncoder as ItemEncoder
    from bundle_mllm.encoders.base import ItemIssue as ItemIssue
    from bundle_mllm.encoders.batches import BatchEncoder as BatchEncoder
    from bundle_mllm.encoders.batches import Reading as Reading
    from bundle_mllm.encoders.descriptors import ImageDescriptor as ImageDescriptor
    from bundle_mllm.encoders.descriptors import SoundDescriptor as SoundDescriptor
    from bundle_mllm.encoders.encode import ModalitySummary as ModalitySummary
    from bundle_mllm.encoders.encode import encode_folder as encode_folder
    from bundle_mllm.encoders.media import UnreadableFileError as UnreadableFileError
    from bundle_mllm.encoders.registry import ENCODERS as ENCODERS
    from bundle_mllm.encoders.relational import BundleItemEncoder as BundleItemEncoder
    from bundle_mllm.encoders.relational import TruncatedSVD as TruncatedSVD
    from bundle_mllm.encoders.relational import UserItemEncoder as UserItemEncoder
    from bundle_mllm.encoders.textual import TfidfEncoder as TfidfEncoder
else:
    __getattr__, __dir__ = lazy_names(__name__, __file__)
