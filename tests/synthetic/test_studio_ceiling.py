"""Which items go together is told by one modality and no other, and the folder is reproducible."""

import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bundle_mllm.data import DatasetFolder
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.synthetic import studio_ceiling
from bundle_mllm.synthetic.planted import PlantedBundles
from bundle_mllm.synthetic.studio_ceiling import NUM_THEMES, NUM_VALUES, make_ceiling_studio, plan_ceiling_studio
from bundle_mllm.synthetic.studio_media import NUM_HUES, draw_palette

ALL = ("title", "visual", "user_item", "bundle_item")
SMALL = {"num_train": 60, "num_validation": 10, "num_test": 10}


@pytest.fixture
def quick_pictures(monkeypatch):
    """Draw one pixel whose color tells everything that a picture was made of."""

    def draw(kind: str, texture: int, hue: int, rng: np.random.Generator) -> bytes:
        buffer = io.BytesIO()
        Image.new("RGB", (1, 1), (texture, hue, int(rng.integers(256)))).save(buffer, "PNG")
        return buffer.getvalue()

    monkeypatch.setattr(studio_ceiling, "draw_palette", draw)


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def themes_of(world) -> np.ndarray:
    return np.array(list(world.planted.themes.values()))


@pytest.mark.parametrize("needs", ALL)
def test_only_the_modality_that_is_needed_tells_the_theme(needs):
    world = plan_ceiling_studio(needs, seed=1, **SMALL)
    themes = themes_of(world)
    for name, value in world.shown.items():
        agreement = (value % NUM_THEMES == themes).mean()
        assert agreement == 1 if name == needs else agreement < 3 / NUM_THEMES
    for trait in (world.kind, world.variant):
        assert len({tuple(np.bincount(themes[trait == t], minlength=NUM_THEMES)) for t in set(trait)}) == 1


@pytest.mark.parametrize("needs", ALL)
def test_a_title_stands_for_one_item_of_each_value_unless_it_decides(needs):
    world = plan_ceiling_studio(needs, **SMALL)
    titles: dict[str, list[int]] = {}
    for title, theme in zip(world.titles, themes_of(world).tolist(), strict=True):
        titles.setdefault(title, []).append(theme)
    if needs == "title":
        assert all(len(themes) == 1 for themes in titles.values())
        assert len({title.split()[1] for title in titles}) == NUM_VALUES
    else:
        assert all(sorted(themes) == sorted(list(range(NUM_THEMES)) * 2) for themes in titles.values())


def test_words_hues_and_users_that_go_together_differ():
    world = plan_ceiling_studio("title", **SMALL)
    words: dict[int, set[str]] = {}
    for title, theme in zip(world.titles, themes_of(world).tolist(), strict=True):
        words.setdefault(theme, set()).add(title.split()[1])
    assert {len(of_theme) for of_theme in words.values()} == {2}
    log = plan_ceiling_studio("user_item", **SMALL)
    user, row = log.log.T
    value = log.shown["user_item"][row]
    assert 0.83 < (value == user % NUM_VALUES).mean() < 0.93
    assert (value == (user + NUM_THEMES) % NUM_VALUES).mean() < 0.01
    assert np.bincount(row, minlength=len(log.item_ids)).min() >= 3


def test_most_items_of_a_bundle_fit_and_some_do_not():
    world = plan_ceiling_studio("visual", fidelity=0.8, num_train=2000)
    theme = world.planted.themes
    drawn = [[theme[item] for item in bundle] for bundle in world.bundles["train"]]
    assert {len(bundle) for bundle in drawn} == {6}
    assert np.mean([max(map(b.count, b)) for b in drawn]) == pytest.approx(4.8, abs=0.1)


def test_the_folder_opens_as_a_dataset_folder_and_is_reproduced_byte_by_byte(tmp_path, quick_pictures):
    first, second = tmp_path / "first", tmp_path / "second"
    calls = []
    world = make_ceiling_studio(first, "visual", seed=3, **SMALL, progress=lambda *call: calls.append(call))
    make_ceiling_studio(second, "title", seed=4, **SMALL)
    make_ceiling_studio(second, "visual", seed=3, **SMALL)
    assert digests(first) == digests(second)
    assert calls[-1] == (864, 864)
    folder = DatasetFolder.open(first)
    assert folder.catalog.titles == world.titles
    assert [len(folder.bundles[split]) for split in ("train", "validation", "test")] == [60, 10, 10]
    assert folder.interactions is not None
    assert dict(PlantedBundles.load(first).themes) == dict(world.planted.themes)
    text = (first / "README.md").read_text()
    assert "**invented**" in text
    assert json.loads((first / "studio.json").read_text())["invented"] is True


def test_pictures_of_one_theme_have_one_texture_and_opposite_hues(tmp_path, quick_pictures):
    world = make_ceiling_studio(tmp_path / "data", "visual", **SMALL)
    looks: dict[int, set[tuple[int, int]]] = {}
    for item_id, theme in world.planted.themes.items():
        with Image.open(tmp_path / "data" / "images" / f"{item_id}.png") as image:
            texture, hue, _ = image.getpixel((0, 0))
        looks.setdefault(theme, set()).add((texture, hue))
    for (texture, hue), (other_texture, other_hue) in map(sorted, looks.values()):
        assert texture == other_texture
        assert abs(hue - other_hue) == NUM_HUES / 2
    assert len(set.union(*looks.values())) == NUM_VALUES


def test_neighboring_hues_of_real_pictures_do_not_overlap():
    rng = np.random.default_rng(0)

    def angle(hue: int) -> float:
        with Image.open(io.BytesIO(draw_palette("jacket", 0, hue, rng))) as image:
            pixels = np.asarray(image, dtype=float).reshape(64, 64, 3)[25:40, 25:40].reshape(-1, 3).mean(axis=0)
        red, green, blue = pixels
        return np.arctan2(3**0.5 * (green - blue), 2 * red - green - blue) / (2 * np.pi) % 1

    for hue in range(NUM_HUES):
        distances = np.array([angle(hue) for _ in range(4)]) * NUM_HUES - hue
        assert np.abs((distances + NUM_HUES / 2) % NUM_HUES - NUM_HUES / 2).max() < 0.75


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"needs": "smell"}, "needs 'smell'.*title, visual, user_item, bundle_item"),
        ({"needs": "title", "seed": -1}, "seed -1 is negative"),
        ({"needs": "title", "num_test": 0}, r"cannot hold 0 bundles \(test\)"),
        ({"needs": "title", "fidelity": 1.5}, "fidelity is 1.5"),
    ],
)
def test_wrong_arguments_are_named_before_anything_is_written(tmp_path, arguments, message):
    with pytest.raises(BundleMLLMError, match=message):
        make_ceiling_studio(tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


def test_a_folder_of_other_files_is_refused_and_left_alone(tmp_path):
    (tmp_path / "items.jsonl").write_text("mine")
    with pytest.raises(BundleMLLMError, match="name a new folder"):
        make_ceiling_studio(tmp_path, "title", **SMALL)
    assert (tmp_path / "items.jsonl").read_text() == "mine"
