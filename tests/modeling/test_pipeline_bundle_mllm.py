"""The pipeline: questions in, answers out, for a folder with a ranker, a retriever or both; saved and pushed whole."""

import json
import shutil

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import EntryNotFoundError
from tiny_models import ITEM_IDS, TITLES, make_completer, make_features, make_model
from transformers import pipeline

from bundle_mllm.model_folder import load_completer
from bundle_mllm.modeling import BundleCompleter, pipeline_bundle_mllm

HAT = {"title": "new hat", "features": {"visual": [0.5] * 12}, "item_id": "new-1"}
QUESTIONS = [
    {"partial": ["i0", "i1"], "candidates": ["i2", "i3", "i4"]},
    {"partial": ["i0"], "candidates": ["i7", "i3"]},
    {"partial": ["i5", HAT], "candidates": ["i6", {"title": "bag", "features": {"user_item": [1.0] * 6}}, "i4", "i1"]},
]
MANY = [{"title": f"hat {n}", "features": {"visual": [n / 9.0] * 12}, "item_id": f"new-{n}"} for n in range(30)]
KINDS = {"ranker": (True, False), "retriever": (False, True), "both": (True, True)}


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    make_completer(*KINDS[request.param]).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def completer(folder):
    return pipeline("bundle-completion", model=str(folder), device="cpu")


def close(one, other, tolerance=1e-4):
    assert [{**option, "score": 0} for option in one] == [{**option, "score": 0} for option in other]
    assert torch.allclose(
        torch.tensor([option["score"] for option in one]),
        torch.tensor([option["score"] for option in other]),
        atol=tolerance,
    )


def test_a_folder_is_loaded_with_all_models_that_it_holds(folder, completer):
    parts = {"ranker": ("ranker",), "retriever": ("retriever",), "both": ("ranker", "retriever", "both")}
    [kind] = [kind for kind in KINDS if folder.name.startswith(kind)]
    assert completer.completer.parts == parts[kind]


def test_answers_are_those_of_the_completer_of_the_folder(folder, completer):
    expected = load_completer(folder)
    for question in (*QUESTIONS, {"partial": ["i0", "i3"]}, {"partial": ["i0"], "candidates": MANY}):
        close(completer(question), expected.complete(question))


def test_saving_warns_of_what_stays_in_the_model_folder(folder, tmp_path, monkeypatch):
    source, warnings = shutil.copytree(folder, tmp_path / "model"), []
    monkeypatch.setattr(pipeline_bundle_mllm.logger, "warning", warnings.append)
    completer = pipeline("bundle-completion", model=str(source), device="cpu")
    completer.save_pretrained(tmp_path / "saved")
    assert warnings == []
    (source / "encoders").mkdir()
    (source / "catalog.parquet").touch()
    completer.save_pretrained(tmp_path / "saved")
    assert len(warnings) == 1 and "lacks encoders, catalog.parquet of" in warnings[0] and "copy these" in warnings[0]
    completer.save_pretrained(source)
    assert len(warnings) == 1


def test_an_explanation_names_what_each_model_contributed(completer):
    for question in (QUESTIONS[0], {"partial": ["i0"]}):
        names = set(completer(question, explain=True)[0]["explanation"])
        assert names - {"retriever_terms"} == set(completer.completer.parts) - {"both"}
        assert ("retriever_terms" in names) == (completer.completer.retriever is not None)


@pytest.mark.parametrize("question", QUESTIONS)
def test_the_options_come_best_first_with_probabilities(completer, question):
    options = completer(question)
    scores = [option["score"] for option in options]
    assert scores == sorted(scores, reverse=True) and abs(sum(scores) - 1) < 1e-6
    assert sorted(option["letter"] for option in options) == list("ABCD")[: len(question["candidates"])]
    for option in options:
        entry = question["candidates"]["ABCD".index(option["letter"])]
        if isinstance(entry, str):
            assert (option["item_id"], option["title"]) == (entry, TITLES[int(entry[1:])])
        else:
            assert (option["item_id"], option["title"]) == (None, "bag")


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_a_batch_equals_its_single_questions(completer, batch_size):
    for together, question in zip(completer(QUESTIONS, batch_size=batch_size), QUESTIONS, strict=True):
        close(together, completer(question))


def test_no_questions_have_no_answers(completer):
    assert completer([]) == []


def test_a_generator_of_questions_streams_its_answers(completer):
    for together, question in zip(completer(question for question in QUESTIONS), QUESTIONS, strict=True):
        close(together, completer(question))


@pytest.mark.parametrize("question", [QUESTIONS[0], {"partial": ["i0"]}, {"partial": ["i0"], "candidates": MANY}])
@pytest.mark.parametrize("top_k", [1, 2])
def test_top_k_keeps_the_best(completer, question, top_k):
    close(completer(question, top_k=top_k), completer(question)[:top_k])


def test_without_candidates_the_rest_of_the_catalog_is_searched(completer):
    for question in ({"partial": ["i0", HAT]}, {"partial": ["i0", HAT], "candidates": None}):
        options = completer(question)
        assert sorted(option["item_id"] for option in options) == [f"i{n}" for n in range(1, 8)]
        assert {option["letter"] for option in options} == {None}
        assert abs(sum(option["score"] for option in options) - 1) < 1e-5


def test_a_dict_item_with_the_id_of_a_catalog_item_is_no_candidate_of_its_bundle(completer):
    options = completer({"partial": [{**HAT, "item_id": "i3"}]})
    assert {option["item_id"] for option in options} == set(ITEM_IDS) - {"i3"}


def test_candidates_may_be_any_collection_of_ids(completer):
    close(
        completer({"partial": ("i0", "i1"), "candidates": {"i2": 0, "i3": 0, "i4": 0}.keys()}), completer(QUESTIONS[0])
    )


def test_options_without_finite_scores_are_an_error(tmp_path, folder):
    broken = pipeline("bundle-completion", model=str(folder), device="cpu")
    for parameter in broken.model.parameters():
        parameter.data.fill_(torch.nan)
    for question in ({**QUESTIONS[0], "question_id": "q1"}, {"partial": ["i0"], "candidates": MANY}):
        with pytest.raises(ValueError, match=r"options of the question .*partial \['i0'.* score nan, .*: repair"):
            broken(question)


def test_a_list_too_long_for_letters_is_ranked_as_a_whole(completer):
    question = {"partial": ["i0", "i1"], "candidates": [*MANY, "i2", "i3"]}
    options = completer(question)
    scores = [option["score"] for option in options]
    assert {option["item_id"] for option in options} == {f"new-{n}" for n in range(30)} | {"i2", "i3"}
    assert scores == sorted(scores, reverse=True) and abs(sum(scores) - 1) < 1e-5
    assert {option["letter"] for option in options} == {None}
    close(completer(question), options)
    together = completer([QUESTIONS[0], question, QUESTIONS[2]], batch_size=3)
    for one, other in zip(together, [completer(QUESTIONS[0]), options, completer(QUESTIONS[2])], strict=True):
        close(one, other, 1e-4)


def test_the_size_of_groups_counts_where_a_ranker_alone_ranks_long_lists(completer):
    question = {"partial": ["i0"], "candidates": MANY}
    of_four, of_ten = ([o["score"] for o in completer(question, group_size=size)] for size in (4, 10))
    assert (of_four != pytest.approx(of_ten, abs=1e-4)) == (completer.completer.parts == ("ranker",))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("nope", "'nope' is not among the 8 items"),
        ({"title": 3}, "title of item .* is 3"),
        ("i0", "'i0' is in the partial bundle already"),
        ({"title": "again", "item_id": "new-0"}, "'new-0' is more than once in candidates"),
    ],
)
def test_a_wrong_item_far_down_a_long_list_is_an_error(completer, entry, message):
    with pytest.raises(ValueError, match=message):
        completer({"partial": ["i0"], "candidates": [*MANY, entry]})


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ({**QUESTIONS[0], "top_k": 1}, r"keys \['top_k'\], which would be ignored.*are parameters"),
        ({"partial": 5}, "partial of the question is 5"),
        ({"partial": [["i0"]]}, r"\['i0'\] is no item"),
        ({"partial": ["i0"], "candidates": 5}, "candidates of the question is 5"),
        ("i0", "partial of the question is None"),
    ],
)
def test_what_is_no_question_is_an_error(completer, question, message):
    with pytest.raises(ValueError, match=message):
        completer(question)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 0}, "top_k is 0"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_k": 1.5}, "top_k is 1.5"),
        ({"topk": 1}, "no parameters \\['topk'\\]"),
        ({"group_size": 2}, "group_size is 2"),
    ],
)
def test_a_wrong_parameter_is_an_error(completer, options, message):
    with pytest.raises(ValueError, match=message):
        completer(QUESTIONS[0], **options)


def test_a_saved_pipeline_holds_models_items_and_wording(folder, completer, tmp_path):
    completer.save_pretrained(tmp_path)
    names = {path.relative_to(folder) for path in folder.rglob("*")}
    assert {path.relative_to(tmp_path) for path in tmp_path.rglob("*")} == names
    loaded = pipeline("bundle-completion", model=str(tmp_path), device="cpu")
    assert loaded.completer.parts == completer.completer.parts
    for question in QUESTIONS:
        close(loaded(question), completer(question))


def test_a_model_that_was_trained_since_its_combination_was_fitted_is_not_saved(folder, tmp_path):
    completer = pipeline("bundle-completion", model=str(folder), device="cpu")
    for parameter in completer.model.parameters():
        parameter.data += 1
    if completer.completer.parts == ("ranker", "retriever", "both"):
        with pytest.raises(ValueError, match="ranker has other weights than the one"):
            completer.save_pretrained(tmp_path / "saved")
        assert not (tmp_path / "saved").exists()
    else:
        completer.save_pretrained(tmp_path / "saved")


def test_the_encoders_of_a_folder_are_looked_for_by_all_that_named_its_files(folder, tmp_path, monkeypatch):
    found = []
    shutil.copytree(folder, tmp_path / "files" / "sub")

    class Encoder:
        def encode_items(self, entries):
            return [HAT for _ in entries]

    def find(name, **files):
        found.append((name, files))
        return Encoder()

    monkeypatch.setattr(BundleCompleter, "find_encoder", staticmethod(find))
    files = {"subfolder": "sub", "token": "secret", "local_files_only": True}
    completer = load_completer(tmp_path / "files", **files)
    question = {"partial": ["i5", {"title": "hat"}], "candidates": ["i6", "i4"]}
    assert found == []  # before there is a new item
    answers = completer.complete(question)
    assert completer.complete(question) == answers == completer.complete({**question, "partial": ["i5", HAT]})
    assert found == [(str(tmp_path / "files"), files)]

    def broken(name, **files):
        raise ImportError("a library of the encoders is broken")

    monkeypatch.setattr(BundleCompleter, "find_encoder", staticmethod(broken))
    with pytest.raises(ImportError, match="a library of the encoders is broken"):
        load_completer(folder).complete(question)
    monkeypatch.setattr(BundleCompleter, "find_encoder", None)
    assert len(load_completer(folder).complete(question)) == 2  # without features, and said to be a guess


@pytest.mark.parametrize("by_saving", [True, False])
def test_pushing_uploads_each_file_of_the_folder_to_its_place(folder, completer, tmp_path, monkeypatch, by_saving):
    commits, files = [], {}

    class Created:
        repo_id = "acme/bundles"

    def no_card(*args, **kwargs):
        raise EntryNotFoundError("no card yet")

    def commit(self, repo_id, operations, **kwargs):
        commits.append(repo_id)
        for add in operations:
            with add.as_file() as file:
                files[add.path_in_repo] = file.read()

    monkeypatch.setattr(HfApi, "create_repo", lambda self, repo_id, **_: Created)
    monkeypatch.setattr(HfApi, "create_commit", commit)
    monkeypatch.setattr(ModelCard, "load", no_card)
    if by_saving:
        completer.save_pretrained(tmp_path, push_to_hub=True, repo_id="acme/bundles")
    else:
        completer.push_to_hub("acme/bundles")
    assert set(commits) == {"acme/bundles"}
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert set(files) - {"README.md"} == names
    for name in names:
        if name.endswith((".jsonl", ".safetensors")):
            assert files[name] == (folder / name).read_bytes(), name
        elif name.endswith("/config.json"):
            assert json.loads(files[name])["model_type"] == json.loads((folder / name).read_text())["model_type"]


def test_a_model_in_memory_needs_its_processor(completer):
    again = pipeline("bundle-completion", model=completer.model, processor=completer.processor, device="cpu")
    close(again(QUESTIONS[2]), completer(QUESTIONS[2]))


def test_a_model_in_memory_needs_no_folder(completer, tmp_path):
    completer.save_pretrained(tmp_path / "gone")
    loaded = pipeline("bundle-completion", model=str(tmp_path / "gone"), device="cpu")
    (tmp_path / "gone").rename(tmp_path / "moved")
    again = pipeline("bundle-completion", model=loaded.model, processor=loaded.processor, device="cpu")
    assert len(again(QUESTIONS[2])) == 4


def test_a_processor_of_another_catalog_is_an_error(completer):
    model = make_model(features=make_features(num_items=5))
    with pytest.raises(ValueError, match="processor has 8 items and the bundle_mllm model 5"):
        pipeline("bundle-completion", model=model, processor=completer.processor, device="cpu")
