"""Check a repository folder before others rely on it: whole, safe, and the same answers without this package.

Knows nothing about the Hub, nor how the model was trained.
"""

from __future__ import annotations

import json
import math
import os
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.hub.places import Places
from bundle_mllm.hub.repository import read_json
from bundle_mllm.model_folder import load_model
from bundle_mllm.modeling.configuration_bundle_mllm import AUTO_MAP, CUSTOM_PIPELINES
from bundle_mllm.modeling.processing_bundle_mllm import BundleMLLMProcessor

NEEDED = ("config.json", "items.jsonl", "processor_config.json", "tokenizer.json", "tokenizer_config.json")
TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-5}
"""Largest accepted difference of scores and (relative to the largest) of logits. Weights in half precision keep 8 to
11 bits, and another number of threads may round the last of them differently: 0.01 for these."""

_PICKLES = (".bin", ".ckpt", ".dill", ".joblib", ".npy", ".npz", ".pickle", ".pkl", ".pt", ".pth")
_PICKLE_STARTS, _ZIP_START = {bytes((0x80, protocol)) for protocol in range(2, 6)}, b"PK\x03\x04"
_LONGEST_HEADER = 100_000_000  # the limit of the safetensors library
_SIBLING = re.compile(r"^\s*from \.(\w+) import", re.MULTILINE)
_TOKENS = {"HF_TOKEN", "HF_TOKEN_PATH", "HUGGING_FACE_HUB_TOKEN"}
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
    origins: Sequence[Path] = (),
) -> Verification:
    """Load a model repository in a process that cannot see this package, and compare its scores with this process.

    The clean process runs the code in the folder with `trust_remote_code=True`, offline, with empty caches; it loads
    configuration, tokenizer, processor, model and pipeline through the Auto classes.

    Args:
        folder: The repository folder.
        questions: The questions to compare on, as mappings of item ids (see `BundleMLLMProcessor`); by default a few
            drawn from the catalog by `seed`, one of them with an item that the catalog does not hold.
        seed: Seed of the default questions.
        origins: What the folder is made from, and where it shall be; see `check_safe`.

    Returns:
        How well the two agree.

    Raises:
        BundleMLLMError: A file is missing, cut short, a pickle or names a path of this machine; the clean process
            cannot load the folder; or its answers differ.
    """
    folder = Path(folder)
    check_complete(folder)
    check_safe(folder, *origins)
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
        environment = {name: value for name, value in os.environ.items() if name not in _TOKENS} | {
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


def check_complete(folder: Path) -> None:
    """Check that a model folder has every file it needs, and its weights whole.

    Raises:
        BundleMLLMError: The first problem found.
    """
    references = [reference for entry in AUTO_MAP.values() for reference in _references(entry)]
    references += [pipeline["impl"] for pipeline in CUSTOM_PIPELINES.values()]
    needed = [*NEEDED, *dict.fromkeys(f"{reference.split('.')[0]}.py" for reference in references)]
    for name in needed:
        if (folder / name).is_file():
            if name.endswith(".py"):
                imports = _SIBLING.findall((folder / name).read_text(encoding="utf-8"))
                needed += [f"{module}.py" for module in imports if f"{module}.py" not in needed]
        else:
            hint = " It holds an adapter only: merge it first." if (folder / "adapter_config.json").exists() else ""
            raise BundleMLLMError(
                f"{folder} has no {name}, so it would not load:{hint} give the output folder of `bundle-mllm train`, "
                "or one that model and processor were saved in."
            )
    check_weights(folder)


def check_safe(folder: Path, *origins: Path) -> None:
    """Check that a folder holds nothing that others should not receive: no pickle, no path of this machine.

    Args:
        folder: The folder.
        origins: What it is made from and where it shall be, so that no text may name these.

    Raises:
        BundleMLLMError: The first problem found.
    """
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        _check_no_pickle(path)
        if path.suffix == ".safetensors":
            _tensor_names(path)
    Places(folder, *origins).check(folder)


def check_weights(folder: Path) -> None:
    """Check that the weights in a folder are safetensors files that are whole, and all that the index names.

    Raises:
        BundleMLLMError: There are none, or one is missing or cut short.
    """
    files = {path.name: _tensor_names(path) for path in sorted(folder.glob("*.safetensors"))}
    if not files:
        raise BundleMLLMError(
            f"{folder} holds no *.safetensors file, so there are no weights: save the model there with "
            "save_pretrained."
        )
    for path in sorted(folder.glob("*.safetensors.index.json")):
        for tensor, name in read_json(path).get("weight_map", {}).items():
            if tensor not in files.get(name, ()):
                raise BundleMLLMError(
                    f"{path} says that {tensor} is in {name}, which {'lacks it' if name in files else 'is missing'}, "
                    "so the weights are not complete: save the model again."
                )


def _tensor_names(path: Path) -> list[str]:
    """Return the tensors of a safetensors file after comparing its header with its size."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(length)) if 8 + length <= size and length <= _LONGEST_HEADER else None
        except ValueError:
            header = None
    if not isinstance(header, dict):
        raise BundleMLLMError(f"{path} has no readable header, so it is no whole safetensors file: save it again.")
    tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
    expected = 8 + length + max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
    if size != expected:
        raise BundleMLLMError(
            f"{path} has {size} bytes and its header says {expected}, so weights are missing or foreign: copy or save "
            "it again."
        )
    return list(tensors)


def _check_no_pickle(path: Path) -> None:
    if path.suffix == ".safetensors":  # checked, and the length of its header may look like a pickle's first bytes
        return
    with open(path, "rb") as file:
        start = file.read(4)
    if path.suffix in _PICKLES or start[:2] in _PICKLE_STARTS or start == _ZIP_START:
        raise BundleMLLMError(
            f"{path} may be a pickle, which runs code on whoever loads it: leave it out, and save weights as "
            "safetensors."
        )


def _references(entry: str | list[str | None]) -> list[str]:
    return [entry] if isinstance(entry, str) else [reference for reference in entry if reference]
