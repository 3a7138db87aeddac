"""Questions, prompts, pipeline, completer and configurations: finite scores that sum to 1, or one error."""

import json
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_values import ID, NUMBERS, SHARES, TEXT, VALUES, are_probabilities, folder, oddly, outcome
from tiny_models import ITEM_IDS, MODALITIES, make_completer, make_processor
from transformers import pipeline

from bundle_mllm.completion.complete import RuledCompleter
from bundle_mllm.modeling import BundleMLLMConfig, BundleRetrieverConfig
from bundle_mllm.modeling.combination_bundle_mllm import COMBINATION_FILE, BundleCombination
from bundle_mllm.modeling.configuration_bundle_mllm import BundleMLLMOptionConfig
from bundle_mllm.modeling.conformal_bundle_mllm import BundleCalibration

FEATURES = st.dictionaries(
    st.sampled_from([*MODALITIES]),
    st.sampled_from([6, 12]).flatmap(
        lambda width: st.lists(oddly(st.floats(-3, 3), st.floats()), min_size=width, max_size=width)
    )
    | VALUES,
    max_size=2,
)
ENTRY = (
    st.sampled_from(ITEM_IDS) | ID | st.fixed_dictionaries({"title": TEXT}, optional={"features": FEATURES}) | VALUES
)
QUESTION = st.fixed_dictionaries(
    {
        "partial": st.lists(st.sampled_from(ITEM_IDS), min_size=1, max_size=3, unique=True)
        | st.lists(ENTRY, max_size=3)
    },
    optional={
        "candidates": st.none()
        | st.lists(st.sampled_from(ITEM_IDS), min_size=2, max_size=6, unique=True)
        | st.lists(ENTRY, max_size=4)
    },
)
NEW = st.fixed_dictionaries(
    {"title": st.text(min_size=1, max_size=20)},
    optional={
        "features": st.fixed_dictionaries(
            {}, optional={name: st.lists(st.floats(-9, 9), min_size=n, max_size=n) for name, n in MODALITIES.items()}
        )
    },
)


@st.composite
def asked(draw):
    """A sound question: ids of the catalog in any order, some of them replaced by new items; candidates or none."""
    ids = draw(st.permutations(ITEM_IDS))
    shown, end = draw(st.integers(1, 3)), draw(st.integers(4, len(ids)))
    entries = [draw(oddly(st.just(item_id), NEW, 6)) for item_id in ids]
    question = {"partial": entries[:shown], "candidates": entries[shown:end]}
    if draw(st.integers(0, 3)) == 0:
        question["candidates"] = None
    return question


QUESTIONS = oddly(asked(), QUESTION | VALUES, 3)
"""Two of three are sound."""


@pytest.fixture(scope="module", params=["both", "ranker", "retriever"])
def completer(request):
    return make_completer(ranker=request.param != "retriever", retriever=request.param != "ranker")


@pytest.fixture(scope="module")
def processor():
    return make_processor()


@pytest.fixture(scope="module")
def completes(tmp_path_factory):
    """The pipeline, of a saved folder of both models."""
    model = tmp_path_factory.mktemp("model")
    both = make_completer()
    both.combination = BundleCombination(
        calibration=BundleCalibration(8, {part: [float(n) for n in range(30)] for part in both.parts})
    ).bind(both.ranker, both.retriever)
    both.save_pretrained(model)
    return pipeline("bundle-completion", model=str(model))


@given(question=QUESTIONS)
def test_questions_of_any_kind_are_answered_or_refused(completer, question, count):
    accepted, result = outcome(completer.complete, question, errors=ValueError)
    assert not accepted or are_probabilities([entry["score"] for entry in result])
    count("accepted" if accepted else "refused")


@given(
    questions=st.lists(QUESTIONS, max_size=2) | QUESTIONS,
    options=oddly(
        st.just({}),
        st.fixed_dictionaries(
            {},
            optional={
                "top_k": st.sampled_from([*NUMBERS, None, "2", 2.0]),
                "group_size": st.sampled_from([*NUMBERS, None]),
                "explain": st.booleans(),
                "coverage": st.sampled_from([0.5, 0.8, 0.9, *SHARES]),
                "batch_size": st.integers(1, 3),
            },
        ),
        2,
    ),
)
def test_the_pipeline_answers_or_refuses(completes, questions, options, count):
    accepted, result = outcome(completes, questions, errors=ValueError, **options)
    if accepted:
        for answers in result if isinstance(questions, list) else [result]:
            scores = [entry["score"] for entry in answers]
            assert all(map(math.isfinite, scores)) and sum(scores) < 1 + 1e-4
            assert are_probabilities(scores) or {"top_k", "coverage"} & options.keys()
    count("accepted" if accepted else "refused")


@given(question=QUESTIONS)
def test_prompts_of_any_question(processor, question, count):
    accepted, encoded = outcome(processor, question, errors=ValueError)
    assert not accepted or torch.tensor(encoded["input_ids"]).ndim in (1, 2)
    count("accepted" if accepted else "refused")


SIZE = oddly(st.integers(1, 64), st.sampled_from(NUMBERS) | VALUES, 9)
FLAG = oddly(st.booleans(), VALUES)
WIDTHS = oddly(
    st.dictionaries(st.sampled_from(["visual", "textual", "user_item", "smell_2"]), st.integers(1, 9), max_size=3),
    st.dictionaries(st.sampled_from(["", "Visual", "items", "a__b"]) | TEXT, SIZE, max_size=2) | VALUES,
    9,
)
SHARED = {
    "modalities": WIDTHS,
    "num_items": SIZE,
    "items_hash": st.none() | TEXT,
    "format_version": oddly(st.integers(1, 2), SIZE, 9),
}
RANKER = SHARED | {
    "mlp_modalities": st.lists(oddly(st.sampled_from(["visual", "textual"]), VALUES, 9), max_size=2),
    **{f"{name}_hidden_size": SIZE for name in ("fusion", "mlp", "projector")},
    **{name: FLAG for name in ("fusion_layer_norm", "standardize_features", "head_bias", "freeze_backbone")},
    "item_token_offset": oddly(st.integers(1 << 20, 1 << 30), SIZE, 9),
    "separator_token_id": st.none() | SIZE,
    "tie_word_embeddings": st.none() | FLAG,
}
FIELDS = {
    BundleMLLMConfig: RANKER,
    BundleMLLMOptionConfig: RANKER | {"matching_rank": SIZE},
    BundleRetrieverConfig: SHARED
    | {
        "memberships": oddly(st.dictionaries(st.sampled_from(["textual", "user_item"]), SIZE, max_size=2), VALUES, 9),
        "hidden_size": SIZE,
        "dropout": oddly(st.floats(0, 0.99), st.sampled_from(SHARES), 9),
        "collaborative_dropout": oddly(st.floats(0, 0.99), st.sampled_from(SHARES), 9),
    },
}


@pytest.mark.parametrize("kind", FIELDS, ids=lambda kind: kind.__name__)
@given(data=st.data())
def test_configurations_of_any_values_are_saved_as_they_are(kind, data, count):
    fields = FIELDS[kind]
    names = data.draw(st.lists(st.sampled_from(sorted(fields)), max_size=4, unique=True))
    values = {name: data.draw(fields[name]) for name in names}
    accepted, config = outcome(kind, errors=ValueError, **values)
    if accepted:
        assert kind.from_dict(config.to_dict()).to_dict() == config.to_dict()
        with folder() as path:
            config.save_pretrained(path)
            json.loads((path / "config.json").read_text())
            assert kind.from_pretrained(path).to_dict() == config.to_dict()
    count("accepted" if accepted else "refused")


NUMBER = oddly(st.floats(0.01, 9), st.sampled_from(SHARES) | VALUES, 20)
MOST_RANKED = oddly(st.integers(2, 26), SIZE, 20)


def by_part(*names):
    """Numbers by part, nearly always of these names."""
    numbers = st.lists(oddly(st.floats(-9, 9), VALUES, 60), min_size=1, max_size=4)
    usual = st.dictionaries(st.sampled_from(names), oddly(numbers, VALUES), min_size=1, max_size=2)
    return oddly(usual, st.dictionaries(TEXT, numbers, max_size=1) | VALUES, 20)


SAMPLES, CONFORMITY = by_part("ranker", "retriever"), by_part("ranker", "retriever", "both")
CALIBRATION = {"num_candidates": oddly(st.integers(2, 99), SIZE, 20), "conformity": CONFORMITY}


@given(
    weights=st.tuples(NUMBER, NUMBER, MOST_RANKED),
    fitted_for=SAMPLES,
    calibration=st.none() | st.fixed_dictionaries(CALIBRATION),
)
def test_combinations_of_any_values_are_saved_as_they_are(weights, fitted_for, calibration, count):
    def made():
        known = None if calibration is None else BundleCalibration(**calibration)
        return BundleCombination(*weights, fitted_for, known)

    accepted, combination = outcome(made, errors=ValueError)
    if accepted:
        with folder() as path:
            combination.save_pretrained(path)
            assert BundleCombination.from_pretrained(path) == combination
            assert BundleCombination.from_pretrained(path).unbound() == replace(
                combination, fitted_for=None, calibration=None
            )
    count("accepted" if accepted else "refused")


@given(
    values=st.fixed_dictionaries(
        {"ranker_weight": NUMBER, "temperature": NUMBER, "num_ranked": MOST_RANKED, "fitted_for": SAMPLES},
        optional={"calibration": oddly(st.fixed_dictionaries(CALIBRATION), VALUES, 9)},
    ),
    change=oddly(st.none(), st.dictionaries(st.sampled_from(["temperature", "x"]), VALUES) | TEXT, 9),
)
def test_combination_files_of_any_content(values, change, count):
    text = change if isinstance(change, str) else json.dumps(values | (change or {}))
    with folder() as path:
        (path / COMBINATION_FILE).write_bytes(text.encode("utf-8", "surrogatepass"))
        accepted, found = outcome(BundleCombination.from_pretrained, path, errors=ValueError)
    assert not accepted or found.temperature > 0
    count("accepted" if accepted else "refused")


@pytest.fixture(scope="module")
def both():
    return make_completer()


@given(
    questions=st.lists(asked(), min_size=1, max_size=2) | st.lists(QUESTIONS, max_size=2),
    top_k=st.sampled_from([1, 2, 5, 9]),
)
def test_bundles_are_completed_under_no_rules(both, questions, top_k, count):
    accepted, found = outcome(RuledCompleter(both).complete, questions, top_k=top_k)
    if accepted:
        for answers in found:
            scores = [item["score"] for item in answers.items]
            assert len(scores) <= top_k and all(map(math.isfinite, scores)) and sum(scores) < 1 + 1e-4
    count("accepted" if accepted else "refused")
