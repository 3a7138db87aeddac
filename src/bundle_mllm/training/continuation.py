"""Continue a model on a dataset folder with new bundles and items, and keep the new weights if they are not worse.

Knows nothing about prompts, nor how features are made.
"""

from __future__ import annotations

import copy
import dataclasses
import os
import uuid
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.utils import logging

from bundle_mllm.data.features import FeatureStore
from bundle_mllm.data.memberships import BUNDLE_ITEM, USER_ITEM
from bundle_mllm.encoders.fitted import ENCODERS_FOLDER, read_encoder
from bundle_mllm.encoders.relational import rotation_onto
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.evaluation.metrics import paired_differences
from bundle_mllm.evaluation.scoring import score_questions
from bundle_mllm.model_folder import load_completer
from bundle_mllm.modeling.completion_bundle_mllm import BundleCompleter
from bundle_mllm.modeling.retriever_bundle_mllm import BundleRetriever
from bundle_mllm.training.config import RunConfig
from bundle_mllm.training.memberships import load_memberships
from bundle_mllm.training.record import is_finished
from bundle_mllm.training.retriever import continue_towers
from bundle_mllm.training.run_data import RunData

logger = logging.get_logger(__name__)

CURRENT = "current"
"""The link to the newest run's folder, beside the folders of all runs."""
MIN_SHARED = 0.5
"""Least share of the model's items on which the features of two days are brought together (ours)."""
COLLABORATIVE = (BUNDLE_ITEM, USER_ITEM)
"""Modalities that are fitted anew to the bundles and users of each day, up to a rotation."""


def folder_of_today(parent: Path) -> Path:
    """Return the folder of today's run: a new one, or one that was begun and is not finished."""
    today = date.today().isoformat()
    numbered = (parent / (today if number == 1 else f"{today}-{number}") for number in range(1, 10_000))
    return next(folder for folder in numbered if not is_finished(folder))


def point_to(folder: Path) -> None:
    """Let the link `current` beside a folder point to it, in one step.

    Raises:
        BundleMLLMError: If `current` is a file or folder.
    """
    link = folder.with_name(CURRENT)
    if link.exists() and not link.is_symlink():
        raise BundleMLLMError(f"{link} is no link, and what it holds would be lost: move it away.")
    temporary = folder.with_name(f".{CURRENT}.{uuid.uuid4().hex[:12]}")
    temporary.symlink_to(folder.name, target_is_directory=True)
    os.replace(temporary, link)


def with_new_catalog(run: RunConfig, data: RunData) -> BundleCompleter:
    """Load the model that a run continues, over the items, features and memberships of its data.

    Raises:
        BundleMLLMError: If the features were made by other encoders than those of the model.
    """
    assert run.continue_from is not None
    completer, store = load_completer(run.continue_from), data.features
    check_encoders(completer, store, run.continue_from, data)
    assert store is not None
    features, present = store.load()
    features = {name: features[name] for name in completer.modalities}
    for name, rotation in rotations(completer, features, present, data).items():
        features[name] = _rotated(features[name], rotation)
        folds = data.out_of_fold
        if folds is not None and folds.modality == name:
            data.out_of_fold = dataclasses.replace(folds, features=_rotated(folds.features.float(), rotation).half())
    memberships = None
    if completer.retriever is not None:
        kinds = list(completer.retriever.memberships)
        memberships = load_memberships(
            data.folder, kinds, list(features), data.out_of_fold, allow_leakage=run.allow_leakage
        )
    completer.set_catalog(data.catalog.item_ids, data.catalog.titles, features, present, memberships)
    return completer


def check_encoders(completer: BundleCompleter, store: FeatureStore | None, model: Path, data: RunData) -> None:
    """Refuse features that are not of the model's encoders, or of other widths."""
    made = {} if store is None else store.modalities
    fix = f"encode them by its encoders: bundle-mllm encode --data {data.folder.path} --like {model}"
    for name, width in completer.modalities.items():
        if made.get(name) != width:
            has = f"{made[name]} columns" if name in made else "none"
            raise BundleMLLMError(
                f"{model} reads {name!r} features of {width} columns, and {data.folder.path} has {has}: {fix}."
            )
        if name in COLLABORATIVE:
            continue
        own, theirs = (
            read_encoder(folder / ENCODERS_FOLDER, name) for folder in (model, data.folder.path / "features")
        )
        if own is not None and (theirs is None or theirs.sha256 != own.sha256):
            raise BundleMLLMError(
                f"The {name!r} features of {data.folder.path} are of another encoder than those of {model}, or it "
                f"fitted something else, so the model would read them wrongly: {fix}."
            )


def rotations(
    completer: BundleCompleter, features: dict[str, torch.Tensor], present: dict[str, torch.Tensor], data: RunData
) -> dict[str, np.ndarray]:
    """Return, of each collaborative modality, the rotation of new features onto those that the model was trained on.

    It is found on the items that both have. The last column is the popularity, which is not rotated.
    """
    found: dict[str, np.ndarray] = {}
    shared = [item_id for item_id in completer.processor.item_ids if item_id in data.catalog]
    old_rows = torch.tensor([completer.processor.row(item_id) for item_id in shared], dtype=torch.long)
    new_rows = torch.tensor(data.catalog.rows(shared), dtype=torch.long)
    for name in set(COLLABORATIVE) & set(completer.modalities):
        model = next(model for model in completer.models if name in model.config.modalities)
        rows = model.catalog_rows()
        both = rows["present"][name][old_rows] & present[name][new_rows]
        of_model = int(rows["present"][name].sum())
        if int(both.sum()) < MIN_SHARED * of_model:
            raise BundleMLLMError(
                f"{data.folder.path} has {name!r} features of only {int(both.sum())} of the {of_model} items that the "
                "model has, so its own cannot be brought into the model's space: train anew."
            )
        old = rows["features"][name][old_rows[both]].float().numpy()
        found[name] = rotation_onto(features[name][new_rows[both]].numpy()[:, :-1], old[:, :-1])
    return found


def _rotated(features: torch.Tensor, rotation: np.ndarray) -> torch.Tensor:
    """Rotate features `[..., width]`, all columns but the last."""
    return torch.cat([features[..., :-1] @ torch.from_numpy(rotation).float(), features[..., -1:]], dim=-1)


def continued_retriever(retriever: BundleRetriever, data: RunData) -> BundleRetriever:
    """Return a copy of a retriever with towers that were trained further; see `continue_towers`."""
    copied = copy.deepcopy(retriever)
    continue_towers(copied, data)
    return copied


def choose(before: BundleCompleter, after: BundleCompleter, data: RunData) -> tuple[BundleCompleter, dict[str, Any]]:
    """Return the completer to keep, and how both compare on the validation questions.

    It is the new one unless its `hit_rate@1` is lower by more than one standard error of the paired difference (ours).
    """
    if not data.validation_questions:
        logger.warning(
            f"{data.folder.path} has no validation bundles, so nobody knows whether the new weights are worse, and "
            "they are kept: give some bundles the split validation."
        )
        return after, {"is_kept": True}
    part = after.parts[-1]
    old, new = (score_questions(each, data.validation_questions)[part] for each in (before, after))
    difference = paired_differences(new, old)["hit_rate@1"]
    is_kept = difference["difference"] >= -difference["se"]
    figures = {name: difference[name] for name in ("a", "b", "difference", "se")}
    logger.warning(
        f"{part}: hit_rate@1 {figures['a']:.3f} after, {figures['b']:.3f} before, difference "
        f"{figures['difference']:+.3f} ± {figures['se']:.3f}: {'the new' if is_kept else 'the old'} weights are kept."
    )
    return after if is_kept else before, {"is_kept": is_kept, "hit_rate@1": figures}
