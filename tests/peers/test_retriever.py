"""transformers' suites of models and configurations, on the retriever."""

from typing import ClassVar
from unittest import mock

from full_catalog import full_catalogs
from suites import PeerTest, import_suite
from transformers.models.auto import modeling_auto

from bundle_mllm.modeling import BundleRetriever, BundleRetrieverConfig

common = import_suite("transformers", "test_modeling_common")
ConfigTester = import_suite("transformers", "test_configuration_common").ConfigTester
NUM_ITEMS = 20


class RetrieverTester:
    """What the suites ask: a small configuration, and inputs."""

    batch_size, seq_length, is_training = 3, 4, True
    base_model_class = BundleRetriever
    memberships = None

    def __init__(self, memberships):
        self.memberships = memberships

    def get_config(self):
        return BundleRetrieverConfig(
            modalities={"visual": 5, "user_item": 3},
            num_items=NUM_ITEMS,
            memberships=self.memberships,
            hidden_size=8,
        )

    def prepare_config_and_inputs_for_common(self):
        partial = common.ids_tensor([self.batch_size, 3], NUM_ITEMS)
        options = common.ids_tensor([self.batch_size, self.seq_length], NUM_ITEMS)
        return self.get_config(), {"partial_rows": partial, "option_rows": options}


class RetrieverSuite(common.ModelTesterMixin):
    all_model_classes = (BundleRetriever,)
    has_attentions = test_resize_embeddings = False
    test_can_init_all_missing_weights_before_2023 = True
    memberships = None

    def setUp(self):
        super().setUp()
        self.model_tester = RetrieverTester(self.memberships)
        self.config_tester = ConfigTester(
            self, config_class=BundleRetrieverConfig, has_text_modality=False, common_properties=["hidden_size"]
        )
        names = mock.patch.dict(modeling_auto.MODEL_MAPPING_NAMES, bundle_retriever="BundleRetriever")
        self.enterContext(names)
        self.enterContext(full_catalogs())

    def test_config(self):
        self.config_tester.run_common_tests()


class RetrieverTowersTest(RetrieverSuite, PeerTest):
    pass


class RetrieverTest(RetrieverSuite, PeerTest):
    memberships: ClassVar = {"textual": 12, "user_item": 9}
