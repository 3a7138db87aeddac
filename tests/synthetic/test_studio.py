"""The studio is reproducible, follows its own rules, and its ceilings are those of its questions."""

import hashlib
import json
import wave
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bundle_mllm.data import BundleSplits, DatasetFolder, ItemCatalog, make_questions
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.synthetic.studio import DOMAINS, bayes_hit_rate, make_studio, plan_studio

SMALL = {"num_train": 60, "num_validation": 10, "num_test": 10, "num_users": 12}


@pytest.fixture(scope="module", params=list(DOMAINS))
def studio(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("studio") / request.param
    return folder, make_studio(folder, request.param, seed=3, **SMALL)


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_same_seed_gives_byte_identical_files_even_over_another_studio_of_which_nothing_is_left(studio, tmp_path):
    folder, world = studio
    make_studio(tmp_path, world.domain.name, seed=4, **SMALL)
    for name in ("features", "questions", "images", "audio"):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "old").write_text("old")
    other = digests(tmp_path)
    calls = []
    make_studio(tmp_path, world.domain.name, seed=3, **SMALL, progress=lambda *call: calls.append(call))
    assert digests(tmp_path) == digests(folder)
    assert [name for name, digest in digests(folder).items() if other[name] == digest] == []
    assert calls == [(number, len(world.titles)) for number in range(1, len(world.titles) + 1)]


def test_the_folder_opens_as_a_dataset_folder_with_one_file_per_item(studio):
    folder, world = studio
    data = DatasetFolder.open(folder)
    assert data.catalog.titles == world.titles
    assert data.catalog.item_ids == world.item_ids
    assert {split: len(data.bundles[split]) for split in ("train", "validation", "test")} == {
        "train": 60,
        "validation": 10,
        "test": 10,
    }
    assert data.interactions is not None
    assert len(data.interactions) == len(world.log)
    for item in data.catalog:
        if world.domain.media == "image":
            with Image.open(folder / item.image) as image:
                assert (image.size, image.mode) == ((64, 64), "RGB")
        else:
            with wave.open(str(folder / item.audio)) as sound:
                assert (sound.getframerate(), sound.getnchannels()) == (16_000, 1)
                assert 1.0 <= sound.getnframes() / 16_000 <= 1.5


def test_the_folder_says_openly_that_it_is_invented(studio):
    folder, world = studio
    assert "**invented**" in (folder / "README.md").read_text()
    assert json.loads((folder / "studio.json").read_text())["invented"] is True
    assert all(item_id.startswith("invented-") for item_id in world.item_ids)


def test_no_file_but_the_media_names_a_look_or_a_group(studio):
    folder, world = studio
    text = (folder / "items.jsonl").read_text() + (folder / "bundles.jsonl").read_text()
    assert not any(look in text for look in world.domain.looks)
    fields = {field for line in (folder / "items.jsonl").read_text().splitlines() for field in json.loads(line)}
    assert fields == {"item_id", "title", "category", world.domain.media}


@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_bundle_agrees_in_style_look_and_group_and_repeats_no_kind(domain, seed):
    world = plan_studio(domain, seed=seed, num_train=300)
    bundles = [rows for split in world.bundles.values() for rows in split]
    for rows in map(list, bundles):
        assert 4 <= len(rows) <= 6
        assert all(len(set(trait[rows])) == 1 for trait in (world.style, world.look, world.group))
        assert len(set(world.kind[rows])) == len(rows)
    assert len({frozenset(rows) for rows in bundles}) == len(bundles)


@pytest.mark.parametrize("domain", DOMAINS)
def test_a_tenth_of_the_items_is_cold_and_asked_about_all_the_same(domain):
    world = plan_studio(domain)
    trained = {row for rows in world.bundles["train"] for row in rows}
    cold = set(np.flatnonzero(world.cold))
    assert trained == set(range(len(world.titles))) - cold
    assert 0.08 < len(cold) / len(world.titles) < 0.12
    asked = [row for rows in world.bundles["test"] for row in rows]
    assert 0.05 < np.mean([row in cold for row in asked]) < 0.15


@pytest.mark.parametrize("domain", DOMAINS)
def test_each_title_stands_for_exactly_one_item_of_each_look_and_group(domain):
    world = plan_studio(domain, seed=1)
    by_title: dict[str, list[tuple[int, int]]] = {}
    for title, look, group in zip(world.titles, world.look.tolist(), world.group.tolist(), strict=True):
        by_title.setdefault(title, []).append((look, group))
    everything = [(look, group) for look in range(4) for group in range(2)]
    assert all(sorted(traits) == everything for traits in by_title.values())


@pytest.mark.parametrize("domain", DOMAINS)
def test_titles_are_two_words_of_one_style_and_the_kind_from_a_small_vocabulary(domain):
    world = plan_studio(domain)
    styles = list(world.domain.styles.values())
    for title, style, kind in zip(world.titles, world.style, world.kind, strict=True):
        *adjectives, noun = title.split()
        assert len(adjectives) == 2
        assert set(adjectives) <= set(styles[style])
        assert noun == world.domain.kinds[kind]
    words = [word for style in styles for word in style]
    assert len(set(words)) == len(words)  # No adjective is of two styles.
    assert len({word for title in world.titles for word in title.split()}) <= 120


@pytest.mark.parametrize("domain", DOMAINS)
def test_users_meet_mostly_items_of_one_group_whatever_style_and_look(domain):
    world = plan_studio(domain)
    user, row = world.log.T
    share = np.bincount(user, world.group[row]) / np.bincount(user)
    assert (share[0::2] < 0.5).all()
    assert (share[1::2] > 0.5).all()
    assert 0.88 < np.maximum(share, 1 - share).mean() < 0.92
    for trait in (world.style, world.look):
        counts = np.bincount(trait[row])
        assert counts.min() > 0.9 * counts.mean()
    assert set(row) == set(range(len(world.titles)))


@pytest.mark.parametrize("num_candidates", [4, 10])
@pytest.mark.parametrize("partial", ["half", "leave_one_out"])
def test_the_ceilings_equal_the_hit_rate_of_one_who_knows_the_rules(partial, num_candidates):
    world = plan_studio("fashion", seed=5, num_test=2500)
    catalog = ItemCatalog.from_records([{"item_id": item_id} for item_id in world.item_ids])
    records = [
        {"bundle_id": f"{split}{number}", "items": [world.item_ids[row] for row in rows], "split": split}
        for split, bundles in world.bundles.items()
        for number, rows in enumerate(bundles)
    ]
    splits = BundleSplits.from_records(records, catalog)
    questions = make_questions(splits.test, catalog, splits, num_candidates=num_candidates, partial=partial, seed=0)
    for media, log in ((False, False), (True, False), (False, True), (True, True)):
        agreeing = [world.style, *([world.look] if media else []), *([world.group] if log else [])]
        hits = []
        for question in questions:
            shown, options = catalog.rows(question.partial), np.array(catalog.rows(question.candidates))
            fits = ~np.isin(world.kind[options], world.kind[shown])
            for trait in agreeing:
                fits &= trait[options] == trait[shown[0]]
            assert fits[question.answer_index]
            hits.append(1 / fits.sum())
        ceiling = bayes_hit_rate("fashion", media=media, log=log, num_candidates=num_candidates, partial=partial)
        assert np.mean(hits) == pytest.approx(ceiling, abs=4 * np.std(hits) / len(hits) ** 0.5)


@pytest.mark.parametrize("domain", DOMAINS)
def test_text_alone_is_capped_well_below_text_with_media_and_log(domain):
    assert 0.38 <= bayes_hit_rate(domain, media=False, log=False) <= 0.48
    assert bayes_hit_rate(domain, media=True, log=False) >= 0.80
    assert bayes_hit_rate(domain, media=True, log=True) >= 0.90


def test_one_candidate_is_always_right():
    assert bayes_hit_rate("fashion", media=False, log=False, num_candidates=1) == pytest.approx(1.0)


def test_a_folder_of_other_files_is_refused_and_left_alone(tmp_path):
    (tmp_path / "items.jsonl").write_text("mine")
    with pytest.raises(BundleMLLMError, match="name a new folder"):
        make_studio(tmp_path, "fashion", **SMALL)
    assert (tmp_path / "items.jsonl").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"domain": "music"}, "no domain 'music'.*fashion, playlist"),
        ({"domain": "fashion", "seed": -1}, "seed -1 is negative"),
        ({"domain": "fashion", "num_train": 0}, r"cannot hold 0 \(train\)"),
        ({"domain": "fashion", "num_users": 10**6}, r"cannot hold 1000000 \(users\)"),
    ],
)
def test_wrong_arguments_are_named_before_anything_is_written(tmp_path, arguments, message):
    with pytest.raises(BundleMLLMError, match=message):
        make_studio(tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()
