"""Merge a LoRA adapter that `trl sft --use_peft` wrote into its base model, and write a model folder.

    python training_scripts/merge_adapter.py --adapter ADAPTER --output-dir MERGED

What the adapter holds beside LoRA (fusion, projector, separator) takes the place of the base model's.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

import torch
import tyro
from peft import PeftConfig, PeftModel

from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.folder import load_model, save_model
from bundle_mllm.training.trainable import merge_lora


def merge_adapter(
    adapter: Path,
    output_dir: Path,
    model: str | None = None,
    dtype: Literal["float32", "bfloat16", "auto"] = "float32",
) -> None:
    """Write the model folder.

    Args:
        adapter: Output folder of `trl sft --use_peft`.
        output_dir: Where the model folder is written; it must not exist, or be empty.
        model: Base model; the one that the adapter names if not given.
        dtype: Precision to merge and save in. float32 loses nothing; "auto" is that of the base model.
    """
    if output_dir.exists() and any(output_dir.iterdir()):
        raise BundleMLLMError(f"{output_dir} is not empty: its files could be overwritten. Use another --output-dir.")
    base = model or PeftConfig.from_pretrained(adapter).base_model_name_or_path
    loaded, processor = load_model(base, dtype=dtype if dtype == "auto" else getattr(torch, dtype))
    save_model(merge_lora(PeftModel.from_pretrained(loaded, adapter)), processor, output_dir)
    print(f"model folder: {output_dir}")


if __name__ == "__main__":
    try:
        tyro.cli(merge_adapter, description=__doc__)
    except (ValueError, OSError) as error:
        sys.exit(f"merge_adapter: error: {' '.join(str(error).split())}")
