"""Accuracy against the number of candidates: each part and each way to rank, where they apply."""

import pytest

from bundle_mllm.data import DatasetFolder, make_questions
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.evaluation.by_length import accuracy_by_num_candidates
from bundle_mllm.model_folder import load_completer


def measure(completer, data, **options):
    return accuracy_by_num_candidates(
        completer, data, "test", **{"sizes": (2, 4, 8, 28, 999), "max_questions": 4, "group_size": 4, **options}
    )


def methods(rows):
    return [(row["num_candidates"], row["method"], row["prompts"]) for row in rows]


def test_a_ranker_uses_one_prompt_and_groups_where_both_can(folders, data):
    rows = measure(load_completer(folders["ranker"]), data)
    assert methods(rows) == [
        (2, "one prompt", 1),
        (4, "one prompt", 1),
        (8, "one prompt", 1),
        (8, "groups", 4),
        (28, "groups", 12),
    ]
    assert {row["num_questions"] for row in rows} == {4}


def test_a_retriever_needs_no_prompt_at_any_length(folders, data):
    assert methods(measure(load_completer(folders["retriever"]), data)) == [
        (size, "retriever", 0) for size in (2, 4, 8, 28)
    ]


def test_both_need_one_prompt_at_any_length(folders, data):
    rows = measure(load_completer(folders["both"]), data, sizes=(4, 28))
    assert methods(rows) == [
        (4, "one prompt", 1),
        (4, "retriever", 0),
        (4, "both", 1),
        (28, "groups", 12),
        (28, "retriever", 0),
        (28, "both", 1),
    ]


def test_figures_are_those_of_the_questions(folders, data):
    completer = load_completer(folders["both"])
    [row] = [
        row for row in measure(completer, data, sizes=(4,), max_questions=None, seed=3) if row["method"] == "both"
    ]
    questions = make_questions(
        data.bundles.test, data.catalog, data.bundles, num_candidates=4, questions_per_bundle=1, seed=3
    )
    hits = [
        int(completion.answer.argmax()) == question.answer_index
        for completion, question in zip(completer.score(questions), questions, strict=True)
    ]
    assert row["hit_rate@1"] == pytest.approx(sum(hits) / len(hits))


def test_without_bundles_there_is_nothing_to_measure(folders, tiny_data, tmp_path):
    (tmp_path / "items.jsonl").write_text((tiny_data / "items.jsonl").read_text())
    bundles = [line for line in (tiny_data / "bundles.jsonl").read_text().splitlines() if '"test"' not in line]
    (tmp_path / "bundles.jsonl").write_text("\n".join(bundles) + "\n")
    with pytest.raises(BundleMLLMError, match="no test bundle of two items"):
        measure(load_completer(folders["retriever"]), DatasetFolder.open(tmp_path))
