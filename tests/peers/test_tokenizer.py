"""transformers' suite of tokenizers, on ours: a stock tokenizer and the virtual item vocabulary."""

import tempfile

from suites import PeerTest, import_suite
from tiny_models import CHAT_TEMPLATE, make_tokenizer

from bundle_mllm.modeling import BundleMLLMTokenizerFast

common = import_suite("transformers", "test_tokenization_common")
backends = import_suite("transformers", "test_tokenizers_backend_mixin")


class TokenizerTest(common.TokenizerTesterMixin, PeerTest):
    tokenizer_class = BundleMLLMTokenizerFast

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        BundleMLLMTokenizerFast.from_tokenizer(make_tokenizer(chat_template=CHAT_TEMPLATE)).save_pretrained(
            cls.tmpdirname
        )


class TokenizerBackendTest(backends.TokenizersBackendTesterMixin, PeerTest):
    rust_tokenizer_class = BundleMLLMTokenizerFast

    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        BundleMLLMTokenizerFast.from_tokenizer(make_tokenizer(chat_template=CHAT_TEMPLATE)).save_pretrained(
            cls.folder.name
        )
        cls.from_pretrained_id = cls.folder.name
        super().setUpClass()
