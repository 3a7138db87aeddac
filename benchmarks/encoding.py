"""Encoding a folder of pictures against a bare loop of the same open_clip model on decoded tensors.

    python benchmarks/encoding.py [--pictures 128] [--rounds 3] [--device cuda] [--workers 2]

The model is open_clip's ViT-B/32 with random weights (and next to no text tower). Prints ratios of medians taken pair
by pair within this run: pictures per second of `encode_folder`, from files to the features file, over those of the
bare loop (target: at least .9 where decoding is not the limit; on a CPU, decoding takes its share of the same
processors); and pictures decoded per second by several worker processes over one.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
from common import paired, ratio
from PIL import Image

from bundle_mllm.data import DatasetFolder, write_records
from bundle_mllm.device import choose_device
from bundle_mllm.encoders import encode_folder
from bundle_mllm.encoders.batches import Sources, cut, read_batches
from bundle_mllm.encoders.visual import OpenClipEncoder


def make_model(folder: Path) -> None:
    """Write ViT-B/32 with random weights as open_clip does."""
    import open_clip
    from safetensors.torch import save_file

    torch.manual_seed(0)
    config = {
        "embed_dim": 512,
        "vision_cfg": {"image_size": 224, "layers": 12, "width": 768, "patch_size": 32},
        "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 64, "heads": 1, "layers": 1},
    }
    folder.mkdir()
    save_file(open_clip.CLIP(**config).state_dict(), folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {"size": 224}}))


def make_pictures(folder: Path, number: int, size: int) -> DatasetFolder:
    """Write JPEG pictures that compress like photographs."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for row in range(number):
        coarse = Image.fromarray(rng.integers(0, 256, (size // 8, size // 8, 3), dtype=np.uint8))
        coarse.resize((size, size), Image.Resampling.BICUBIC).save(folder / f"{row}.jpg", quality=90)
    write_records(folder / "items.jsonl", [{"item_id": str(row), "image": f"{row}.jpg"} for row in range(number)])
    write_records(folder / "bundles.jsonl", [{"bundle_id": "b", "items": ["0", "1"], "split": "train"}])
    return DatasetFolder.open(folder)


def compare_with_bare_loop(encoder: OpenClipEncoder, folder: DatasetFolder, args: argparse.Namespace) -> None:
    """Print the throughput of `encode_folder` over that of the model alone."""
    sources = Sources("image", folder)
    chunks = cut(sources.rows, args.batch_size)
    decoded = [batch.inputs["image"] for batch in read_batches(encoder, sources, chunks, workers=0)]

    @torch.inference_mode()
    def bare_loop() -> None:
        half = encoder.provenance["precision"] == "bfloat16"
        with torch.autocast(encoder.device.type, torch.bfloat16, enabled=half):
            results = [
                encoder.model.encode_image(images.to(encoder.device), normalize=True)  # pyright: ignore[reportCallIssue]
                for images in decoded
            ]
        torch.cat(results).cpu()

    def ours() -> None:
        shutil.rmtree(folder.path / "features", ignore_errors=True)
        encode_folder(
            folder.path, visual=encoder, batch_size=args.batch_size, workers=args.workers, device=args.device
        )

    seconds = paired({"bare loop": bare_loop, "encode_folder": ours}, args.rounds, warmup=1)
    for name, times in seconds.items():
        print(f"{name:16} median {len(sources.rows) / sorted(times)[len(times) // 2]:.1f} pictures/s")
    print(f"encode_folder / bare loop, throughput   {ratio(seconds, 'bare loop', 'encode_folder'):.3f}")


def compare_workers(encoder: OpenClipEncoder, folder: DatasetFolder, rounds: int) -> None:
    """Print how decoding alone scales with worker processes."""
    sources = Sources("image", folder)
    chunks = cut(sources.rows, 16)

    def decode(workers: int) -> None:
        for _ in read_batches(encoder, sources, chunks, workers=workers):
            pass

    counts = [1 << power for power in range((os.cpu_count() or 1).bit_length())]
    seconds = paired({f"{workers} workers": lambda w=workers: decode(w) for workers in counts}, rounds, warmup=1)
    for workers in counts:
        scale = ratio(seconds, "1 workers", f"{workers} workers")
        print(f"decoding, {workers} workers / 1 worker, throughput   {scale:.2f}")


def main() -> None:
    """Run both comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device")
    parser.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        make_model(Path(temporary) / "model")
        encoder = OpenClipEncoder(f"local-dir:{temporary}/model", choose_device(args.device))
        small = make_pictures(Path(temporary) / "small", args.pictures, 256)
        compare_with_bare_loop(encoder, small, args)
        large = make_pictures(Path(temporary) / "large", args.pictures, 1_024)
        compare_workers(encoder, large, args.rounds)


if __name__ == "__main__":
    main()
