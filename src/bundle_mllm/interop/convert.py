"""Convert a checkpoint that the authors of Bundle-MLLM published (`xhLiu/Bundle-MLLM`) into a model folder.

Knows nothing about training; what a LoRA checkpoint means is in `lora.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bundle_mllm.data.files import new_folder, read_json, require_file, sha256, write_json
from bundle_mllm.data.torch_files import load_weights
from bundle_mllm.importers.official import OfficialItems, read_official_items
from bundle_mllm.interop.backbone import load_backbone, wrap_backbone
from bundle_mllm.interop.lora import SETTINGS_FILE, WEIGHTS_FILE, check_weights, merge_lora_checkpoint
from bundle_mllm.interop.settings import ConversionSettings
from bundle_mllm.model_folder import CONVERSION_RECORD, save_model
from bundle_mllm.modeling.modeling_bundle_mllm import BundleMLLMForCausalLM
from bundle_mllm.modeling.processing_bundle_mllm import BundleMLLMProcessor
from bundle_mllm.settings import configured_by

FUSION_FILE, PROJECTOR_FILE, SEPARATOR_FILE = "fusion.bin", "projector_model_fuse.bin", "prompt_token.bin"
CHECKPOINT_FILES = (SETTINGS_FILE, WEIGHTS_FILE, FUSION_FILE, PROJECTOR_FILE, SEPARATOR_FILE)
FUSED_MODALITIES = ("visual", "bundle_item", "user_item")
"""What the official fusion fuses; the data folder's descriptions are loaded there, too, and not used."""

# Official name -> name in the module it is loaded into. `w_v` stands in every checkpoint, used or not.
FUSION_WEIGHTS = {
    f"{theirs}.{leaf}": f"{ours}.{leaf}"
    for theirs, ours in {
        "c_encoder.w1": "encoders.visual.linear_1",
        "c_encoder.w2": "encoders.visual.linear_2",
        "c_encoder.w3": "encoders.visual.linear_3",
        "bi_transformation": "encoders.bundle_item",
        "cf_transformation": "encoders.user_item",
    }.items()
    for leaf in ("weight", "bias")
} | {"w_q.weight": "query.weight", "w_k.weight": "key.weight", "w_v.weight": "value.weight"}
PROJECTOR_WEIGHTS = {
    f"{theirs}.{leaf}": f"{ours}.{leaf}"
    for theirs, ours in {"dense1": "linear_1", "output": "linear_2"}.items()
    for leaf in ("weight", "bias")
}

OFFICIAL_LAYOUT = {
    "prompt_template": "Partial {bundle_noun}: {partial}\n{instruction}\nOptions: {options}\n",
    "partial_item_template": "{number}. {item}; ",
    "option_template": "{letter}. {item}; ",
    "item_separator_text": "",
    "item_template": "{title}, {separator}{item}",
    "answer_cue": "Choice:",
    "conversational": False,
}
"""How the official code lays a question out (`BundleMLLM.generate_prompt` and `forward` in its `model.py`): the bundle
before the question, items numbered or lettered and closed by a semicolon, separator and item token after title and
comma, a cue at the end, no chat template. Its wording, several sentences, is not here; who needs it sets
`instruction` and `prompt_template` of the converted folder's processor."""
WITHOUT_SEPARATOR = "{title}, {item}"


@configured_by(ConversionSettings)
def convert_checkpoint(settings: ConversionSettings) -> Path:
    """Turn a published checkpoint into a self-contained model folder.

    LoRA is merged into the backbone; fusion, projector and separator are taken over; the data folder's features become
    the catalog. Its files do not record how it was trained, since a layer norm without weights leaves no trace and
    `w_v` is saved whether it was used or not: the three options must be given as in its training command. `w_v.weight`
    is dropped unless `fusion_value_map`; the vector of an item without features, which no official item is, is zero.

    Args:
        settings: Whose fields are the arguments: see `ConversionSettings`.

    Returns:
        `output_dir`, which the Auto classes and the pipeline load; `conversion.json` in it records its sources.

    Raises:
        BundleMLLMError: If a file is missing, damaged or holds more than tensors; a weight is missing, foreign or of
            another shape than base model and data need; LoRA has a setting that cannot be merged; or `output_dir` is
            not empty.
    """
    checkpoint = settings.checkpoint
    layout = {"shows_separator": settings.shows_separator}
    fusion = {"fusion_layer_norm": settings.fusion_layer_norm, "fusion_value_map": settings.fusion_value_map}
    with new_folder(settings.output_dir) as folder:
        for name in CHECKPOINT_FILES:  # before a large model is loaded
            require_file(checkpoint / name, f"a published checkpoint is a folder of {', '.join(CHECKPOINT_FILES)}")
        official = read_official_items(settings.data, FUSED_MODALITIES)
        backbone, tokenizer = load_backbone(settings.base_model)
        merge_lora_checkpoint(backbone, checkpoint)
        widths = {modality: matrix.shape[1] for modality, matrix in official.features.items()}
        model, processor = wrap_backbone(backbone, tokenizer, official.catalog, widths, **fusion)
        model.set_catalog(dict(official.features))
        _load_item_modules(model, checkpoint)
        _lay_out_questions(processor, official, settings.shows_separator)
        save_model(model, processor, folder)
        write_json(folder / CONVERSION_RECORD, _record(checkpoint, official, fusion | layout))
    return settings.output_dir


@torch.no_grad()
def _load_item_modules(model: BundleMLLMForCausalLM, checkpoint: Path) -> None:
    """Copy all weights of the item modules by name; those that are not used must be there and are dropped."""
    parts, width = model.model, model.config.fusion_hidden_size
    nn.init.zeros_(parts.fusion.no_features.weight)
    unused = {} if model.config.fusion_value_map else {"w_v.weight": (width, width)}
    fusion = {theirs: ours for theirs, ours in FUSION_WEIGHTS.items() if theirs not in unused}
    for module, file, names, dropped in (
        (parts.fusion, FUSION_FILE, fusion, unused),
        (parts.projector, PROJECTOR_FILE, PROJECTOR_WEIGHTS, {}),
        (parts.separator, SEPARATOR_FILE, {"weight": "weight"}, {}),
    ):
        weights, parameters = load_weights(checkpoint / file), dict(module.named_parameters())
        shapes = {theirs: tuple(parameters[ours].shape) for theirs, ours in names.items()} | dropped
        check_weights(checkpoint / file, weights, shapes, "features of the data folder or the width of the base model")
        for theirs, ours in names.items():
            parameters[ours].copy_(weights[theirs])


def _lay_out_questions(processor: BundleMLLMProcessor, official: OfficialItems, shows_separator: bool) -> None:
    music = official.name.lower().startswith("spotify")  # the official rule
    nouns = ("song", "music playlist") if music else ("fashion item", "fashion outfit")
    template = {} if shows_separator else {"item_template": WITHOUT_SEPARATOR}
    for field, value in {**OFFICIAL_LAYOUT, **template, "item_noun": nouns[0], "bundle_noun": nouns[1]}.items():
        setattr(processor, field, value)


def _record(checkpoint: Path, official: OfficialItems, options: Mapping[str, bool]) -> dict[str, Any]:
    """Return what the folder was made of: hashes, the base model's name in the checkpoint, options, versions."""
    inputs = [*(checkpoint / name for name in CHECKPOINT_FILES), *official.feature_files.values()]
    return {
        "base_model": read_json(checkpoint / SETTINGS_FILE).get("base_model_name_or_path"),
        "dataset": official.name,
        "options": options,
        "inputs": {path.name: sha256(path) for path in inputs},
        "versions": {package: version(package) for package in ("bundle-mllm", "torch", "transformers")},
    }
