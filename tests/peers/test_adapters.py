"""peft's suite of decoders, on the ranker: text alone, and with items."""

from contextlib import nullcontext

import pytest
import torch
from datasets import Dataset, DatasetDict
from peft import IA3Config, LoraConfig, PrefixTuningConfig, PromptTuningConfig
from suites import import_suite
from tiny_models import SENTENCES, make_backbone, make_model, make_tokenizer

common = import_suite("peft", "testing_common")
decoders = import_suite("peft", "test_decoder_models")

# The tests are parametrized by these lists of models and methods. A model is a folder: see `rankers`.
decoders.PEFT_DECODER_MODELS_TO_TEST[:] = decoders.SMALL_GRID_MODELS[:] = ["ranker", "tied"]
settings = dict(reversed(decoders.ALL_CONFIGS))  # the first ones of each method
decoders.ALL_CONFIGS[:] = [
    pytest.param(LoraConfig, settings[LoraConfig], id="lora"),
    pytest.param(LoraConfig, settings[LoraConfig] | {"use_dora": True}, id="dora"),
    pytest.param(IA3Config, settings[IA3Config], id="ia3"),
    pytest.param(PrefixTuningConfig, settings[PrefixTuningConfig], id="prefix-tuning"),
    pytest.param(PromptTuningConfig, settings[PromptTuningConfig], id="prompt-tuning"),
]
NAMED_MODELS = (
    "hf-internal-testing/tiny-random-Gemma3ForCausalLM",
    "hf-internal-testing/tiny-random-MistralForCausalLM",
    "peft-internal-testing/tiny-dummy-qwen2",
    "peft-internal-testing/tiny-random-OPTForCausalLM",
    "peft-internal-testing/tiny-random-gemma4-E2B",
    "trl-internal-testing/tiny-Qwen3ForCausalLM",
    "trl-internal-testing/tiny-random-LlamaForCausalLM",
)
"""Models that tests name: a ranker takes their places."""
SEPARATOR, ITEMS = 401, 1 << 20
READ_BY_TESTS = {"eos_token_id": 2, "vocab_size": 420}
"""What the configurations of plain decoders hold, and ours in `text_config` alone."""

decoders.load_dataset_english_quotes = lambda: DatasetDict({"train": Dataset.from_dict({"quote": SENTENCES})})
common.hub_online_once = decoders.hub_online_once = nullcontext  # nothing asks the Hub


@pytest.fixture(scope="module")
def rankers(tmp_path_factory):
    """A folder of rankers, each with its tokenizer, by the names above."""
    folder = tmp_path_factory.mktemp("rankers")
    for name, is_tied in (("ranker", False), ("tied", True)):
        backbone = make_backbone(hidden_size=64, tie_word_embeddings=is_tied)  # the suite's highest rank is 20
        make_model(backbone, separator_token_id=SEPARATOR, **READ_BY_TESTS).save_pretrained(folder / name)
        make_tokenizer().save_pretrained(folder / name)
    for name in NAMED_MODELS:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).symlink_to(folder / "ranker")
    return folder


class TestAdaptersText(decoders.TestDecoderModels):
    @pytest.fixture(autouse=True)
    def among_rankers(self, rankers, monkeypatch):
        monkeypatch.chdir(rankers)
        torch.manual_seed(0)


class TestAdaptersItems(TestAdaptersText):
    def prepare_inputs_for_testing(self):
        ids = torch.tensor([[1, SEPARATOR, ITEMS + 2], [ITEMS + 5, 2, ITEMS]])
        return super().prepare_inputs_for_testing() | {"input_ids": ids}
