"""Folders of the first layout, in which the retriever was part of the ranker: refused, and equal once mapped."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bundle_mllm.modeling import (
    BundleMLLMConfig,
    BundleMLLMForCausalLM,
    BundleMLLMProcessor,
    BundleRetriever,
    BundleRetrieverConfig,
)

FOLDER = Path(__file__).with_name("first_layout")
"""A tiny random model that commit e3af2cc made, with what it answered to three questions."""
RANKER_ONLY = ("matching", "relations", "backbone_weight", "option_separator", "answer_")


def mapped_ranker():
    """The ranker without what the retriever left in its configuration and weights."""
    settings = json.loads((FOLDER / "config.json").read_text())
    settings = {name: value for name, value in settings.items() if not name.startswith(RANKER_ONLY)}
    model = BundleMLLMForCausalLM(BundleMLLMConfig(**settings))
    weights = {}
    for name, tensor in load_file(FOLDER / "model.safetensors").items():
        if ".matching." not in name and ".relations." not in name:
            name = name.replace("fusion.feature_mean.", "fusion.statistics.mean.")
            weights[name.replace("fusion.feature_std.", "fusion.statistics.std.")] = tensor
    model.load_state_dict(weights, strict=True)
    return model.eval()


def mapped_retriever():
    """The matching as a retriever: the old network over co-occurrence becomes `g`; slope and `h` are zero."""
    settings, weights = json.loads((FOLDER / "config.json").read_text()), load_file(FOLDER / "model.safetensors")
    config = BundleRetrieverConfig(
        modalities=settings["modalities"],
        memberships=settings["relations"],
        num_items=settings["num_items"],
        hidden_size=settings["matching_hidden_size"],
    )
    model, mapped = BundleRetriever(config), {}
    for name, tensor in weights.items():
        for old, new in (
            ("model.catalog.relations.", "groups."),
            ("model.catalog.", "catalog."),
            ("model.fusion.feature_mean.", "towers.statistics.mean."),
            ("model.fusion.feature_std.", "towers.statistics.std."),
            ("model.matching.maps.", "towers.maps."),
            ("model.matching.temperature", "towers.logit_scale"),
            ("model.matching.likeness", "towers.cosine_weight"),
            ("model.matching.weigh.", "stacker.co_occurrence."),
            ("model.matching.shared_", "stacker."),
        ):
            if name.startswith(old):
                mapped[new + name.removeprefix(old)] = tensor
                break
    missing, unexpected = model.load_state_dict(mapped, strict=False)
    assert not unexpected and all(name.startswith(("stacker.slope", "stacker.popularity")) for name in missing)
    for name in missing:
        model.get_parameter(name).data.zero_()
    return model.eval()


@pytest.fixture(scope="module")
def expected():
    return json.loads((FOLDER / "expected.json").read_text())


@pytest.mark.parametrize("load", [BundleMLLMConfig.from_pretrained, BundleMLLMForCausalLM.from_pretrained])
def test_a_folder_of_the_first_layout_is_refused_with_the_way_to_a_new_one(load):
    with pytest.raises(ValueError, match=r"format_version 1, .* train it again"):
        load(FOLDER)


@torch.no_grad()
def test_the_ranker_gives_the_letters_the_logits_of_the_old_backbone(expected):
    fields = json.loads((FOLDER / "processor_config.json").read_text())
    model, processor = mapped_ranker(), BundleMLLMProcessor.from_pretrained(FOLDER, **fields)
    for question in expected:
        inputs = processor({name: question[name] for name in ("partial", "candidates")}, return_tensors="pt")
        letters = torch.tensor(processor.answer_token_ids(len(question["candidates"])))
        found = model.last_logits(**inputs)[0, letters]
        assert torch.allclose(found, torch.tensor(question["letter_logits"]), atol=1e-5)


@torch.no_grad()
def test_the_retriever_gives_the_scores_of_the_old_matching(expected):
    model = mapped_retriever()
    for question in expected:
        rows = {
            f"{name}_rows": torch.tensor([[int(item_id[1:]) for item_id in question[key]]])
            for name, key in (("partial", "partial"), ("option", "candidates"))
        }
        table, shares = model.co_occurrence(**rows)
        assert shares.all()  # else the old network would add something to the others, too
        assert torch.allclose(table[0], torch.tensor(question["co_occurrence"]), atol=1e-6)
        towers = model.tower_scores(**rows)[0].log_softmax(-1)
        assert torch.allclose(towers, torch.tensor(question["towers"]), atol=1e-5)
        scores = model(**rows).scores[0].log_softmax(-1)
        assert torch.allclose(scores, torch.tensor(question["matching"]), atol=1e-5)
