"""Embed sounds with CLAP, as transformers implements it.

Knows nothing about titles, categories or anything of an item but its sound.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from transformers import AutoConfig, ClapFeatureExtractor, ClapModel

from bundle_mllm.encoders.batches import Reading
from bundle_mllm.encoders.media import read_sound
from bundle_mllm.encoders.pretrained import PretrainedEncoder, load_tower, loading, source_name
from bundle_mllm.errors import BundleMLLMError

MAX_WINDOWS = 30


def read_windows(extractor: ClapFeatureExtractor, path: Path) -> Reading:
    """Read a sound in windows of the model's length and make mel spectrograms of them."""
    seconds = extractor.max_length_s
    windows, note = read_sound(path, rate=extractor.sampling_rate, seconds=seconds, max_windows=MAX_WINDOWS)
    windows = [window[: extractor.nb_max_samples].astype("float32") for window in windows]
    mel = extractor(windows, sampling_rate=extractor.sampling_rate, return_tensors="pt")["input_features"]
    # The extractor marks a short sound as long at random; no window is longer than the model's input.
    is_longer = torch.zeros(len(windows), 1, dtype=torch.bool)
    return Reading({"input_features": mel.float(), "is_longer": is_longer}, note)


class ClapEncoder(PretrainedEncoder):
    """Embed sounds with a CLAP model (Wu et al., 2023); vectors of length 1.

    Channels are averaged and any rate is resampled to the model's 48 kHz. A sound longer than the 10 s of the model's
    input is cut into full windows that cover it, at most 30, evenly spread beyond that; its vector is the mean
    direction of theirs (ours; the model's own way draws windows at random).

    Args:
        model: The model.
        extractor: Makes its mel spectrograms.
        device: Where the model runs.
        name: Its name in the manifest.
        source: Name on the Hub, or folder or file.
    """

    modality = "acoustic"
    field = "audio"
    batch_size = 8  # sounds, of up to 30 windows each

    def __init__(
        self, model: ClapModel, extractor: ClapFeatureExtractor, device: torch.device, *, name: str, source: str
    ):
        kept = ("truncation", "padding", "max_length_s", "frequency_min", "frequency_max", "hop_length")
        settings = {key: value for key, value in extractor.to_dict().items() if key in kept}
        policy = {"sounds": "channels averaged, resampled", "windows": MAX_WINDOWS, "rate": extractor.sampling_rate}
        reader = partial(read_windows, extractor)
        super().__init__(model, device, reader, name=name, source=source, preprocessing={**policy, **settings})
        self.dim = model.config.projection_dim

    @classmethod
    def load(cls, model: str, device: torch.device) -> ClapEncoder:
        """Load a `ClapModel` of transformers.

        Args:
            model: Name on the Hub such as `laion/clap-htsat-unfused`, or folder.
            device: Where the model runs.

        Raises:
            BundleMLLMError: If the model cannot be loaded or is no CLAP model.
        """
        what = f"The acoustic encoder 'clap:{model}'"
        with loading(what):
            config = AutoConfig.from_pretrained(model)
        if config.model_type != "clap":
            raise BundleMLLMError(f"{what} is of type {config.model_type!r}: give a CLAP model.")
        loaded = load_tower(ClapModel.from_pretrained, model, what=what)
        with loading(what):
            extractor = ClapFeatureExtractor.from_pretrained(model)
        return cls(loaded, extractor, device, name=f"clap:{source_name(model)}", source=model)  # pyright: ignore

    @classmethod
    def load_laion(cls, path: str, device: torch.device) -> ClapEncoder:
        """Read a `.pt` checkpoint of LAION; see `laion.import_checkpoint`."""
        from bundle_mllm.encoders.laion import import_checkpoint

        model, extractor = import_checkpoint(path)
        return cls(model, extractor, device, name=f"laion:{source_name(path)}", source=path)

    def forward(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the audio embeddings, `[n, dim]`."""
        return self.model.get_audio_features(**inputs).pooler_output  # pyright: ignore[reportCallIssue]
