"""Tiny folders in the formats that the authors of Bundle-MLLM published, and where the golden ones may be."""

import json
import os
from pathlib import Path

import torch

SHARED = Path(os.environ.get("BUNDLE_MLLM_SHARED", Path(__file__).parents[3] / "shared")) / "official"
WIDTHS = {
    "content_feature.pt": 12,
    "description_feature.pt": 10,
    "item_cf_feature.pt": 64,
    "{name}_LightGCN_bi_feature.pt": 64,
}
NUM_ITEMS = 9
LINES = {
    "bi_train.txt": ["0, 1, 2, 3", "1, 4, 5"],
    "bi_valid_input.txt": ["2, 0, 1"],
    "bi_valid_gt.txt": ["2, 8"],
    "bi_test_input.txt": ["3, 2, 3, 4, 5", "4, 6"],
    "bi_test_gt.txt": ["3, 7, 8", "4, 0"],
    "bi_test_cans3.txt": [
        "[3, [2, 4, 9], [1], [0, 8, 6]]",
        "[4, [6, 9, 9], [0], [0, 5, 8]]",
        "[3, [5, 9, 9], [2], [0, 1, 7]]",
    ],
    "ui_full.txt": ["0, 1, 2, 1", "1, 8", "2", "0, 3"],
}


def write_data(folder, name="pog"):
    """Write a data folder of 9 items, 5 bundles and 3 test questions; user 0 has item 1 twice."""
    folder.mkdir(parents=True)
    (folder / "count.json").write_text(json.dumps({"#U": 3, "#B": 5, "#I": NUM_ITEMS}))
    info = {str(row): {"title_en": f"item number {row}", "cate": row % 2} for row in range(NUM_ITEMS)}
    (folder / "item_info.json").write_text(json.dumps(info))
    for file, lines in LINES.items():
        (folder / file).write_text("\n".join(lines) + "\n")
    generator = torch.Generator().manual_seed(0)
    for file, width in WIDTHS.items():
        torch.save(torch.randn(NUM_ITEMS, width, generator=generator), folder / file.format(name=name))
    return folder


def write_item_modules(folder, hidden_size):
    """Write fusion.bin, projector_model_fuse.bin and prompt_token.bin of a checkpoint folder."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(1)

    def linear(name, inputs, outputs, bias=True):
        weights = {f"{name}.weight": torch.randn(outputs, inputs, generator=generator) / inputs**0.5}
        return weights | ({f"{name}.bias": torch.randn(outputs, generator=generator)} if bias else {})

    width = WIDTHS["content_feature.pt"]
    fusion = (
        linear("c_encoder.w1", width, width) | linear("c_encoder.w2", width, 256) | linear("c_encoder.w3", 256, 64)
    )
    fusion |= linear("bi_transformation", 64, 64) | linear("cf_transformation", 64, 64)
    for name in ("w_q", "w_k", "w_v"):
        fusion |= linear(name, 64, 64, bias=False)
    torch.save(fusion, folder / "fusion.bin")
    torch.save(linear("dense1", 64, 128) | linear("output", 128, hidden_size), folder / "projector_model_fuse.bin")
    torch.save({"weight": torch.randn(1, hidden_size, generator=generator)}, folder / "prompt_token.bin")


def write_lora(folder, backbone, **config):
    """Write adapter_config.json and adapter_model.bin through PEFT, with random weights, and return PEFT's model."""
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

    config = {"r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", **config}
    model = get_peft_model(backbone, LoraConfig(**config))
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(std=0.2, generator=generator)
    model.peft_config["default"].save_pretrained(folder)
    torch.save(get_peft_model_state_dict(model), folder / "adapter_model.bin")
    return model.eval()
