"""An encoder whose result depends on which items share its batch, for tests of resuming and of shared work."""

import os
import sys
import time
from pathlib import Path

import torch

from bundle_mllm.encoders import BatchEncoder, Reading, encode_folder
from bundle_mllm.encoders.media import read_picture


def read(path: Path) -> Reading:
    image, note = read_picture(path)
    return Reading({"color": torch.tensor([image.getpixel((0, 0))]) / 255}, note)


class SlowEncoder(BatchEncoder):
    """A picture's color beside the sum of its batch's colors, and a pause."""

    name = "slow-1"
    modality = "visual"
    dim = 6
    field = "image"
    batch_size = 3
    provenance = {"pause": "none of its business"}  # noqa: RUF012
    reader = staticmethod(read)

    def __init__(self, pause: float = 0.0):
        self.pause = pause

    def embed(self, inputs):
        time.sleep(self.pause)
        return torch.cat([inputs["color"], inputs["color"].sum(dim=0).expand(len(inputs["color"]), 3)], dim=1)


if __name__ == "__main__":
    summaries = encode_folder(
        sys.argv[1], visual=SlowEncoder(float(sys.argv[2])), workers=int(sys.argv[3]), device="cpu"
    )
    sys.stdout.write(
        f"{os.environ.get('RANK', '0')} { {name: str(summary) for name, summary in summaries.items()} }\n"
    )
