"""Both configurations: one order of modalities, the defaults of the official code, impossible fields named."""

import json

import pytest
from transformers import GPT2Config, LlamaConfig

from bundle_mllm.modeling import BundleMLLMConfig, BundleRetrieverConfig

BOTH = pytest.mark.parametrize("config_class", [BundleMLLMConfig, BundleRetrieverConfig])


@BOTH
def test_modalities_keep_one_order_through_json(config_class, tmp_path):
    config = config_class(modalities={"visual": 4, "acoustic": 3, "user_item": 2})
    config.save_pretrained(tmp_path)
    loaded = config_class.from_pretrained(tmp_path)
    assert list(config.modalities) == list(loaded.modalities) == ["acoustic", "user_item", "visual"]
    assert loaded.to_dict() == config.to_dict()


def test_the_fields_of_a_retriever_survive_saving(tmp_path):
    fields = {"memberships": {"textual": 3, "bundle_item": 0}, "hidden_size": 7, "items_hash": "0" * 64}
    BundleRetrieverConfig(**fields).save_pretrained(tmp_path)
    loaded = BundleRetrieverConfig.from_pretrained(tmp_path)
    assert list(loaded.memberships.items()) == [("bundle_item", 0), ("textual", 3)]
    assert (loaded.hidden_size, loaded.items_hash) == (7, "0" * 64)


def test_the_defaults_are_those_of_the_official_code():
    config = BundleMLLMConfig()
    assert (config.fusion_hidden_size, config.mlp_hidden_size, config.projector_hidden_size) == (64, 256, 128)
    assert not config.fusion_layer_norm and not config.fusion_value_map and not config.standardize_features


def test_the_projector_follows_the_width_of_the_fusion_unless_given():
    assert BundleMLLMConfig(fusion_hidden_size=10).projector_hidden_size == 20
    assert BundleMLLMConfig(fusion_hidden_size=10, projector_hidden_size=7).projector_hidden_size == 7


def test_tying_follows_the_backbone_unless_given():
    assert BundleMLLMConfig(text_config=GPT2Config()).tie_word_embeddings is True
    assert BundleMLLMConfig(text_config=LlamaConfig()).tie_word_embeddings is False
    assert BundleMLLMConfig(text_config=GPT2Config(), tie_word_embeddings=False).tie_word_embeddings is False


@pytest.mark.parametrize(
    ("config_class", "names"),
    [
        (BundleMLLMConfig, {"AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoTokenizer", "AutoProcessor"}),
        (BundleRetrieverConfig, {"AutoConfig", "AutoModel", "AutoProcessor"}),
    ],
)
def test_every_auto_class_is_in_the_saved_file(config_class, names, tmp_path):
    config_class().save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert set(saved["auto_map"]) == names
    assert set(saved["custom_pipelines"]) == {"bundle-completion"}
    assert saved["format_version"] == 2


@BOTH
def test_a_loaded_configuration_does_not_demand_remote_code(config_class, tmp_path):
    config_class().save_pretrained(tmp_path)
    assert "custom_pipelines" not in vars(config_class.from_pretrained(tmp_path))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"modalities": {"Visual": 4}}, "'Visual'.*lower-case"),
        ({"modalities": {"visual.0": 4}}, "'visual.0'.*lower-case"),
        ({"modalities": {"items": 4}}, "'items'"),
        ({"modalities": {"visual": 0}}, "'visual' has width 0"),
        ({"fusion_hidden_size": 0}, "fusion_hidden_size is 0"),
        ({"num_items": -1}, "num_items is -1"),
        ({"item_token_offset": 100}, "item_token_offset is 100.*32000"),
    ],
)
def test_an_impossible_field_of_a_ranker_is_an_error_that_names_it(fields, message):
    with pytest.raises(ValueError, match=message):
        BundleMLLMConfig(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"modalities": {"Visual": 4}}, "'Visual'.*lower-case"),
        ({"modalities": {"visual": True}}, "'visual' has width True"),
        ({"hidden_size": 0}, "hidden_size is 0"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"collaborative_dropout": -0.1}, "collaborative_dropout is -0.1"),
        ({"num_items": -1}, "num_items is -1"),
    ],
)
def test_an_impossible_field_of_a_retriever_is_an_error_that_names_it(fields, message):
    with pytest.raises(ValueError, match=message):
        BundleRetrieverConfig(**fields)


@BOTH
def test_a_newer_format_is_refused(config_class):
    with pytest.raises(ValueError, match=r"format_version 3, and this code reads 2: update bundle-mllm"):
        config_class(format_version=3)


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        (BundleMLLMConfig, "fusion_hidden_size", "x"),
        (BundleMLLMConfig, "modalities", [1]),
        (BundleMLLMConfig, "mlp_modalities", [None, "visual"]),
        (BundleMLLMConfig, "head_bias", "yes"),
        (BundleMLLMConfig, "text_config", 3),
        (BundleMLLMConfig, "format_version", "3"),
        (BundleRetrieverConfig, "hidden_size", 2.5),
        (BundleRetrieverConfig, "dropout", None),
        (BundleRetrieverConfig, "memberships", {"textual": "x"}),
    ],
)
def test_a_value_of_another_type_is_refused_by_name(kind, name, value):
    with pytest.raises(ValueError, match=name):
        kind(**{name: value})
