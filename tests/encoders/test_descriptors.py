"""Descriptors tell what they claim to tell, ignore what they claim to ignore, and never trip over a bad file."""

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bundle_mllm.bounds import bounds
from bundle_mllm.data import DatasetFolder
from bundle_mllm.encoders import ImageDescriptor, SoundDescriptor, TruncatedSVD, UserItemEncoder
from bundle_mllm.encoders.media import UnreadableFileError, read_picture, read_sound
from bundle_mllm.synthetic.settings import SyntheticSettings
from bundle_mllm.synthetic.write import make_synthetic

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, size=(48, 80, 3), dtype=np.uint8)


def picture(path: Path, image: Image.Image, **options) -> Path:
    image.save(path, **options)
    return path


def distance(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.linalg.norm(first - second))


def tone(seconds: float = 1.0, rate: int = 16_000, pitch: float = 440.0) -> np.ndarray:
    time = np.arange(int(seconds * rate)) / rate
    return 0.5 * np.sin(2 * np.pi * pitch * time) * (np.sin(2 * np.pi * 3 * time) > 0)


def sound(path: Path, samples: np.ndarray, rate: int = 16_000, **options) -> Path:
    soundfile.write(path, samples, rate, **options)
    return path


def probe(features: np.ndarray, trait: np.ndarray) -> float:
    """Accuracy of a linear probe on held-out items."""
    model = make_pipeline(StandardScaler(), RidgeClassifier(alpha=30.0))
    return float(cross_val_score(model, features, trait, cv=4).mean())


@pytest.mark.slow
@pytest.mark.parametrize(("domain", "encoder"), [("fashion", ImageDescriptor), ("playlist", SoundDescriptor)])
def test_media_show_looks_and_interactions_show_users_and_neither_shows_what_the_others_do(domain, encoder, tmp_path):
    catalog = make_synthetic(tmp_path / domain, SyntheticSettings(domain=domain, seed=1))
    folder = DatasetFolder.open(tmp_path / domain)
    media = encoder().encode(folder)
    log = UserItemEncoder(TruncatedSVD(15)).encode(folder)
    words = sorted({word for title in catalog.titles for word in title.split()})
    titles = np.array([[word in title.split() for word in words] for title in catalog.titles], dtype=float)
    levels = catalog.levels
    assert media.present.all()
    assert log.present.all()
    assert probe(media.features, levels["media"]) >= 0.95
    assert probe(log.features, levels["user_item"]) >= 0.95
    assert probe(titles, levels["title"]) >= 0.95
    for features in (media.features, log.features):
        assert probe(features, levels["title"]) <= 0.35  # chance .25
    for features in (titles, log.features):
        assert probe(features, levels["media"]) <= 0.35  # chance .25
    for features in (titles, media.features):
        assert probe(features, levels["user_item"]) <= 0.60  # chance .50


def test_vectors_are_finite_float32_of_the_documented_length(tmp_path):
    vector = ImageDescriptor().describe(picture(tmp_path / "a.png", Image.fromarray(PIXELS)))
    sound_vector = SoundDescriptor().describe(sound(tmp_path / "a.wav", tone()))
    assert (vector.dtype, vector.shape) == (np.float32, (256,))
    assert (sound_vector.dtype, sound_vector.shape) == (np.float32, (128,))
    assert np.isfinite(vector).all()
    assert np.isfinite(sound_vector).all()


@pytest.mark.parametrize("color", ["black", "white", "red", "lime", "blue"])
def test_a_picture_of_one_color_is_described_too(tmp_path, color):
    vector = ImageDescriptor().describe(picture(tmp_path / "a.png", Image.new("RGB", (5, 7), color)))
    assert np.isfinite(vector).all()
    assert (vector[:64] ** 2).sum() == pytest.approx(1.0, abs=1e-5)  # A histogram of all pixels, under the root.


def test_lab_of_known_colors_is_that_of_the_standard(tmp_path):
    # Values of CIE Lab, D65, from published tables of the sRGB primaries.
    known = {
        "white": (100, 0, 0),
        "red": (53.24, 80.09, 67.20),
        "lime": (87.73, -86.18, 83.18),
        "blue": (32.30, 79.19, -107.86),
    }
    for color, lab in known.items():
        vector = ImageDescriptor().describe(picture(tmp_path / "a.png", Image.new("RGB", (64, 64), color)))
        np.testing.assert_allclose(vector[80:83] * 50, lab, atol=0.3)


def test_color_moves_color_numbers_and_texture_moves_texture_numbers(tmp_path):
    v, u = np.mgrid[0:64, 0:64]
    rows, columns = ((np.sin(axis * 0.8) > 0)[..., None] * np.array([200, 60, 60]) for axis in (v, u))
    describe = ImageDescriptor().describe
    images = {"rows": rows, "columns": columns, "blue rows": rows[..., ::-1]}
    vectors = {
        name: describe(picture(tmp_path / f"{name}.png", Image.fromarray(pixels.astype(np.uint8))))
        for name, pixels in images.items()
    }
    color, texture = slice(0, 80), slice(192, 256)
    assert distance(vectors["rows"][color], vectors["columns"][color]) < 0.1
    assert distance(vectors["rows"][texture], vectors["columns"][texture]) > 1
    assert distance(vectors["rows"][color], vectors["blue rows"][color]) > 0.5


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "CMYK", "1"])
def test_every_color_mode_is_read(tmp_path, mode):
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    assert np.isfinite(ImageDescriptor().describe(picture(path, Image.fromarray(PIXELS).convert(mode)))).all()


def test_a_sixteen_bit_gray_picture_equals_its_eight_bit_copy(tmp_path):
    gray = PIXELS[..., 0]
    deep = ImageDescriptor().describe(picture(tmp_path / "deep.png", Image.fromarray(gray.astype(np.uint16) * 257)))
    flat = ImageDescriptor().describe(picture(tmp_path / "flat.png", Image.fromarray(gray)))
    np.testing.assert_allclose(deep, flat, atol=1e-5)


def test_what_is_transparent_counts_as_white(tmp_path):
    hidden = np.concatenate([PIXELS, np.zeros((48, 80, 1), dtype=np.uint8)], axis=2)
    vector = ImageDescriptor().describe(picture(tmp_path / "a.png", Image.fromarray(hidden)))
    white = ImageDescriptor().describe(picture(tmp_path / "b.png", Image.new("RGB", (80, 48), "white")))
    np.testing.assert_allclose(vector, white, atol=1e-6)


def test_of_an_animation_the_first_frame_counts(tmp_path):
    frames = [Image.new("RGB", (64, 64), color) for color in ("red", "blue")]
    moving = ImageDescriptor().describe(
        picture(tmp_path / "a.gif", frames[0], save_all=True, append_images=frames[1:])
    )
    still = ImageDescriptor().describe(picture(tmp_path / "b.png", frames[0]))
    np.testing.assert_allclose(moving, still, atol=0.02)


def png_bytes() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"not a picture at all", "not a picture"),
        (png_bytes()[:200], "a damaged picture"),
        (png_bytes()[:100] + b"\x00" * 60 + png_bytes()[160:], "a damaged picture"),
    ],
)
def test_a_bad_picture_is_named_for_what_it_is(tmp_path, content, reason):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(UnreadableFileError, match=reason):
        ImageDescriptor().describe(tmp_path / "a.png")


def test_a_picture_of_too_many_pixels_is_not_decoded(tmp_path):
    huge = picture(tmp_path / "a.png", Image.new("1", (9_000, 9_000)))
    with pytest.raises(UnreadableFileError, match="more than 64 million pixels"):
        ImageDescriptor().describe(huge)


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_a_jpeg_that_lacks_its_last_bytes_is_read_and_one_that_lacks_half_is_not(tmp_path, options):
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 256, (90, 120, 3), dtype=np.uint8))
    whole = tmp_path / "whole.jpg"
    noise.save(whole, quality=90, **options)
    expected, note = read_picture(whole)
    assert note is None
    for cut in (2, 12):
        (tmp_path / "cut.jpg").write_bytes(whole.read_bytes()[:-cut])
        picture, note = read_picture(tmp_path / "cut.jpg")
        assert note == "cut off at its end, the rest taken"
        assert np.abs(np.asarray(picture, int) - np.asarray(expected, int)).mean() < 1
    (tmp_path / "half.jpg").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    if not options:  # half of a progressive picture is the whole picture, less sharp
        with pytest.raises(UnreadableFileError, match="a damaged picture"):
            read_picture(tmp_path / "half.jpg")


def test_channels_that_cancel_out_leave_the_first(tmp_path):
    path = sound(tmp_path / "a.wav", np.stack([tone(), -tone()], axis=1))
    (window,), note = read_sound(path, rate=16_000, seconds=10)
    assert note == "channels that cancel out, the first taken"
    np.testing.assert_allclose(window, tone(), atol=1e-3)


def test_a_sound_of_a_thousand_channels_is_refused_before_it_is_read(tmp_path):
    path = sound(tmp_path / "a.wav", np.zeros((1_600, 1_024)), rate=8_000)
    with pytest.raises(UnreadableFileError, match="more than 64 channels"):
        read_sound(path, rate=16_000, seconds=10)


def test_channels_times_samples_have_a_bound(tmp_path, monkeypatch):
    path = sound(tmp_path / "a.wav", np.stack([tone()] * 8, axis=1))
    monkeypatch.setenv("BUNDLE_MLLM_BOUNDS", f"sound_values={len(tone()) * 8 - 1}")
    bounds.cache_clear()
    with pytest.raises(UnreadableFileError, match="million samples at once"):
        read_sound(path, rate=16_000, seconds=10)
    monkeypatch.delenv("BUNDLE_MLLM_BOUNDS")
    bounds.cache_clear()
    assert read_sound(path, rate=16_000, seconds=10)


def test_loudness_does_not_count_but_pitch_and_beat_do(tmp_path):
    describe = SoundDescriptor().describe
    sound_vector = describe(sound(tmp_path / "a.wav", tone()))
    quiet = describe(sound(tmp_path / "b.wav", tone() * 0.1))
    higher = describe(sound(tmp_path / "c.wav", tone(pitch=1760)))
    steady = describe(sound(tmp_path / "d.wav", 0.5 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)))
    assert distance(sound_vector, quiet) < 0.2 * distance(sound_vector, higher)
    assert distance(sound_vector[96:120], steady[96:120]) > 0.3  # The beat.


def test_the_beat_stands_at_its_lag(tmp_path):
    clicks = np.zeros(48_000)
    clicks[::4000] = 0.9  # Four beats per second.
    beat = SoundDescriptor().describe(sound(tmp_path / "a.wav", clicks))[96:120]
    rates = 1 / np.geomspace(1 / 12, 1, 24)
    assert abs(rates[beat.argmax()] - 4) < 0.5 or abs(rates[beat.argmax()] - 2) < 0.3


@pytest.mark.parametrize(("suffix", "rate", "channels"), [("wav", 44_100, 2), ("flac", 8_000, 1), ("ogg", 48_000, 1)])
def test_rate_format_and_channels_hardly_matter(tmp_path, suffix, rate, channels):
    describe = SoundDescriptor().describe
    usual = describe(sound(tmp_path / "a.wav", tone()))
    same = describe(sound(tmp_path / f"b.{suffix}", np.stack([tone(rate=rate)] * channels, axis=1), rate))
    other = describe(sound(tmp_path / "c.wav", RNG.normal(0, 0.1, size=16_000)))
    assert distance(usual, same) < 0.5 * distance(usual, other)


@pytest.mark.parametrize(
    ("samples", "reason"),
    [(np.zeros(16_000), "silent"), (np.full(16_000, 0.3), "silent"), (tone(0.05), "shorter than 0.1 seconds")],
)
def test_a_sound_without_content_is_named_for_what_it_is(tmp_path, samples, reason):
    with pytest.raises(UnreadableFileError, match=reason):
        SoundDescriptor().describe(sound(tmp_path / "a.wav", samples))


def test_a_sound_that_is_none_or_has_an_absurd_rate_is_named_for_what_it_is(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"RIFF but not really")
    with pytest.raises(UnreadableFileError, match="not a sound"):
        SoundDescriptor().describe(tmp_path / "a.wav")
    with pytest.raises(UnreadableFileError, match="sample rate"):
        SoundDescriptor().describe(sound(tmp_path / "b.wav", tone(), rate=2**30))


def test_a_sound_holding_nan_is_named_for_what_it_is(tmp_path):
    samples = tone()
    samples[5] = np.nan
    with pytest.raises(UnreadableFileError, match="NaN"):
        SoundDescriptor().describe(sound(tmp_path / "a.wav", samples, subtype="FLOAT"))
