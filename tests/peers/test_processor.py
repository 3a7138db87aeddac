"""transformers' suite of processors, on the ranker's processor, which reads texts and chats as well as questions."""

from suites import PeerTest, import_suite
from tiny_models import CHAT_TEMPLATE, ITEM_IDS, MODALITIES, TITLES, make_tokenizer

from bundle_mllm.modeling import BundleItemProcessor, BundleMLLMProcessor, BundleMLLMTokenizerFast

ProcessorTesterMixin = import_suite("transformers", "test_processing_common").ProcessorTesterMixin


class ProcessorTest(ProcessorTesterMixin, PeerTest):
    processor_class = BundleMLLMProcessor

    @classmethod
    def _setup_tokenizer(cls):
        return BundleMLLMTokenizerFast.from_tokenizer(make_tokenizer(chat_template=CHAT_TEMPLATE))

    @staticmethod
    def prepare_processor_dict():
        return {"modalities": MODALITIES, "max_title_tokens": 4, "item_noun": "garment"}

    @classmethod
    def _setup_test_attributes(cls, processor):
        processor.set_items(ITEM_IDS, TITLES)  # not fields: they are saved in a file of their own


class ItemProcessorTest(ProcessorTest):
    processor_class = BundleItemProcessor

    @staticmethod
    def prepare_processor_dict():
        return {"modalities": MODALITIES}
