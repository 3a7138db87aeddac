"""Schemas of what is published of each file: records, metrics, settings, manifests.

Knows nothing about uploading, and measures nothing.

Records are rebuilt from their numbers and from text of a known form. Settings keep the fields that their classes have.
What is text by nature (prompts, vocabularies, titles) passes as it is.
"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from transformers import AutoConfig, GenerationConfig

from bundle_mllm.completion.item_table import GROUP_NAMES
from bundle_mllm.data.files import read_json, write_json
from bundle_mllm.data.words import words
from bundle_mllm.encoders.fitted import ENCODERS_FOLDER
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.hub.repository import link_or_copy, place_tensors
from bundle_mllm.hub.schema import (
    NAME,
    Schema,
    digest,
    either,
    hub_name,
    matching,
    nested,
    number,
    numbers,
    rebuild,
    table_name,
    text,
    version,
    word,
)
from bundle_mllm.modeling.combination_bundle_mllm import COMBINATION_FILE, BundleCombination
from bundle_mllm.settings import NO_RANKER, SCRATCH

_words = nested(either(number, word))
VERSIONS: Schema = {re.compile(r"[a-z][a-z-]{0,30}"): version}
INPUTS: Schema = {re.compile(r"((features(/[a-z_]+)?|bundles|questions)/)?[\w.-]{1,60}\.\w{1,12}(\.gz)?"): digest}
MADE: Schema = {"split": matching("train|validation|test"), "negatives": word, "partial": word, NAME: number}
BASE_MODEL = either(matching(f"{SCRATCH}|{NO_RANKER}"), hub_name)
MODALITIES: Schema = {re.compile("[a-z0-9_]{1,40}"): number}
METRICS: Schema = {
    "questions": {"path": table_name, "sha256": digest, "num_candidates": [number], "made": MADE},
    "fingerprint": digest,
    "options": {"mask": [word], "permute": [word], NAME: number},
    "part": matching("ranker|retriever|both"),
    "parts": {re.compile("ranker|retriever|both"): {NAME: number}},
    **dict.fromkeys(("slices", "position", "prediction_sets"), numbers),
    NAME: number,
}
_STEP: Schema = {
    **dict.fromkeys(("trains", "memberships"), _words),
    "lr_scheduler_type": word,
    "lora": {"target_modules": nested(either(number, matching(r"[A-Za-z][\w.]*", most=24))), NAME: number},
    NAME: numbers,
}
RUN: Schema = {  # and of a conversion
    "settings": {
        "base_model": BASE_MODEL,
        "dtype": word,
        "scoring": matching("letters|options"),
        "modalities": _words,
        **dict.fromkeys(("stage_one", "stage_two", "retriever"), _STEP),
        NAME: numbers,
    },
    "base_model": BASE_MODEL,
    "dataset": word,
    "inputs": INPUTS,
    "versions": VERSIONS,
    NAME: numbers,
}
_ENCODER = matching(r"[\w-]+(:[\w.-]+(/[\w.-]+)?)?( [\w-]+)?(, \d+ folds)?( \(\d+ wide\))?")
_PROVENANCE: Schema = {
    "encoder": _ENCODER,
    "revision": matching("[0-9a-f]{40}"),
    "precision": word,
    "versions": VERSIONS,
    re.compile("[a-z_]+_sha256"): digest,
    NAME: numbers,
}
_MODALITY: Schema = {
    "file": matching(r"[a-z0-9_]+\.safetensors"),
    "dtype": word,
    **dict.fromkeys(("items_hash", "sha256"), digest),
    "provenance": _PROVENANCE,
    NAME: numbers,
}
FEATURES: Schema = {re.compile("[a-z][a-z0-9_]{0,39}"): _MODALITY}
ENCODER_RECORD: Schema = {
    "encoder": _ENCODER,
    "spec": matching(r"[a-z_]+(:(hf-hub:)?[\w.-]+/[\w.-]+)?"),
    **dict.fromkeys(("weights_sha256", "arrays_sha256"), digest),
    "fitted": {"vocabulary": [text], NAME: number},
}
FEATURES_METADATA: Schema = {"encoded_by": _ENCODER, "of": digest, "format": matching("pt")}

_KEY = re.compile(r"[\w.-]{1,80}")
_setting = nested(either(number, matching(r"[\w.+-]+", most=60)), _KEY)
_code = nested(either(number, matching(r"\w+_bundle_mllm\.\w+|[A-Z]\w+|text")), _KEY)
_token = nested(either(number, matching(r"[^\n]*", most=64)), _KEY)
_SETTINGS: dict[Any, Any] = {
    **dict.fromkeys(("auto_map", "custom_pipelines"), _code),
    "items_hash": digest,
    "weight_map": nested(matching(r"[\w-]+\.safetensors"), _KEY),
    **dict.fromkeys((f"{kind}_token" for kind in ("bos", "eos", "unk", "pad", "sep", "cls", "mask")), _token),
    **dict.fromkeys(("added_tokens_decoder", "additional_special_tokens", "extra_special_tokens"), _token),
    **dict.fromkeys(("answer_cue", "bundle_noun", "chat_template", "instruction", "item_noun"), text),
    **dict.fromkeys(("item_separator_text", "item_template", "option_template", "partial_item_template"), text),
    **dict.fromkeys(("prompt_template", "untitled_text"), text),
    **dict.fromkeys(("architectures", "backend", "dtype", "errors", "model_input_names", "model_type"), _setting),
    **dict.fromkeys(("padding_side", "processor_class", "tokenizer_class", "truncation_side"), _setting),
    "transformers_version": version,
    NAME: numbers,
}
_WITHHELD = {"_name_or_path", "name_or_path", "id2label", "label2id", "task_specific_params"}


COMBINATION: Schema = {name: numbers for name in BundleCombination.__dataclass_fields__}


def public_settings(path: Path) -> dict[str, Any]:
    """Return what is published of a file of settings, such as `config.json`: the fields that its class knows."""
    return _public_settings(read_json(path))


def _public_settings(values: dict[str, Any]) -> dict[str, Any]:
    known = set(GenerationConfig().to_dict())
    if "model_type" in values:
        with suppress(ValueError, KeyError, TypeError):  # loading names the problem
            known |= set(AutoConfig.for_model(values["model_type"]).to_dict())
    schema = {**dict.fromkeys(known - _WITHHELD, _setting), **_SETTINGS}
    if isinstance(values.get("text_config"), dict):
        schema["text_config"] = _public_settings
    return rebuild(values, schema)


def public_encoder(path: Path) -> dict[str, Any] | None:
    """Return what is published of the record of an encoder; `None` if others cannot make it: it is of a local folder.

    A vocabulary passes: it is of words that two items or more have in title, category or description.
    """
    values = rebuild(read_json(path), ENCODER_RECORD)
    _, _, model = values.get("spec", ":/").partition(":")
    return None if (model and Path(model).exists()) or "spec" not in values else values


def public_group_names(path: Path) -> dict[str, list[str]]:
    """Return what is published of the words that items share: those in titles and in the published vocabulary.

    The others are blank, so that each word keeps its number.
    """
    with open(path.with_name("items.jsonl"), encoding="utf-8") as file:
        public = {word for line in file for word in words(json.loads(line)["title"])}
    record = path.parent / ENCODERS_FOLDER / "textual.json"
    encoder = public_encoder(record) if record.is_file() else None
    public |= set((encoder or {}).get("fitted", {}).get("vocabulary", ()))
    names = rebuild(read_json(path), {"textual": [text]})
    return {name: [word if word in public else "" for word in each] for name, each in names.items()}


def public_record(record: dict[str, Any]) -> dict[str, Any]:
    """Return what is published of `run.json` or `conversion.json`; a base model only if others can get it."""
    public = rebuild(record, RUN)
    fields, is_folder = public.get("settings", public), record.get("base_model_is_folder")
    name = fields.get("base_model")
    if name not in (None, SCRATCH, NO_RANKER) and (Path(name).exists() if is_folder is None else is_folder):
        del fields["base_model"]
    return public


def place_public(source: Path, target: Path) -> None:
    """Write what is published of a file of a model folder; a file that needs no change is copied as it is."""
    if source.name == COMBINATION_FILE:
        return write_json(target, rebuild(read_json(source), COMBINATION))
    is_settings = source.suffix == ".json" and source.name != "tokenizer.json"
    if source.suffix == ".safetensors":
        place_tensors(source, target, {"format": "pt"})
    elif source.name == "items.jsonl":
        _place_items(source, target)
    elif source.name == GROUP_NAMES:
        write_json(target, public_group_names(source))
    elif source.parent.name == ENCODERS_FOLDER:
        write_json(target, public_encoder(source))
    elif is_settings and (public := public_settings(source)) != read_json(source):
        write_json(target, public)
    else:
        link_or_copy(source, target)


def _place_items(source: Path, target: Path) -> None:
    with open(source, encoding="utf-8") as old, open(target, "w", encoding="utf-8", newline="\n") as new:
        for row, line in enumerate(old, start=1):
            try:
                item = json.loads(line)
                public = {name: text(item[name]) for name in ("item_id", "title")}
            except (ValueError, KeyError, TypeError) as error:
                raise BundleMLLMError(f"{source}, line {row}, is no item: save the processor again.") from error
            new.write(line if item == public else json.dumps(public, ensure_ascii=False) + "\n")
