"""Models of sentence-transformers: our vectors are those of the library itself, item by item."""

from importlib.util import find_spec

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tiny_encoders import TEXT, VISION, seeded
from tokenizers import Tokenizer, models, pre_tokenizers

from bundle_mllm.data import DatasetFolder
from bundle_mllm.encoders import encode_folder
from bundle_mllm.errors import BundleMLLMError

if find_spec("sentence_transformers") is None:
    pytest.skip("sentence-transformers is not installed", allow_module_level=True)


def letters():
    """Return a tokenizer whose tokens are letters."""
    names = ["<pad>", "<unk>", "</s>", *"abcdefghijklmnopqrstuvwxyz"]
    tokenizer = Tokenizer(models.WordLevel({name: n for n, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "</s>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=20, **special)


def make_text_model(folder, pooling, prompts=None):
    """Write a tiny model that pools in a way of its own; return it."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer

    config = transformers.BertConfig(**{**TEXT, "vocab_size": 32})
    letters().save_pretrained(folder / "backbone")
    seeded(lambda: transformers.BertModel(config, add_pooling_layer=False)).save_pretrained(folder / "backbone")
    backbone = Transformer(str(folder / "backbone"))
    model = SentenceTransformer(modules=[backbone, Pooling(32, pooling)], prompts=prompts, device="cpu")
    model.save(str(folder / "texts"))
    return model


def make_picture_model(folder):
    """Write a tiny CLIP; return it as the library reads it."""
    from sentence_transformers import SentenceTransformer

    config = transformers.CLIPConfig(vision_config=VISION, text_config=TEXT, projection_dim=24)
    seeded(lambda: transformers.CLIPModel(config)).save_pretrained(folder)
    size = {"size": {"shortest_edge": 36}, "crop_size": {"height": 32, "width": 32}}
    transformers.CLIPProcessor(transformers.CLIPImageProcessorPil(**size), letters()).save_pretrained(folder)
    return SentenceTransformer(str(folder), device="cpu")


def stored(folder, modality):
    return DatasetFolder.open(folder).features([modality]).load()[0][modality]


@pytest.mark.parametrize(("pooling", "prompts"), [("cls", None), ("lasttoken", {"document": "passage "})])
def test_texts_are_pooled_and_prompted_as_the_model_says(pooling, prompts, gallery, tmp_path, quiet):
    model = make_text_model(tmp_path, pooling, prompts)
    name = f"sentence_transformers:{tmp_path / 'texts'}"
    summary = encode_folder(gallery, textual=name, batch_size=5)["textual"]
    assert (summary.encoder, summary.dim) == ("sentence_transformers:texts", 32)
    texts = [item.text for item in DatasetFolder.open(gallery).catalog]
    expected = model.encode_document(texts, convert_to_tensor=True, normalize_embeddings=True)
    torch.testing.assert_close(stored(gallery, "textual"), expected, rtol=0, atol=2e-6)


def test_pictures_are_read_as_the_model_does(gallery, tmp_path, quiet):
    model = make_picture_model(tmp_path / "clip")
    summary = encode_folder(gallery, visual=f"sentence_transformers:{tmp_path / 'clip'}", batch_size=5)["visual"]
    assert (summary.encoder, summary.dim) == ("sentence_transformers:clip", 24)
    pictures = [Image.open(gallery / item.image).convert("RGB") for item in DatasetFolder.open(gallery).catalog]
    expected = model.encode(pictures, convert_to_tensor=True, normalize_embeddings=True)
    np.testing.assert_allclose(stored(gallery, "visual"), expected.cpu(), rtol=0, atol=2e-6)


def test_a_model_of_texts_reads_no_pictures(gallery, tmp_path, quiet):
    make_text_model(tmp_path, "mean")
    with pytest.raises(BundleMLLMError, match="reads text: give a model that reads images"):
        encode_folder(gallery, visual=f"sentence_transformers:{tmp_path / 'texts'}")
