"""Check a repository folder before others rely on it: whole, safe, and the same answers without this package.

Knows nothing about the Hub, nor how the model was trained.
"""

from __future__ import annotations

import json
import math
import os
import random
import site
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.hub.integrity import check_complete, check_safe
from bundle_mllm.model_folder import load_model
from bundle_mllm.modeling.processing_bundle_mllm import BundleMLLMProcessor

TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-5}
"""Largest accepted difference of scores and (relative to the largest) of logits. Weights in half precision keep 8 to
11 bits, and another number of threads may round the last of them differently: 0.01 for these."""

_PASSED_ON = (
    "PATH",
    "PYTHONPATH",
    "PYTHONHOME",
    "LD_LIBRARY_PATH",
    "LANG",
    "TZ",
    "TMPDIR",
    "TEMP",
    "TMP",
    "SYSTEMROOT",
)
_PASSED_ON += ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES")
"""What the clean process knows of the environment, beside `LC_*`: no token, no key, no home folder."""
_CLEAN_PROCESS = Path(__file__).with_name("clean_process.py")


@dataclass(frozen=True)
class Verification:
    """What a clean process answered, compared with this one.

    Attributes:
        num_questions: How many questions were compared.
        largest_difference: The largest difference of a score.
    """

    num_questions: int
    largest_difference: float


def verify_repository(
    folder: str | os.PathLike,
    questions: Sequence[Mapping[str, Any]] | None = None,
    *,
    seed: int = 0,
) -> Verification:
    """Load a model repository in a process that cannot see this package, and compare its scores with this process.

    The clean process runs the code in the folder with `trust_remote_code=True`, offline, with empty caches; it loads
    configuration, tokenizer, processor, model and pipeline through the Auto classes.

    Args:
        folder: The repository folder.
        questions: The questions to compare on, as mappings of item ids (see `BundleMLLMProcessor`); by default a few
            drawn from the catalog by `seed`, one of them with an item that the catalog does not hold.
        seed: Seed of the default questions.

    Returns:
        How well the two agree.

    Raises:
        BundleMLLMError: A file is missing, cut short or a pickle, or its code is not this package's; the clean process
            cannot load the folder; or its answers differ.
    """
    folder = Path(folder)
    check_complete(folder)
    check_safe(folder)
    model, processor = load_model(folder)
    modalities = model.config.modalities or {}
    processor.modalities = processor.modalities or modalities
    questions = list(questions or sample_questions(processor, modalities, seed=seed))
    expected = _option_logits(model, processor, questions)
    tolerance = TOLERANCES.get(model.dtype, 1e-2)
    del model  # the clean process needs the memory
    found = _ask_clean_process(folder, questions)
    largest = max(
        _difference(question_logits, *answers)
        for question_logits, *answers in zip(expected, found["logits"], found["scores"], strict=True)
    )
    if not largest <= tolerance:
        raise BundleMLLMError(
            f"{folder} answers differently without this package: scores differ by up to {largest:.2g}, more than "
            f"{tolerance:g}, so its users would not get the model that was measured. The code in the folder is "
            "probably of another version: load and save the model with this one."
        )
    return Verification(len(questions), largest)


def sample_questions(
    processor: BundleMLLMProcessor, modalities: Mapping[str, int], *, seed: int = 0, number: int = 4
) -> list[dict[str, list]]:
    """Draw questions from a catalog; where it has features, the last one offers an item that it does not hold.

    Raises:
        BundleMLLMError: The catalog has fewer than three items.
    """
    if processor.num_items < 3:
        raise BundleMLLMError(
            f"The catalog has {processor.num_items} items and a question needs three, so the folder cannot be "
            "verified: publish it with the catalog it was trained on."
        )
    rng = random.Random(seed)
    questions: list[dict[str, list]] = []
    for _ in range(number):
        shown = rng.sample(processor.item_ids, min(6, processor.num_items))
        split = max(1, len(shown) - min(4, processor.max_options))  # options of one prompt
        questions.append({"partial": shown[:split], "candidates": shown[split:]})
    if modalities:
        features = {name: [rng.gauss(0, 1) for _ in range(width)] for name, width in modalities.items()}
        questions[-1]["candidates"][-1] = {"title": "another item", "features": features}
    return questions


@torch.inference_mode()
def _option_logits(model: Any, processor: BundleMLLMProcessor, questions: Sequence[Any]) -> list[list[float]]:
    logits = []
    for question in questions:
        letters = torch.tensor(processor.answer_token_ids(len(question["candidates"])))
        inputs = processor(question, return_tensors="pt").to(model.device)
        logits.append(model.option_logits(**inputs, option_token_ids=letters.to(model.device))[0].float().tolist())
    return logits


def _difference(expected: list[float], logits: list[float], scores: dict[str, float]) -> float:
    """Return the largest difference among logits, relative to the largest one, and among scores."""
    scale = max(1.0, *(abs(value) for value in expected))
    total = sum(math.exp(value - max(expected)) for value in expected)
    in_order = [scores[letter] for letter in sorted(scores)]
    differences = [abs(one - other) / scale for one, other in zip(expected, logits, strict=True)]
    differences += [
        abs(math.exp(one - max(expected)) / total - other) for one, other in zip(expected, in_order, strict=True)
    ]
    return math.nan if any(map(math.isnan, differences)) else max(differences)


def _ask_clean_process(folder: Path, questions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as temporary:
        request, response = Path(temporary, "request.json"), Path(temporary, "response.json")
        request.write_text(json.dumps({"folder": str(folder.resolve()), "questions": questions}), encoding="utf-8")
        environment = {k: v for k, v in os.environ.items() if k in _PASSED_ON or k.startswith("LC_")} | {
            "HOME": temporary,
            "USERPROFILE": temporary,
            "PYTHONUSERBASE": site.getuserbase(),  # packages may be installed in the home folder
            "HF_HOME": str(Path(temporary, "home")),
            "HF_MODULES_CACHE": str(Path(temporary, "modules")),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        # -P keeps the script's folder, and with it this package's files, off the import path.
        command = [sys.executable, "-P", str(_CLEAN_PROCESS), str(request), str(response)]
        process = subprocess.run(
            command, env=environment, cwd=temporary, capture_output=True, text=True, errors="replace", check=False
        )
        if process.returncode or not response.exists():
            last = " ".join(process.stderr.strip().splitlines()[-1:]) or "no message; it may have run out of memory"
            raise BundleMLLMError(
                f"{folder} could not be tried without this package: the process ended with status "
                f"{process.returncode} ({last})."
            )
        found = json.loads(response.read_text(encoding="utf-8"))
    if "error" in found:
        raise BundleMLLMError(
            f"{folder} does not load without this package: {found['step']} failed with "
            f"{' '.join(found['error'].split())[:600]} Load and save the model with this version of the package, "
            "which writes the code anew."
        )
    return found
