"""transformers' suites of models, generation and configurations, on the ranker: text alone, and with items."""

from unittest import mock

import torch
from full_catalog import full_catalogs
from suites import PeerTest, import_suite
from transformers import LlamaConfig
from transformers.models.auto import modeling_auto

from bundle_mllm.modeling import BundleMLLMConfig, BundleMLLMForCausalLM, BundleMLLMModel

common = import_suite("transformers", "test_modeling_common")
ConfigTester = import_suite("transformers", "test_configuration_common").ConfigTester
NUM_ITEMS, NUM_WORDS, SEPARATOR = 6, 90, 95


class RankerTester:
    """What the suites ask: a small configuration, and inputs."""

    batch_size, seq_length, is_training = 3, 7, True
    vocab_size, hidden_size, num_hidden_layers, num_attention_heads = 99, 32, 2, 4
    base_model_class, causal_lm_class = BundleMLLMModel, BundleMLLMForCausalLM

    def __init__(self, tied, with_items):
        self.tied, self.with_items = tied, with_items

    def get_config(self):
        backbone = LlamaConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=48,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            num_key_value_heads=2,
            max_position_embeddings=512,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            tie_word_embeddings=self.tied,
        )
        return BundleMLLMConfig(
            text_config=backbone,
            modalities={"visual": 5, "user_item": 3},
            num_items=NUM_ITEMS,
            fusion_hidden_size=8,
            mlp_hidden_size=8,
            separator_token_id=SEPARATOR,
        )

    def prepare_config_and_inputs_for_common(self):
        config = self.get_config()
        input_ids = common.ids_tensor([self.batch_size, self.seq_length], NUM_WORDS - 3) + 3
        if self.with_items:
            input_ids[:, 2], input_ids[:, 5] = SEPARATOR, SEPARATOR
            rows = common.ids_tensor([self.batch_size, 2], NUM_ITEMS)
            input_ids[:, 3], input_ids[:, 6] = (config.item_token_offset + rows).T
        return config, {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids).tril()}


class RankerSuite(common.ModelTesterMixin, common.GenerationTesterMixin):
    all_model_classes = (BundleMLLMModel, BundleMLLMForCausalLM)
    tied = with_items = False
    _is_composite = test_can_init_all_missing_weights_before_2023 = True

    def setUp(self):
        super().setUp()
        self.model_tester = RankerTester(self.tied, self.with_items)
        self.config_tester = ConfigTester(self, config_class=BundleMLLMConfig, has_text_modality=False)
        for names, name in (
            (modeling_auto.MODEL_MAPPING_NAMES, "BundleMLLMModel"),
            (modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, "BundleMLLMForCausalLM"),
        ):
            self.enterContext(mock.patch.dict(names, bundle_mllm=name))
        if self.with_items:
            self.enterContext(full_catalogs())

    def test_config(self):
        self.config_tester.run_common_tests()


class RankerTextTest(RankerSuite, PeerTest):
    test_all_params_have_gradient = False  # text trains no fusion


class RankerTextTiedTest(RankerTextTest):
    tied = True


class RankerItemsTest(RankerSuite, PeerTest):
    with_items = True


class RankerItemsTiedTest(RankerItemsTest):
    tied = True
