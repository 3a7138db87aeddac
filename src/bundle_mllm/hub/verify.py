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
from bundle_mllm.model_folder import load_completer
from bundle_mllm.modeling.completion_bundle_mllm import BundleCompleter

TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-5}
"""Largest accepted difference of probabilities; 0.01 for half precision, whose last bits depend on the threads."""

_PASSED_ON = ("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "LANG", "TZ", "TMPDIR", "TEMP", "SYSTEMROOT")
_PASSED_ON += ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""What the clean process gets of the environment, beside `LC_*`: no token, no key, no home folder."""


@dataclass(frozen=True)
class Verification:
    """How many questions were compared, and the largest difference of a score between a clean process and this one."""

    num_questions: int
    largest_difference: float


def verify_repository(
    folder: str | os.PathLike, questions: Sequence[Mapping[str, Any]] | None = None, *, seed: int = 0
) -> Verification:
    """Load a model repository in a process that cannot see this package, and compare its scores with this process.

    The clean process runs the code in the folder with `trust_remote_code=True`, offline, with empty caches; it loads
    all parts through the Auto classes and scores with the pipeline: ranker, retriever and both.

    Args:
        folder: The repository folder.
        questions: The questions to compare on (see `BundleMLLMProcessor`); by default those of `sample_questions`.
        seed: Seed of the default questions.

    Raises:
        BundleMLLMError: If a file is missing, cut short or a pickle, its code is not this package's, the clean process
            cannot load the folder, or its answers differ.
    """
    folder = Path(folder)
    check_complete(folder)
    check_safe(folder)
    completer = load_completer(folder)
    questions = list(questions or sample_questions(completer, seed=seed))
    expected = [completer.complete(question, explain=True) for question in questions]
    tolerance = max(TOLERANCES.get(model.dtype, 1e-2) for model in completer.models)
    del completer  # the clean process needs the memory
    answers = _score_in_clean_process(folder, questions)["answers"]
    largest = max(_difference(*pair) for pair in zip(expected, answers, strict=True))
    if not largest <= tolerance:
        raise BundleMLLMError(
            f"{folder} answers differently without this package: scores differ by up to {largest:.2g}, more than "
            f"{tolerance:g}, so users would not get the model that was measured: load and save it with this version."
        )
    return Verification(len(questions), largest)


def sample_questions(completer: BundleCompleter, *, seed: int = 0, number: int = 4) -> list[dict[str, list]]:
    """Draw questions from a catalog; where it has features, the last one offers an item that it does not hold.

    Raises:
        BundleMLLMError: If the catalog has fewer than three items.
    """
    processor = completer.processor
    if processor.num_items < 3:
        raise BundleMLLMError(
            f"The catalog has {processor.num_items} items, but a question to verify needs 3: publish that of training."
        )
    rng, longest = random.Random(seed), getattr(processor, "max_options", 4)
    questions: list[dict[str, list]] = []
    for _ in range(number):
        shown = rng.sample(processor.item_ids, min(6, processor.num_items))
        split = max(1, len(shown) - min(4, longest))  # options of one prompt
        questions.append({"partial": shown[:split], "candidates": shown[split:]})
    if processor.modalities:
        features = {name: [rng.gauss(0, 1) for _ in range(width)] for name, width in processor.modalities.items()}
        questions[-1]["candidates"][-1] = {"title": "another item", "features": features}
    return questions


def _difference(expected: list[dict[str, Any]], answered: list[dict[str, Any]]) -> float:
    """Return the largest difference of a probability: of the answer, and of each model alone."""
    one, other = (
        {
            (answer["letter"], name): value
            for answer in answers
            for name in ("score", "ranker", "retriever")
            if (value := {**answer["explanation"], **answer}.get(name)) is not None
        }
        for answers in (expected, answered)
    )
    differences = [abs(one[key] - other[key]) for key in one.keys() & other.keys()]
    return math.nan if one.keys() != other.keys() or any(map(math.isnan, differences)) else max(differences)


def _score_in_clean_process(folder: Path, questions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
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
        script = Path(__file__).with_name("clean_process.py")
        command = [sys.executable, "-P", str(script), str(request), str(response)]
        process = subprocess.run(
            command, env=environment, cwd=temporary, capture_output=True, text=True, errors="replace", check=False
        )
        if process.returncode or not response.exists():
            last = " ".join(process.stderr.strip().splitlines()[-1:]) or "no message; it may have run out of memory"
            raise BundleMLLMError(
                f"{folder} was not tried without this package: the process ended with {process.returncode} ({last})."
            )
        outcome = json.loads(response.read_text(encoding="utf-8"))
    if "error" in outcome:
        raise BundleMLLMError(
            f"{folder} does not load without this package: {outcome['step']} failed with "
            f"{' '.join(outcome['error'].split())[:600]} Load and save the model with this version."
        )
    return outcome
