"""Merge a LoRA adapter that `trl sft --use_peft` wrote into its base model, and write a model folder.

    python training_scripts/merge_adapter.py --adapter ADAPTER --output-dir MERGED

What the adapter holds beside LoRA (fusion, projector, separator) takes the place of the base model's.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
import tyro
from peft import PeftConfig, PeftModel
from safetensors import SafetensorError

from bundle_mllm.data.files import new_folder
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.model_folder import load_ranker, save_model
from bundle_mllm.training.trainable import merge_lora

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


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
    for name in (CONFIG, WEIGHTS):
        if not (adapter / name).is_file():
            raise BundleMLLMError(
                f"{adapter} has no {name}, so there is no adapter to merge: give --adapter the output folder of a "
                "finished `trl sft --use_peft`, or one of its checkpoint-N folders."
            )
    with new_folder(output_dir) as folder:
        try:
            base = model or PeftConfig.from_pretrained(str(adapter)).base_model_name_or_path
        except (TypeError, ValueError, KeyError) as error:
            raise BundleMLLMError(f"{adapter / CONFIG} cannot be read ({error}): copy it again.") from error
        if not base:
            raise BundleMLLMError(f"{adapter / CONFIG} does not name its base model: give it with --model.")
        loaded, processor = load_ranker(base, dtype=dtype if dtype == "auto" else getattr(torch, dtype))
        try:
            adapted = PeftModel.from_pretrained(loaded, adapter)
        except (RuntimeError, ValueError, KeyError, SafetensorError) as error:
            raise BundleMLLMError(
                f"The adapter in {adapter} does not fit the base model {base} ({error}): give its base model with "
                "--model."
            ) from error
        save_model(merge_lora(adapted), processor, folder)
    print(f"model folder: {output_dir}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script and return its exit status: 0, or 2 for a mistake in what was given."""
    try:
        tyro.cli(merge_adapter, description=__doc__, args=argv)
    except (ValueError, OSError) as error:
        print(f"merge_adapter: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
