"""Read the made-up official folders of `shared/official`, and map their weights onto this package's modules."""

import os
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from bundle_mllm.modeling import BundleMLLMForCausalLM

SHARED = Path(os.environ.get("BUNDLE_MLLM_SHARED", Path(__file__).parents[3] / "shared")) / "official"
MODALITY_FILES = {
    "visual": "content_feature.pt",
    "bundle_item": "pog_LightGCN_bi_feature.pt",
    "user_item": "item_cf_feature.pt",
}
FUSION_MODULES = {
    "c_encoder.w1": "encoders.visual.linear_1",
    "c_encoder.w2": "encoders.visual.linear_2",
    "c_encoder.w3": "encoders.visual.linear_3",
    "bi_transformation": "encoders.bundle_item",
    "cf_transformation": "encoders.user_item",
    "w_q": "query",
    "w_k": "key",
    "w_v": "value",
}
SEPARATOR = 1000


def load(path):
    return torch.load(path, weights_only=True)


def official_model(name, components):
    """Return the model of one official folder, with its LoRA merged, and the golden outputs."""
    folder = SHARED / name
    backbone = AutoModelForCausalLM.from_pretrained(folder / "base")
    adapter = load(folder / "checkpoint" / "adapter_model.bin")
    weights = backbone.state_dict()
    for key in [key for key in adapter if key.endswith("lora_A.weight")]:
        target = key.removeprefix("base_model.model.").replace("lora_A.weight", "weight")
        weights[target] += 16 / 8 * adapter[key.replace("lora_A", "lora_B")] @ adapter[key]
    features = {modality: load(folder / "pog" / file) for modality, file in MODALITY_FILES.items()}
    model = BundleMLLMForCausalLM.from_backbone(
        backbone,
        modalities={modality: matrix.shape[1] for modality, matrix in features.items()},
        fusion_layer_norm=components,
        fusion_value_map=components,
        separator_token_id=SEPARATOR,
    )
    model.set_catalog(features)
    parts = model.model
    fusion = {
        f"{FUSION_MODULES[key.rpartition('.')[0]]}.{key.rpartition('.')[2]}": value
        for key, value in load(folder / "checkpoint" / "fusion.bin").items()
        if components or not key.startswith("w_v")
    }
    parts.fusion.load_state_dict({**fusion, "no_features.weight": parts.fusion.no_features.weight})
    projector = load(folder / "checkpoint" / "projector_model_fuse.bin")
    names = {"dense1": "linear_1", "output": "linear_2"}
    parts.projector.load_state_dict({f"{names[k.split('.')[0]]}.{k.split('.')[1]}": v for k, v in projector.items()})
    parts.separator.load_state_dict(load(folder / "checkpoint" / "prompt_token.bin"))
    return model, load_file(folder / "golden.safetensors")
