"""A backbone and a tokenizer become an untrained ranker over a catalog."""

import pytest
import torch
from tiny_models import make_backbone, make_tokenizer
from transformers import BloomConfig, BloomForCausalLM

from bundle_mllm.data import DatasetFolder, make_questions
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.evaluation.scoring import score_questions
from bundle_mllm.interop.backbone import load_backbone, wrap_backbone
from bundle_mllm.modeling.completion_bundle_mllm import BundleCompleter


@pytest.fixture(scope="module")
def data(tiny_data):
    return DatasetFolder.open(tiny_data)


def test_wrapping_leaves_backbone_and_tokenizer_as_they_are(data):
    backbone, tokenizer = make_backbone(), make_tokenizer()
    size = len(tokenizer)
    model, processor = wrap_backbone(backbone, tokenizer, data.catalog, {"visual": 4}, fusion_hidden_size=8)
    assert len(tokenizer) == size and "<|item_separator|>" not in tokenizer.get_vocab()
    assert model.get_input_embeddings().weight is backbone.get_input_embeddings().weight
    assert (processor.modalities, processor.item_ids) == ({"visual": 4}, tuple(data.catalog.item_ids))
    assert processor.max_length == backbone.config.max_position_embeddings
    assert model.config.fusion_hidden_size == 8


def test_a_backbone_that_names_no_longest_prompt_takes_any(data):
    tokenizer = make_tokenizer()
    config = BloomConfig(vocab_size=len(tokenizer), hidden_size=32, n_layer=2, n_head=2)
    model, processor = wrap_backbone(BloomForCausalLM(config), tokenizer, data.catalog, {})
    assert processor.max_length is None
    processor.show_items = False
    questions = make_questions(data.bundles.test, data.catalog, data.bundles, num_candidates=20, seed=0)
    assert len(score_questions(BundleCompleter(processor, ranker=model), questions)["ranker"]) == len(questions)


def test_a_saved_backbone_is_loaded_with_its_tokenizer(tmp_path):
    make_backbone().save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    backbone, tokenizer = load_backbone(str(tmp_path), "bfloat16")
    assert str(backbone.dtype) == "torch.bfloat16" and len(tokenizer) == len(make_tokenizer())


@pytest.mark.parametrize(
    ("name", "message"), [("./no/model", "There is no folder"), ("{tmp}", "cannot be loaded")], ids=["absent", "empty"]
)
def test_a_base_model_that_cannot_be_loaded_is_refused(tmp_path, name, message):
    with pytest.raises(BundleMLLMError, match=message):
        load_backbone(name.format(tmp=tmp_path))


@pytest.mark.parametrize(("before", "after"), [('"content"', '"x"'), ('"version": "1.0"', '"version": []')])
def test_a_base_model_with_a_damaged_tokenizer_is_refused(tmp_path, before, after):
    make_backbone().save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    file = tmp_path / "tokenizer.json"
    file.write_text(file.read_text().replace(before, after, 1))
    with pytest.raises(BundleMLLMError, match="cannot be loaded"):
        load_backbone(str(tmp_path))


def test_without_a_gpu_weights_are_held_in_float32_unless_asked_otherwise(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    make_backbone().to(torch.bfloat16).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    assert load_backbone(str(tmp_path))[0].dtype == torch.float32
    assert load_backbone(str(tmp_path), "bfloat16")[0].dtype == torch.bfloat16


def test_a_gguf_file_is_read_beside_its_folder_and_its_marks_are_removed(tmp_path, monkeypatch):
    asked = []

    def load_model(source, **options):
        asked.append((source, options.get("gguf_file")))
        model = make_backbone()
        model.hf_quantizer, model.is_quantized = object(), True
        model.config.quantization_config = {"quant_method": "gguf"}
        return model, {"missing_keys": []}

    def load_tokenizer(source, **options):
        asked.append((source, options.get("gguf_file")))
        return make_tokenizer()

    monkeypatch.setattr("bundle_mllm.interop.backbone.AutoModelForCausalLM.from_pretrained", load_model)
    monkeypatch.setattr("bundle_mllm.interop.backbone.AutoTokenizer.from_pretrained", load_tokenizer)
    (tmp_path / "small.gguf").touch()
    backbone, _ = load_backbone(str(tmp_path / "small.gguf"))
    assert asked == [(str(tmp_path), "small.gguf")] * 2
    backbone.save_pretrained(tmp_path / "saved")  # refused with the marks
    assert "quantization_config" not in (tmp_path / "saved/config.json").read_text()


def test_a_gguf_file_without_its_reader_names_what_to_install(tmp_path, monkeypatch):
    def fail(source, **options):
        raise ImportError("You need the gguf package")

    monkeypatch.setattr("bundle_mllm.interop.backbone.AutoTokenizer.from_pretrained", fail)
    (tmp_path / "small.gguf").touch()
    with pytest.raises(BundleMLLMError, match=r"bundle-mllm\[gguf\]"):
        load_backbone(str(tmp_path / "small.gguf"))
