"""A report: every number is that of the evaluation, the page needs nothing else, a killed one continues."""

import json
import re
import shutil
import sys
from html.parser import HTMLParser

import pytest
import torch
from browsing import SIZES, check_static_page

from bundle_mllm.cli import main
from bundle_mllm.completion.media import ItemMedia
from bundle_mllm.data import DatasetFolder, load_questions
from bundle_mllm.data.files import sha256
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.evaluation.ablation import masked, permuted
from bundle_mllm.evaluation.breakdowns import compute_slices, position_bias
from bundle_mllm.evaluation.by_length import accuracy_by_num_candidates
from bundle_mllm.evaluation.evaluate import evaluate
from bundle_mllm.evaluation.metrics import as_scored, compute_metrics, paired_differences
from bundle_mllm.evaluation.results import compare_metrics, save_results
from bundle_mllm.evaluation.scoring import score_questions, score_sets
from bundle_mllm.model_folder import STAGE_ONE_MODEL, fingerprint, load_completer, save_model
from bundle_mllm.modeling.completion_bundle_mllm import BundleCompleter
from bundle_mllm.modeling.item_processing_bundle_mllm import BundleItemProcessor
from bundle_mllm.report import build, build_report, measure, sections
from bundle_mllm.report.figures import FIGURES
from bundle_mllm.report.measure import MeasuredModel
from bundle_mllm.report.page import findings, labelled, question_labels, write_page
from bundle_mllm.report.questions import QuestionSet
from bundle_mllm.report.settings import ReportSettings
from bundle_mllm.training.calibrate import calibrate
from bundle_mllm.training.config import default_run
from bundle_mllm.training.ranker import build_ranker
from bundle_mllm.training.retriever import new_retriever
from bundle_mllm.training.run_data import RunData

SMALL = {"max_questions": 6, "num_candidates": 4, "sizes": (2, 12, 28), "length_questions": 3}
HISTORY = [
    {"loss": 1.5, "step": 5},
    {"step": 10, "validation_hit_rate@1": 0.5, "validation_hit_rate@1_se": 0.1, "validation_num_questions": 8},
    {"loss": 1.25, "step": 10},
]


PARTS = ("ranker", "retriever", "both")


def make_completer(tiny_data, out):
    run = default_run("scratch", data=tiny_data, output_dir=out)
    data = RunData(run, DatasetFolder.open(tiny_data))
    ranker, processor = build_ranker(run, data)
    return BundleCompleter(processor, ranker, new_retriever(data.features, {}, run.retriever, seed=0))


@pytest.fixture(scope="module")
def model(tiny_data, tmp_path_factory):
    """A model folder as training leaves it; stage one's ranker answers otherwise."""
    folder = tmp_path_factory.mktemp("reported") / "shop"
    completer = make_completer(tiny_data, folder)
    completer.save_pretrained(folder)
    completer.processor.show_items = False
    save_model(completer.ranker, completer.processor, folder / STAGE_ONE_MODEL)
    for stage in ("stage_one", "stage_two"):
        (folder / "training" / stage).mkdir(exist_ok=True)
        (folder / "training" / stage / "history.json").write_text(json.dumps(HISTORY))
    record = {"settings": {"base_model": f"{folder.parent}/backbones/Tiny"}, "base_model_is_folder": True}
    (folder / "run.json").write_text(json.dumps(record))
    return folder


@pytest.fixture(scope="module")
def made(model, tiny_data, tmp_path_factory):
    """A report and its folder."""
    target = tmp_path_factory.mktemp("report") / "out"
    return build_report([model], tiny_data, target, **SMALL), target


@pytest.fixture(scope="module")
def question_sets(made, tiny_data):
    """The questions of both kinds."""
    data, (_, target) = DatasetFolder.open(tiny_data), made
    return {name: load_questions(target / "questions" / f"{name}.jsonl", data.catalog) for name in NAMES}


NAMES = ("validation_uniform", "validation_hard")


def rows_of(made, section, **wanted):
    rows = made[0]["sections"][section]["rows"]
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def blank(section, rows, chances, path):
    """Stands for `draw` where nobody looks at the figures, which take most of a small report's time."""
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"")


def check(row, scored, against=None):
    metrics = compute_metrics(scored)
    for name in ("hit_rate@1", "hit_rate@1_se", "mrr", "mrr_se", "valid_ratio", "num_questions", "num_bundles"):
        assert row[name] == metrics[name]
    if against is None:
        assert "difference" not in row
    else:
        paired = paired_differences(scored, against)["hit_rate@1"]
        assert (row["difference"], row["difference_se"]) == (paired["difference"], paired["se"])


def test_stages_parts_and_ablations_are_what_scoring_gives_by_hand(made, model, question_sets):
    completer, stage_one = load_completer(model), load_completer(model / STAGE_ONE_MODEL)
    whole = {name: score_questions(completer, questions) for name, questions in question_sets.items()}
    for name, questions in question_sets.items():
        (random,) = rows_of(made, "by_stage", questions=name, variant="random")
        assert random["hit_rate@1"] == 0.25
        (one,) = rows_of(made, "by_stage", questions=name, variant="ranker, stage one")
        check(one, score_questions(stage_one, questions)["ranker"], whole[name]["both"])
        for part in PARTS:
            (row,) = rows_of(made, "by_stage", questions=name, variant=part)
            check(row, whole[name][part], None if part == "both" else whole[name]["both"])
            (row,) = rows_of(made, "ablation", questions=name, part=part, variant="nothing masked")
            check(row, whole[name][part])
        for kept, hidden in (("titles", "visual"), ("visual", "titles")):
            with masked(completer, [hidden]) as changed:
                scored = score_questions(changed, questions)
            for part in PARTS:
                (row,) = rows_of(made, "ablation", questions=name, part=part, variant=f"{kept} alone")
                check(row, scored[part], whole[name][part])
                assert row["kept"] == [kept]
            assert scored["both"] != whole[name]["both"]
        with permuted(completer, seed=42):
            scored = score_questions(completer, questions)
        for part in PARTS:
            (row,) = rows_of(made, "by_stage", questions=name, variant=f"{part}, features permuted")
            check(row, scored[part], whole[name]["both"])


def test_slices_letters_lengths_and_history_are_those_of_the_evaluation(made, model, question_sets, tiny_data):
    data, completer = DatasetFolder.open(tiny_data), load_completer(model)
    known = {item_id for bundle in data.bundles.train for item_id in bundle.items}
    for name, questions in question_sets.items():
        scored = score_questions(completer, questions)
        for kind, values in compute_slices(questions, scored["both"], known).items():
            rows = rows_of(made, "cold_start", questions=name, variant="both", slice=kind)
            if kind in ("answer", "partial_length"):
                assert {row["value"]: row["hit_rate@1"] for row in rows} == {
                    value: metrics["hit_rate@1"] for value, metrics in values.items()
                }
        bias = position_bias(scored["ranker"])
        letters = rows_of(made, "position", questions=name)
        assert {row["letter"]: row["share_of_answers"] for row in letters} == bias["share_of_answers"]
        assert {row["letter"]: row["accuracy"] for row in letters if row["accuracy"] is not None} == bias[
            "accuracy_by_letter"
        ]
    for negatives in ("uniform", "hard"):
        by_hand = accuracy_by_num_candidates(completer, data, sizes=(2, 12, 28), negatives=negatives, max_questions=3)
        rows = rows_of(made, "by_length", negatives=negatives)
        assert [(r["num_candidates"], r["method"], r["prompts"]) for r in rows] == [
            (2, "one prompt", 1), (2, "retriever", 0), (2, "both", 1),
            (12, "one prompt", 1), (12, "groups", 4), (12, "retriever", 0), (12, "both", 1),
            (28, "groups", 5), (28, "retriever", 0), (28, "both", 1),
        ]  # fmt: skip
        assert [(r["hit_rate@1"], r["mrr"]) for r in rows] == [(r["hit_rate@1"], r["mrr"]) for r in by_hand]
        assert rows[0]["chance"] == 0.5
    losses = [(row["stage"], row["step"], row["loss"]) for row in rows_of(made, "training") if "loss" in row]
    assert losses == [
        (stage, step, loss) for stage in ("stage one", "stage two") for step, loss in ((5, 1.5), (10, 1.25))
    ]


def test_without_training_bundles_no_answer_is_called_cold(question_sets):
    questions = question_sets["validation_hard"]
    scored = {"validation_hard": {"both": as_scored(questions, [[1.0, 0.0, 0.0, 0.0] for _ in questions])}}
    sets = [QuestionSet("validation_hard", {"sha256": ""}, questions)]
    assert {row["slice"] for row in sections.cold_start(sets, {"whole": scored}, None)} == {"partial_length"}


def test_the_json_names_questions_and_model_but_no_folder(made, model, tiny_data):
    result, target = made
    assert json.loads((target / "report.json").read_text()) == json.loads(json.dumps(measure.without_nan(result)))
    about = result["models"][0]
    assert (about["name"], about["fingerprint"], about["base_model"]) == ("shop", fingerprint(model), "Tiny")
    sizes = [sum(p.numel() for p in part.parameters()) for part in load_completer(model).models]
    assert [about[name] for name in ("ranker_parameters", "retriever_parameters")] == sizes
    assert about["parameters"] == sum(sizes)
    for question_set in result["questions"]:
        file = target / "questions" / f"{question_set['name']}.jsonl"
        assert question_set["sha256"] == sha256(file)
        assert question_set["made"]["negatives"] == question_set["name"].removeprefix("validation_")
        assert question_set["num_questions"] == question_set["num_bundles"] == 6
    assert set(result["left_out"]) == {"baselines", "bayes_optimal", "prediction_sets", "backbones"}
    for file in (target / "report.json", target / "report.html"):
        assert not {str(path) for path in (model.parent, tiny_data, target.parent)} & set(
            re.findall(r"/[^\s\"'<>]*", file.read_text())
        )
        assert str(model.parent) not in file.read_text()


class Page(HTMLParser):
    """What a browser would load, and the cells of all tables."""

    def __init__(self, text):
        super().__init__()
        self.loaded, self.images, self.cells, self.tags, self.inside = [], [], [], set(), None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.add(tag)
        self.loaded += [attrs[name] for name in ("src", "href", "srcset", "data", "action") if name in attrs]
        self.images += [attrs] if tag == "img" else []
        self.inside = tag

    def handle_data(self, data):
        if self.inside == "td":
            self.cells.append(data.strip())


def test_the_page_needs_nothing_else_and_has_every_figure_and_number(made):
    result, target = made
    text = (target / "report.html").read_text()
    page = Page(text)
    assert not page.tags & {"script", "link", "iframe", "object", "embed", "base"}
    assert all(place.startswith(("data:image/png;base64,", "#")) for place in page.loaded)
    assert not re.search(r"url\(|@import|https?:", text)
    assert len(page.images) == len(result["sections"]) == 6
    assert all(len(image["alt"]) > 40 for image in page.images)
    for name, section in result["sections"].items():
        assert (target / section["figure"]).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        for row in section["rows"]:
            if "hit_rate@1" in row:
                assert any(cell.startswith(f"{row['hit_rate@1']:.3f}") for cell in page.cells), name
            assert "loss" not in row or f"{row['loss']:.4f}" in page.cells


def test_the_first_sentence_says_how_often_the_model_is_right(made):
    result, target = made
    (uniform,) = rows_of(made, "by_stage", questions="validation_uniform", variant="both")
    first, *others = findings(result)
    found = f"{uniform['hit_rate@1']:.1%} (± {100 * uniform['hit_rate@1_se']:.1f})"
    assert first == (
        f"Of 4 candidates, the model finds the item that was left out in {found} of 6 questions with uniform "
        "negatives; guessing finds 25.0%."
    )
    (ranker,) = rows_of(made, "by_stage", questions="validation_uniform", variant="ranker")
    assert any(f"the ranker {ranker['hit_rate@1']:.1%}" in each for each in others)
    text = (target / "report.html").read_text()
    assert text.index(first) < text.index("<nav")
    assert first in result._repr_html_()


def test_examples_are_right_and_wrong_answers_as_the_model_gives_them(made, model, question_sets):
    result, target = made
    questions = {question.question_id: question for question in question_sets["validation_uniform"]}
    scored = score_questions(load_completer(model), list(questions.values()))["both"]
    hits = {each.question_id: each.hit for each in scored}
    examples = result["examples"]
    assert {e["question_id"]: e["right"] for e in examples} == {
        e["question_id"]: hits[e["question_id"]] for e in examples
    }
    assert [e["right"] for e in examples] == sorted((e["right"] for e in examples), reverse=True)
    assert sum(e["right"] for e in examples) == min(3, sum(hits.values()))
    assert sum(not e["right"] for e in examples) == min(3, 6 - sum(hits.values()))
    text = (target / "report.html").read_text()
    for example in examples:
        question, answers = questions[example["question_id"]], example["answers"]
        assert [item["item_id"] for item in example["partial"]] == list(question.partial)
        assert example["answer"] == question.answer in [answer["item_id"] for answer in answers]
        assert example["rank"] == next(each.rank for each in scored if each.question_id == question.question_id)
        assert [a["score"] for a in answers] == sorted((a["score"] for a in answers), reverse=True)
        assert "LLM" in answers[0]["explanation"]["contributions"]
    assert text.count('class="bm-example"') == text.count("the item that was left out</span>") == len(examples)


def test_titles_of_examples_never_become_markup(made, tmp_path):
    hostile = "<script>alert(1)</script><img src=x onerror=alert(2)>{{ 7 * 7 }}"
    result, target = made
    example = json.loads(json.dumps(result["examples"][0]))
    for item in (*example["partial"], *example["answers"]):
        item["title"] = item["item_id"] = hostile
    shutil.copytree(target / "figures", tmp_path / "figures")
    text = write_page({**result, "examples": [{**example, "answer": hostile}]}, tmp_path).read_text()
    page = Page(text)
    assert not page.tags & {"script", "link", "iframe", "object", "embed", "base"}
    assert all("onerror" not in image for image in page.images)
    assert text.count("&lt;script&gt;") > len(example["answers"])


@pytest.mark.browser
@pytest.mark.parametrize("size", SIZES)
def test_a_browser_shows_the_page_on_a_desk_and_on_a_phone(browser, made, size):
    page = check_static_page(browser, made[1] / "report.html", size, "light")
    assert page.get_by_role("heading", level=1).inner_text() == "Report on shop"
    page.context.close()


def test_a_stage_that_was_not_trained_has_no_row(made, model, tiny_data, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "draw", blank)
    folder = shutil.copytree(model, tmp_path / "shop")
    (folder / "training" / "stage_one" / "history.json").unlink()
    result = build_report([folder], tiny_data, tmp_path / "out", max_questions=2, num_candidates=3, sizes=())
    rows = json.dumps(result["sections"])
    assert '"ranker"' in rows and "stage one" not in rows and "stage two" in rows


def test_figures_are_narrow_and_name_no_file(made):
    rows = [row | {"questions": "uniform negatives"} for row in rows_of(made, "by_stage", questions=NAMES[0])]
    rows += [row | {"questions": "hard negatives"} for row in rows_of(made, "by_stage", questions=NAMES[1])]
    assert labelled(rows_of(made, "by_stage"), question_labels(made[0]["questions"])) == rows
    for name, section in made[0]["sections"].items():
        shown = labelled(section["rows"], question_labels(made[0]["questions"]))
        figure = FIGURES[name](shown, {"uniform negatives": 0.25, "hard negatives": 0.25})
        assert figure.get_size_inches()[0] < 5  # a phone shows 390 pixels of about 4 inches
        labels = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
        assert not [label for label in labels if "validation_" in label]
        assert "validation_" not in section["alt"]


def test_bars_and_error_bars_have_the_length_of_the_numbers(made):
    rows = rows_of(made, "by_stage")
    axes = FIGURES["by_stage"](rows, dict.fromkeys(NAMES, 0.25)).axes[0]
    assert sorted(bar.get_width() for bar in axes.patches) == pytest.approx(sorted(row["hit_rate@1"] for row in rows))
    spans = [abs(line.get_segments()[0][1][0] - line.get_segments()[0][0][0]) / 2 for line in axes.collections]
    errors = [row["hit_rate@1_se"] for row in rows if row.get("hit_rate@1_se")]
    assert sorted(spans) == pytest.approx(sorted(errors))


def test_what_was_measured_are_metrics_files_and_only_the_whole_model_may_be_published(made, model):
    result, target = made
    folder = target / "measured" / "shop"
    compared = compare_metrics(folder / "whole.validation_hard.json", folder / "visual_alone.validation_hard.json")
    (row,) = rows_of(made, "ablation", questions="validation_hard", part="both", variant="visual alone")
    assert compared["hit_rate@1"]["difference"] == -row["difference"]
    whole = {target / question_sets["metrics"] for question_sets in result["questions"]}
    assert whole == {file for file in folder.glob("whole.*.json") if "parts" in json.loads(file.read_text())}
    for file in folder.glob("*.validation_*.json"):
        is_whole = file.name.startswith("whole.")
        assert json.loads(file.read_text())["fingerprint"] == (fingerprint(model) if is_whole else None)


def test_what_one_bundle_cannot_tell_is_left_empty(model, made, tiny_data, tmp_path):
    line, *_ = (made[1] / "questions" / "validation_hard.jsonl").read_text().splitlines()
    (tmp_path / "one.jsonl").write_text(line + "\n")
    result = build_report([model], tiny_data, tmp_path / "r", questions=[tmp_path / "one.jsonl"], sizes=())
    json.dumps(result["sections"], allow_nan=False)
    assert all(row.get("hit_rate@1_se") is None for row in result["sections"]["by_stage"]["rows"])
    cells = Page((tmp_path / "r" / "report.html").read_text()).cells
    assert cells and not [cell for cell in cells if "nan" in cell]


def test_a_killed_report_continues_and_ends_with_the_same_numbers(made, model, tiny_data, tmp_path, monkeypatch):
    calls = []

    def counted(*arguments, **options):
        calls.append(1)
        if len(calls) == stop:
            raise KeyboardInterrupt
        return score_questions(*arguments, **options)

    monkeypatch.setattr(measure, "score_questions", counted)
    target, stop = tmp_path / "report", 5
    with pytest.raises(KeyboardInterrupt):
        build_report([model], tiny_data, target, **SMALL)
    assert not (target / "report.json").exists()
    (target / "measured" / "shop" / "whole.validation_hard.ranker.questions.jsonl").write_text("cut sh")
    stop = 0
    again = build_report([model], tiny_data, target, **SMALL)
    assert len(calls) == 5 + 10 - 4 + 1  # 5 variants of 2 files; 4 were done, of which one was damaged
    assert json.dumps(again["sections"]) == json.dumps(made[0]["sections"])
    for figure in (target / "figures").iterdir():
        assert figure.read_bytes() == (made[1] / "figures" / figure.name).read_bytes()
    calls.clear()
    monkeypatch.setattr(build, "draw", blank)
    build_report([model], tiny_data, target, **SMALL)
    assert not calls
    build_report([model], tiny_data, target, **{**SMALL, "num_candidates": 5})
    assert len(calls) == 10


def test_other_weights_are_measured_again(model, tiny_data, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "draw", blank)
    small = {"max_questions": 2, "num_candidates": 3, "sizes": ()}
    folder = shutil.copytree(model, tmp_path / "shop")
    before = build_report([folder], tiny_data, **small)
    assert (folder / "report" / "report.html").exists()
    completer = load_completer(folder)
    with torch.no_grad():
        completer.ranker.model.language_model.get_input_embeddings().weight.mul_(-1.0)
    with pytest.raises(ValueError, match="fit them again"):
        completer.save_pretrained(folder)
    models = {"ranker": completer.ranker, "retriever": completer.retriever}
    BundleCompleter(completer.processor, **models, combination=completer.combination.unbound()).save_pretrained(folder)
    after = build_report([folder], tiny_data, **small)
    assert before["models"][0]["fingerprint"] != after["models"][0]["fingerprint"]
    metrics = evaluate(folder, tiny_data, folder / "report" / "questions" / "validation_hard.jsonl")
    (row,) = rows_of((after,), "by_stage", questions="validation_hard", variant="both")
    assert row["mrr"] == metrics["mrr"]
    assert after["left_out"]["by_length"].startswith("no number of candidates")


def test_several_models_and_other_methods_stand_beside_each_other(made, model, question_sets, tiny_data, tmp_path):
    questions = made[1] / "questions" / "validation_hard.jsonl"
    method = as_scored(
        question_sets["validation_hard"], [[1.0, 1.0, 0.0, 0.0] for _ in question_sets["validation_hard"]]
    )
    shared = {"questions": {"path": "q", "sha256": sha256(questions)}, "baseline": "llm:/models/popularity"}
    save_results(tmp_path / "popularity.json", compute_metrics(method, probabilities=False) | shared, method)
    bayes_optimal = {**shared, "baseline": "best", "bayes_optimal": {"expected": 0.8}}
    save_results(tmp_path / "best.json", bayes_optimal, method)
    alone = make_completer(tiny_data, tmp_path)
    save_model(alone.ranker, alone.processor, tmp_path / "other" / "shop")
    models = [model, tmp_path / "other" / "shop"]
    target, options = (
        tmp_path / "report",
        {
            "questions": [questions],
            "metrics": [tmp_path / "popularity.json", tmp_path / "best.json"],
        },
    )
    result = build_report(models, tiny_data, target, sizes=(), **options)
    assert [one["name"] for one in result["models"]] == ["shop", "shop (2)"]
    scored = score_questions(load_completer(model), question_sets["validation_hard"])
    whole = scored["both"]
    other = score_questions(load_completer(models[1]), question_sets["validation_hard"])["ranker"]
    first, second = rows_of((result,), "backbones")
    check(first, whole)
    check(second, other, whole)
    assert first["parameters"] > second["parameters"] == result["models"][1]["parameters"]
    *_, ours, theirs = rows = rows_of((result,), "baselines")
    assert [row["variant"] for row in rows] == [*(f"this model: {part}" for part in PARTS), "llm:popularity"]
    paired = paired_differences(method, whole, probabilities=False)["hit_rate@1_random_ties"]
    assert theirs["hit_rate@1_random_ties"] == paired["a"] and theirs["difference"] == paired["difference"]
    assert ours["hit_rate@1_random_ties"] == paired["b"]
    shares = {row["variant"]: row["share"] for row in rows_of((result,), "bayes_optimal")}
    assert list(shares) == ["ranker, stage one", *PARTS, *(f"{part}, features permuted" for part in PARTS)]
    assert shares["both"] == compute_metrics(whole)["hit_rate@1"] / 0.8
    assert "visual" in result["models"][1]["modalities"]


def test_a_retriever_alone_has_a_report_without_letters(model, tiny_data, tmp_path):
    completer = load_completer(model)
    alone = BundleCompleter(BundleItemProcessor(completer.processor.item_ids, completer.processor.titles),
                            retriever=completer.retriever)  # fmt: skip
    alone.save_pretrained(tmp_path / "retriever")
    result = build_report([tmp_path / "retriever"], tiny_data, tmp_path / "out", **SMALL)
    assert set(result["left_out"]) >= {"position", "training", "ablation"}
    variants = {row["variant"] for row in rows_of((result,), "by_stage")}
    assert variants == {"random", "retriever", "retriever, features permuted"}
    assert {row["method"] for row in rows_of((result,), "by_length")} == {"retriever"}


def test_the_command_prints_the_stages_and_where_the_page_is(made, model, tiny_data, capsys):
    target = made[1]
    command = ["report", "--model", str(model), "--data", str(tiny_data), "--output-dir", str(target)]
    options = ["--max-questions", "6", "--num-candidates", "4", "--sizes", "2", "12", "28", "--length-questions", "3"]
    assert main([*command, *options]) == 0
    printed = capsys.readouterr().out
    (row,) = rows_of(made, "by_stage", questions="validation_hard", variant="both")
    assert f"validation_hard           both                          {row['hit_rate@1']:.3f} ± " in printed
    assert str(target / "report.html") in printed


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model": ["nowhere"]}, "nowhere is no model folder"),
        ({"model": []}, "no model to report on"),
        ({"data": "nowhere"}, "nowhere does not exist"),
        ({"max_questions": 0}, "max_questions is 0"),
        ({"num_candidates": 40}, "39 wrong options"),
        ({"sizes": [5, 1]}, "A number of candidates is 1"),
        ({"questions": ["q.jsonl", "again/q.jsonl"]}, "called 'q'"),
        ({"questions": ["q.jsonl", "same.jsonl"]}, "holds the same questions"),
        ({"questions": ["q.jsonl"], "metrics": ["m.json"]}, "would not compare: give that file by --questions"),
        ({"metrics": ["q.jsonl"]}, "is no metrics file"),
        ({"output_dir": "again"}, "holds 'q.jsonl' and is no report's folder"),
        ({"output_dir": "q.jsonl"}, "is a file and is no report"),
    ],
)
def test_a_mistake_is_reported_before_anything_is_measured(
    changed, message, model, made, tiny_data, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(measure, "score_questions", lambda *_, **__: pytest.fail("scored"))
    (tmp_path / "again").mkdir()
    for name, source in (("q", "uniform"), ("same", "uniform"), ("again/q", "hard"), ("m", "hard")):
        shutil.copy(made[1] / "questions" / f"validation_{source}.jsonl", f"{name}.jsonl")
    scored = as_scored(load_questions(tmp_path / "m.jsonl", DatasetFolder.open(tiny_data).catalog), [[0.0] * 4] * 6)
    save_results("m.json", {"questions": {"path": "m.jsonl", "sha256": sha256("m.jsonl")}}, scored)
    options = {"model": [model], "data": tiny_data, "output_dir": "out", **changed}
    for name in ("model", "questions", "metrics"):
        options[name] = [tmp_path / path for path in options.get(name, [])]
    paths = {name: tmp_path / options.pop(name) for name in ("data", "output_dir")}
    with pytest.raises(BundleMLLMError, match=re.escape(message)):
        build_report(**options, **paths)


def test_without_matplotlib_the_fix_is_named(model, tiny_data, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(BundleMLLMError, match=r"pip install 'bundle-mllm\[report\]'"):
        build_report([model], tiny_data, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "name", ["run.json", "training/stage_two/history.json", "combination.json", "retriever/model.safetensors"]
)
def test_what_vanishes_while_a_model_is_measured_is_noticed_before_anything_is_kept(model, tiny_data, tmp_path, name):
    shutil.copytree(model, tmp_path / "model")
    options = ReportSettings(model=(tmp_path / "model",), data=tiny_data)
    data, target = DatasetFolder.open(tiny_data), tmp_path / "out"
    measured = MeasuredModel(tmp_path / "model", "model", target, data, options, {})
    assert measured.completer.parts == PARTS
    (tmp_path / "model" / name).rename(tmp_path / "elsewhere")
    with pytest.raises(BundleMLLMError, match=rf"{name} was removed by another process meanwhile"):
        _ = measured.info
    assert not target.exists()
    (tmp_path / "elsewhere").rename(tmp_path / "model" / name)
    assert MeasuredModel(tmp_path / "model", "model", target, data, options, {}).info["parameters"]


def test_pictures_that_the_items_table_names_and_nobody_finds_are_said(made, model, tiny_data, tmp_path, monkeypatch):
    shutil.copytree(made[1], tmp_path / "out")
    records = [
        {"item_id": item_id, "image": f"{item_id}.png"} for item_id in DatasetFolder.open(tiny_data).catalog.item_ids
    ]
    monkeypatch.setattr(ItemMedia, "open", lambda path: ItemMedia(path, records))
    said = []
    monkeypatch.setattr(build.logger, "warning", said.append)
    build_report([model], tiny_data, tmp_path / "out", **SMALL)
    [line] = said
    assert re.search(rf"\d+ files that {tiny_data} names cannot be shown, such as \S+\.png, ", line)


def test_sets_with_a_guarantee_are_measured_on_bundles_that_did_not_calibrate(model, tiny_data, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "draw", blank)
    folder, data = shutil.copytree(model, tmp_path / "model"), DatasetFolder.open(tiny_data)
    small = {"max_questions": 6, "num_candidates": 4, "sizes": ()}
    before = build_report([folder], tiny_data, tmp_path / "before", **small)
    assert before["left_out"]["prediction_sets"].startswith("the model is not calibrated")
    questions = tmp_path / "before" / "questions" / "validation_uniform.jsonl"
    calibrate(model=folder, data=tiny_data, questions=questions)
    assert "prediction_sets" in build_report([folder], tiny_data, tmp_path / "same", **small)["left_out"]
    result = build_report([folder], tiny_data, tmp_path / "out", split="test", **small, coverage=(0.5, 0.8, 0.99))
    rows = result["sections"]["prediction_sets"]["rows"]
    assert [(row["questions"], row["asked"]) for row in rows] == [
        (name, asked) for name in ("test_uniform", "test_hard") for asked in (0.5, 0.8)
    ]
    for name in ("test_uniform", "test_hard"):
        asked = load_questions(tmp_path / "out" / "questions" / f"{name}.jsonl", data.catalog)
        expected = score_sets(load_completer(folder), asked, [0.5, 0.8])
        for row, figures in zip([row for row in rows if row["questions"] == name], expected, strict=True):
            assert {key: row[key] for key in figures} == pytest.approx(figures, nan_ok=True)
    figure = FIGURES["prediction_sets"](labelled(rows, question_labels(result["questions"])), {})
    assert figure.legends[0].get_texts()[0].get_text() == "as asked"
    assert "Sets with a guarantee" in (tmp_path / "out" / "report.html").read_text()
