"""What is saved can be loaded: by the Auto classes with the package, and from its own files without it."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_models import (
    GROUPS,
    MODALITIES,
    make_backbone,
    make_completer,
    make_item_processor,
    make_model,
    make_processor,
    make_retriever,
)
from torch.testing import assert_close
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoProcessor, AutoTokenizer
from transformers.dynamic_module_utils import get_class_from_dynamic_module

import bundle_mllm.modeling
from bundle_mllm.model_folder import load_completer, save_model
from bundle_mllm.modeling import (
    BundleCombination,
    BundleCompleter,
    BundleMLLMForCausalLM,
    BundleMLLMForOptionScoring,
    BundleMLLMModel,
    BundleMLLMProcessor,
    BundleMLLMTokenizerFast,
)

SOURCES = sorted(Path(bundle_mllm.modeling.__file__).parent.glob("*_bundle_mllm.py"))
QUESTION = {"partial": ["i0", "i5"], "candidates": ["i2", "i3", {"title": "x", "features": {"visual": [0.1] * 12}}]}
EXPECTED_KEYS = {
    "lm_head.weight",
    "model.catalog.features.user_item",
    "model.catalog.features.visual",
    "model.catalog.present",
    "model.fusion.encoders.user_item.bias",
    "model.fusion.encoders.user_item.weight",
    "model.fusion.encoders.visual.linear_1.bias",
    "model.fusion.encoders.visual.linear_1.weight",
    "model.fusion.encoders.visual.linear_2.bias",
    "model.fusion.encoders.visual.linear_2.weight",
    "model.fusion.encoders.visual.linear_3.bias",
    "model.fusion.encoders.visual.linear_3.weight",
    "model.fusion.key.weight",
    "model.fusion.no_features.weight",
    "model.fusion.query.weight",
    "model.projector.linear_1.bias",
    "model.projector.linear_1.weight",
    "model.projector.linear_2.bias",
    "model.projector.linear_2.weight",
    "model.separator.weight",
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder, processor = tmp_path_factory.mktemp("saved"), make_processor(item_noun="garment")
    model = make_model(separator_token_id=processor.separator_token_id, standardize_features=False)
    save_model(model, processor, folder)
    with torch.no_grad():
        inputs = processor(QUESTION, return_tensors="pt")
        return folder, inputs, model(**inputs).logits


RETRIEVER_KEYS = {
    *(f"catalog.{name}" for name in ("present", "features.user_item", "features.visual")),
    *(f"groups.{m}.{name}" for m in GROUPS for name in ("node_of_item", "offsets", "groups", "sizes")),
    *(f"towers.statistics.{what}.{name}" for what in ("mean", "std") for name in MODALITIES),
    *(
        f"towers.maps.{name}.{layer}.{what}"
        for name in MODALITIES
        for layer in ("linear", "linear_1", "linear_2")
        for what in ("weight", "bias")
    ),
    *("towers.logit_scale", "towers.cosine_weight", "stacker.mean", "stacker.std"),
    *("stacker.slope.weight", "stacker.slope.bias"),
    *(
        f"stacker.{network}.{layer}.{what}"
        for network in ("popularity", "co_occurrence")
        for layer in (0, 2, 4)
        for what in ("weight", "bias")
    ),
}
QUESTIONS = [QUESTION, {"partial": ["i0", "i5"]}, {"partial": ["i1"], "candidates": ["i2", "i3"]}]


def test_the_weights_of_a_retrievers_checkpoint_are_these():
    assert make_retriever().state_dict().keys() == RETRIEVER_KEYS


def test_the_weights_of_a_checkpoint_are_these():
    assert {key for key in make_model().state_dict() if "language_model" not in key} == EXPECTED_KEYS
    optional = make_model(fusion_value_map=True, standardize_features=True).state_dict().keys() - EXPECTED_KEYS
    assert {key for key in optional if "language_model" not in key} == {
        "model.fusion.value.weight",
        *(f"model.fusion.statistics.{what}.{name}" for what in ("mean", "std") for name in MODALITIES),
    }


@torch.no_grad()
def test_the_auto_classes_load_the_folder_without_a_trust_flag(saved):
    folder, inputs, logits = saved
    assert type(AutoConfig.from_pretrained(folder)).__name__ == "BundleMLLMConfig"
    model, processor = AutoModelForCausalLM.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert type(model) is BundleMLLMForCausalLM and type(processor) is BundleMLLMProcessor
    assert type(tokenizer) is BundleMLLMTokenizerFast
    again = processor(QUESTION, return_tensors="pt")
    assert torch.equal(again["input_ids"], inputs["input_ids"])
    assert tokenizer(processor.render(QUESTION))["input_ids"] == inputs["input_ids"][0].tolist()
    assert_close(model(**again).logits, logits)


@torch.no_grad()
def test_the_base_model_loads_alone(saved):
    folder, inputs, logits = saved
    base = AutoModel.from_pretrained(folder)
    assert type(base) is BundleMLLMModel
    head = AutoModelForCausalLM.from_pretrained(folder).lm_head
    assert_close(head(base(**inputs).last_hidden_state), logits)


def test_every_file_of_the_code_ships_with_a_ranker_but_that_of_another_class(tmp_path):
    BundleMLLMForOptionScoring.from_ranker(make_model()).save_pretrained(tmp_path / "options")
    make_model().save_pretrained(tmp_path / "letters")
    everything = {source.name for source in SOURCES}
    assert {path.name for path in (tmp_path / "options").glob("*.py")} == everything
    shipped = {path.name for path in (tmp_path / "letters").glob("*.py")}
    assert shipped == everything - {"option_scoring_bundle_mllm.py"}


@pytest.mark.parametrize("make", [make_retriever, make_processor, make_item_processor])
def test_all_that_the_code_of_a_part_imports_ships_with_it(tmp_path, make):
    part = make()
    part.save_pretrained(tmp_path)
    shipped = {path.stem: path.read_text(encoding="utf-8") for path in tmp_path.glob("*.py")}
    assert type(part).__module__.rpartition(".")[-1] in shipped
    for name, source in shipped.items():
        imported = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom) and node.level]
        assert {node.module for node in imported} <= shipped.keys(), name
    if make is make_retriever:
        assert {"pipeline_bundle_mllm", "item_processing_bundle_mllm"} <= shipped.keys()


@pytest.fixture
def remote(tmp_path, monkeypatch):
    """Loads a class from the code of a folder, as `trust_remote_code=True` does."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    before = _forget_remote_code()

    def load(reference, folder):
        found = get_class_from_dynamic_module(reference, folder)
        assert found.__module__.startswith("transformers_modules.")
        return found

    yield load
    _forget_remote_code()  # of this folder: or what is loaded later would be looked for there
    sys.modules.update(before)


def _forget_remote_code():
    """Take the code that came with models out of `sys.modules`, and return it."""
    names = [name for name in sys.modules if name.split(".")[0] == "transformers_modules"]
    return {name: sys.modules.pop(name) for name in names}


@torch.no_grad()
def test_the_shipped_code_gives_the_same_answers(saved, remote):
    folder, inputs, logits = saved
    model = remote("modeling_bundle_mllm.BundleMLLMForCausalLM", folder).from_pretrained(folder)
    processor = remote("processing_bundle_mllm.BundleMLLMProcessor", folder).from_pretrained(folder)
    assert "custom_pipelines" in model.config.to_dict()
    assert model.config.items_hash == processor.items_hash
    assert_close(model(**inputs).logits, logits)
    pipeline = remote("pipeline_bundle_mllm.BundleCompletionPipeline", folder)
    completer = pipeline(model=model, processor=processor, device="cpu")
    assert abs(sum(option["score"] for option in completer(QUESTION)) - 1) < 1e-6


@torch.no_grad()
def test_the_shipped_code_of_a_ranker_without_letters_gives_the_same_answers(tmp_path, remote):
    folder, processor = tmp_path / "model", make_processor()
    ranker = BundleMLLMForOptionScoring.from_ranker(make_model(separator_token_id=processor.separator_token_id))
    save_model(ranker, processor, folder)
    expected = BundleCompleter(processor, ranker=ranker).complete(QUESTION)
    model = remote("option_scoring_bundle_mllm.BundleMLLMForOptionScoring", folder).from_pretrained(folder)
    loaded = remote("processing_bundle_mllm.BundleMLLMProcessor", folder).from_pretrained(folder)
    pipeline = remote("pipeline_bundle_mllm.BundleCompletionPipeline", folder)
    close([pipeline(model=model, processor=loaded, device="cpu")(QUESTION)], [expected])


@torch.no_grad()
def test_stock_weights_load_through_a_key_mapping(tmp_path):
    backbone = make_backbone().eval()
    backbone.save_pretrained(tmp_path)
    mapping = {"^model": "model.language_model"}
    config = make_model().config
    model = BundleMLLMForCausalLM.from_pretrained(tmp_path, config=config, key_mapping=mapping)
    ids = torch.tensor([[1, 60, 61]])
    assert_close(model(input_ids=ids).logits, backbone(input_ids=ids).logits)


def test_an_empty_catalog_survives_saving(tmp_path):
    model = BundleMLLMForCausalLM.from_backbone(make_backbone(), modalities=MODALITIES)
    model.save_pretrained(tmp_path)
    assert BundleMLLMForCausalLM.from_pretrained(tmp_path).config.num_items == 0


def test_nothing_saved_names_a_folder_of_this_machine(tmp_path):
    make_backbone().save_pretrained(tmp_path / "base")
    backbone = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    make_model(backbone).save_pretrained(tmp_path / "model")
    assert str(tmp_path) not in (tmp_path / "model" / "config.json").read_text()


WITHOUT_PACKAGE = """
import json, sys
sys.modules["bundle_mllm"] = None  # an import of it now fails, as if it were not installed
import torch
from transformers import AutoConfig, AutoModel, AutoProcessor, pipeline

both, alone, questions, output = sys.argv[1:]
trust, found = {"trust_remote_code": True}, {"types": [], "scores": [], "answers": []}
for folder, options in ((both, {"subfolder": "retriever"}), (both + "/retriever", {}), (alone, {})):
    config = AutoConfig.from_pretrained(folder, **options, **trust)
    model = AutoModel.from_pretrained(folder, **options, **trust).eval()
    found["types"] += [type(config).__module__.split(".")[0], type(model).__name__]
    with torch.no_grad():
        found["scores"].append(model(torch.tensor([[0, 5]]), torch.tensor([[2, 3, 7]])).scores[0].tolist())
found["types"].append(type(AutoProcessor.from_pretrained(alone, **trust)).__name__)
for folder in (both, alone):
    found["answers"].append(pipeline("bundle-completion", model=folder, **trust)(json.loads(questions)))
    pipeline("bundle-completion", model=folder, **trust).save_pretrained(output + "/" + folder.rpartition("/")[-1])
open(output + "/found.json", "w").write(json.dumps(found))
"""


def close(answers, expected):
    assert [[a["item_id"] for a in one] for one in answers] == [[a["item_id"] for a in one] for one in expected]
    for one, other in zip(answers, expected, strict=True):
        assert [a["score"] for a in one] == pytest.approx([a["score"] for a in other], abs=1e-4)


@pytest.mark.slow
@torch.no_grad()
def test_ranker_and_retriever_work_and_are_saved_without_the_package(tmp_path):
    both = make_completer(combination=BundleCombination(0.7, 1.2))
    completers = {"both": both, "alone": make_completer(ranker=False)}
    for name, completer in completers.items():
        completer.save_pretrained(tmp_path / name)
    output = tmp_path / "output"
    output.mkdir()
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT_PACKAGE, *(str(tmp_path / name) for name in completers), json.dumps(QUESTIONS),
         str(output)],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules"), "PYTHONPATH": ""},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    found = json.loads((output / "found.json").read_text())
    assert found["types"] == ["transformers_modules", "BundleRetriever"] * 3 + ["BundleItemProcessor"]
    expected = make_retriever()(torch.tensor([[0, 5]]), torch.tensor([[2, 3, 7]])).scores
    for scores in found["scores"]:
        assert_close(torch.tensor([scores]), expected, atol=1e-4, rtol=0)
    for (name, completer), answers in zip(completers.items(), found["answers"], strict=True):
        close(answers, [completer.complete(question) for question in QUESTIONS])
        names = {path.relative_to(tmp_path / name) for path in (tmp_path / name).rglob("*")}
        assert {path.relative_to(output / name) for path in (output / name).rglob("*")} == names
        close([load_completer(output / name).complete(question) for question in QUESTIONS], answers)


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_shipped_files_follow_the_rules_of_remote_code(source):
    allowed = {"torch", "transformers", "numpy", "safetensors"} | set(sys.stdlib_module_names)
    tree = ast.parse(source.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            assert {alias.name.split(".")[0] for alias in node.names} <= allowed
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            assert node.module.split(".")[0] in allowed
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 1 and f"{node.module}.py" in {path.name for path in SOURCES}
    assert not any(line.lstrip().startswith("from .") for line in ast.get_docstring(tree).splitlines())


def test_the_tokenizer_defines_no_init():
    assert "__init__" not in vars(BundleMLLMTokenizerFast)
