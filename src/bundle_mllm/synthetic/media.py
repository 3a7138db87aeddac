"""Draws invented pictures (PNG) and sounds (WAV) from a kind, a look and a random generator.

Knows nothing about titles, themes, users or bundles.
"""

from __future__ import annotations

import io
import wave
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

PICTURE_SIZE = 64
SAMPLE_RATE = 16_000

# Outlines as the points of polygons, in hundredths of the picture, y downward.
_OUTLINES: dict[str, tuple[str, ...]] = {
    "jacket": ("32,12 68,12 94,62 80,70 72,50 72,86 28,86 28,50 20,70 6,62",),
    "shirt": ("34,16 66,16 94,34 84,50 70,42 70,86 30,86 30,42 16,50 6,34",),
    "trousers": ("30,8 70,8 78,94 58,94 50,34 42,94 22,94",),
    "skirt": ("36,18 64,18 90,84 10,84",),
    "dress": ("38,6 62,6 60,40 86,94 14,94 40,40",),
    "shoes": ("8,40 30,40 44,54 46,68 8,68", "54,48 76,48 92,62 94,78 54,78"),
    "hat": ("28,24 72,24 76,58 96,64 96,74 4,74 4,64 24,58",),
    "bag": ("30,40 34,14 66,14 70,40 62,40 58,22 42,22 38,40", "14,40 86,40 92,88 8,88"),
    "scarf": ("10,20 90,20 90,40 64,42 70,92 44,92 46,42 10,40",),
}


# Stripes, dots, waves and checks, of coordinates and a frequency.
_TEXTURES: tuple[Callable[[np.ndarray, np.ndarray, float], np.ndarray], ...] = (
    lambda u, v, f: np.sin(2 * np.pi * f * v),
    lambda u, v, f: 1 - 4 * np.clip(np.hypot((u * f) % 1 - 0.5, (v * f) % 1 - 0.5), 0, 0.5),
    lambda u, v, f: np.sin(2 * np.pi * f * (0.6 * v + 0.12 * np.sin(4 * np.pi * u))),
    lambda u, v, f: np.sign(np.sin(2 * np.pi * f * u) * np.sin(2 * np.pi * f * v)),
)
_BEAT_RATES = (2.0, 3.0, 4.5, 6.5)  # Beats per second of each instrument (center).


def _hsv_to_rgb(hue: float, saturation: float, value: float) -> np.ndarray:
    ramp = np.clip(np.abs((hue * 6 + np.array([0.0, 4.0, 2.0])) % 6 - 3) - 1, 0, 1)
    return value * (1 - saturation + saturation * ramp)


def _silhouette(kind: str, rng: np.random.Generator) -> np.ndarray:
    """Return how far each pixel is covered, [size, size] in 0..1: the outline, a little scaled, shifted, mirrored."""
    oversampling = 4
    side = PICTURE_SIZE * oversampling
    scale = rng.uniform(0.8, 1.0, size=2) * np.array([rng.choice([-1.0, 1.0]), 1.0])
    shift = rng.uniform(-0.05, 0.05, size=2)
    canvas = Image.new("L", (side, side), 0)
    draw = ImageDraw.Draw(canvas)
    for outline in _OUTLINES[kind]:
        corners = np.array([point.split(",") for point in outline.split()], dtype=np.float64) / 100  # [corners, 2]
        points = ((corners - 0.5) * scale + 0.5 + shift) * side
        draw.polygon([(float(x), float(y)) for x, y in points], fill=255)
    return np.asarray(canvas.resize((PICTURE_SIZE, PICTURE_SIZE), Image.Resampling.BOX), dtype=np.float64) / 255


def picture_look(level: int, side: int, num_levels: int, num_sides: int) -> tuple[int, float]:
    """Return the texture (0 to 3) and hue (in turns of the color circle) of a value of pictures.

    Levels differ in texture, and in hue where there are more than four; the sides of a level have its texture and the
    hues that are farthest apart.
    """
    hues = -(-num_levels // len(_TEXTURES))
    texture, place = divmod(level, hues)
    return texture, 0.04 + 0.25 * texture + (place / hues + side) / num_sides


def draw_picture(kind: str, texture: int, hue: float, spread: float, rng: np.random.Generator) -> bytes:
    """Draw a garment: the outline shows the kind, palette and texture show the look, all with jitter and noise.

    Args:
        kind: A kind of fashion items.
        texture: Number of the texture, 0 to 3.
        hue: Center of its hues, in turns of the color circle.
        spread: Standard deviation of the hue.
        rng: Source of every variation; the same state gives the same bytes.

    Returns:
        A PNG file of 64 x 64 RGB pixels.
    """
    hue = hue + rng.normal(0, spread)
    saturation, value = rng.uniform(0.3, 0.9), rng.uniform(0.55, 0.95)
    light = _hsv_to_rgb(hue, saturation, value)
    dark = _hsv_to_rgb(hue + rng.normal(0, 0.03), min(1.0, saturation * 1.2), value * rng.uniform(0.5, 0.75))

    v, u = np.mgrid[0:PICTURE_SIZE, 0:PICTURE_SIZE] / PICTURE_SIZE
    angle = rng.normal(0, 0.15)
    turned_u = u * np.cos(angle) - v * np.sin(angle) + rng.uniform()
    turned_v = u * np.sin(angle) + v * np.cos(angle) + rng.uniform()
    mix = 0.5 + 0.5 * _TEXTURES[texture](turned_u, turned_v, rng.uniform(5, 9))[..., None]
    cloth = mix * light + (1 - mix) * dark

    background = np.full(3, rng.uniform(0.6, 0.97)) + rng.normal(0, 0.015, size=3)
    shading = 1 + rng.uniform(-0.12, 0.12) * (u - 0.5) + rng.uniform(-0.12, 0.12) * (v - 0.5)
    cover = _silhouette(kind, rng)[..., None]
    pixels = (cover * cloth + (1 - cover) * background) * shading[..., None]
    pixels = pixels + rng.normal(0, rng.uniform(0.01, 0.04), size=pixels.shape)
    buffer = io.BytesIO()
    Image.fromarray(np.round(np.clip(pixels, 0, 1) * 255).astype(np.uint8)).save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


def _tone(instrument: int, phase: np.ndarray, age: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the sound of an instrument: bowed, bell, reed or drum."""
    if instrument == 0:
        tone = np.asarray(sum(np.sin(h * phase) / h for h in range(1, 9)))
        return tone * (1 - np.exp(-age / 0.08)) * np.exp(-age / 0.9)
    if instrument == 1:
        partials = ((1.0, 0.6), (2.76, 0.35), (5.4, 0.2), (8.93, 0.12))
        return np.sum([np.sin(ratio * phase) * np.exp(-age / decay) for ratio, decay in partials], axis=0)
    if instrument == 2:
        tone = np.asarray(sum(np.sin(h * phase) / h**0.5 for h in (1, 3, 5, 7)))
        return tone * np.minimum(1, age / 0.02) * (0.8 + 0.2 * np.sin(2 * np.pi * 11 * age))
    hiss = rng.normal(0, 1, size=age.shape)
    return 0.8 * hiss * np.exp(-age / 0.03) + 1.5 * np.sin(0.5 * phase) * np.exp(-age / 0.05)


def draw_sound(look: int, rng: np.random.Generator) -> bytes:
    """Play a short invented tune: instrument and beat rate show the look, pitch and melody are free.

    Args:
        look: Number of the instrument, 0 to 3.
        rng: Source of every variation; the same state gives the same bytes.

    Returns:
        A mono 16-bit WAV file at 16 kHz, 1.0 to 1.5 seconds long.
    """
    rate = _BEAT_RATES[look] * rng.uniform(0.85, 1.15)
    time = np.arange(int(rng.uniform(1.0, 1.5) * SAMPLE_RATE)) / SAMPLE_RATE
    beats = time * rate + rng.uniform()  # The first beat began before the file does.
    beat = beats.astype(np.int64)
    age = (beats - beat) / rate
    melody = 2.0 ** (rng.choice([0, 2, 4, 7, 9, 12], size=int(beat[-1]) + 1) / 12)
    pitch = rng.uniform(110, 330) * melody[beat]
    signal = _tone(look, 2 * np.pi * pitch * age, age, rng)
    signal = signal / np.abs(signal).max() * rng.uniform(0.3, 0.9)
    signal = signal + rng.normal(0, rng.uniform(0.001, 0.01), size=signal.shape)
    samples = np.round(np.clip(signal, -1, 1) * 32767).astype("<i2")
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(samples.tobytes())
    return buffer.getvalue()
