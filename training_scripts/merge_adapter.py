"""Merge a LoRA adapter that `trl sft --use_peft` wrote into its base model, and write a model folder.

    python training_scripts/merge_adapter.py --adapter ADAPTER --output-dir MERGED

What the adapter holds beside LoRA (fusion, projector, separator) takes the place of the base model's.
"""

from __future__ import annotations

from pathlib import Path

import tyro
from peft import PeftConfig, PeftModel

from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.folder import load_model, save_model
from bundle_mllm.training.trainable import merge_lora


def merge_adapter(adapter: Path, output_dir: Path, model: str | None = None) -> None:
    """Write the model folder.

    Args:
        adapter: Output folder of `trl sft --use_peft`.
        output_dir: Where the model folder is written; it must not exist, or be empty.
        model: Base model; the one that the adapter names if not given.
    """
    if output_dir.exists() and any(output_dir.iterdir()):
        raise BundleMLLMError(f"{output_dir} is not empty: files in it could be overwritten. Use another folder.")
    base, processor = load_model(model or PeftConfig.from_pretrained(adapter).base_model_name_or_path)
    save_model(merge_lora(PeftModel.from_pretrained(base, adapter)), processor, output_dir)


if __name__ == "__main__":
    tyro.cli(merge_adapter, description=__doc__)
