"""A store of 1,000,000 items and four modalities: opening, gathering the rows of a question, resident memory.

    python benchmarks/feature_store.py [--items 1000000 --gathers 2000] [--folder FOLDER]

Widths 512, 512, 64, 64 in float16 (2.3 GB on disk; the folder is deleted afterwards unless it is given). Targets:
opens in at most 1 s, gathers 13 random rows in at most 1 ms (median), resident memory grows by less than a tenth of
the files after any number of gathers. The baseline is the same gather from memory-mapped tensors, in a process of its
own, as resident memory is compared, too. Files are in the page cache: what a cold disk adds is the disk's.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from common import MODALITIES
from safetensors import safe_open
from safetensors.torch import save_file

from bundle_mllm.data.features import FeatureStore

NUM_ROWS = 13


def make_store(folder: Path, num_items: int) -> None:
    """Write random features, all present."""
    generator = torch.Generator().manual_seed(0)
    for name, width in MODALITIES.items():
        features = torch.rand(num_items, width, generator=generator).half()
        present = torch.ones(num_items, dtype=torch.uint8)
        save_file({"features": features, "present": present}, folder / f"{name}.safetensors")


def resident_mib() -> float:
    """Return the resident memory of this process (Linux)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def measure(folder: Path, num_items: int, gathers: int, mapped: bool) -> None:
    """Open, gather and print: seconds to open, milliseconds per gather (median, 99 %), MiB that memory grew by."""
    generator = torch.Generator().manual_seed(1)
    questions = torch.randint(num_items, (gathers, NUM_ROWS), generator=generator)
    before = resident_mib()
    start = time.perf_counter()
    if mapped:
        tensors = {}
        for name in MODALITIES:
            with safe_open(folder / f"{name}.safetensors", framework="pt") as file:
                tensors[name] = file.get_tensor("features")
    else:
        store = FeatureStore.open(folder, num_items)
    opened = time.perf_counter() - start
    milliseconds = []
    for rows in questions:
        start = time.perf_counter()
        if mapped:
            for tensor in tensors.values():
                tensor[rows].float()
        else:
            store.gather(rows)
        milliseconds.append((time.perf_counter() - start) * 1e3)
    typical, slow = statistics.median(milliseconds), statistics.quantiles(milliseconds, n=100)[98]
    print(opened, typical, slow, resident_mib() - before)


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--gathers", type=int, default=2_000)
    parser.add_argument("--folder", type=Path, help="keep the store here and use it again")
    parser.add_argument("--measure", choices=("ours", "mapped"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.measure:
        measure(args.folder, args.items, args.gathers, args.measure == "mapped")
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        if not (folder / f"{next(iter(MODALITIES))}.safetensors").exists():
            folder.mkdir(parents=True, exist_ok=True)
            make_store(folder, args.items)
        size = sum(path.stat().st_size for path in folder.glob("*.safetensors")) / 2**20
        print(f"{args.items:,} items, {len(MODALITIES)} modalities, {size:,.0f} MiB on disk")
        for name in ("ours", "mapped"):
            command = [sys.executable, __file__, "--items", str(args.items), "--gathers", str(args.gathers)]
            command += ["--folder", str(folder), "--measure", name]
            output = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
            opened, typical, slow, grown = map(float, output[-4:])
            print(
                f"{name:7} opens in {opened:.3f} s   {NUM_ROWS} rows in {typical:.2f} ms (99 %: {slow:.2f})   "
                f"memory grows by {grown:,.0f} MiB, {grown / size:.1%} of the files"
            )


if __name__ == "__main__":
    main()
