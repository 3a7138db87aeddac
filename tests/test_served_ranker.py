"""A ranker behind an OpenAI-compatible server answers as the local one does; where it does not, the retriever does."""

import json
import shutil
import time
from types import SimpleNamespace

import pytest
import torch
from llm_stub import LLMStub, sure_of_letters
from tiny_models import ITEM_IDS, TITLES, make_completer, make_features, make_model

from bundle_mllm import served_ranker
from bundle_mllm.cli import main
from bundle_mllm.completion.complete import RuledCompleter, load_ruled_completer
from bundle_mllm.data.tables import write_records
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.interop.export import export_stock
from bundle_mllm.model_folder import load_completer
from bundle_mllm.modeling import BundleCombination, BundleCompleter
from bundle_mllm.served_ranker import EXPORT_RECORD, RankerAddress, read_letters

QUESTION = {"partial": ["i0", "i1"], "candidates": ["i2", "i3", "i4"]}
QUESTIONS = [
    QUESTION,
    {"partial": ["i6"], "candidates": ["i5", "i0", "i2", "i7"]},
    {"partial": ["i3", "i2", "i5"], "candidates": ["i7", "i6"]},
    {"partial": ["i4"], "candidates": None},
]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A model folder whose ranker was exported, and a stub that serves the export."""
    folder, made = tmp_path_factory.mktemp("served"), make_completer()
    sure_of_letters(made.ranker, made.processor, QUESTIONS[:3])
    combination = BundleCombination(ranker_weight=0.6, temperature=1.3)
    BundleCompleter(made.processor, made.ranker, made.retriever, combination).save_pretrained(folder / "model")
    stub = LLMStub(export_stock(folder / "model", folder / "stock"))
    with stub.serving() as port:
        yield folder / "model", stub, f"openai:http://127.0.0.1:{port}/v1?timeout=60#exported"


@pytest.fixture
def served(exported, monkeypatch):
    folder, stub, address = exported
    stub.reset()
    return load_completer(folder, ranker=address), stub


def remember_no_problem(completer):
    completer.ranker._is_checked, completer.ranker._problem = True, None


def scores(completions, part="both"):
    return torch.cat([completion.scores[part] for completion in completions])


@pytest.mark.parametrize("permutations", [1, 3])
def test_answers_are_those_of_the_local_ranker(exported, served, permutations):
    local, (completer, _) = load_completer(exported[0]), served
    expected, found = (each.score(QUESTIONS, permutations=permutations) for each in (local, completer))
    for part in ("ranker", "both"):
        assert torch.allclose(scores(found, part), scores(expected, part), atol=1e-5), part
    assert [each.unrestricted_choice for each in found] == [each.unrestricted_choice for each in expected]
    assert all(each.unranked is None for each in found)
    assert len({round(float(score), 3) for score in scores(expected, "ranker")}) > 8


def test_the_folder_needs_no_weights_of_the_ranker(exported, served, tmp_path):
    folder = shutil.copytree(exported[0], tmp_path / "model")
    (folder / "model.safetensors").unlink()
    found, expected = (each.score(QUESTIONS) for each in (load_completer(folder, ranker=exported[2]), served[0]))
    assert torch.equal(scores(found), scores(expected))


def test_a_whole_catalog_is_completed_under_rules_as_by_the_local_ranker(exported):
    folder, _, address = exported
    local, remote = load_ruled_completer(folder), load_ruled_completer(folder, ranker=address)
    for question in ({"partial": ["i0"]}, QUESTION):
        [expected], [found] = (each.complete([question], explain=True) for each in (local, remote))
        assert [item["item_id"] for item in found.items] == [item["item_id"] for item in expected.items]
        assert [item["score"] for item in found.items] == pytest.approx([i["score"] for i in expected.items], abs=1e-5)
        assert found.unranked is None and found.notes == expected.notes
        assert "ranker" in found.items[0]["explanation"]


def test_a_ranker_without_a_retriever_ranks_long_lists_in_groups(exported, served):
    (completer, _), local = served, load_completer(exported[0])
    question = {"partial": ["i0"], "candidates": ITEM_IDS[1:]}
    expected, found = (
        BundleCompleter(each.processor, ranker=each.ranker).score([question], max_options=3, group_size=3)
        for each in (local, completer)
    )
    assert torch.allclose(scores(found, "ranker"), scores(expected, "ranker"), atol=1e-3)


def test_prompts_are_sent_at_once_with_the_key(exported, monkeypatch):
    folder, stub, address = exported
    stub.reset()
    monkeypatch.setenv("RANKER_API_KEY", "secret")
    completer = load_completer(folder, ranker=address)
    completer.score(QUESTIONS)
    stub.most_at_once, stub.together = 0, 6
    completer.score(QUESTIONS * 4, batch_size=8)
    assert 6 <= stub.most_at_once <= 8
    assert set(stub.keys) == {"Bearer secret"}
    assert stub.requests[-1].items() >= {"model": "exported", "max_tokens": 1, "top_logprobs": 20}.items()


@pytest.mark.parametrize("failures", [1, 2])
def test_a_passing_error_is_tried_again(served, failures):
    completer, stub = served
    remember_no_problem(completer)
    stub.failures = failures
    [completion] = completer.score([QUESTION])
    assert completion.unranked is None and len(stub.requests) == 1 + failures


def drop_letter(answer):
    tokens = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    tokens[:] = [token for token in tokens if token["token"].strip() != "B"]
    return answer


def without_log_probabilities(answer):
    return {"choices": [{"message": {"content": "A"}, "logprobs": None}]}


BROKEN = {
    "status 500": ({"status": 500}, "status 500"),
    "status 404": ({"status": 404}, "status 404"),
    "no answer": ({"together": 2}, "within 0.5 s"),
    "no JSON": ({"change": lambda answer: b"<html>"}, "something else than JSON"),
    "other JSON": ({"change": lambda answer: {"choices": []}}, "not in the form"),
    "not a number": ({"change": lambda answer: json.dumps(answer).replace("-", "NaN, -").encode()}, "JSON"),
    "a missing letter": ({"change": drop_letter}, "lack the answers B"),
    "few log-probabilities": ({"num_logprobs": 2}, "The 2 log-probabilities that the server sent lack"),
    "no log-probabilities": ({"change": without_log_probabilities}, "transformers serve"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_where_the_server_fails_the_retriever_answers_and_says_so(exported, name):
    folder, stub, address = exported
    behavior, expected = BROKEN[name]
    stub.reset()
    seconds = 0.5 if "together" in behavior else 60
    completer = load_completer(folder, ranker=address.replace("timeout=60", f"timeout={seconds}&retries=0"))
    remember_no_problem(completer)
    for field, value in behavior.items():
        setattr(stub, field, value)
    alone = BundleCompleter(completer.processor, retriever=completer.retriever)
    [answers], [of_retriever] = (RuledCompleter(each).complete([QUESTION]) for each in (completer, alone))
    assert answers.items == of_retriever.items
    assert expected in answers.unranked and expected in answers.notes[0]
    with pytest.raises(ValueError, match=expected):  # an evaluation must not go on without its ranker
        completer.score([QUESTION])


def test_one_question_that_fails_does_not_concern_the_others(served):
    completer, _ = served
    new = {"title": "silk scarf", "features": {name: matrix[0] for name, matrix in make_features(9).items()}}
    with_new = {"partial": ["i0", new], "candidates": ["i2", "i3"]}
    found = completer.score([QUESTION, with_new], may_lack_ranker=True)
    assert found[0].unranked is None and "no token" in found[1].unranked
    assert torch.equal(found[1].answer, found[1].scores["retriever"])


def test_a_server_that_is_down_is_left_alone_and_found_again(exported, monkeypatch):
    folder, stub, _ = exported
    now = [0.0]
    monkeypatch.setattr(served_ranker, "time", SimpleNamespace(monotonic=lambda: now[0]))
    with stub.serving() as port:
        address = f"openai:http://127.0.0.1:{port}/v1?retries=0#exported"
        shop = RuledCompleter(load_completer(folder, ranker=address))
        assert shop.complete([QUESTION])[0].unranked is None
    stub.reset()
    assert "cannot be reached" in shop.complete([QUESTION])[0].unranked
    with stub.serving(port):
        assert "cannot be reached" in shop.complete([QUESTION])[0].unranked
        assert stub.requests == []  # within the pause nothing is sent
        now[0] += served_ranker.PAUSE + 1
        deadline = time.monotonic() + 600
        while shop.complete([QUESTION])[0].unranked is not None:  # whoever asks while it is tried does not wait
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_a_server_that_is_down_at_first_is_no_error_but_in_an_evaluation(exported):
    folder = exported[0]
    completer = load_completer(folder, ranker="openai:http://127.0.0.1:9/v1?retries=0#exported")
    assert "cannot be reached" in completer.ranker.problem(completer.processor)
    assert "cannot be reached" in RuledCompleter(completer).complete([{"partial": ["i0"]}])[0].unranked
    with pytest.raises(ValueError, match="cannot be reached"):
        completer.score([QUESTION])
    without_retriever = BundleCompleter(completer.processor, completer.ranker)
    with pytest.raises(BundleMLLMError, match="cannot be reached"):
        RuledCompleter(without_retriever).complete([QUESTION])


def test_a_server_of_another_model_is_noticed(exported, tmp_path):
    folder, _, _ = exported
    completer = load_completer(folder)
    other = make_model(features=make_features(5), separator_token_id=completer.processor.separator_token_id)
    BundleCompleter(completer.processor, other).save_pretrained(tmp_path / "other")
    with LLMStub(export_stock(tmp_path / "other", tmp_path / "stock")).serving() as port:
        served = load_completer(folder, ranker=f"openai:http://127.0.0.1:{port}/v1#exported")
        problem = served.ranker.problem(served.processor)
        assert "another model" in problem or "lack the answers" in problem


def test_other_items_than_those_of_the_export_are_noticed(served):
    completer, stub = served
    completer.processor.set_items(ITEM_IDS, ["another title"] * len(ITEM_IDS))
    [completion] = completer.score([QUESTION], may_lack_ranker=True)
    assert "other items" in completion.unranked and stub.requests == []


def test_a_combination_that_was_fitted_for_another_ranker_is_refused(exported, tmp_path):
    folder = shutil.copytree(exported[0], tmp_path / "model")
    record = json.loads((folder / EXPORT_RECORD).read_text())
    record["weights"][2] += 0.1
    (folder / EXPORT_RECORD).write_text(json.dumps(record))
    with pytest.raises(BundleMLLMError, match="The ranker has other weights"):
        load_completer(folder, ranker="openai:http://h/v1#m")


def test_a_folder_that_was_not_exported_is_refused(exported, tmp_path):
    folder = shutil.copytree(exported[0], tmp_path / "model")
    (folder / EXPORT_RECORD).write_text("{}")
    with pytest.raises(BundleMLLMError, match="lacks items_hash, probes, weights"):
        load_completer(folder, ranker="openai:http://h/v1#m")
    (folder / EXPORT_RECORD).unlink()
    with pytest.raises(BundleMLLMError, match="bundle-mllm export"):
        load_completer(folder, ranker="openai:http://h/v1#m")
    with pytest.raises(BundleMLLMError, match="no ranker that answers by letters"):
        load_completer(folder / "retriever", ranker="openai:http://h/v1#m")


def test_an_export_without_some_modalities_is_another_ranker(exported, tmp_path):
    folder = shutil.copytree(exported[0], tmp_path / "model")
    export_stock(folder, tmp_path / "stock", modalities=("visual",))
    with pytest.raises(BundleMLLMError, match="exported without user_item"):
        load_completer(folder, ranker="openai:http://h/v1#m")


def test_addresses():
    address = RankerAddress.parse("openai:https://gpu:8000/v1/?timeout=3&retries=0#org/name")
    assert address == RankerAddress("https://gpu:8000/v1", "org/name", 3.0, 0)
    for wrong in (
        "http://gpu/v1#m", "openai:gpu/v1#m", "openai:http://gpu/v1", "openai:http:///v1#m", "openai:http://a:b@gpu/v1#m",
        "openai:http://gpu/v1?timeout=nan#m", "openai:http://gpu/v1?retries=x#m", "openai:http://gpu/v1?top=3#m",
        "openai:http://gpu:port/v1#m",
    ):  # fmt: skip
        with pytest.raises(BundleMLLMError, match="cannot be asked"):
            RankerAddress.parse(wrong)


def test_letters_are_found_where_a_server_leaves_out_their_space():
    def answer(*tokens):
        top = [{"token": token, "logprob": log} for token, log in tokens]
        return {"choices": [{"logprobs": {"content": [{"top_logprobs": top}]}}]}

    logs, choice = read_letters(answer(("A", -2.0), ("B", -0.2)), [" A", " B"])
    assert logs.tolist() == pytest.approx([-2.0, -0.2]) and choice == 1
    assert read_letters(answer(("A", -2.0), ("the", -0.2)), ["A"])[1] is None
    with pytest.raises(ValueError, match="lack the answers B"):  # "B" is another token than " B"
        read_letters(answer((" A", -2.0), ("B", -0.2)), [" A", " B"])


def test_commands_take_an_address(exported, tmp_path, capsys):
    folder, stub, address = exported
    stub.reset()
    data, questions, answers = tmp_path / "data", tmp_path / "q.jsonl", tmp_path / "answers.jsonl"
    write_records(data / "items.jsonl", [{"item_id": i, "title": t} for i, t in zip(ITEM_IDS, TITLES, strict=True)])
    asked = {"partial": ["i0"], "candidates": ["i2", "i3", "i4"], "answer_index": 1}
    write_records(questions, [{**asked, "question_id": each, "bundle_id": each} for each in ("q", "r")])
    evaluate = ["evaluate", "--model", str(folder), "--data", str(data), "--questions", str(questions)]
    metrics = {}
    for name, options in {"local": [], "served": ["--ranker", address]}.items():
        assert main([*evaluate, "--output", str(tmp_path / f"{name}.json"), *options]) == 0
        metrics[name] = json.loads((tmp_path / f"{name}.json").read_text())
    assert metrics["served"]["options"].pop("ranker") == address
    for part, values in metrics["local"]["parts"].items():
        assert metrics["served"]["parts"][part] == pytest.approx(values, abs=1e-5)
    number = len(stub.requests)
    assert number > 0
    assert main([*evaluate, "--ranker", address, "--mask", "visual"]) == 2
    assert "leave out ranker" in capsys.readouterr().err
    down = "openai:http://127.0.0.1:9/v1?retries=0#exported"
    assert main(["complete", "--model", str(folder), "--bundle", "i0,i1", "--ranker", down]) == 0
    assert "note: the retriever alone answered: The server of the ranker, http://127" in capsys.readouterr().err
    write_records(questions, [{"partial": ["i0"]}, {"partial": ["i1"], "candidates": ["i2", "i3"]}])
    bulk = ["complete", "--model", str(folder), "--input", str(questions), "--output", str(answers)]
    assert main([*bulk, "--ranker", address, "--top-k", "2"]) == 0
    assert len(stub.requests) > number and '"notes": null' in answers.read_text()


def test_known_answers_are_about_no_more_options_than_the_ranker_was_trained_on(tmp_path):
    made = make_completer(retriever=False)
    made.processor.max_options = 3
    made.save_pretrained(tmp_path / "model")
    export_stock(tmp_path / "model", tmp_path / "stock")
    record = json.loads((tmp_path / "model" / EXPORT_RECORD).read_text())
    assert {len(probe["question"]["candidates"]) for probe in record["probes"]} == {3}
