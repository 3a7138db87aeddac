"""Both stages by the unmodified `trl sft` and the YAML files of `training_scripts/`: as by `bundle-mllm train`."""

import contextlib
import importlib.util
import json
import os
import subprocess
import sysconfig
import time
from pathlib import Path

import psutil
import pytest
import torch
from datasets import Dataset, disable_progress_bars
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file
from tiny_models import make_backbone, make_model, make_processor, make_tokenizer
from transformers import AutoModelForCausalLM, AutoProcessor, pipeline
from trl.scripts import sft
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from bundle_mllm.cli import main
from bundle_mllm.data import DatasetFolder, make_questions, sample_training_questions, save_questions
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.evaluation.scoring import score_questions
from bundle_mllm.model_folder import load_completer, load_ranker
from bundle_mllm.training.config import RunConfig, StageOneConfig, StageTwoConfig
from bundle_mllm.training.dataset import batch_by_length, prompt_completion_dataset
from bundle_mllm.training.run import train

SCRIPTS = Path(__file__).parents[2] / "training_scripts"
SMALL = dict(num_questions=32, batch_size=8, num_candidates=(2, 6), learning_rate=1e-2, num_validations=1, bf16=False)
LORA = ["q_proj", "v_proj"]
pytestmark = pytest.mark.slow


def options(stage, *, seed, **more):
    """What `trl sft` gets beside the YAML: tiny sizes, and the order of the file, which is the run's."""
    given = {
        "per_device_train_batch_size": stage.batch_size,
        "learning_rate": stage.learning_rate,
        "train_sampling_strategy": "sequential",
        "seed": seed,
        "disable_tqdm": True,
        **more,
    }
    return [text for name, value in given.items() for text in (f"--{name}", str(value))]


def trl_sft(config, arguments, work, command=("trl", "sft")):
    """Run the command line in a process of its own, which does not import the package."""
    home = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(work / "hf"), "OMP_NUM_THREADS": "1"}
    program = Path(sysconfig.get_path("scripts")) / command[0]
    out = Path(arguments[arguments.index("--output_dir") + 1])
    with (work / "stderr.txt").open("w+") as stderr:
        run = psutil.Popen(
            [program, *command[1:], "--config", SCRIPTS / config, *map(str, arguments)],
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | home,
            cwd=work,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
        )
        end = time.monotonic() + 600
        while run.poll() is None and not is_saved(out, seconds=30) and time.monotonic() < end:
            time.sleep(0.2)
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in [*run.children(recursive=True), run]:
                process.kill()
        stderr.seek(0)
        assert run.wait() == 0 or is_saved(out, seconds=0), stderr.read()[-4000:]


def is_saved(out, seconds):
    """Tell whether the last thing that `trl sft` does was done so many seconds ago.

    Of two processes one may hang as it ends, with everything saved: torch 2.13 joins Gloo's thread while it holds the
    GIL, which that thread may be waiting for.
    """
    last = out / "training_args.bin"
    return last.exists() and time.time() - max(file.stat().st_mtime for file in out.iterdir()) > seconds


@pytest.fixture(scope="module")
def data(tiny_data):
    return DatasetFolder.open(tiny_data)


@pytest.fixture(scope="module")
def work(tmp_path_factory, tiny_data):
    """A folder with a tiny backbone, and the untrained model folder that the documented command makes of it."""
    work = tmp_path_factory.mktemp("stock")
    make_backbone().save_pretrained(work / "base")
    make_tokenizer().save_pretrained(work / "base")
    nothing = ["--stage-one.num-questions", "0", "--stage-two.num-questions", "0", "--no-retriever"]
    where = ["--data", str(tiny_data), "--base-model", str(work / "base"), "--output-dir", str(work / "init")]
    assert main(["train", *where, *nothing]) == 0
    return work


@pytest.fixture(scope="module")
def run(work, tiny_data):
    return RunConfig(
        data=tiny_data,
        output_dir=work / "own",
        base_model=str(work / "base"),
        validation_questions=0,
        no_retriever=True,
        stage_one=StageOneConfig(**SMALL),
        stage_two=StageTwoConfig(**SMALL),
    )


@pytest.fixture(scope="module")
def own(run):
    return train(run)


def write_questions(folder, data, stage, processor, seed):
    """Write the training questions of a stage of `bundle-mllm train`, in its order."""
    questions = sample_training_questions(
        data.bundles.train,
        data.catalog,
        num_questions=stage.num_questions,
        num_candidates=stage.num_candidates,
        hard_fraction=stage.hard_fraction,
        seed=seed,
    )
    ordered = batch_by_length(questions, data.catalog, batch_size=stage.batch_size, seed=seed)
    folder.mkdir()
    prompt_completion_dataset(ordered, processor, shows_items=stage.shows_items).to_json(folder / "train.jsonl")
    return ["--dataset_name", folder]


@pytest.fixture(scope="module")
def stock(work, run, data):
    """Both stages by `trl sft`; returns their folders."""
    disable_progress_bars()
    init, adapter, merged, out = (work / name for name in ("init", "adapter", "merged", "out"))
    processor = AutoProcessor.from_pretrained(init)
    questions = write_questions(work / "questions_one", data, run.stage_one, processor, seed=0)
    where = ["--model_name_or_path", init, "--output_dir", adapter, *questions]
    trl_sft("stage_one.yaml", [*where, *options(run.stage_one, seed=0)], work)
    script("merge_adapter").merge_adapter(adapter, merged)
    questions = write_questions(work / "questions_two", data, run.stage_two, processor, seed=1)
    where = ["--model_name_or_path", merged, "--output_dir", out, *questions]
    trl_sft("stage_two.yaml", [*where, *options(run.stage_two, seed=1)], work)
    return init, adapter, merged, out


def script(name):
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def moved(before, after):
    before, after = (load_file(folder / "model.safetensors") for folder in (before, after))
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def names(folder, *prefixes):
    return {name for name in load_file(folder / "model.safetensors") if name.startswith(prefixes)}


def scores(folder, data):
    questions = make_questions(data.bundles.test, data.catalog, data.bundles, num_candidates=6, seed=0)
    return torch.tensor([scored.scores for scored in score_questions(load_completer(folder), questions)["ranker"]])


def test_stage_one_moves_queries_and_values_and_nothing_else(stock):
    init, adapter, merged, _ = stock
    adapted = load_file(adapter / "adapter_model.safetensors")
    assert all(".q_proj.lora_" in name or ".v_proj.lora_" in name for name in adapted)
    layers = "model.language_model.layers."
    assert moved(init, merged) == {n for n in names(init, layers) if n.split(".")[-2] in LORA} != set()


@torch.no_grad()
def test_merging_changes_no_logit(stock):
    init, adapter, merged, _ = stock
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(init), adapter).eval()
    ids = torch.tensor([[1, 60, 61, 1 << 20, 62]])
    expected = adapted(input_ids=ids).logits
    assert torch.allclose(AutoModelForCausalLM.from_pretrained(merged)(input_ids=ids).logits, expected, atol=1e-5)
    with pytest.raises(BundleMLLMError, match="is not empty"):
        script("merge_adapter").merge_adapter(adapter, merged)


def test_stage_two_moves_fusion_projector_and_separator_and_nothing_else(stock):
    *_, merged, out = stock
    trains = names(merged, "model.fusion.", "model.projector.", "model.separator.")
    # No item of a question lacks every modality: "no features" is in the graph, but its gradient is zero.
    assert moved(merged, out) | {"model.fusion.no_features.weight"} == trains


def test_the_result_scores_like_the_same_training_through_the_package(stock, own, data):
    *_, merged, out = stock
    for ours, theirs in ((own / "training" / "stage_one" / "model", merged), (own, out)):
        before, after = (load_file(folder / "model.safetensors") for folder in (ours, theirs))
        assert all(torch.allclose(before[name], after[name], rtol=0, atol=1e-6) for name in before)
    assert torch.allclose(scores(own, data), scores(out, data), rtol=0, atol=1e-5)
    assert not torch.allclose(scores(own, data), scores(merged, data), atol=1e-2)


def test_the_result_is_a_whole_folder_for_pipeline_and_evaluate(stock, tiny_data, data, tmp_path, capsys):
    out = stock[-1]
    completer = pipeline("bundle-completion", model=str(out))
    answered = completer({"partial": ["red-shirt"], "candidates": ["red-hat", "blue-bag"]})
    assert {option["item_id"] for option in answered} == {"red-hat", "blue-bag"}
    questions = make_questions(data.bundles.test, data.catalog, data.bundles, num_candidates=4, seed=0)
    save_questions(tmp_path / "q.jsonl", questions)
    arguments = ["--data", tiny_data, "--questions", tmp_path / "q.jsonl", "--output", tmp_path / "metrics.json"]
    assert main(["evaluate", "--model", str(out), *map(str, arguments)]) == 0
    assert json.loads((tmp_path / "metrics.json").read_text())["num_questions"] == len(questions)


@torch.no_grad()
def question_losses(folder, rows, **packing):
    """The loss of each question, by its tokens, in batches as TRL makes them; and how many rows these had."""
    model, processor = load_ranker(folder)
    arguments = SFTConfig("unused", bf16=False, report_to="none", per_device_train_batch_size=4, **packing)
    trainer = SFTTrainer(model, arguments, train_dataset=rows, processing_class=processor)
    losses, count = {}, 0
    for batch in trainer.get_train_dataloader():
        per_token = -trainer.model.eval()(**batch, fused_lm_head=True).log_probs
        per_token = torch.cat([torch.zeros(len(per_token), 1), per_token], dim=1)  # back in line with the labels
        count += len(per_token)
        for row, ids in enumerate(batch["input_ids"]):
            if "position_ids" in batch:
                starts = (batch["position_ids"][row] == 0).nonzero().flatten().tolist()
            else:
                starts, ids = [0], ids[: batch["attention_mask"][row].sum()]
            for start, end in zip(starts, [*starts[1:], len(ids)], strict=True):
                losses[tuple(ids[start:end].tolist())] = float(per_token[row, start:end].sum())
    return losses, count


def test_packing_changes_no_loss(work, run, data):
    processor = AutoProcessor.from_pretrained(work / "init")
    questions = make_questions(data.bundles.train, data.catalog, data.bundles, num_candidates=6, seed=0)
    rows = prompt_completion_dataset(questions, processor, shows_items=True)
    alone, count_alone = question_losses(work / "init", rows, max_length=None)
    packed, count_packed = question_losses(work / "init", rows, packing=True, max_length=512)
    assert count_alone == len(questions) == len(alone) > 3 * count_packed
    assert alone.keys() == packed.keys()
    assert all(abs(alone[tokens] - packed[tokens]) < 1e-5 for tokens in alone)
    assert min(alone.values()) > 0.1


@pytest.mark.parametrize("peft_config", [None, LoraConfig(target_modules=LORA)], ids=["full", "lora"])
@pytest.mark.parametrize(
    ("columns", "more"),
    [(["text"], {}), (["prompt", "completion"], {"completion_only_loss": False}), (["text"], {"loss_type": "dft"})],
)
@torch.no_grad()
def test_items_and_separators_are_no_targets_whatever_columns_a_data_set_has(columns, more, peft_config, tmp_path):
    processor = make_processor()
    question = {"partial": ["i0", "i1"], "candidates": ["i2", "i3"]}
    row = {"prompt": processor.render(question), "completion": " A"}
    row["text"] = row["prompt"] + row["completion"]
    rows = Dataset.from_list([{name: row[name] for name in columns}] * 2)
    arguments = SFTConfig(str(tmp_path), bf16=False, use_cpu=True, report_to="none", max_length=None, **more)
    tools = {"processing_class": processor, "peft_config": peft_config}
    model = make_model(separator_token_id=processor.separator_token_id)
    trainer = SFTTrainer(model, arguments, train_dataset=rows, **tools)
    model = trainer.model.eval()
    batch = next(iter(trainer.get_train_dataloader()))
    targets, logits = batch["input_ids"][:, 1:], model(input_ids=batch["input_ids"]).logits[:, :-1].log_softmax(-1)
    is_text = (targets < model.config.item_token_offset) & (targets != model.config.separator_token_id)
    assert 0 < int((~is_text).sum()) == 2 * 2 * 4  # two questions with four items
    of_text = logits[is_text].gather(-1, targets[is_text].unsqueeze(-1))
    expected = -(of_text * of_text.exp() if "loss_type" in more else of_text).mean()
    assert torch.allclose(trainer.compute_loss(model, batch), expected, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def questions_by_command(work, tiny_data):
    where = ["--data", tiny_data, "--split", "train", "--model", work / "init", "--num-candidates", "6"]
    output = ["--format", "prompt-completion", "--output", work / "questions" / "train.jsonl"]
    assert main(["questions", *map(str, [*where, *output])]) == 0
    return ["--dataset_name", work / "questions"]


def test_two_cpu_processes_train_the_same_parameters(work, run, questions_by_command):
    count = len((work / "questions" / "train.jsonl").read_text().splitlines())
    init, out, batch = work / "init", work / "out_of_two", 2 * run.stage_two.batch_size
    arguments = ["--model_name_or_path", init, "--output_dir", out, *questions_by_command]
    more = options(run.stage_two, seed=1, use_cpu=True, save_strategy="epoch")
    launch = ("accelerate", "launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0")
    trl_sft("stage_two.yaml", [*arguments, *more], work, command=(*launch, "-m", "trl.scripts.sft"))
    assert (out / f"checkpoint-{-(-count // batch)}").exists()  # each process took half of the questions
    assert moved(init, out) | {"model.fusion.no_features.weight"} == names(
        init, "model.fusion.", "model.projector.", "model.separator."
    )
    assert AutoProcessor.from_pretrained(out).num_items == 32
    mapped = list((work / "hf" / "datasets" / "questions").rglob("cache-*.arrow"))
    assert len(mapped) == 3  # end of sequence, tokens, labels: once, since both processes hash the processor alike


@torch.no_grad()
def test_an_adapter_with_fusion_projector_and_separator_in_it_loses_nothing(
    work, run, questions_by_command, monkeypatch
):
    """`trl sft --use_peft` in this process, so that what was trained can be compared with what was saved."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(work / "hf"))
    trained, save_model = [], SFTTrainer.save_model

    def keep_and_save(self, *args, **kwargs):
        trained.append(self.model)
        save_model(self, *args, **kwargs)

    monkeypatch.setattr(SFTTrainer, "save_model", keep_and_save)
    arguments = ["--config", SCRIPTS / "stage_two.yaml", "--use_peft", "--output_dir", work / "adapter_two"]
    arguments += ["--model_name_or_path", work / "init", *questions_by_command, *options(run.stage_two, seed=1)]
    with torch.enable_grad():
        sft.main(*sft.make_parser().parse_args_and_config([*map(str, arguments)], fail_with_unknown_args=False))
    saved = load_file(work / "adapter_two" / "adapter_model.safetensors")
    parts = {name.removeprefix("base_model.model.model.").split(".")[0] for name in saved}
    assert parts == {"language_model", "fusion", "projector", "separator"}
    model, processor = load_ranker(work / "init")
    inputs = processor({"partial": ["red-shirt"], "candidates": ["red-hat", "blue-bag"]}, return_tensors="pt")
    expected, untrained = trained[0].eval()(**inputs).logits, model(**inputs).logits
    assert not torch.allclose(expected, untrained, atol=1e-2)
    loaded = AutoModelForCausalLM.from_pretrained(work / "adapter_two")
    assert torch.allclose(loaded(**inputs).logits, expected, rtol=0, atol=1e-6)
    script("merge_adapter").merge_adapter(work / "adapter_two", work / "merged_two")
    assert torch.allclose(load_ranker(work / "merged_two")[0](**inputs).logits, expected, rtol=0, atol=1e-5)
