"""Check that a model folder is whole, and safe to hand on: every file there, no foreign code, no pickle.

Knows nothing about the Hub, and loads nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open

from bundle_mllm import modeling
from bundle_mllm.data.files import read_json
from bundle_mllm.encoders.fitted import ENCODERS_FOLDER, read_encoders
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.modeling.combination_bundle_mllm import COMBINATION_FILE
from bundle_mllm.modeling.completion_bundle_mllm import RETRIEVER_FOLDER
from bundle_mllm.modeling.configuration_bundle_mllm import BundleRetrieverConfig

_NEEDED = ("config.json", "items.jsonl", "processor_config.json")
_NEEDED_OF_RANKER = ("tokenizer.json", "tokenizer_config.json")
_CODE = Path(modeling.__file__).parent
_REFERENCE, _SIBLING = re.compile(r'"(\w+_bundle_mllm)\.\w+"'), re.compile(r"^\s*from \.(\w+) import", re.MULTILINE)
_PICKLES = (".bin", ".ckpt", ".dill", ".joblib", ".npy", ".npz", ".pickle", ".pkl", ".pt", ".pth")
_PICKLE_STARTS, _ZIP_START = {bytes((0x80, protocol)) for protocol in range(2, 6)}, b"PK\x03\x04"


def check_complete(folder: Path) -> None:
    """Refuse a model folder that lacks a file, or a part of the weights, of the model or of the retriever in it."""
    _check_files(folder, _NEEDED)
    if read_json(folder / "config.json").get("model_type") != BundleRetrieverConfig.model_type:
        _check_files(folder, _NEEDED_OF_RANKER)
        if (folder / RETRIEVER_FOLDER).is_dir():
            _check_files(folder, (COMBINATION_FILE,))
    read_encoders(folder / ENCODERS_FOLDER)  # refuses damaged ones
    for part in (folder, folder / RETRIEVER_FOLDER):
        if part.is_dir():
            _check_files(part, ("config.json", *_needed_code(part)))
            _check_weights(part)


def check_safe(folder: Path) -> None:
    """Refuse a folder that holds code that is not this package's own, or a pickle.

    Raises:
        BundleMLLMError: If it does.
    """
    check_code(folder)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with open(path, "rb") as file:
            start = file.read(4)
        if path.suffix == ".safetensors":
            read_tensors(path)  # the length of its header may look like a pickle's first bytes
        elif path.suffix in _PICKLES or start[:2] in _PICKLE_STARTS or start == _ZIP_START:
            raise BundleMLLMError(
                f"{path} may be a pickle, which runs code when loaded: remove it, and save weights as safetensors."
            )


def check_code(folder: Path) -> None:
    """Refuse a model folder whose code is not, byte for byte, that of this package; nothing is run.

    Raises:
        BundleMLLMError: If a file is other code.
    """
    for path in sorted([*folder.glob("*.py"), *folder.glob(f"{RETRIEVER_FOLDER}/*.py")]):
        own = _CODE / path.name
        if not own.is_file() or own.read_bytes() != path.read_bytes():
            raise BundleMLLMError(
                f"{path} is not the code of this version of bundle-mllm, and would run when the folder is loaded: "
                "load and save the model with this version, which writes its code anew."
            )


def read_tensors(path: Path) -> tuple[set[str], dict[str, str]]:
    """Return names of tensors and free text of a safetensors file; refuse one that the library finds not whole.

    Raises:
        BundleMLLMError: If the file is not whole.
    """
    try:
        with safe_open(path, "np") as file:
            return set(file.keys()), file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise BundleMLLMError(
            f"{path} is no whole safetensors file ({error}), so weights are missing or foreign: copy or save it again."
        ) from error


def _check_files(folder: Path, names: Sequence[str]) -> None:
    for name in names:
        if not (folder / name).is_file():
            hint = " It holds an adapter only: merge it first." if (folder / "adapter_config.json").exists() else ""
            raise BundleMLLMError(
                f"{folder} has no {name}, so it would not load:{hint} give the output folder of `bundle-mllm train`."
            )


def _needed_code(folder: Path) -> list[str]:
    """Return the code files that the settings in a folder name, and those that these import."""
    settings = "".join(json.dumps(read_json(path)) for path in sorted(folder.glob("*config.json")))
    needed = list(dict.fromkeys(_REFERENCE.findall(settings)))
    for name in needed:
        if (_CODE / f"{name}.py").is_file():
            imported = _SIBLING.findall((_CODE / f"{name}.py").read_text(encoding="utf-8"))
            needed += [sibling for sibling in dict.fromkeys(imported) if sibling not in needed]
    return [f"{name}.py" for name in needed]


def _check_weights(folder: Path) -> None:
    """Refuse a folder whose weights are not all there: files that are whole, with all that the index names."""
    files = {path.name: read_tensors(path)[0] for path in sorted(folder.glob("*.safetensors"))}
    if not files:
        raise BundleMLLMError(f"{folder} holds no *.safetensors, so there are no weights: save the model there.")
    for path in sorted(folder.glob("*.safetensors.index.json")):
        for tensor, name in read_json(path).get("weight_map", {}).items():
            if tensor not in files.get(name, ()):
                problem = "lacks it" if name in files else "is missing"
                raise BundleMLLMError(f"{path} lists {tensor} in {name}, which {problem}: save the model again.")
