"""The retriever learns from features and from shared groups, each part on the bundles that are meant for it."""

import dataclasses

import numpy as np
import pytest
import torch
from tiny_training import training_questions, with_other_answers

from bundle_mllm.data import DatasetFolder, make_questions
from bundle_mllm.data.folds import part_bundles
from bundle_mllm.modeling.groups_bundle_mllm import ItemPairs
from bundle_mllm.training.config import RetrieverSettings
from bundle_mllm.training.memberships import load_memberships
from bundle_mllm.training.out_of_fold import QuestionRows, fold_rows, load_out_of_fold
from bundle_mllm.training.retriever import fit_retriever, fit_stacker, fit_towers, new_retriever, score_rows

pytestmark = pytest.mark.slow

SETTINGS = RetrieverSettings(steps=80, batch_size=64, hidden_size=16, num_candidates=(4, 8))
NAMES = ("bundle_item", "user_item")


@pytest.fixture(scope="module")
def colors(tiny_data):
    """Items whose only modality is a picture, which bundles agree in."""
    return DatasetFolder.open(tiny_data)


def build(data, names=(), seed=0, **settings):
    """Make a retriever that reads all features of a folder and counts the named groups."""
    store, changed = data.features(), dataclasses.replace(SETTINGS, **settings)
    out_of_fold = load_out_of_fold(data, list(store.modalities))
    memberships = load_memberships(data, names, list(store.modalities), out_of_fold)
    return new_retriever(store, memberships, changed, seed=seed), out_of_fold


def fit(data, questions, names=NAMES, stacking=frozenset(), held_out=(), **settings):
    """Train a retriever of the folder; returns it and its scores of the held-out questions."""
    retriever, out_of_fold = build(data, names, **settings)
    scores = fit_retriever(
        retriever,
        data.catalog,
        questions,
        dataclasses.replace(SETTINGS, **settings),
        stacking_bundles=set(stacking),
        held_out_questions=held_out,
        out_of_fold=out_of_fold,
        seed=1,
    )
    return retriever, scores


def hit_rate(retriever, data):
    questions = make_questions(data.bundles.test, data.catalog, data.bundles, num_candidates=6, seed=0)
    rows = QuestionRows(questions, data.catalog)
    with torch.no_grad():
        return float((retriever(rows.partial, rows.options).scores.argmax(dim=1) == rows.answers).float().mean())


def copy_of(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def differing(before, module):
    return {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}


@torch.no_grad()
def blank(retriever, out_of_fold):
    """Take the features away, but not the groups; returns the out-of-fold features without them."""
    for name in retriever.config.modalities:
        retriever.catalog.features[name].zero_()
        retriever.towers.statistics.mean[name].zero_()
    return dataclasses.replace(out_of_fold, features=torch.zeros_like(out_of_fold.features))


def test_the_seed_decides_the_first_weights_and_the_global_random_state_stays(colors):
    before = torch.get_rng_state()
    first, again, other = (build(colors, seed=seed)[0].towers.state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_towers_learn_what_goes_together_from_features(colors):
    retriever, _ = fit(colors, training_questions(colors))
    right = 0
    questions = make_questions(colors.bundles.test, colors.catalog, colors.bundles, num_candidates=6, seed=0)
    rows = QuestionRows(questions, colors.catalog)
    for question, row in zip(questions, retriever(rows.partial, rows.options).scores, strict=True):
        chosen = question.candidates[int(row.argmax())]
        right += chosen.split("-")[0] == question.answer.split("-")[0]
    assert right / len(questions) > 0.8  # the color decides


@pytest.mark.slow
def test_shared_groups_alone_are_enough(circles):
    rates = {}
    for names in (NAMES, ()):
        retriever, out_of_fold = build(circles, names)
        out_of_fold = blank(retriever, out_of_fold)
        fit_retriever(
            retriever,
            circles.catalog,
            training_questions(circles, num_questions=1_024),
            dataclasses.replace(SETTINGS, steps=300),
            stacking_bundles=part_bundles(circles.bundles.train, [0.2], out_of_fold=out_of_fold)[0],
            out_of_fold=out_of_fold,
            seed=0,
        )
        rates[names] = hit_rate(retriever, circles)
    assert rates[NAMES] > rates[()] + 0.25


@pytest.mark.slow
def test_after_stacking_the_towers_are_trained_on_all_bundles(circles):
    """Features alone have to answer well, too, and the stacking bundles have to matter to them."""
    questions = training_questions(circles, num_questions=1_024)
    [stacking] = part_bundles(circles.bundles.train, [0.2])
    retriever, _ = fit(circles, questions, stacking=stacking)
    changed, _ = fit(circles, with_other_answers(questions, stacking), stacking=stacking)
    assert differing(copy_of(retriever.towers), changed.towers)
    retriever.stacker = None
    assert hit_rate(retriever, circles) > 0.3  # chance: .17


def test_the_towers_train_and_the_stacker_stays(circles):
    retriever, _ = build(circles, NAMES)
    rows = QuestionRows(training_questions(circles), circles.catalog)
    before, stacker = copy_of(retriever.towers), copy_of(retriever.stacker)
    fit_towers(retriever, rows, torch.arange(len(rows)), SETTINGS, SETTINGS.steps, torch.Generator(), 0)
    assert {name.split(".")[0] for name in differing(before, retriever.towers)} == {
        "maps",
        "logit_scale",
        "cosine_weight",
    }
    assert not differing(stacker, retriever.stacker)
    assert not retriever.training


def test_the_stacker_trains_and_the_towers_stay(circles):
    retriever, _ = build(circles, NAMES)
    rows = QuestionRows(training_questions(circles), circles.catalog)
    towers, before = copy_of(retriever.towers), copy_of(retriever.stacker)
    fit_stacker(retriever, rows, torch.arange(len(rows)), SETTINGS, SETTINGS.steps, torch.Generator(), 0)
    assert differing(before, retriever.stacker) == set(before)
    assert not differing(towers, retriever.towers)


def test_few_bundles_take_fewer_steps():
    steps = [RetrieverSettings().num_steps(number) for number in (1, 807, 1_000_000)]
    assert steps == [100, 201, 1_000] and RetrieverSettings(steps=7).num_steps(4_000) == 7


@pytest.mark.slow
def test_towers_and_stacker_draw_from_the_questions_meant_for_them_alone(circles):
    questions = training_questions(circles)
    [meant] = part_bundles(circles.bundles.train, [0.2])
    among = torch.tensor([index for index, question in enumerate(questions) if question.bundle_id in meant])
    others = {bundle.bundle_id for bundle in circles.bundles.train} - meant
    for step, part in ((fit_towers, "towers"), (fit_stacker, "stacker")):
        states = []
        for changed in (set(), others, meant):
            retriever, _ = build(circles, NAMES)
            rows = QuestionRows(with_other_answers(questions, changed), circles.catalog)
            step(retriever, rows, among, SETTINGS, SETTINGS.steps, torch.Generator().manual_seed(0), 0)
            states.append(copy_of(getattr(retriever, part)))
            module = getattr(retriever, part)
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0]), part
        assert differing(states[0], module), part


@pytest.fixture(scope="module")
def parted(circles):
    """Questions about all training bundles, and the ids of those that are held out and of those for the stacker."""
    out_of_fold = load_out_of_fold(circles, ["bundle_item"])
    held_out, stacking = part_bundles(circles.bundles.train, (0.1, 0.2), out_of_fold=out_of_fold)
    questions = training_questions(circles)
    return questions, held_out, stacking, [q for q in questions if q.bundle_id in held_out]


@pytest.mark.slow
def test_held_out_questions_are_scored_by_a_retriever_that_has_not_seen_their_bundles(circles, parted):
    questions, held_out, stacking, held_out_questions = parted
    _, scores = fit(circles, questions, stacking=stacking, held_out=held_out_questions)
    changed, poisoned = (
        fit(circles, with_other_answers(questions, ids), stacking=stacking, held_out=held_out_questions)[1]
        for ids in (held_out, stacking)
    )
    assert scores == changed
    assert scores != poisoned
    assert [len(row) for row in scores] == [len(question.candidates) for question in held_out_questions]


@pytest.mark.slow
def test_without_a_stacker_its_bundles_do_not_reach_the_towers_that_score_held_out_questions(circles, parted):
    questions, _, stacking, held_out_questions = parted
    _, scores = fit(circles, questions, names=(), stacking=stacking, held_out=held_out_questions)
    changed = with_other_answers(questions, stacking)
    assert fit(circles, changed, names=(), stacking=stacking, held_out=held_out_questions)[1] == scores


@pytest.mark.slow
def test_the_held_out_bundles_are_trained_on_in_the_end(circles, parted):
    questions, held_out, stacking, held_out_questions = parted
    retriever, _ = fit(circles, questions, stacking=stacking, held_out=held_out_questions)
    changed, _ = fit(circles, with_other_answers(questions, held_out), stacking=stacking, held_out=held_out_questions)
    assert differing(copy_of(retriever.towers), changed.towers)
    assert not differing(copy_of(retriever.stacker), changed.stacker)


@pytest.mark.parametrize("stacking", [set(), {"b0"}])
def test_bundles_too_few_to_part_train_both_parts(colors, circles, stacking):
    questions = [question for question in training_questions(circles) if question.bundle_id == "b0"]
    retriever, _ = build(circles, NAMES)
    before = copy_of(retriever)
    trained, scores = fit(circles, questions, stacking=stacking)
    assert scores == []
    parts = {name.split(".")[0] for name in differing(before, trained)}
    assert parts == {"towers", "stacker"}


def test_training_reads_out_of_fold_features_alone(folds_data):
    questions = training_questions(folds_data, num_questions=64)
    states = {}
    for uses_folds in (True, False):
        for poison in (100.0, -1e4):
            retriever, out_of_fold = build(folds_data)
            retriever.catalog.features["bundle_item"].fill_(poison)
            fit_retriever(
                retriever,
                folds_data.catalog,
                questions,
                dataclasses.replace(SETTINGS, steps=3),
                stacking_bundles=set(),
                out_of_fold=out_of_fold if uses_folds else None,
                seed=0,
            )
            states[uses_folds, poison] = retriever.towers
    assert not differing(copy_of(states[True, 100.0]), states[True, -1e4])
    assert differing(copy_of(states[False, 100.0]), states[False, -1e4])


@torch.no_grad()
def test_a_training_question_is_scored_as_if_the_bundles_of_its_fold_did_not_exist(circles):
    """The same weights over a catalog that was made without the fold give the same scores."""
    questions = training_questions(circles, num_questions=64)
    retriever, out_of_fold = build(circles, NAMES)
    torch.manual_seed(0)
    for parameter in retriever.parameters():
        parameter.normal_(std=0.3)
    with fold_rows(retriever.catalog, out_of_fold):
        scores = score_rows(retriever, QuestionRows(questions, circles.catalog, out_of_fold))
    memberships = load_memberships(circles, NAMES, list(retriever.config.modalities), out_of_fold)
    pairs, (features, present) = memberships["bundle_item"], circles.features().load()
    for fold in range(out_of_fold.num_folds):
        kept = pairs.fold_of_group[pairs.groups] != fold
        bundles = ItemPairs(pairs.nodes[kept], pairs.groups[kept])
        without, _ = build(circles, NAMES)
        without.set_catalog(
            features | {"bundle_item": out_of_fold.features[fold].float()},
            present | {"bundle_item": out_of_fold.present[fold]},
            memberships | {"bundle_item": bundles},
        )
        without.towers.load_state_dict(retriever.towers.state_dict())
        without.stacker.load_state_dict(retriever.stacker.state_dict())
        for question, row in zip(questions, scores, strict=True):
            if out_of_fold.fold_of_bundle[question.bundle_id] == fold:
                rows = QuestionRows([question], circles.catalog)
                expected = without(rows.partial, rows.options).scores[0]
                np.testing.assert_allclose(row, expected.numpy(), rtol=0, atol=1e-5)


def test_the_catalog_is_as_it_was_after_training(folds_data):
    retriever, out_of_fold = build(folds_data)
    before = copy_of(retriever.catalog)
    fit_retriever(
        retriever,
        folds_data.catalog,
        training_questions(folds_data, num_questions=16),
        dataclasses.replace(SETTINGS, steps=1),
        stacking_bundles=set(),
        out_of_fold=out_of_fold,
        seed=0,
    )
    assert retriever.catalog.num_rows == retriever.catalog.num_items == 32
    assert retriever.state_dict().keys() >= {f"catalog.{name}" for name in before}
    assert not differing(before, retriever.catalog)
