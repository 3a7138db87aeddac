"""The command line: what it prints, what it writes, and one clear line for each mistake."""

import dataclasses
import io
import json
import re
import shutil
import subprocess
import sys

import pytest

import bundle_mllm
from bundle_mllm.cli import _load, main
from bundle_mllm.cli.commands import COMMANDS
from bundle_mllm.data import DatasetFolder, Question, write_records
from bundle_mllm.data.bundles import SPLITS
from bundle_mllm.evaluation.metrics import as_scored
from bundle_mllm.evaluation.results import save_results
from bundle_mllm.settings import field_types

TINY = [
    "--validation-questions", "8", "--validation-candidates", "4",
    "--stage-one.num-questions", "16", "--stage-one.batch-size", "8", "--stage-one.num-validations", "1",
    "--stage-one.warm-start-steps", "3",
    "--stage-two.num-questions", "16", "--stage-two.batch-size", "8", "--stage-two.num-validations", "1",
    "--stage-two.warm-start-steps", "3",
    "--retriever.steps", "4", "--retriever.num-questions", "64", "--retriever.batch-size", "16",
    "--combination-questions", "8",
]  # fmt: skip


@pytest.fixture(scope="module")
def model(tiny_data, tmp_path_factory):
    out = tmp_path_factory.mktemp("cli") / "model"
    config = out.parent / "run.yaml"
    config.write_text("seed: 5\nstage_one:\n  num_candidates: [2, 4]\n  learning_rate: 2e-3\n")
    arguments = ["train", "--data", str(tiny_data), "--base-model", "scratch", "--output-dir", str(out)]
    assert main([*arguments, "--config", str(config), "--stage-one.learning-rate", "1e-3", *TINY]) == 0
    return out


def ask(tiny_data, output, *options):
    return main(["questions", "--data", str(tiny_data), "--split", "test", "--output", str(output), *options])


def test_train_takes_defaults_from_yaml_and_the_command_line_wins(model):
    settings = json.loads((model / "run.json").read_text())["settings"]
    assert settings["seed"] == 5
    assert settings["stage_one"]["num_candidates"] == [2, 4]
    assert settings["stage_one"]["learning_rate"] == 1e-3
    assert settings["stage_one"]["trains"] == ["backbone"]


def test_complete_keeps_to_rules_of_a_file_and_of_options(model, tiny_data, tmp_path, capsys):
    rules = tmp_path / "rules.yaml"
    rules.write_text('where: category != "hat"\nmax_per_category: 1\nboost: {\'category == "belt"\': 20}\n')
    command = ["complete", "--model", str(model), "--bundle", "red-shirt", "--items", str(tiny_data), "--json"]
    assert main([*command, "--top-k", "7", "--rules", str(rules)]) == 0
    found = [item["item_id"] for item in json.loads(capsys.readouterr().out)]
    assert len({item_id.split("-")[1] for item_id in found}) == 7 and not any("hat" in item_id for item_id in found)
    assert "belt" in found[0]
    assert main([*command, "--top-k", "1", "--boost", 'category == "shoes"', "20"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["item_id"].endswith("shoes")
    assert main([*command, "--top-k", "9", "--rules", str(rules), "--max-per-category", "8"]) == 0
    assert len({item["item_id"].split("-")[1] for item in json.loads(capsys.readouterr().out)}) < 8
    assert main([*command, "--top-k", "3", "--allowed", "red-bag", "blue-bag", "--where", '"red" in title']) == 0
    output = capsys.readouterr()
    assert [item["item_id"] for item in json.loads(output.out)] == ["red-bag"]
    assert 'note: 1 answers instead of 3: allowed removes 30, where "red" in title removes 1' in output.err
    for bundle in ('{"title": "red hat"}', '["red-shirt", {"title": "red hat"}]', '"red-shirt", {"title": "red hat"}'):
        assert main(["complete", "--model", str(model), "--bundle", bundle, "--top-k", "2"]) == 0, bundle
    capsys.readouterr()
    assert main(["complete", "--model", str(model), "--bundle", 'red-shirt,{"title": "red hat"}']) == 2
    assert 'write it as ["a12", {"title": "linen shirt"}]' in capsys.readouterr().err
    answers = tmp_path / "answers.csv"
    every_item = [
        "complete",
        "--model",
        str(model),
        "--every-item",
        "--output",
        str(answers),
        "--items",
        str(tiny_data),
    ]
    assert main([*every_item, "--top-k", "2", "--rules", str(rules), "--items", str(tiny_data)]) == 0
    assert capsys.readouterr().out == f"answers: {answers}\n"
    assert len(answers.read_text().splitlines()) == 33
    assert main([*every_item, "--json"]) == 2 and "are about one --bundle" in capsys.readouterr().err
    assert main([*command, "--every-item"]) == 2 and "Give one of" in capsys.readouterr().err
    for option, value in (("--output", "a.csv"), ("--layout", "shopify"), ("--engine", "ray")):
        assert main([*command, option, value]) == 2
        assert f"{option} is about many bundles, but --bundle is one" in capsys.readouterr().err
    assert main([*command, "--batch-size", "0"]) == 2 and "batch_size" in capsys.readouterr().err
    assert main([*command, "--top-k", "2", "--page", "2"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 2


def test_questions_evaluate_complete(model, tiny_data, tmp_path, capsys):
    file, metrics_file = tmp_path / "q.jsonl", tmp_path / "metrics.json"
    assert ask(tiny_data, file, "--num-candidates", "4", "--negatives", "hard", "--seed", "42") == 0
    assert "test bundles ->" in capsys.readouterr().out
    arguments = ["evaluate", "--model", str(model), "--data", str(tiny_data), "--questions", str(file)]
    assert main([*arguments, "--output", str(metrics_file)]) == 0
    printed, metrics = capsys.readouterr().out, json.loads(metrics_file.read_text())
    assert re.search(r"^ +ranker +retriever +both$", printed, flags=re.MULTILINE)
    row = "  ".join(f"{m['hit_rate@1']:.4f} ± {m['hit_rate@1_se']:.4f}" for m in metrics["parts"].values())
    assert f"hit_rate@1   {row}" in printed
    assert metrics["num_questions"] == len(file.read_text().splitlines())
    assert len(metrics["questions"]["sha256"]) == 64
    assert main([*arguments, "--output", str(tmp_path / "often.json"), "--permutations", "2"]) == 0
    capsys.readouterr()
    assert main(["compare", "--a", str(tmp_path / "often.json"), "--b", str(metrics_file)]) == 0
    assert f"- {metrics['hit_rate@1']:.4f} = " in capsys.readouterr().out
    assert metrics["questions"]["made"]["negatives"] == "hard"
    chosen = "red-bag,blue-hat,green-belt"
    command = ["complete", "--model", str(model), "--bundle", "red-shirt,red-skirt", "--candidates", chosen, "--json"]
    assert main(command) == 0
    ranked = json.loads(capsys.readouterr().out)
    assert {entry["item_id"] for entry in ranked} == set(chosen.split(","))
    assert sum(entry["score"] for entry in ranked) == pytest.approx(1)
    assert main(["complete", "--model", str(model), "--bundle", "red-shirt", "--top-k", "3"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert main(["complete", "--model", str(model), "--bundle", "red-shirt", "--top-k", "3", "--explain"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6 and all(
        re.search(r"^ +(ranker \d+\.\d%, )?retriever \d+\.\d% \(", line) for line in lines[1::2]
    )
    assert "ranker" in lines[1]


def test_a_retriever_is_added_to_a_ranker(model, tiny_data, tmp_path, capsys):
    folder = shutil.copytree(model, tmp_path / "ranker", ignore=shutil.ignore_patterns("retriever", "training"))
    command = ["retriever", "--model", str(folder), "--data", str(tiny_data), "--validation-questions", "8"]
    small = ["--validation-candidates", "4", "--combination-questions", "8", *TINY[TINY.index("--retriever.steps") :]]
    assert main([*command, *small]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^ +ranker +retriever +both$", printed, flags=re.MULTILINE)
    assert (folder / "retriever" / "model.safetensors").exists()


def test_wording_is_no_part_of_a_question_file(tiny_data, tmp_path, capsys):
    assert ask(tiny_data, tmp_path / "q.jsonl", "--titles-only") == 2
    assert "--format prompt-completion" in capsys.readouterr().err


@pytest.mark.parametrize("bundle", ['["red-shirt", "red-skirt"]', " red-shirt , red-skirt"])
def test_ids_may_be_a_json_list(model, bundle, capsys):
    command = ["complete", "--model", str(model), "--candidates", '["red-bag", "blue-hat"]', "--bundle"]
    assert main([*command, bundle]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert main([*command, '["red-shirt", 3]']) == 2
    assert main([*command, "[red-shirt]"]) == 2


def test_training_questions_are_sampled_in_any_number(tiny_data, tmp_path, capsys):
    file = tmp_path / "train.jsonl"
    options = ["--num-questions", "200", "--num-candidates", "4", "--format", "prompt-completion"]
    assert ask(tiny_data, file, *options) == 2
    assert "--split train" in capsys.readouterr().err
    assert ask(tiny_data, file, *options, "--split", "train") == 0
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(rows) == 200 and len({row["prompt"] for row in rows}) > 150
    assert {row["completion"].strip() for row in rows} == set("ABCD")


@pytest.mark.slow
def test_publish_shows_what_it_would_upload_and_touches_nothing(model, tiny_data, tmp_path, capsys):
    file, metrics_file = tmp_path / "q.jsonl", tmp_path / "metrics.json"
    assert ask(tiny_data, file, "--num-candidates", "4") == 0
    arguments = ["--model", str(model), "--data", str(tiny_data), "--questions", str(file)]
    assert main(["evaluate", *arguments, "--output", str(metrics_file)]) == 0
    command = ["publish", "--model", str(model), "--repo", "org/tiny", "--output-dir", str(tmp_path / "repository")]
    assert main([*command, "--dry-run"]) == 2
    assert "--allow-no-metrics" in capsys.readouterr().err
    assert main([*command, "--dry-run", "--metrics", str(metrics_file)]) == 0
    printed = capsys.readouterr().out
    assert "model.safetensors" in printed and "README.md" in printed and "verified: " in printed
    assert "dry run: org/tiny was not touched" in printed
    assert (tmp_path / "repository" / "modeling_bundle_mllm.py").exists()


def test_publish_dataset_and_export_print_what_they_wrote(model, tiny_data, tmp_path, capsys):
    command = ["publish-dataset", "--data", str(tiny_data), "--repo", "org/tiny", "--dry-run"]
    assert main([*command, "--output-dir", str(tmp_path / "data")]) == 0
    assert "items.parquet" in capsys.readouterr().out
    command = ["export", "--model", str(model), "--output-dir", str(tmp_path / "llm")]
    assert main([*command, "--modalities", "smell"]) == 2
    assert "smell" in capsys.readouterr().err
    assert main([*command, "--modalities", "visual"]) == 0
    printed = capsys.readouterr().out
    assert f"language model: {tmp_path / 'llm'}" in printed and "the retriever stays in" in printed


def test_import_reads_tables_with_other_names_and_prints_a_summary(tmp_path, capsys):
    source = tmp_path / "shop"
    source.mkdir()
    (source / "products.csv").write_text("sku,name\n" + "".join(f"{n},thing {n}\n" for n in range(6)))
    (source / "bundles.csv").write_text('bundle_id,items\nb1,"[""0"", ""1"", ""9""]"\nb2,"[""2"", ""3""]"\n')
    command = ["import", "--format", "tabular", str(source), "--output-dir", str(tmp_path / "data")]
    names = ["--tables", "items=products.csv", "--columns", "item_id=sku", "title=name"]
    assert main(command) == 2
    assert "items" in capsys.readouterr().err
    assert main([*command, *names]) == 0
    assert "6 items, 2 bundles" in capsys.readouterr().out
    assert (tmp_path / "data" / "items.jsonl").read_text().startswith('{"item_id": "0", "title": "thing 0"}')
    (source / "items.csv").write_text("item_id;title\n0;thing\n")
    assert main([*command[:-1], str(tmp_path / "other")]) == 2
    assert "delimiter to ';'" in capsys.readouterr().err
    assert main([*command, "--columns", "sku"]) == 2
    assert "NAME=VALUE" in capsys.readouterr().err


def test_encode_writes_features_and_prints_what_was_left_out(tiny_data, tmp_path, capsys):
    shutil.copytree(tiny_data, tmp_path / "data")
    command = ["encode", "--data", str(tmp_path / "data")]
    assert main(command) == 0
    shown = capsys.readouterr()
    assert "textual: 32 of 32 items" in shown.out
    assert re.search(r"bundle_item: 32 of 32 items, 64 wide .* cross-fitted in \d+ folds", shown.out)
    assert "bundle_item, cross-fitting: 100%" in shown.err
    assert (tmp_path / "data" / "features" / "textual.safetensors").exists()
    assert main([*command, "--visual", "nose"]) == 2
    assert "descriptor" in capsys.readouterr().err
    assert main([*command, "--visual", "descriptor"]) == 2
    assert "was not made by `encode`" in capsys.readouterr().err
    assert main(["check", "--data", str(tmp_path / "data")]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].split() == ["alone", "wrong", "training", "validation", "gap"]
    assert {line.split("  ")[0] for line in table[1:]} >= {"bundle_item", "bundle_item (cross-fitted)", "visual"}


def test_a_user_log_made_of_the_bundles_is_refused_unless_it_is_allowed(tiny_data, tmp_path, capsys):
    shutil.copytree(tiny_data, tmp_path / "data")
    bundles = DatasetFolder.open(tiny_data).bundles
    log = [{"user_id": b.bundle_id, "item_id": i} for split in SPLITS for b in bundles[split] for i in b.items]
    write_records(tmp_path / "data" / "interactions.csv", log)
    command = ["encode", "--data", str(tmp_path / "data"), "--relational", "user_item:svd"]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "encode held-out bundles" in error and "--allow-leakage" in error
    assert not (tmp_path / "data" / "features" / "user_item.safetensors").exists()
    assert main([*command, "--allow-leakage"]) == 0
    assert main(["check", "--data", str(tmp_path / "data")]) == 0
    assert "held-out bundles" in capsys.readouterr().out


def test_convert_names_what_a_checkpoint_lacks(tmp_path, capsys):
    folders = ["--checkpoint", str(tmp_path), "--data", str(tmp_path), "--base-model", "none"]
    assert main(["convert", *folders, "--output-dir", str(tmp_path / "model")]) == 2
    assert "adapter_config.json" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


def test_the_same_seed_writes_the_same_bytes(tiny_data, tmp_path):
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert ask(tiny_data, tmp_path / f"{name}.jsonl", "--num-candidates", "6", "--seed", seed) == 0
    first, again, other = ((tmp_path / f"{name}.jsonl").read_bytes() for name in "abc")
    assert first == again != other


def test_prompt_completion_rows_need_no_model_and_read_as_text(tiny_data, tmp_path):
    file = tmp_path / "rows.jsonl"
    assert ask(tiny_data, file, "--num-candidates", "3", "--format", "prompt-completion") == 0
    row = json.loads(file.read_text().splitlines()[0])
    assert row["prompt"].endswith("Answer:")
    assert row["completion"] in (" A", " B", " C")
    assert "<|item_separator|><|item_" in row["prompt"]
    assert ask(tiny_data, file, "--num-candidates", "3", "--format", "prompt-completion", "--titles-only") == 0
    assert "<|item" not in file.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["questions", "--data", "nowhere", "--output", "q.jsonl"], "nowhere does not exist"),
        (["questions", "--data", "DATA", "--output", "q.jsonl", "--num-candidates", "40"], "39 wrong options"),
        (["questions", "--data", "DATA", "--output", "q.txt"], "q.txt"),
        (["evaluate", "--model", "nowhere", "--data", "DATA", "--questions", "Q"], "nowhere"),
        (["evaluate", "--model", "MODEL", "--data", "DATA", "--questions", "nowhere.jsonl"], "nowhere.jsonl"),
        (["complete", "--model", "MODEL", "--bundle", "red-shirt", "--candidates", "red-bag,no-such"], "'no-such'"),
        (["complete", "--model", "MODEL", "--bundle", "red-shirt", "--where", "price < 3"], "has no column 'price'"),
        (["complete", "--model", "MODEL", "--bundle", "red-shirt", "--budget", "-5"], "budget is -5"),
        (["complete", "--model", "MODEL", "--bundle", "red-shirt", "--rules", "gone.yaml"], "gone.yaml"),
        (["complete", "--model", "MODEL", "--bundle", ",", "--candidates", "red-bag,blue-bag"], "names no item"),
        (["train", "--data", "nowhere", "--output-dir", "out"], "nowhere does not exist"),
        (["train", "--data", "DATA", "--output-dir", "MODEL"], "other settings"),
        (["train", "--data", "DATA", "--output-dir", "out", "--config", "no.yaml"], "no.yaml does not exist"),
        (["train", "--data", "DATA", "--output-dir", "out", "--base-model", "no/such-model"], "'no/such-model'"),
        (["train", "--data", "DATA", "--output-dir", "out", "--modalities", "acoustic"], "acoustic"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(arguments, message, model, tiny_data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    ask(tiny_data, "good.jsonl", "--num-candidates", "4")
    capsys.readouterr()
    paths = {"DATA": str(tiny_data), "MODEL": str(model), "Q": "good.jsonl"}
    assert main([paths.get(argument, argument) for argument in arguments]) == 2
    printed = capsys.readouterr().err.strip()
    assert message in printed
    assert "Traceback" not in printed
    assert printed.splitlines()[-1].startswith("bundle-mllm: error: ")


def test_a_prompt_beyond_the_backbones_context_is_refused_before_training(tiny_data, tmp_path, capsys):
    data = tmp_path / "data"
    data.mkdir()
    rows = [json.loads(line) for line in (tiny_data / "items.jsonl").read_text().splitlines()]
    for row in rows:
        row["title"] = "very " * 380 + row["title"]
    (data / "items.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (data / "bundles.jsonl").write_bytes((tiny_data / "bundles.jsonl").read_bytes())
    arguments = ["train", "--data", str(data), "--output-dir", str(tmp_path / "out"), *TINY]
    assert main([*arguments, "--stage-two.num-questions", "0"]) == 2
    assert "the backbone reads 4096" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [["--help"], ["-h"], []])
def test_help_names_every_command(argv, capsys):
    assert main(argv) == 0
    printed = capsys.readouterr().out
    assert all(f"\n  {name} " in printed for name in COMMANDS)


def test_the_version_is_that_of_the_package(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"bundle-mllm {bundle_mllm.__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_each_option_once_with_a_text(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help-all"])
    assert stopped.value.code == 0
    _usage, _, printed = capsys.readouterr().out.partition("\n\n")
    options = re.findall(r"^[│ ] (--[a-z][\w.-]*)", printed, flags=re.MULTILINE)
    assert options and len(options) == len(set(options))
    settings = [_load(each) for each in COMMANDS[command].settings.split()]
    for each in settings:
        for field in dataclasses.fields(each):
            assert f"--{field.name.replace('_', '-')}" in printed or field.name in (
                *UNSEEN,
                *_nested(each),
                "source",
                "action",
            )


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_a_terminal_and_two_screens(command, encoding, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding))
    with pytest.raises(SystemExit):
        main([command, "--help"])
    sys.stdout.seek(0)
    lines = sys.stdout.read().splitlines()
    assert max(map(len, lines)) <= 80 and len(lines) < 150
    assert (f"`bundle-mllm {command} --help-all` explains the options of all groups." in lines) == (command == "train")
    if command == "train":
        assert any("stage-two.lora options" in line for line in lines) and not any(
            "--stage-two" in line for line in lines
        )


@pytest.mark.parametrize("command", COMMANDS)
def test_models_and_outputs_are_given_in_one_way(command, capsys):
    """A model is MODEL, a file is written to --output, a folder to --output-dir."""
    with pytest.raises(SystemExit):
        main([command, "--help-all"])
    options = re.findall(r"^[│ ] (--[a-z][\w.-]*)(.*)", capsys.readouterr().out, flags=re.MULTILINE)
    assert {name for name, _ in options if name.startswith("--out")} <= {"--output", "--output-dir"}
    assert all(rest.lstrip("= ").startswith("MODEL") for name, rest in options if name == "--model")


UNSEEN = ("fitted", "progress", "report")
"""Fields that a command line cannot give: functions."""


def _nested(settings):
    return [name for name, hint in field_types(settings).items() if dataclasses.is_dataclass(hint)]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["evalute"], "no command 'evalute': did you mean evaluate?"),
        (["dance"], "no command 'dance': `bundle-mllm --help` shows all"),
        (["evaluate", "--modle", "out"], "no option --modle: did you mean --model?"),
        (["train", "--stage-two.learning-rat", "1"], "did you mean --stage-two.learning-rate"),
        (["compare", "--a", "x", "--xyzzy=3"], "no option --xyzzy: `bundle-mllm compare --help` shows all"),
    ],
)
def test_a_typo_is_answered_with_the_nearest_name(argv, message, capsys):
    assert main(argv) == 2
    assert message in capsys.readouterr().err


def test_nothing_heavy_is_imported_for_help_typos_and_comparisons(tmp_path):
    """Half a second of CPU is measured by hand; here only that what takes longer is not imported."""
    for name in "ab":
        scored = as_scored([Question("q", "b", ("x",), ("y", "z"), 0)], [[1.0, 0.0]])
        save_results(tmp_path / f"{name}.json", {"questions": {"path": "q", "sha256": "0"}}, scored)
    compare = ["compare", "--a", str(tmp_path / "a.json"), "--b", str(tmp_path / "b.json")]
    helps = [[name, "--help"] for name in COMMANDS]
    code = f"""
import sys
from contextlib import suppress
from bundle_mllm.cli import main
for argv in {[["--help"], ["--version"], ["evalute"], compare, *helps]!r}:
    with suppress(SystemExit):
        main(argv)
heavy = ("torch", "transformers", "datasets", "scipy", "sklearn", "pandas", "pyarrow")
print([name for name in heavy if name in sys.modules])
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert run.stdout.splitlines()[-1] == "[]", run.stderr
    assert "hit_rate@1 " in run.stdout


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["evaluate"], "Missing from bundle-mllm evaluate: --data PATH Dataset folder"),
        (["train", "--data", "x", "--output-dir", "y", "--seed", "abc"], "--seed: invalid literal for int()"),
        (["synthetic", "--output-dir", "z", "--signal", "smell"], "invalid choice 'smell' for argument '--signal'"),
        (["import", "a", "b", "--format", "tabular", "--output-dir", "c"], "Unrecognized options: b"),
    ],
)
def test_options_that_are_missing_or_wrong_are_one_line(argv, message, capsys):
    assert main(argv) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"bundle-mllm: error: {message}") and f"`bundle-mllm {argv[0]} --help`" in line


def test_a_file_that_cannot_be_compared_is_named_without_names_of_exceptions(tmp_path, capsys):
    (tmp_path / "other.json").write_text('{"seed": 0}')
    for path in (tmp_path / "other.json", tmp_path / "none.json"):
        assert main(["compare", "--a", str(path), "--b", str(path)]) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert str(path) in line and "Error:" not in line
