"""Read pictures and sounds of any kind into plain pixels and samples; a file that cannot be used gives a short reason.

Knows nothing about items or encoders.
"""

from __future__ import annotations

import re
import struct
import zlib
from functools import lru_cache
from io import BytesIO
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from PIL.ImageFile import ImageFile

from bundle_mllm.bounds import bounds

if TYPE_CHECKING:
    from soundfile import SoundFile

_UNREAD = 0.1  # share of a picture's pixels that may be missing
MIN_SECONDS = 0.1
SILENCE = 1e-4
_JPEG, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
_FILLER = bytes(number * number % 251 for number in range(1 << 13))  # stands in place of missing bytes
_UNKNOWN_FORMAT = 1  # libsndfile's error code
_FORMATS = ("AVIF", "BMP", "GIF", "ICO", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TGA", "TIFF", "WEBP")
_UPRIGHT = {  # EXIF orientation to what turns the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_DAMAGE = (OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError, struct.error, zlib.error)
_SUFFIXES = {  # libsndfile's name of a format to the suffixes under which it is expected
    "WAV": (".wav", ".wave"),
    "WAVEX": (".wav", ".wave"),
    "RF64": (".wav", ".rf64"),
    "W64": (".w64", ".wav"),
    "AIFF": (".aif", ".aiff", ".aifc"),
    "FLAC": (".flac",),
    "MP3": (".mp3",),
    "OGG": (".ogg", ".oga", ".opus"),
}


class UnreadableFileError(Exception):
    """A file that cannot be described; the message is the reason in a few words, the same for like cases."""


def is_web_address(name: object) -> bool:
    """Return whether a cell that names a picture or sound is a web address; none is ever fetched."""
    return isinstance(name, str) and "://" in name


def file_below(folder: Path, name: str) -> Path:
    """Return a file that a table names, links resolved.

    Raises:
        UnreadableFileError: If it leaves the folder, is not there, is a web address, or no file can have this name.
    """
    if is_web_address(name):
        raise UnreadableFileError("a web address, which is not fetched")
    try:
        root = folder.resolve()
        path = (root / name).resolve()
        if not path.is_relative_to(root):
            raise UnreadableFileError("the path leaves the dataset folder")
        if not path.is_file():
            raise UnreadableFileError("no such file")
    except (OSError, ValueError, RuntimeError) as error:  # a name too long, a NUL in it, a loop of links
        raise UnreadableFileError("not a path that can be followed") from error
    return path


def read_picture(path: Path, *, draft: int | None = None) -> tuple[Image.Image, str | None]:
    """Read a picture as RGB: first frame, turned upright by its EXIF, laid on white where it is transparent.

    Args:
        path: A file in a format of pixels that Pillow reads.
        draft: A JPEG may be decoded at a fraction of its size, as long as both sides keep this many pixels.

    Returns:
        The picture, and what is unusual about it (several frames, CMYK, more than 8 bits), or `None`.

    Raises:
        UnreadableFileError: If the file is no picture, damaged, above 64 million pixels or of an absurd shape.
    """
    try:
        try:
            return _read_picture(path, draft)
        except OSError as error:
            if isinstance(error, Image.UnidentifiedImageError) or path.read_bytes()[:2] != _JPEG:
                raise
            return _read_cut_jpeg(path, draft)
    except Image.DecompressionBombError as error:
        raise UnreadableFileError(_too_many_pixels()) from error
    except Image.UnidentifiedImageError as error:
        raise UnreadableFileError("not a picture") from error
    except _DAMAGE as error:
        raise UnreadableFileError("a damaged picture") from error


def _read_picture(file: Path | BytesIO, draft: int | None) -> tuple[Image.Image, str | None]:
    with Image.open(file, formats=_formats()) as image:
        if image.width * image.height > bounds().picture_pixels:
            raise UnreadableFileError(_too_many_pixels())
        if max(image.size) > bounds().picture_aspect * min(image.size):
            raise UnreadableFileError(f"more than {bounds().picture_aspect} times as long as wide")
        note = _note(
            ("several frames, the first taken", _is_animated(image)),
            ("CMYK, converted to RGB", image.mode == "CMYK"),
            ("more than 8 bits per channel, reduced to 8", _is_deep(image)),
        )
        if draft is not None:
            image.draft("RGB", (draft, draft))
        image.load()
        turn = _turn(image)  # after loading: for some formats it loads, and would hide that this fails
        rgb = _to_rgb(image)
    return (rgb if turn is None else rgb.transpose(turn)), note


def _read_cut_jpeg(path: Path, draft: int | None) -> tuple[Image.Image, str | None]:
    """Read a JPEG whose last bytes are missing, unless more than a tenth of its pixels are.

    The pixels that the missing bytes decide are those that change with whatever stands in their place. A progressive
    picture may lack its last, finest scans: it is less sharp.
    """
    data = path.read_bytes()
    picture, note = _read_picture(BytesIO(data + _JPEG_END), draft)
    other, _ = _read_picture(BytesIO(data + _FILLER + _JPEG_END), draft)
    if (np.asarray(picture) != np.asarray(other)).any(axis=2).mean() > _UNREAD:
        raise UnreadableFileError("a damaged picture")
    cut = "cut off at its end, the rest taken"
    return picture, f"{cut}; {note}" if note else cut


def _too_many_pixels() -> str:
    return f"more than {bounds().picture_pixels // 1_000_000} million pixels"


@lru_cache(maxsize=1)
def _formats() -> tuple[str, ...]:
    """Return the formats to try: those of pixels; EPS, for one, would run a program."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _note(*notes: tuple[str, bool]) -> str | None:
    """Join the notes that apply."""
    return "; ".join(note for note, applies in notes if applies) or None


def _is_animated(image: Image.Image) -> bool:
    try:
        return getattr(image, "is_animated", False)  # some formats look for a second frame now
    except _DAMAGE:  # which may be damaged when the first is not
        return True


def _is_deep(image: ImageFile) -> bool:
    """Return whether a channel has more than 8 bits; Pillow cuts RGB down itself, which only its raw mode shows."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16") or ";16" in repr(image.tile)


def _turn(image: Image.Image) -> Image.Transpose | None:
    try:
        return _UPRIGHT.get(image.getexif().get(0x0112, 1))
    except _DAMAGE:  # Broken EXIF spoils no pixel.
        return None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.nan_to_num(np.asarray(image, dtype=np.float64))
        top = values.max(initial=0)
        scale = 1 / 257 if image.mode != "F" or top > 255 else 255 if top <= 1 else 1
        image = Image.fromarray(np.clip(values * scale, 0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def read_sound(path: Path, *, rate: int, seconds: float, max_windows: int = 1) -> tuple[list[np.ndarray], str | None]:
    """Read a sound as mono windows that cover it evenly, resampled.

    A sound of up to one window is one shorter window. A longer one is cut into as many full windows as it takes to
    cover it, the first at its start and the last at its end; beyond `max_windows`, that many are spread evenly. Memory
    follows the windows, not the file. Channels are averaged, unless they cancel out: then the first is taken. Ours.

    Args:
        path: A file that soundfile reads (wav, flac, ogg, mp3, aiff, …), of any rate and number of channels.
        rate: Samples per second of the windows.
        seconds: Length of a window.
        max_windows: At most this many; with 1, only the start of the sound is read.

    Returns:
        The windows, `[samples]` float64 each, and what is unusual about the file, or `None`.

    Raises:
        UnreadableFileError: If the file is no sound, truncated, shorter than 0.1 s, silent, or of an absurd rate.
    """
    import soundfile

    try:
        with soundfile.SoundFile(path) as file:
            if not 1_000 <= file.samplerate <= 768_000:
                raise UnreadableFileError("a sample rate outside 1 to 768 kHz")
            if _claims_more(file.extra_info):
                raise UnreadableFileError("truncated: its header names more samples than it holds")
            if file.frames < MIN_SECONDS * file.samplerate:
                raise UnreadableFileError(f"shorter than {MIN_SECONDS} seconds")
            suffix = path.suffix.lower()
            note = _note(
                (
                    f"{file.format} under the name of another format",
                    suffix not in _SUFFIXES.get(file.format, (suffix,)),
                ),
                ("more than 2 channels, averaged", file.channels > 2),
            )
            length = int(seconds * file.samplerate)
            if file.channels > bounds().sound_channels:
                raise UnreadableFileError(f"more than {bounds().sound_channels} channels")
            if min(length, file.frames) * file.channels > bounds().sound_values:
                raise UnreadableFileError(f"more than {bounds().sound_values // 1_000_000} million samples at once")
            raw, channel = _read_windows(file, length, max_windows)
            if channel is not None:
                taken = f"channels that cancel out, the {channel} taken"
                note = f"{note}; {taken}" if note else taken
            source_rate = file.samplerate
    except soundfile.LibsndfileError as error:
        reason = "not a sound that soundfile reads" if error.code == _UNKNOWN_FORMAT else "a damaged sound"
        raise UnreadableFileError(reason) from error
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        raise UnreadableFileError("not a sound that soundfile reads") from error
    if not all(np.isfinite(window).all() for window in raw):
        raise UnreadableFileError("samples of NaN or infinity")
    if _is_silent(raw):
        raise UnreadableFileError("silent")
    return [_resample(window, source_rate, rate) for window in raw], note


def _read_windows(file: SoundFile, length: int, max_windows: int) -> tuple[list[np.ndarray], str | None]:
    """Return the windows, and the name of the channel that was taken where their mean is silent and it is not."""
    count = min(max_windows, ceil(file.frames / length))
    starts = np.linspace(0, max(0, file.frames - length), count).round().astype(int) if count > 1 else [0]
    means, firsts = [], []
    for start in starts:
        if start != file.tell():
            file.seek(int(start))
        samples = file.read(length, dtype="float64", always_2d=True)  # [samples, channels]
        if len(samples) < min(length, file.frames):
            raise UnreadableFileError("truncated: its header names more samples than it holds")
        means.append(samples.mean(axis=1))
        if file.channels > 1:
            firsts.append(samples[:, 0].copy())
    if firsts and _is_silent(means) and not _is_silent(firsts):
        return firsts, "first"
    return means, None


def _is_silent(windows: list[np.ndarray]) -> bool:
    return max(np.abs(window - window.mean()).max() for window in windows) < SILENCE


def _claims_more(log: str) -> bool:
    """Read off libsndfile's log whether a header claims bytes that the file lacks.

    Writers into a pipe cannot know the length and write the largest number: that is no truncation.
    """
    claims = re.findall(r":\s*(\d+) \(should be (\d+)\)", log)
    return any(int(claimed) - int(actual) > 64 and int(claimed) < 0x7FFF0000 for claimed, actual in claims)


def _resample(signal: np.ndarray, source_rate: int, rate: int) -> np.ndarray:
    from scipy.signal import resample_poly

    if source_rate == rate:
        return signal
    divisor = np.gcd(source_rate, rate)
    return resample_poly(signal, rate // divisor, source_rate // divisor)
