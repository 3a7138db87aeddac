"""A synthetic dataset folder opens as one, is reproducible, and states that it is invented."""

import hashlib
import io
import json
import wave
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image

from bundle_mllm.data import DatasetFolder
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.synthetic import write
from bundle_mllm.synthetic.settings import Domain, SyntheticSettings, one_signal
from bundle_mllm.synthetic.write import make_synthetic

pytestmark = pytest.mark.slow

SMALL = {"num_train": 60, "num_validation": 10, "num_test": 10}


@pytest.fixture(scope="module", params=get_args(Domain))
def written(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("synthetic") / request.param
    return folder, make_synthetic(folder, SyntheticSettings(domain=request.param, seed=3, **SMALL, num_users=12))


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_same_settings_give_byte_identical_files_even_over_another_catalog(written, tmp_path):
    folder, catalog = written
    make_synthetic(tmp_path, replace(catalog.settings, seed=4))
    for name in ("features", "questions", "images", "audio"):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "old").write_text("old")
    other = digests(tmp_path)
    make_synthetic(tmp_path, catalog.settings)
    assert digests(tmp_path) == digests(folder)
    assert [name for name, digest in digests(folder).items() if other[name] == digest] == []


def test_the_folder_opens_as_a_dataset_folder_with_one_file_per_item(written):
    folder, catalog = written
    data = DatasetFolder.open(folder)
    assert data.catalog.titles == catalog.titles
    assert data.catalog.item_ids == catalog.item_ids
    assert [len(data.bundles[split]) for split in ("train", "validation", "test")] == [60, 10, 10]
    assert data.interactions is not None
    assert len(data.interactions) == len(catalog.interactions)
    for item in data.catalog:
        if item.image is not None:
            with Image.open(folder / item.image) as image:
                assert (image.size, image.mode) == ((64, 64), "RGB")
        else:
            with wave.open(str(folder / item.audio)) as sound:
                assert (sound.getframerate(), sound.getnchannels()) == (16_000, 1)
                assert 1.0 <= sound.getnframes() / 16_000 <= 1.5


def test_the_folder_states_openly_that_it_is_invented(written):
    folder, catalog = written
    assert "**invented**" in (folder / "README.md").read_text()
    process = json.loads((folder / "synthetic.json").read_text())
    assert process["invented"] is True
    assert process["settings"]["seed"] == 3
    assert all(item_id.startswith("invented-") for item_id in catalog.item_ids)


def test_no_file_for_encoders_has_a_field_of_themes(written):
    folder, catalog = written
    fields = {field for line in (folder / "items.jsonl").read_text().splitlines() for field in json.loads(line)}
    media = {"fashion": "image", "playlist": "audio"}[catalog.settings.domain]
    assert fields == {"item_id", "title", "category", media}


def test_the_column_of_an_attribute_is_there_if_it_carries_the_theme(tmp_path):
    catalog = make_synthetic(tmp_path, replace(one_signal("attribute", attribute="date"), **SMALL))
    items = DatasetFolder.open(tmp_path).catalog
    assert items.other_columns == ("released",)
    assert [int(cell[:4]) - 1970 for cell in items.cells("released")] == catalog.values["attribute"].tolist()


@pytest.mark.parametrize("signal", ["media", "title"])
def test_pictures_of_one_theme_have_one_texture_and_opposite_hues_if_media_carry_it(signal, tmp_path, monkeypatch):
    def draw(kind: str, texture: int, hue: float, spread: float, rng: np.random.Generator) -> bytes:
        buffer = io.BytesIO()
        Image.new("RGB", (1, 1), (texture, round(hue % 1 * 240), round(spread * 1e4))).save(buffer, "PNG")
        return buffer.getvalue()

    monkeypatch.setattr(write, "draw_picture", draw)
    catalog = make_synthetic(tmp_path / "data", replace(one_signal(signal), **SMALL))
    looks: dict[int, set[tuple[int, int]]] = {}
    for item_id, theme in zip(catalog.item_ids, catalog.theme.tolist(), strict=True):
        with Image.open(tmp_path / "data" / "images" / f"{item_id}.png") as image:
            texture, hue, spread = image.getpixel((0, 0))
        assert spread == 104
        looks.setdefault(theme, set()).add((texture, hue))
    assert len(set.union(*looks.values())) == 48
    if signal == "media":
        for (texture, hue), (other_texture, other_hue) in map(sorted, looks.values()):
            assert texture == other_texture
            assert abs(hue - other_hue) == pytest.approx(120, abs=1)
    else:
        assert min(map(len, looks.values())) > 10


def test_a_folder_of_other_files_is_refused_and_left_alone(tmp_path):
    (tmp_path / "items.jsonl").write_text("other")
    with pytest.raises(BundleMLLMError, match="name a new folder"):
        make_synthetic(tmp_path, SyntheticSettings())
    assert (tmp_path / "items.jsonl").read_text() == "other"
