"""Runs of a few steps, the questions and the poisons that tests of training share."""

import dataclasses
from pathlib import Path

from safetensors.torch import load_file

from bundle_mllm.data import sample_training_questions
from bundle_mllm.settings import with_overrides
from bundle_mllm.training.config import RunConfig, default_run

TINY_STAGE = {
    "num_questions": 32,
    "batch_size": 8,
    "num_validations": 2,
    "num_candidates": (2, 5),
    "warm_start_steps": 3,
    "warm_start_questions": 64,
}
TINY_RETRIEVER = {"steps": 6, "num_questions": 256, "batch_size": 32, "num_candidates": (2, 5)}


def tiny_run(data: Path, out: Path, base_model: str = "scratch", **changes) -> RunConfig:
    """The default recipe of a base model in a few steps; `changes` are fields of `RunConfig`, nested as mappings."""
    small = {
        "validation_questions": 8,
        "validation_candidates": 4,
        "combination_questions": 32,
        "retriever": TINY_RETRIEVER,
        "stage_one": TINY_STAGE,
        "stage_two": TINY_STAGE,
    }
    run = with_overrides(default_run(base_model, data=data, output_dir=out), small)
    return with_overrides(run, changes)


def training_questions(data, **changes):
    """Questions about the training bundles of a dataset folder."""
    settings = {"num_questions": 256, "num_candidates": (4, 8), "hard_fraction": 0.0, "seed": 0} | changes
    return sample_training_questions(data.bundles.train, data.catalog, **settings)


def with_other_answers(questions, bundle_ids):
    """The same questions, but those about some bundles have another candidate as their answer."""
    return [
        dataclasses.replace(q, answer_index=(q.answer_index + 1) % len(q.candidates))
        if q.bundle_id in bundle_ids
        else q
        for q in questions
    ]


def weights(folder: Path) -> dict:
    """All tensors of a model folder, by file and name."""
    files = sorted(folder.glob("*.safetensors")) + sorted(folder.glob("retriever/*.safetensors"))
    assert files
    return {f"{file.relative_to(folder)} {name}": tensor for file in files for name, tensor in load_file(file).items()}
