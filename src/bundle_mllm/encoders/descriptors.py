"""Describe pictures and sounds by hand-made statistics of color, texture and spectrum, with nothing to download.

Knows nothing about titles, categories or anything of an item but its file.

Such statistics differ between a red check and a blue stripe, or a bell and a drum, but not between a blouse and a
shirt. On real pictures and sounds a pretrained encoder is better.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from bundle_mllm.encoders.batches import BatchEncoder, Reading
from bundle_mllm.encoders.media import read_picture, read_sound

PICTURE_SIZE = 64
SAMPLE_RATE = 16_000
MAX_SECONDS = 30
_FRAME, _HOP = 512, 256
_NUM_MELS, _NUM_TEMPI = 32, 24
_RGB_TO_XYZ = np.array([[0.4125, 0.3576, 0.1804], [0.2127, 0.7152, 0.0722], [0.0193, 0.1192, 0.9503]])


class Descriptor(BatchEncoder):
    """A batch encoder whose reader does all the work; no device is needed."""

    def __init__(self):
        self.provenance = {}
        self.reader = self.read

    def embed(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the reader's vectors, `[n, dim]`."""
        return inputs["vector"]

    def describe(self, path: Path) -> np.ndarray:
        """Describe one file.

        Args:
            path: A picture that Pillow reads, or a sound that soundfile reads.

        Returns:
            `[dim]` float32.

        Raises:
            UnreadableFileError: If the file cannot be used; see `media`.
        """
        return self.read(path).inputs["vector"][0].numpy()

    @abstractmethod
    def read(self, path: Path) -> Reading:
        """Describe one file, with a note if there is anything unusual about it."""


class ImageDescriptor(Descriptor):
    """Describe a picture by color, layout, edges and texture in 256 numbers.

    The picture is laid on white, resized to 64 x 64 pixels and described by

    | numbers | what |
    |---|---|
    | 64 | histogram over CIE Lab, 4 x 4 x 4 cells, each pixel shared among the nearest |
    | 16 | histogram of hue, weighted by chroma |
    | 48 | mean Lab color of a 4 x 4 grid of cells |
    | 64 | histograms of 4 edge directions in the same cells (after Dalal and Triggs, 2005) |
    | 32 | energy of the lightness spectrum in 8 rings of frequency x 4 directions, logarithm |
    | 32 | local binary patterns at distances 1 and 2: histogram of 16 patterns of the 4 neighbors, each |

    Each group is of the order of 1; nothing is standardized.
    """

    name = "image-descriptor-1"
    modality = "visual"
    dim = 256
    field = "image"

    def read(self, path: Path) -> Reading:
        """Describe one picture, or the first frame of an animation."""
        image, note = read_picture(path, draft=2 * PICTURE_SIZE)
        small = image.resize((PICTURE_SIZE, PICTURE_SIZE), Image.Resampling.BILINEAR)
        lab = _rgb_to_lab(np.asarray(small, dtype=np.float64) / 255)
        lightness, a, b = lab[..., 0] / 100, lab[..., 1], lab[..., 2]
        chroma = np.hypot(a, b)
        hue = np.arctan2(b, a) / (2 * np.pi) % 1
        gradient_v, gradient_u = np.gradient(lightness)
        strength = np.hypot(gradient_u, gradient_v)
        direction = np.arctan2(gradient_v, gradient_u) / np.pi % 1
        groups = (
            _shared_histogram(np.stack([lightness, (a + 80) / 160, (b + 80) / 160]), bins=4),
            _circular_histogram(hue, chroma, bins=16) / (chroma.sum() + 500),
            _cells(lab).mean(axis=2).ravel() / 50,
            _edge_cells(direction, strength),
            _spectrum_rings(lightness),
            *(_binary_patterns(lightness, distance) for distance in (1, 2)),
        )
        return _reading(groups, note)  # [256]


class SoundDescriptor(Descriptor):
    """Describe a sound by timbre, its change and its beat in 128 numbers.

    The channels are averaged, the first 30 s resampled to 16 kHz and described by a 32-band mel spectrum in decibels
    (frames of 32 ms every 16 ms) relative to its own maximum:

    | numbers | what |
    |---|---|
    | 32 + 32 | mean and standard deviation of each band over time |
    | 32 | mean absolute change of each band from frame to frame |
    | 24 | autocorrelation of the onset strength at 24 lags, 12 down to 1 beats per second |
    | 8 | mean and standard deviation over time of spectral centroid, bandwidth, flatness and zero crossings |

    Loudness as such does not count; nothing is standardized.
    """

    name = "sound-descriptor-1"
    modality = "acoustic"
    dim = 128
    field = "audio"

    def read(self, path: Path) -> Reading:
        """Describe one sound."""
        (signal,), note = read_sound(path, rate=SAMPLE_RATE, seconds=MAX_SECONDS)
        signal = np.pad(signal, (0, max(0, _FRAME + _HOP - len(signal))))
        frames = np.lib.stride_tricks.sliding_window_view(signal, _FRAME)[::_HOP]  # [frames, 512]
        power = np.abs(np.fft.rfft(frames * np.hanning(_FRAME))) ** 2  # [frames, 257]
        mel = power @ _mel_filters()  # [frames, 32]
        decibels = 10 * np.log10(mel / mel.max() + 1e-6)  # [frames, 32], -60..0
        change = np.diff(decibels, axis=0)
        frequencies = np.linspace(0, 1, power.shape[1])
        share = power / (power.sum(axis=1, keepdims=True) + 1e-9 * power.max())
        centroid = share @ frequencies
        bandwidth = np.sqrt(np.maximum(share @ frequencies**2 - centroid**2, 0))
        floor = power + 1e-9 * power.max()
        flatness = np.exp(np.log(floor).mean(axis=1)) / floor.mean(axis=1)
        crossings = (np.diff(np.signbit(frames), axis=1)).mean(axis=1)
        tracks = np.stack([centroid, bandwidth, flatness, crossings])  # [4, frames]
        groups = (
            decibels.mean(axis=0) / 20,
            decibels.std(axis=0) / 20,
            np.abs(change).mean(axis=0) / 20,
            _beat(np.maximum(change, 0).mean(axis=1)),
            tracks.mean(axis=1),
            tracks.std(axis=1),
        )
        return _reading(groups, note)  # [128]


def _reading(groups: Sequence[np.ndarray], note: str | None) -> Reading:
    return Reading({"vector": torch.from_numpy(np.concatenate(groups).astype(np.float32)[None])}, note)


def _rgb_to_lab(rgb: np.ndarray) -> np.ndarray:
    """Convert sRGB `[..., 3]` in 0..1 to CIE Lab (D65)."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = linear @ (_RGB_TO_XYZ / _RGB_TO_XYZ.sum(axis=1, keepdims=True)).T
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1)


def _shared_histogram(channels: np.ndarray, bins: int) -> np.ndarray:
    """Count channels `[3, ...]` in 0..1 in bins^3 cells, each pixel shared among the 8 nearest cells."""
    position = np.clip(channels.reshape(len(channels), -1) * bins - 0.5, 0, bins - 1)  # [3, pixels]
    low = np.minimum(position.astype(np.int64), bins - 2)
    high_share = position - low
    counts = np.zeros(bins**3)
    for corner in np.ndindex(2, 2, 2):
        offset = np.array(corner)[:, None]
        weight = np.where(offset == 1, high_share, 1 - high_share).prod(axis=0)
        cell = np.ravel_multi_index(tuple(low + offset), (bins,) * 3)
        counts += np.bincount(cell, weight, minlength=bins**3)
    return np.sqrt(counts / position.shape[1])


def _circular_histogram(turns: np.ndarray, weights: np.ndarray, bins: int) -> np.ndarray:
    """Count angles (in turns) on a circle of bins, each shared between the two nearest."""
    position = (turns * bins).ravel()
    low = position.astype(np.int64)
    share = position - low
    weights = weights.ravel()
    counts = np.bincount(low % bins, weights * (1 - share), minlength=bins)
    return counts + np.bincount((low + 1) % bins, weights * share, minlength=bins)


def _cells(values: np.ndarray, cells: int = 4) -> np.ndarray:
    """Cut `[64, 64, c]` into a grid of cells: `[4, 4, pixels per cell, c]`."""
    step = values.shape[0] // cells
    grid = values.reshape(cells, step, cells, step, -1).swapaxes(1, 2)
    return grid.reshape(cells, cells, step * step, -1)


def _edge_cells(direction: np.ndarray, strength: np.ndarray) -> np.ndarray:
    """Return a histogram of edge directions in each cell; the vector of all cells has length below 1."""
    both = _cells(np.stack([direction, strength], axis=-1)).reshape(16, -1, 2)
    histograms = np.concatenate([_circular_histogram(cell[:, 0], cell[:, 1], bins=4) for cell in both])
    return histograms / (np.linalg.norm(histograms) + 1.0)


def _spectrum_rings(lightness: np.ndarray) -> np.ndarray:
    """Return the logarithm of the energy of the lightness spectrum by ring of frequency and direction: `[32]`."""
    window = np.hanning(PICTURE_SIZE)
    spectrum = np.fft.rfft2((lightness - lightness.mean()) * np.outer(window, window))
    bin_of = _ring_of_frequency()
    energy = np.bincount(bin_of.ravel(), np.abs(spectrum).ravel() ** 2, minlength=33)[:32]
    return np.log10(energy / np.bincount(bin_of.ravel(), minlength=33)[:32] + 1e-2) / 2


@lru_cache(maxsize=1)
def _ring_of_frequency() -> np.ndarray:
    """Assign each bin of the 64 x 64 real spectrum to one of 8 rings x 4 directions, or to 32 (left out)."""
    v = np.fft.fftfreq(PICTURE_SIZE)[:, None] * PICTURE_SIZE
    u = np.fft.rfftfreq(PICTURE_SIZE)[None, :] * PICTURE_SIZE
    radius = np.hypot(u, v)
    edges = np.array([1, 2, 4, 6, 9, 12, 16, 22, 32.5])
    ring = np.digitize(radius, edges) - 1
    direction = np.floor((np.arctan2(v, u) / np.pi * 4 + 0.5) % 4).astype(np.int64)
    return np.where((ring >= 0) & (ring < 8), ring * 4 + direction, 32)


def _binary_patterns(lightness: np.ndarray, distance: int) -> np.ndarray:
    """Count which of the 4 neighbors at a distance are lighter than the pixel by more than .01: `[16]`."""
    inner = slice(distance, -distance)
    shifts = ((0, distance), (0, -distance), (distance, 0), (-distance, 0))
    lighter = np.stack([np.roll(lightness, shift, axis=(0, 1)) > lightness + 0.01 for shift in shifts], axis=-1)
    pattern = (lighter @ np.array([1, 2, 4, 8]))[inner, inner].ravel()
    return np.sqrt(np.bincount(pattern, minlength=16) / pattern.size)


@lru_cache(maxsize=1)
def _mel_filters() -> np.ndarray:
    """Return triangles, evenly spaced on the mel scale from 60 Hz to 8 kHz: `[257, 32]`."""
    from transformers.audio_utils import mel_filter_bank

    return mel_filter_bank(_FRAME // 2 + 1, _NUM_MELS, 60, SAMPLE_RATE / 2, SAMPLE_RATE)


def _beat(onset: np.ndarray) -> np.ndarray:
    """Return the autocorrelation of the onset strength at lags of 1/12 to 1 second: `[24]`."""
    onset = onset - onset.mean()
    length = 1 << (2 * len(onset) - 1).bit_length()
    correlation = np.fft.irfft(np.abs(np.fft.rfft(onset, length)) ** 2, length)[: len(onset)]
    lags = np.geomspace(1 / 12, 1, _NUM_TEMPI) * SAMPLE_RATE / _HOP
    return np.interp(lags, np.arange(len(onset)), correlation, right=0.0) / (correlation[0] + 1e-6)
