"""Build the ranker that a run starts from, and join the one that it ends with to a retriever.

Knows nothing about stages or optimizers.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from bundle_mllm.data.questions import MAX_OPTIONS
from bundle_mllm.device import gains_by_bfloat16, mixed_precision
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.evaluation.ablation import restored
from bundle_mllm.interop.backbone import load_backbone, wrap_backbone
from bundle_mllm.model_folder import Ranker
from bundle_mllm.modeling.completion_bundle_mllm import BundleCompleter
from bundle_mllm.modeling.item_processing_bundle_mllm import BundleItemProcessor
from bundle_mllm.modeling.option_scoring_bundle_mllm import BundleMLLMForOptionScoring
from bundle_mllm.modeling.processing_bundle_mllm import BundleMLLMProcessor
from bundle_mllm.modeling.retriever_bundle_mllm import BundleRetriever
from bundle_mllm.settings import SCRATCH
from bundle_mllm.training.answer_time import measure_num_ranked
from bundle_mllm.training.combine import fit_combination
from bundle_mllm.training.config import RunConfig
from bundle_mllm.training.run_data import RunData
from bundle_mllm.training.scratch import scratch_backbone

STATISTICS_OF = 2_048
"""Titles whose hidden states tell a ranker without letters how to whiten them."""


def build_ranker(config: RunConfig, data: RunData) -> tuple[Ranker, BundleMLLMProcessor]:
    """Wrap the backbone of a run into an untrained ranker over the catalog of a dataset folder.

    Deterministic: the same settings and data give the same weights.

    Raises:
        BundleMLLMError: If the backbone cannot be loaded, or there are no item features but stage two needs them.
    """
    store = data.features
    if store is None and config.stage_two.max_steps:
        raise BundleMLLMError(
            f"{config.data} has no item features, so stage two has nothing to fuse: write features/*.safetensors "
            "first (bundle-mllm encode), or set stage_two.num_questions=0 to train from titles only."
        )
    separator = None
    if config.base_model == SCRATCH:
        backbone, tokenizer, separator = scratch_backbone(data.catalog.titles, seed=config.seed)
    else:
        backbone, tokenizer = load_backbone(config.base_model, config.dtype)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        modalities = store.modalities if store else {}
        model, processor = wrap_backbone(backbone, tokenizer, data.catalog, modalities, **vars(config.fusion))
    if separator is not None:
        model.model.separator.weight.data[0] = separator
    if store is not None:
        features, present = store.load()
        model.set_catalog(features, present, fit_statistics=config.fusion.standardize_features)
    processor.max_options, processor.max_title_tokens = longest_list(config), config.max_title_tokens
    if config.scoring == "letters":
        return model, processor
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        ranker = BundleMLLMForOptionScoring.from_ranker(model)
    fit_statistics(ranker, processor)
    return ranker, processor


@torch.inference_mode()
def fit_statistics(ranker: BundleMLLMForOptionScoring, processor: BundleMLLMProcessor) -> None:
    """Let a ranker without letters whiten hidden states as those of some titles of the catalog ask for."""
    number = min(STATISTICS_OF, processor.num_items)
    some = [index * processor.num_items // number for index in range(number)]  # at equal distances
    tokens, _ = processor.item_tokens([processor.item_ids[row] for row in some], show_items=False)
    with mixed_precision(gains_by_bfloat16()):
        ranker.matching.fit_statistics(ranker.kept_titles.read(ranker, tokens, batch_size=64))


def longest_list(config: RunConfig) -> int:
    """Return the longest list of options that some stage trains on: letters beyond it stay untrained."""
    lists = [stage.num_candidates[1] for stage in (config.stage_one, config.stage_two) if stage.max_steps]
    return max(3, *lists) if lists else MAX_OPTIONS


def join(
    ranker: Ranker,
    processor: BundleItemProcessor,
    retriever: BundleRetriever,
    held_out_scores: list[list[float]],
    data: RunData,
) -> tuple[BundleCompleter, dict[str, dict[str, Any]]]:
    """Join ranker and retriever by the weight and the temperature that fit the held-out questions, if there are any.

    Also measure how many items of the whole catalog the ranker scores in a second.

    `held_out_scores` are the retriever's, made before it was trained on the bundles of the held-out questions.

    Returns:
        The completer; and the fit under "combination", with the validation figures of each part.
    """
    figures: dict[str, dict[str, Any]] = {}
    combination = None
    if data.held_out_questions:
        answers = [question.answer_index for question in data.held_out_questions]
        fit = fit_combination(score_held_out(ranker, processor, data), held_out_scores, answers)
        combination, likelihoods = fit.combination, vars(fit).items()
        figures["combination"] = {
            "ranker_weight": combination.ranker_weight,
            "temperature": combination.temperature,
            **{name: value for name, value in likelihoods if name != "combination"},
        }
    completer = BundleCompleter(processor, ranker, retriever, combination)
    figures |= data.validate(completer)
    partial = next(bundle.items[:-1] or bundle.items for bundle in data.folder.bundles.train)
    completer.combination = replace(completer.combination, num_ranked=measure_num_ranked(completer, partial))
    if "combination" in figures:
        figures["combination"]["num_ranked"] = completer.combination.num_ranked
    return completer, figures


def score_held_out(ranker: Ranker, processor: BundleItemProcessor, data: RunData) -> list[list[float]]:
    """Score the candidates of the held-out questions, each with the out-of-fold features of its bundle's fold."""
    questions, folds = data.held_out_questions, data.out_of_fold
    completer = BundleCompleter(processor, ranker=ranker)
    scores: dict[int, list[float]] = {}
    fold_of = {question.bundle_id: folds.fold_of_bundle[question.bundle_id] if folds else -1 for question in questions}
    rows = ranker.catalog_rows()
    with restored(completer):
        for fold in sorted(set(fold_of.values())):
            if folds is not None and folds.modality in rows["features"]:
                features = {**rows["features"], folds.modality: folds.features[fold].float()}
                present = {**rows["present"], folds.modality: folds.present[fold]}
                ranker.set_catalog(features, present)
            chosen = [i for i, question in enumerate(questions) if fold_of[question.bundle_id] == fold]
            completions = completer.score([questions[i] for i in chosen], max_options=MAX_OPTIONS)
            scores |= {i: completion.answer.tolist() for i, completion in zip(chosen, completions, strict=True)}
    return [scores[i] for i in range(len(questions))]
