"""Pictures through the real libraries: our vectors are those of the library itself, item by item."""

import json
from importlib.util import find_spec

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tiny_encoders import TEXT, VISION, seeded
from transformers import AutoImageProcessor

from bundle_mllm.data import DatasetFolder, write_records
from bundle_mllm.encoders import encode_folder
from bundle_mllm.errors import BundleMLLMError

with_open_clip = pytest.mark.skipif(find_spec("open_clip") is None, reason="open_clip is not installed")
TOWERS = ("clip", "siglip", "siglip2", "blip_2", "dinov2", "dinov2_with_registers")


def make_tower(kind, folder):
    """Write a tiny model and its image processor; return what the whole model makes of a picture's inputs."""
    size = {"size": {"height": 32, "width": 32}}
    crop = {"size": {"shortest_edge": 36}, "crop_size": {"height": 32, "width": 32}}
    qformer = {**TEXT, "encoder_hidden_size": 32}
    opt = {"model_type": "opt", "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    opt |= {"vocab_size": 99, "word_embed_proj_dim": 32, "max_position_embeddings": 32}
    dino = {key: value for key, value in VISION.items() if key != "intermediate_size"}
    names = {
        "clip": ("CLIP", {"vision_config": VISION, "text_config": TEXT, "projection_dim": 24}, "CLIP", crop),
        "siglip": ("Siglip", {"vision_config": VISION, "text_config": TEXT}, "Siglip", size),
        "siglip2": (
            "Siglip2",
            {"vision_config": {**VISION, "num_patches": 16}, "text_config": TEXT},
            "Siglip2",
            {"patch_size": 8, "max_num_patches": 16},
        ),
        "blip_2": (
            "Blip2",
            {"vision_config": VISION, "qformer_config": qformer, "text_config": opt},
            "Blip",
            size,
        ),
        "dinov2": ("Dinov2", dino, "Bit", crop),
        "dinov2_with_registers": ("Dinov2WithRegisters", dino, "Bit", crop),
    }
    name, config, processor, settings = names[kind]
    of_class = "ForConditionalGeneration" if kind == "blip_2" else "Model"
    make = getattr(transformers, f"{name}{of_class}")
    model = seeded(lambda: make(getattr(transformers, f"{name}Config")(**config)))
    model.save_pretrained(folder)
    getattr(transformers, f"{processor}ImageProcessorPil")(**settings).save_pretrained(folder)
    if kind == "blip_2":
        return lambda **inputs: model.vision_model(**inputs).pooler_output
    if kind.startswith("dino"):
        return lambda **inputs: model(**inputs).pooler_output
    return lambda **inputs: model.get_image_features(**inputs).pooler_output


def stored(folder, modality="visual"):
    features, present = DatasetFolder.open(folder).features([modality]).load()
    return features[modality], present[modality]


@pytest.mark.parametrize("kind", TOWERS)
def test_vectors_are_those_of_the_whole_model_alone_on_each_picture(kind, gallery, tmp_path, quiet):
    reference = make_tower(kind, tmp_path / kind)
    summary = encode_folder(gallery, visual=f"transformers:{tmp_path / kind}", batch_size=5)["visual"]
    assert (summary.encoder, summary.num_present) == (f"transformers:{kind}", 12)
    features, present = stored(gallery)
    processor = AutoImageProcessor.from_pretrained(tmp_path / kind, backend="pil")
    expected = []
    for item in DatasetFolder.open(gallery).catalog:
        with Image.open(gallery / item.image) as image, torch.inference_mode():
            pixels = np.asarray(image.convert("RGB"))
            inputs = processor(images=pixels, return_tensors="pt", input_data_format="channels_last")
            expected.append(torch.nn.functional.normalize(reference(**inputs), dim=-1)[0])
    torch.testing.assert_close(features, torch.stack(expected), rtol=0, atol=2e-6)
    assert present.all()
    assert features[0].dot(features[1]) < 0.999  # the pictures do not all look alike to it
    manifest = json.loads((gallery / "features" / "manifest.json").read_text())["visual"]["provenance"]
    assert len(manifest["weights_sha256"]) == 64
    assert manifest["revision"] is None
    assert manifest["precision"] == "float32"
    assert "transparency on white" in manifest["preprocessing"]["pictures"]
    assert str(tmp_path) not in json.dumps(manifest)


def test_other_weights_in_the_same_folder_are_noticed(gallery, tmp_path, quiet):
    make_tower("dinov2", tmp_path / "model")
    spec = f"transformers:{tmp_path / 'model'}"
    encode_folder(gallery, visual=spec)
    assert encode_folder(gallery, visual=spec)["visual"].up_to_date
    config = transformers.Dinov2Config.from_pretrained(tmp_path / "model")
    transformers.Dinov2Model(config).save_pretrained(tmp_path / "model")
    assert not encode_folder(gallery, visual=spec)["visual"].up_to_date


def test_a_checkpoint_that_lacks_a_weight_is_refused(gallery, tmp_path, quiet):
    make_tower("dinov2", tmp_path / "model")
    config = transformers.Dinov2Config.from_pretrained(tmp_path / "model")
    config.num_hidden_layers = 3
    config.save_pretrained(tmp_path / "model")
    with pytest.raises(BundleMLLMError, match=r"lacks 18 weights .*encoder\.layer\.2\..*would be random"):
        encode_folder(gallery, visual=f"transformers:{tmp_path / 'model'}")


def test_a_model_that_cannot_be_loaded_is_one_line(gallery, tmp_path, quiet):
    transformers.BertConfig(**TEXT).save_pretrained(tmp_path / "bert")
    (tmp_path / "empty").mkdir()
    for model, message in (
        ("no-such-org/no-such-model", r"cannot be loaded \(.*\): check its name, or the network \(HF_HUB_OFFLINE=1"),
        (tmp_path / "empty", "cannot be loaded"),
        (tmp_path / "bert", "is of type 'bert', which has no known image tower: take one of type clip, siglip"),
    ):
        with pytest.raises(BundleMLLMError, match=message) as caught:
            encode_folder(gallery, visual=f"transformers:{model}")
        assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def open_clip_folder(tmp_path_factory):
    open_clip = pytest.importorskip("open_clip")
    folder = tmp_path_factory.mktemp("open_clip_model")
    config = {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1},
    }
    model = seeded(lambda: open_clip.CLIP(**config))
    preprocess = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.25], "interpolation": "bicubic", "size": 32}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    from safetensors.torch import save_file

    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return folder


@with_open_clip
def test_open_clip_vectors_are_those_of_open_clip_itself(gallery, open_clip_folder):
    import open_clip

    summary = encode_folder(gallery, visual=f"open_clip:local-dir:{open_clip_folder}", batch_size=5)["visual"]
    assert (summary.dim, summary.num_present) == (24, 12)
    assert summary.encoder == f"open_clip:local-dir:{open_clip_folder.name}"
    model, transform = open_clip.create_model_from_pretrained(f"local-dir:{open_clip_folder}")
    expected = []
    for item in DatasetFolder.open(gallery).catalog:
        with Image.open(gallery / item.image) as image, torch.inference_mode():
            expected.append(model.eval().encode_image(transform(image)[None], normalize=True)[0])
    features, _ = stored(gallery)
    torch.testing.assert_close(features, torch.stack(expected), rtol=0, atol=2e-6)
    assert features[0].dot(features[1]) < 0.999


@with_open_clip
def test_a_pretrained_name_of_open_clip_takes_a_file_in_place_of_a_tag(gallery, open_clip_folder, tmp_path):
    import open_clip

    config = json.loads((open_clip_folder / "open_clip_config.json").read_text())["model_cfg"]
    (tmp_path / "tiny-test-model.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "tiny-test-model.json")
    weights = open_clip_folder / "open_clip_model.safetensors"
    summary = encode_folder(gallery, visual=f"open_clip:tiny-test-model/{weights}")["visual"]
    assert summary.encoder == "open_clip:tiny-test-model/open_clip_model.safetensors"


@with_open_clip
@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("ViT-B-32", r"names no pretrained weights, and random ones would be useless: choose from ViT-B-32/openai, "),
        ("ViT-B-32/nonsense", "names no pretrained weights"),
        ("ViT-Q-1/openai", "names no model of open_clip: give NAME/TAG such as ViT-B-32/laion2b_s34b_b79k"),
        ("local-dir:/nowhere", r"cannot be loaded \(Directory specified via 'local-dir:' schema not found"),
        ("hf-hub:no-such-org/no-such-model", "cannot be loaded"),
        ("ViT-B-32/laion2b_s34b_b79k", "cannot be loaded"),
    ],
)
def test_an_open_clip_model_that_cannot_be_had_is_one_line(gallery, model, message):
    with pytest.raises(BundleMLLMError, match=message) as caught:
        encode_folder(gallery, visual=f"open_clip:{model}")
    assert "\n" not in str(caught.value)


@with_open_clip
def test_an_open_clip_folder_without_weights_is_refused(gallery, open_clip_folder, tmp_path):
    (tmp_path / "open_clip_config.json").write_bytes((open_clip_folder / "open_clip_config.json").read_bytes())
    with pytest.raises(BundleMLLMError, match=r"cannot be loaded \(Required pretrained weights"):
        encode_folder(gallery, visual=f"open_clip:local-dir:{tmp_path}")


@pytest.mark.skipif(find_spec("open_clip") is not None, reason="open_clip is installed")
def test_without_open_clip_the_extra_to_install_is_named(gallery):
    with pytest.raises(BundleMLLMError, match=r'needs open_clip: pip install "bundle-mllm\[encoders\]"'):
        encode_folder(gallery, visual="open_clip:ViT-B-32/openai")


def test_unusual_pictures_are_used_with_a_note_and_unusable_ones_left_out(tmp_path, quiet):
    """Each case of pictures, through a real image processor; the rows of good pictures stay theirs."""
    rng = np.random.default_rng(0)
    pixels = Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8))
    folder = tmp_path / "data"
    folder.mkdir()
    pixels.save(folder / "good.png")
    pixels.convert("CMYK").save(folder / "cmyk.jpg", quality=95)
    pixels.save(folder / "moving.gif", save_all=True, append_images=[pixels.rotate(90)])
    Image.fromarray(rng.integers(0, 65536, (40, 50), dtype=np.uint16)).save(folder / "deep.png")
    Image.new("1", (9_000, 8_000)).save(folder / "bomb.png")
    Image.new("RGB", (1_000, 2)).save(folder / "strip.png")
    (folder / "truncated.jpg").write_bytes((folder / "cmyk.jpg").read_bytes()[:1500])
    (folder / "empty.png").touch()
    (folder / "vector.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")
    names = ["cmyk.jpg", "bomb.png", "moving.gif", "truncated.jpg", "deep.png", "strip.png", "empty.png"]
    names += ["vector.eps", "gone.png", "good.png"]
    write_records(folder / "items.jsonl", [{"item_id": name, "image": name} for name in names])
    write_records(folder / "bundles.jsonl", [{"bundle_id": "b", "items": names[:2], "split": "train"}])
    reference = make_tower("siglip", tmp_path / "model")
    summary = encode_folder(folder, visual=f"transformers:{tmp_path / 'model'}", batch_size=3)["visual"]
    assert {(group.reason, group.used, *group.first) for group in summary.issues} == {
        ("more than 64 million pixels", False, "bomb.png"),
        ("a damaged picture", False, "truncated.jpg"),
        ("more than 100 times as long as wide", False, "strip.png"),
        ("the file is empty", False, "empty.png"),
        ("not a picture", False, "vector.eps"),
        ("no such file", False, "gone.png"),
        ("CMYK, converted to RGB", True, "cmyk.jpg"),
        ("several frames, the first taken", True, "moving.gif"),
        ("more than 8 bits per channel, reduced to 8", True, "deep.png"),
    }
    features, present = stored(folder)
    assert [names[row] for row in present.nonzero()[:, 0]] == ["cmyk.jpg", "moving.gif", "deep.png", "good.png"]
    processor = AutoImageProcessor.from_pretrained(tmp_path / "model", backend="pil")
    with torch.inference_mode():
        expected = reference(**processor(images=pixels, return_tensors="pt"))[0]
    torch.testing.assert_close(features[-1], torch.nn.functional.normalize(expected, dim=0), rtol=0, atol=2e-6)
    assert features[names.index("cmyk.jpg")].dot(features[-1]) > 0.9  # the same picture in other colors of ink
