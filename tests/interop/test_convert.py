"""A published checkpoint becomes a model folder that computes what the official code computes, or nothing at all."""

import json
import os
import shutil

import pytest
import torch
from official_folders import NUM_ITEMS, SHARED, write_data, write_item_modules, write_lora
from safetensors.torch import load_file
from tiny_models import make_backbone, make_tokenizer
from torch.nn.functional import gelu, layer_norm, linear, normalize, relu
from transformers import AutoModelForCausalLM, AutoProcessor, pipeline

from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.interop.convert import convert_checkpoint

HIDDEN = 32


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Folders `data`, `checkpoint` and `base`, whose tokenizer has no padding token and whose vocabulary is padded."""
    folder = tmp_path_factory.mktemp("published")
    write_data(folder / "data")
    write_item_modules(folder / "checkpoint", HIDDEN)
    write_lora(folder / "checkpoint", make_backbone())
    make_backbone(pad_token_id=None).save_pretrained(folder / "base")
    tokenizer = make_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder / "base")
    return folder


def convert(folder, out, **options):
    return convert_checkpoint(folder / "checkpoint", folder / "data", folder / "base", out, **options)


@pytest.fixture(scope="module")
def converted(published, tmp_path_factory):
    return convert(published, tmp_path_factory.mktemp("converted") / "model")


def official_item_embeddings(folder, with_layer_norm, with_values):
    """Compute the paper's equations 4 to 6 and the projector from the published files alone."""
    weights = {
        name: torch.load(folder / "checkpoint" / name, weights_only=True)
        for name in ("fusion.bin", "projector_model_fuse.bin")
    }
    fusion, projector = weights.values()
    content, bundle, user = (
        torch.load(folder / "data" / name, weights_only=True)
        for name in ("content_feature.pt", "pog_LightGCN_bi_feature.pt", "item_cf_feature.pt")
    )
    hidden = normalize(content, dim=-1)
    for number in (1, 2, 3):
        hidden = linear(hidden, fusion[f"c_encoder.w{number}.weight"], fusion[f"c_encoder.w{number}.bias"])
        hidden = relu(hidden) if number < 3 else hidden
    codes = [hidden]
    for name, features in (("bi", bundle), ("cf", user)):
        weight, bias = (fusion[f"{name}_transformation.{leaf}"] for leaf in ("weight", "bias"))
        codes.append(linear(features, weight, bias))
    x = torch.stack([normalize(code, dim=-1) for code in codes], dim=1)  # [items, 3, 64]
    x = layer_norm(x, (64,)) if with_layer_norm else x
    query, key, value = (x @ fusion[f"w_{letter}.weight"].T for letter in "qkv")
    attention = (query @ key.transpose(1, 2) / 8).softmax(dim=-1)
    fused = (attention @ (value if with_values else x)).mean(dim=1)
    hidden = gelu(linear(fused, projector["dense1.weight"], projector["dense1.bias"]))
    return linear(hidden, projector["output.weight"], projector["output.bias"])


@pytest.mark.parametrize("with_layer_norm", [False, True])
@pytest.mark.parametrize("with_values", [False, True])
@torch.inference_mode()
def test_item_embeddings_are_those_of_the_published_weights(published, tmp_path, with_layer_norm, with_values):
    out = convert(published, tmp_path / "out", fusion_layer_norm=with_layer_norm, fusion_value_map=with_values)
    found = AutoModelForCausalLM.from_pretrained(out).get_item_embeddings(torch.arange(NUM_ITEMS))
    for options in ((False, False), (False, True), (True, False), (True, True)):
        expected = official_item_embeddings(published, *options)
        assert torch.allclose(found, expected, atol=1e-5) == (options == (with_layer_norm, with_values))


@torch.inference_mode()
def test_text_is_read_as_by_base_model_and_adapter_together(published, converted, tmp_path):
    adapted = write_lora(tmp_path, make_backbone())
    ids = torch.arange(5, 25).unsqueeze(0)
    model = AutoModelForCausalLM.from_pretrained(converted)
    assert torch.allclose(model(input_ids=ids).logits, adapted(input_ids=ids).logits, atol=1e-5)


@torch.inference_mode()
def test_the_separator_is_shown_by_a_token_that_the_embedding_does_not_hold(published, converted):
    model, processor = (auto.from_pretrained(converted) for auto in (AutoModelForCausalLM, AutoProcessor))
    separator = torch.load(published / "checkpoint" / "prompt_token.bin", weights_only=True)["weight"]
    token = processor.tokenizer("<|item_separator|>", add_special_tokens=False)["input_ids"]
    assert model.model.embed(torch.tensor([token])).tolist() == separator.unsqueeze(0).tolist()
    assert model.get_input_embeddings().weight.shape == (420, HIDDEN)
    assert model.model.fusion.no_features.weight.abs().max() == 0
    assert processor.modalities == {"bundle_item": 64, "user_item": 64, "visual": 12}
    assert processor.tokenizer.pad_token is not None


def test_the_folder_answers_questions_laid_out_as_in_training(converted):
    completer = pipeline("bundle-completion", model=str(converted))
    ranked = completer({"partial": ["2", "4"], "candidates": ["0", "8", "6"]})
    assert {option["item_id"] for option in ranked} == {"0", "8", "6"}
    text = completer.processor.render({"partial": ["2", "4"], "candidates": ["0", "8"]})
    assert text == (
        "Partial fashion outfit: 1. item number 2, <|item_separator|><|item_2|>; "
        "2. item number 4, <|item_separator|><|item_4|>; \n"
        "Which fashion item completes the fashion outfit?\n"
        "Options: A. item number 0, <|item_separator|><|item_0|>; B. item number 8, <|item_separator|><|item_8|>; \n"
        "Choice:"
    )


def test_a_checkpoint_trained_without_the_separator_is_asked_without_it(published, tmp_path):
    shutil.copytree(published / "data", tmp_path / "data", ignore=shutil.ignore_patterns("*.txt", "description*"))
    (tmp_path / "data" / "pog_LightGCN_bi_feature.pt").rename(tmp_path / "data" / "spotify_LightGCN_bi_feature.pt")
    for name in ("checkpoint", "base"):
        (tmp_path / name).symlink_to(published / name)
    out = convert(tmp_path, tmp_path / "out", shows_separator=False)
    text = AutoProcessor.from_pretrained(out).render({"partial": ["2"], "candidates": ["0", "8"]})
    assert "1. item number 2, <|item_2|>; " in text
    assert "music playlist" in text and "song" in text


def test_the_record_tells_what_the_folder_was_made_of(published, converted):
    record = json.loads((converted / "conversion.json").read_text())
    assert record["options"] == {"fusion_layer_norm": False, "fusion_value_map": False, "shows_separator": True}
    assert record["dataset"] == "pog"
    assert {"adapter_model.bin", "fusion.bin", "content_feature.pt"} <= set(record["inputs"])
    text = b"".join(path.read_bytes() for path in converted.iterdir() if path.suffix == ".json")
    assert str(published).encode() not in text and str(converted.parent).encode() not in text


def change_weights(path, change):
    weights = torch.load(path, weights_only=True)
    change(weights)
    torch.save(weights, path)


def drop(file, name):
    return lambda folder: change_weights(folder / "checkpoint" / file, lambda weights: weights.pop(name))


def put(file, name, value):
    return lambda folder: change_weights(folder / "checkpoint" / file, lambda weights: weights.update({name: value}))


def other_base(folder):
    shutil.rmtree(folder / "base")
    make_backbone(hidden_size=48).save_pretrained(folder / "base")
    make_tokenizer().save_pretrained(folder / "base")


def other_width(folder):
    torch.save(torch.ones(NUM_ITEMS, 7), folder / "data" / "content_feature.pt")


def truncate(name):
    def spoil(folder):
        path = folder / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return spoil


def base_without_a_weight(folder):
    backbone = make_backbone()
    state = backbone.state_dict()
    del state["model.layers.1.mlp.up_proj.weight"]
    backbone.save_pretrained(folder / "base", state_dict=state)


LORA_KEY = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
BAD = {
    **{
        f"no {name}": (lambda folder, name=name: (folder / "checkpoint" / name).unlink(), f"There is no file .*{name}")
        for name in ("adapter_config.json", "adapter_model.bin", "fusion.bin", "prompt_token.bin")
    },
    "half of the fusion": (truncate("checkpoint/fusion.bin"), "fusion.bin is no file of tensors, or damaged"),
    "half of the adapter": (truncate("checkpoint/adapter_model.bin"), "adapter_model.bin is no file of tensors, or"),
    "half of the base": (truncate("base/model.safetensors"), "base model .* cannot be loaded"),
    "a base with a hole": (base_without_a_weight, "lacks 1 weights .*up_proj"),
    "an object": (
        lambda folder: torch.save({"weight": torch.nn.Linear(2, 2)}, folder / "checkpoint" / "prompt_token.bin"),
        "prompt_token.bin holds the Python object torch.nn.*foreign code",
    ),
    "no tensors": (put("fusion.bin", "w_q.weight", 3), "fusion.bin does not map names to tensors"),
    "NaN": (put("fusion.bin", "w_q.weight", torch.full((64, 64), torch.nan)), "'w_q.weight', holds NaN"),
    "no fusion weight": (drop("fusion.bin", "cf_transformation.bias"), r"lacks 1 weights \(cf_transformation.bias\)"),
    "no unused weight": (drop("fusion.bin", "w_v.weight"), r"lacks 1 weights \(w_v.weight\)"),
    "sp_guided": (put("fusion.bin", "w_q2.weight", torch.ones(64, HIDDEN)), r"unknown 1 weights \(w_q2.weight\)"),
    "another fusion shape": (put("fusion.bin", "w_k.weight", torch.ones(64, 32)), r"w_k.weight of shape \[64, 32\]"),
    "another unused shape": (put("fusion.bin", "w_v.weight", torch.ones(64, 32)), r"w_v.weight of shape \[64, 32\]"),
    "no projector weight": (drop("projector_model_fuse.bin", "output.bias"), r"lacks 1 weights \(output.bias\)"),
    "two separators": (put("prompt_token.bin", "weight", torch.ones(2, HIDDEN)), r"\[2, 32\], but \[1, 32\]"),
    "no adapter weight": (drop("adapter_model.bin", LORA_KEY), "adapter_model.bin lacks 1 weights .*q_proj.lora_A"),
    "a foreign adapter weight": (
        put("adapter_model.bin", LORA_KEY.replace("0", "7"), torch.ones(4, HIDDEN)),
        "unknown 1 weights .*layers.7",
    ),
    "a base of another width": (other_base, r"lora_A.weight of shape \[4, 32\], but \[4, 48\].* base model"),
    "features of another width": (other_width, r"c_encoder.w1.weight of shape \[12, 12\], but \[7, 7\].*data folder"),
    "another number of items": (
        lambda folder: torch.save(torch.ones(8, 64), folder / "data" / "item_cf_feature.pt"),
        "item_cf_feature.pt has 8 rows",
    ),
    "no base": (lambda folder: shutil.rmtree(folder / "base"), "There is no folder .*base with a base model"),
    "no data": (lambda folder: shutil.rmtree(folder / "data"), "There is no folder .*data"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_named_and_leaves_nothing(published, tmp_path, name):
    spoil, message = BAD[name]
    shutil.copytree(published, tmp_path / "in")
    spoil(tmp_path / "in")
    with pytest.raises(BundleMLLMError, match=message):
        convert(tmp_path / "in", tmp_path / "out")
    assert os.listdir(tmp_path) == ["in"]


def test_a_folder_with_files_is_not_touched(published, converted):
    before = sorted(os.listdir(converted))
    with pytest.raises(BundleMLLMError, match="not empty"):
        convert(published, converted)
    assert sorted(os.listdir(converted)) == before


golden = pytest.mark.skipif(not SHARED.is_dir(), reason="shared/official is not here")


@pytest.fixture(scope="module", params=[("default", False), ("components", True)], ids=["default", "components"])
def official(request, tmp_path_factory):
    """The converted golden folder, loaded again, and what the official code computed."""
    name, components = request.param
    out = convert_checkpoint(
        SHARED / name / "checkpoint",
        SHARED / name / "pog",
        SHARED / name / "base",
        tmp_path_factory.mktemp("golden") / name,
        fusion_layer_norm=components,
        fusion_value_map=components,
    )
    outputs = load_file(SHARED / name / "golden.safetensors")
    with torch.inference_mode():
        yield AutoModelForCausalLM.from_pretrained(out), AutoProcessor.from_pretrained(out), outputs


@golden
def test_items_and_separator_are_those_of_the_official_code(official):
    model, _, outputs = official
    rows = torch.arange(40)
    fused = model.model.fusion(*model.model.catalog.gather(rows))
    assert torch.allclose(fused, outputs["fused"], atol=1e-5, rtol=0)
    assert torch.allclose(model.get_item_embeddings(rows), outputs["item_embeddings"], atol=1e-5, rtol=0)
    assert torch.equal(model.model.separator.weight, outputs["separator"])


@golden
@pytest.mark.parametrize("index", range(4))
def test_logits_are_those_of_the_official_code(official, index):
    model, processor, outputs = official
    sequence = outputs[f"sequence_{index}"]
    items = model.config.item_token_offset - 2 - sequence
    ids = torch.where(sequence >= 0, sequence, torch.where(sequence == -1, processor.separator_token_id, items))
    logits = model(input_ids=ids.unsqueeze(0)).logits[0]
    assert torch.allclose(logits, outputs[f"logits_{index}"], atol=1e-5, rtol=0)
