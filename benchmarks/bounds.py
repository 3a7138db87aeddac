"""Time and memory of the worst input that the bounds accept, one process for each kind.

    python benchmarks/bounds.py --share 0.1

Target: no input within the bounds takes more than about 90 seconds and 4 GB. Tables are made at a share of their bound
and their figures are those of that share, since time and memory are linear in it; all else is at its bound.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bundle_mllm.bounds import bounds

Case = tuple[Callable[[Path], object], Callable[[Path], object]]
"""Makes the input in a folder; reads it."""


def picture(folder: Path) -> None:
    from PIL import Image

    side = int(bounds().picture_pixels ** 0.5)
    Image.new("RGB", (side, side), "red").save(folder / "in.png")
    Image.new("RGB", (side, side), "red").save(folder / "in.jpg")


def read_picture(folder: Path, name: str) -> None:
    from bundle_mllm.encoders import ImageDescriptor

    ImageDescriptor().describe(folder / name)


def sound(folder: Path) -> None:
    import soundfile

    channels, rate = bounds().sound_channels, 48_000
    frames = min(bounds().sound_values // channels, 30 * rate)
    one = (0.1 * np.sin(np.arange(frames) / 10)).astype(np.float32)
    with soundfile.SoundFile(folder / "in.wav", "w", rate, channels, "PCM_16") as file:
        for start in range(0, frames, rate):
            file.write(np.tile(one[start : start + rate, None], channels))


def read_sound(folder: Path) -> None:
    from bundle_mllm.encoders import SoundDescriptor

    SoundDescriptor().describe(folder / "in.wav")


def csv_table(folder: Path, share: float) -> None:
    with open(folder / "items.csv", "w", encoding="utf-8") as file:
        file.write("item_id,title\n")
        for row in range(int(share * bounds().table_rows)):
            file.write(f"{row},\n")


def jsonl_table(folder: Path, share: float) -> None:
    with open(folder / "items.jsonl", "w", encoding="utf-8") as file:
        for row in range(int(share * bounds().table_rows)):
            file.write(f'{{"item_id": {row}}}\n')


def parquet_table(folder: Path, share: float) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = int(share * bounds().table_rows)
    table = pyarrow.table({"item_id": pyarrow.array(np.arange(rows)), "price": pyarrow.nulls(rows, pyarrow.int32())})
    pyarrow.parquet.write_table(table, folder / "items.parquet")


def load_catalog(folder: Path) -> None:
    from bundle_mllm.data import ItemCatalog

    ItemCatalog.load(folder)


def long_line(folder: Path) -> None:
    text = "x" * (bounds().cell_characters - 40)
    (folder / "items.jsonl").write_text(f'{{"item_id": 1, "note": "{text}"}}\n', encoding="utf-8")


def json_document(folder: Path) -> None:
    number = bounds().json_bytes // 4 // 4  # a quarter, of the costliest kind: empty lists in lists
    (folder / "in.json").write_text('{"a": [' + ", ".join(["[]"] * number) + "]}", encoding="utf-8")


def read_document(folder: Path) -> None:
    from bundle_mllm.data.files import read_json

    read_json(folder / "in.json")


def yaml_document(folder: Path) -> None:
    lines = [f"a{number}: {{}}\n" for number in range(bounds().yaml_bytes // 12)]
    (folder / "in.yaml").write_text("".join(lines)[: bounds().yaml_bytes - 20], encoding="utf-8")


def read_yaml(folder: Path) -> None:
    from bundle_mllm.settings import read_overrides

    read_overrides(folder / "in.yaml")


def titles(folder: Path) -> None:
    with open(folder / "items.jsonl", "w", encoding="utf-8") as file:
        for row in range(1_000):
            file.write(json.dumps({"item_id": row, "title": "ab " * (bounds().title_characters // 3)}) + "\n")


def read_titles(folder: Path) -> None:
    from bundle_mllm.data import ItemCatalog
    from bundle_mllm.data.words import words

    for title in ItemCatalog.load(folder).titles:
        words(title)


def cases(share: float) -> dict[str, Case]:
    """Return the kinds of input by name."""
    return {
        "picture, PNG of one color": (picture, lambda folder: read_picture(folder, "in.png")),
        "picture, JPEG of one color": (picture, lambda folder: read_picture(folder, "in.jpg")),
        "sound, all channels": (sound, read_sound),
        f"CSV table, {share:g} of the rows": (lambda folder: csv_table(folder, share), load_catalog),
        f"JSON Lines table, {share:g} of the rows": (lambda folder: jsonl_table(folder, share), load_catalog),
        f"Parquet table, {share:g} of the rows": (lambda folder: parquet_table(folder, share), load_catalog),
        "one line of JSON": (long_line, load_catalog),
        "JSON document, 0.25 of the bytes": (json_document, read_document),
        "YAML file": (yaml_document, read_yaml),
        "1,000 titles and their words": (titles, read_titles),
    }


def measure(name: str, share: float, folder: Path, queue: multiprocessing.Queue) -> None:
    """Read one input in this process, and send CPU seconds and additional MB."""
    _, read = cases(share)[name]
    import bundle_mllm.encoders.descriptors  # noqa: F401 - what the libraries need by themselves does not count

    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    read(folder)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    queue.put((time.process_time() - start, (peak - before) / 1024))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=0.1, help="share of the bound of rows that tables have")
    share = parser.parse_args().share
    spawn = multiprocessing.get_context("spawn")
    print(f"{'input':36}  {'MB on disk':>10}  {'CPU s':>7}  {'MB':>7}")
    for name, (make, _) in cases(share).items():
        with tempfile.TemporaryDirectory() as folder:
            make(Path(folder))
            size = max(path.stat().st_size for path in Path(folder).iterdir()) / 1e6
            queue = spawn.Queue()
            process = spawn.Process(target=measure, args=(name, share, Path(folder), queue))
            process.start()
            process.join()
            if process.exitcode:
                return 1
            seconds, megabytes = queue.get()
            print(f"{name:36}  {size:10.3f}  {seconds:7.1f}  {megabytes:7.0f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
