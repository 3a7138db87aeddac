"""What is saved can be loaded: by the Auto classes with the package, and from its own files without it."""

import ast
import sys
from pathlib import Path

import pytest
import torch
from tiny_models import MODALITIES, make_backbone, make_model, make_processor
from torch.testing import assert_close
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoProcessor, AutoTokenizer
from transformers.dynamic_module_utils import get_class_from_dynamic_module

import bundle_mllm.modeling
from bundle_mllm.model_folder import save_model
from bundle_mllm.modeling import BundleMLLMForCausalLM, BundleMLLMModel, BundleMLLMProcessor, BundleMLLMTokenizerFast

SOURCES = sorted(Path(bundle_mllm.modeling.__file__).parent.glob("*_bundle_mllm.py"))
QUESTION = {"partial": ["i0", "i5"], "candidates": ["i2", "i3", {"title": "x", "features": {"visual": [0.1] * 12}}]}
EXPECTED_KEYS = {
    "lm_head.weight",
    "model.catalog.features.user_item",
    "model.catalog.features.visual",
    "model.catalog.present",
    "model.fusion.encoders.user_item.bias",
    "model.fusion.encoders.user_item.weight",
    "model.fusion.encoders.visual.linear_1.bias",
    "model.fusion.encoders.visual.linear_1.weight",
    "model.fusion.encoders.visual.linear_2.bias",
    "model.fusion.encoders.visual.linear_2.weight",
    "model.fusion.encoders.visual.linear_3.bias",
    "model.fusion.encoders.visual.linear_3.weight",
    "model.fusion.key.weight",
    "model.fusion.no_features.weight",
    "model.fusion.query.weight",
    "model.projector.linear_1.bias",
    "model.projector.linear_1.weight",
    "model.projector.linear_2.bias",
    "model.projector.linear_2.weight",
    "model.separator.weight",
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder, processor = tmp_path_factory.mktemp("saved"), make_processor(item_noun="garment")
    model = make_model(separator_token_id=processor.separator_token_id, standardize_features=False)
    save_model(model, processor, folder)
    with torch.no_grad():
        inputs = processor(QUESTION, return_tensors="pt")
        return folder, inputs, model(**inputs).logits


def test_the_weights_of_a_checkpoint_are_these():
    assert {key for key in make_model().state_dict() if "language_model" not in key} == EXPECTED_KEYS
    optional = make_model(fusion_value_map=True, standardize_features=True).state_dict().keys() - EXPECTED_KEYS
    assert {key for key in optional if "language_model" not in key} == {
        "model.fusion.value.weight",
        *(f"model.fusion.statistics.{what}.{name}" for what in ("mean", "std") for name in MODALITIES),
    }


@torch.no_grad()
def test_the_auto_classes_load_the_folder_without_a_trust_flag(saved):
    folder, inputs, logits = saved
    assert type(AutoConfig.from_pretrained(folder)).__name__ == "BundleMLLMConfig"
    model, processor = AutoModelForCausalLM.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert type(model) is BundleMLLMForCausalLM and type(processor) is BundleMLLMProcessor
    assert type(tokenizer) is BundleMLLMTokenizerFast
    again = processor(QUESTION, return_tensors="pt")
    assert torch.equal(again["input_ids"], inputs["input_ids"])
    assert tokenizer(processor.render(QUESTION))["input_ids"] == inputs["input_ids"][0].tolist()
    assert_close(model(**again).logits, logits)


@torch.no_grad()
def test_the_base_model_loads_alone(saved):
    folder, inputs, logits = saved
    base = AutoModel.from_pretrained(folder)
    assert type(base) is BundleMLLMModel
    head = AutoModelForCausalLM.from_pretrained(folder).lm_head
    assert_close(head(base(**inputs).last_hidden_state), logits)


def test_every_file_of_the_code_ships_with_the_model(tmp_path):
    make_model().save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.glob("*.py")} == {source.name for source in SOURCES}


@torch.no_grad()
def test_the_shipped_code_gives_the_same_answers(saved, tmp_path, monkeypatch):
    folder, inputs, logits = saved
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.split(".")[0] == "transformers_modules"]:
        monkeypatch.delitem(sys.modules, name)

    def remote(reference):
        found = get_class_from_dynamic_module(reference, folder)
        assert found.__module__.startswith("transformers_modules.")
        return found

    model = remote("modeling_bundle_mllm.BundleMLLMForCausalLM").from_pretrained(folder)
    processor = remote("processing_bundle_mllm.BundleMLLMProcessor").from_pretrained(folder)
    assert "custom_pipelines" in model.config.to_dict()
    assert model.config.items_hash == processor.items_hash
    assert_close(model(**inputs).logits, logits)
    completer = remote("pipeline_bundle_mllm.BundleCompletionPipeline")(model=model, processor=processor, device="cpu")
    assert abs(sum(option["score"] for option in completer(QUESTION)) - 1) < 1e-6


def test_a_checkpoint_with_missing_weights_is_an_error(tmp_path):
    make_backbone().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"not those of this BundleMLLMForCausalLM.*from_backbone"):
        BundleMLLMForCausalLM.from_pretrained(tmp_path, config=make_model().config)


def test_a_checkpoint_with_left_over_weights_is_an_error(tmp_path):
    make_model(fusion_value_map=True).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"1 unexpected \(model.fusion.value.weight\)"):
        BundleMLLMForCausalLM.from_pretrained(tmp_path, fusion_value_map=False)


@torch.no_grad()
def test_stock_weights_load_through_a_key_mapping(tmp_path):
    backbone = make_backbone().eval()
    backbone.save_pretrained(tmp_path)
    mapping = {"^model": "model.language_model"}
    config = make_model().config
    model = BundleMLLMForCausalLM.from_pretrained(tmp_path, config=config, key_mapping=mapping)
    ids = torch.tensor([[1, 60, 61]])
    assert_close(model(input_ids=ids).logits, backbone(input_ids=ids).logits)


def test_an_empty_catalog_survives_saving(tmp_path):
    model = BundleMLLMForCausalLM.from_backbone(make_backbone(), modalities=MODALITIES)
    model.save_pretrained(tmp_path)
    assert BundleMLLMForCausalLM.from_pretrained(tmp_path).config.num_items == 0


def test_nothing_saved_names_a_folder_of_this_machine(tmp_path):
    make_backbone().save_pretrained(tmp_path / "base")
    backbone = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    make_model(backbone).save_pretrained(tmp_path / "model")
    assert str(tmp_path) not in (tmp_path / "model" / "config.json").read_text()


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_shipped_files_follow_the_rules_of_remote_code(source):
    allowed = {"torch", "transformers", "numpy", "safetensors"} | set(sys.stdlib_module_names)
    tree = ast.parse(source.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            assert {alias.name.split(".")[0] for alias in node.names} <= allowed
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            assert node.module.split(".")[0] in allowed
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 1 and f"{node.module}.py" in {path.name for path in SOURCES}
    assert not any(line.lstrip().startswith("from .") for line in ast.get_docstring(tree).splitlines())


def test_the_tokenizer_defines_no_init():
    assert "__init__" not in vars(BundleMLLMTokenizerFast)
