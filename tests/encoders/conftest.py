"""A dataset folder of a few pictures and sounds."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image
from transformers import logging

from bundle_mllm.data import write_records


@pytest.fixture(scope="session")
def gallery(tmp_path_factory) -> Path:
    """A dataset folder of 12 items: pictures of all shapes, sounds of several rates and lengths, and texts."""
    folder = tmp_path_factory.mktemp("gallery")
    rng = np.random.default_rng(0)
    sizes = [(40, 40), (64, 33), (31, 90), (3, 5), (1, 1), (200, 100)] * 2
    records = []
    for row, (width, height) in enumerate(sizes):
        coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        image.save(folder / f"{row}.{'jpg' if row % 2 else 'png'}")
        rate, seconds = (8_000, 16_000, 22_050, 44_100, 48_000)[row % 5], (0.3, 1.0, 12.0)[row % 3]
        time = np.arange(int(rate * seconds)) / rate
        tone = 0.4 * np.sin(2 * np.pi * 150 * 1.4**row * time) + 0.1 * rng.standard_normal(len(time))
        soundfile.write(folder / f"{row}.wav", tone, rate)
        records.append(
            {
                "item_id": f"i{row}",
                "title": f"{('red', 'green')[row % 2]} {('shirt', 'shoe', 'bag')[row % 3]}",
                "image": f"{row}.{'jpg' if row % 2 else 'png'}",
                "audio": f"{row}.wav",
            }
        )
    write_records(folder / "items.jsonl", records)
    write_records(folder / "bundles.jsonl", [{"bundle_id": "b", "items": ["i0", "i1"], "split": "train"}])
    return folder


@pytest.fixture
def quiet():
    """Silence what transformers says about tiny configurations."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    yield
    logging.set_verbosity(verbosity)
