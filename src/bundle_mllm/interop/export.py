"""Fold a ranker into a stock causal language model, which any LLM server runs without this package.

Knows nothing about training, data sets or servers.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftConfig, PeftModel
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers import initialization as init
from transformers.utils import CONFIG_NAME, logging
from transformers.utils.hub import cached_file
from transformers.utils.peft_utils import find_adapter_config_file

from bundle_mllm.data.files import new_folder, write_json
from bundle_mllm.data.tables import write_records
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.interop.export_tokenizer import chat_ids, set_chat_template, stock_tokenizer
from bundle_mllm.interop.settings import ExportSettings
from bundle_mllm.model_folder import check_same_items, load_processor, load_ranker
from bundle_mllm.modeling.combination_bundle_mllm import sample_weights
from bundle_mllm.modeling.completion_bundle_mllm import RETRIEVER_FOLDER
from bundle_mllm.modeling.modeling_bundle_mllm import BundleMLLMForCausalLM
from bundle_mllm.modeling.processing_bundle_mllm import BundleMLLMProcessor
from bundle_mllm.modeling.ranking_bundle_mllm import LETTERS
from bundle_mllm.served_ranker import EXPORT_RECORD
from bundle_mllm.settings import configured_by

logger = logging.get_logger(__name__)

ITEMS = "items.jsonl"
MANY_ITEMS = 100_000
"""Above this, added tokens make tokenizers slow to load (1,000,000 take 27 s and 3 GB; 48,000 about 4 s)."""
_ROWS_AT_ONCE = 8_192
_PROBES = ((3, 10), (2, 4), (1, 2))  # items shown, candidates: the first that fits the backbone's context is taken
_NUM_PROBES = 4


@configured_by(ExportSettings)
@torch.no_grad()
def export_stock(settings: ExportSettings) -> Path:
    """Write a folder that plain `AutoModelForCausalLM` and `AutoTokenizer` load, without remote code.

    It holds the ranker alone; `left_behind` in `bundle_mllm_export.json` names what stays in the model folder. Ours;
    the paper serves no model. The soft separator and every item become rows of the embedding matrix of the backbone's
    own class, and special tokens of a plain tokenizer. The letters' scores are those of the ranker: the folder is
    loaded again and compared before it appears.

    *The head.* A stock head has a row for every token, so the new tokens need one, and no row excludes a token: of
    zero rows a logit of 0 may well be the highest. They get a copy of one text token's row (and bias): the one that is
    least probable as an answer to the questions that are compared. A copy ties with its original and has the higher
    id, so greedy decoding never writes an item, whatever the token, and answers what the ranker answers. Only sampling
    could: restrict it to the letters. A head that was tied to the embedding is untied.

    *Precision.* Rows are stored in the dtype of the backbone, so those of a bfloat16 model are rounded to it. Where
    the embedding module scales what it reads (Gemma 3), rows are divided by that factor first, which rounds again.

    Beside the model stand `items.jsonl` (`item_id`, `title` and `text`, the item as prompts write it) and
    `bundle_mllm_export.json` (wording, letters, where it comes from): what a client needs to write a question, which,
    sent as one user message, the chat template turns into the prompt that the model was trained on. Items that come
    with features of their own cannot be put in a question: they are rows of no matrix. A model folder gets the record,
    too: by its questions with known answers, `load_completer(ranker=...)` recognizes a server of this export.

    Args:
        settings: Whose fields are the arguments: see `ExportSettings`.

    Returns:
        `output_dir`.

    Raises:
        BundleMLLMError: If the model cannot be read, a modality is unknown, the output exists, or the backbone or its
            tokenizer does not allow for an exact copy.
    """
    model_dir = settings.model
    with new_folder(settings.output_dir) as folder:
        model, processor, left_behind = _load(model_dir)
        used = _keep_modalities(model, settings.modalities)
        _check(model, processor, model_dir)
        tokenizer, first_item_id = stock_tokenizer(processor.tokenizer, model.config.num_items)
        source = Path(model_dir).resolve().name if Path(model_dir).exists() else str(model_dir)
        record = {"source": source, **_record(model, processor, used, first_item_id), "left_behind": left_behind}
        items = {item_id: processor.item_text(item_id) for item_id in processor.item_ids}
        probes, never_id = _probe(model, processor, record, items, model_dir)
        record["probes"] = [
            {"question": probe.question, "log_probabilities": probe.scores.log_softmax(dim=-1).tolist()}
            for probe in probes
        ]
        set_chat_template(tokenizer, processor, [(probe.message, probe.ids) for probe in probes])
        dtype = model.dtype
        stock = _fold(model, len(tokenizer), first_item_id, never_id)
        stock.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        texts = zip(items.items(), processor.titles, strict=True)
        write_records(folder / ITEMS, [{"item_id": i, "title": title, "text": text} for (i, text), title in texts])
        write_json(folder / EXPORT_RECORD, record)
        del model, stock  # a large one need not be in memory twice
        _verify_tokens(folder, probes)
        _verify_scores(folder, dtype, probes)
        _leave_record(record, Path(model_dir))  # before the export appears, which a kill may come between
    return settings.output_dir


def _leave_record(record: Mapping[str, Any], model_dir: Path) -> None:
    """Put the record into the model folder, where it is one."""
    if (model_dir / CONFIG_NAME).is_file():
        try:
            write_json(model_dir / EXPORT_RECORD, record)
        except OSError as error:
            logger.warning(
                f"{model_dir} got no {EXPORT_RECORD} ({error}), so no completer will use a server of the export: copy "
                "the file there."
            )


def compose_message(
    record: Mapping[str, Any], items: Mapping[str, str], partial: Collection[str], candidates: Collection[str]
) -> str:
    """Write a question as the user message that an exported model answers with a letter.

    All that a client without this package does, with what `bundle_mllm_export.json` holds (`record`) and the `text` of
    `items.jsonl` by `item_id` (`items`); its few lines can be copied.
    """
    shown = [record["partial_item_template"].format(number=n, item=items[i]) for n, i in enumerate(partial, start=1)]
    options = [
        record["option_template"].format(letter=letter, item=items[i])
        for letter, i in zip(record["letters"], candidates, strict=False)
    ]
    between = record["item_separator_text"]
    return record["prompt_template"].format(partial=between.join(shown), options=between.join(options))


def _load(model_dir: str | Path) -> tuple[BundleMLLMForCausalLM, BundleMLLMProcessor, list[str]]:
    """Load the ranker of a model folder, or an adapter and what it adapts, merged; and name what else is there."""
    is_adapter = None
    with suppress(OSError, ValueError):  # no such folder or repository: load_ranker names the problem
        is_adapter = find_adapter_config_file(str(model_dir))
    if is_adapter is None:
        return *_with_letters(*load_ranker(model_dir), model_dir), _left_behind(model_dir)
    try:
        base = PeftConfig.from_pretrained(str(model_dir)).base_model_name_or_path
    except (OSError, ValueError, TypeError) as error:
        raise BundleMLLMError(f"The adapter {model_dir} cannot be read: {error} Save it again.") from error
    if not base:
        raise BundleMLLMError(
            f"The adapter {model_dir} does not name what it adapts, so it cannot be merged: set "
            "base_model_name_or_path in its adapter_config.json to the model folder it was trained on."
        )
    model, processor = _with_letters(*load_ranker(base), base)
    try:
        merged: Any = PeftModel.from_pretrained(model, str(model_dir)).merge_and_unload()
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise BundleMLLMError(
            f"The adapter {model_dir} does not fit {base}, the model it names: {error} Give the adapter of a "
            "Bundle-MLLM model, or a model folder."
        ) from error
    with suppress(BundleMLLMError):  # an adapter that was saved alone has the model's own processor
        processor = load_processor(model_dir)
    check_same_items(model, processor, model_dir)
    return merged.eval(), processor, _left_behind(base)


def _with_letters(
    model: Any, processor: BundleMLLMProcessor, model_dir: str | Path
) -> tuple[BundleMLLMForCausalLM, BundleMLLMProcessor]:
    """Return model and processor, if the model answers by letters."""
    if not isinstance(model, BundleMLLMForCausalLM):
        raise BundleMLLMError(
            f"{model_dir} holds a ranker without letters, which compares hidden states and writes no text, so no "
            "language-model server can run it: export one that was trained with --scoring letters."
        )
    return model, processor


def _left_behind(model_dir: str | Path) -> list[str]:
    with suppress(OSError):
        if cached_file(str(model_dir), CONFIG_NAME, subfolder=RETRIEVER_FOLDER):
            return [RETRIEVER_FOLDER]
    return []


def _check(model: BundleMLLMForCausalLM, processor: BundleMLLMProcessor, model_dir: str | Path) -> None:
    config, num_items = model.config, processor.num_items
    if not processor.item_ids:
        raise BundleMLLMError(f"{model_dir} has no items, so there is nothing to ask about: train it on a catalog.")
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            raise BundleMLLMError(
                f"The weights {name} of {model_dir} are not finite, so it answers nothing: export a model whose "
                "training did not diverge."
            )
    expected = {
        "num_items": num_items if processor.show_items else config.num_items,
        "separator_token_id": processor.separator_token_id,
        "item_token_offset": processor.tokenizer.item_token_offset,
    }
    for name, value in expected.items():
        if getattr(config, name) not in (value, None):
            raise BundleMLLMError(
                f"{name} is {getattr(config, name)} in the model of {model_dir} and {value} in its processor, so "
                "tokens would name the wrong rows: export the folder that training wrote."
            )
    if config.num_items > MANY_ITEMS:
        logger.warning(
            f"{config.num_items} items become added tokens, and tokenizers load these slowly (about 27 s and 3 GB for "
            f"a million): beyond {MANY_ITEMS} items, serve the model folder itself rather than an export."
        )


def _keep_modalities(model: BundleMLLMForCausalLM, modalities: Sequence[str] | None) -> list[str]:
    """Mark all other modalities of the catalog as absent, and return what is left."""
    known = list(model.config.modalities or {})
    if modalities is None:
        return known
    choices = f"choose from {', '.join(known) or 'none (it has titles only)'}"
    if unknown := sorted(set(modalities) - set(known)):
        raise BundleMLLMError(
            f"There are no modalities {', '.join(map(repr, unknown))} in this model, so its items cannot be computed "
            f"from them: {choices}."
        )
    if not modalities:
        raise BundleMLLMError(f"modalities is empty, so every item would be one and the same token: {choices}.")
    model.model.catalog.present &= torch.tensor([name in modalities for name in known])
    return [name for name in known if name in modalities]


class _Probe(NamedTuple):
    """A question, and what the exported folder must make of it."""

    question: Mapping[str, list[str]]
    prompt: str
    message: str
    ids: list[int]
    """The prompt's tokens, items where the stock tokenizer has them."""
    letters: list[int]
    scores: torch.Tensor
    """The logits of the letters."""


def _probe(
    model: BundleMLLMForCausalLM,
    processor: BundleMLLMProcessor,
    record: Mapping[str, Any],
    items: Mapping[str, str],
    model_dir: str | Path,
) -> tuple[list[_Probe], int]:
    """Score a few questions, and find the text token that is least probable as an answer to them."""
    probes, rows = [], []
    offset, first_item_id = model.config.item_token_offset, record["first_item_token_id"]
    letters = [letter["token_id"] for letter in record["letters"].values()]
    for question in _probe_questions(processor):
        row = model.last_logits(**processor(question, return_tensors="pt"))[0]
        if not row.isfinite().all():
            raise BundleMLLMError(
                f"The scores of {model_dir} overflow {record['dtype']} (some are {float(row[~row.isfinite()][0])}), "
                "so there is nothing to compare an export with: export a model whose answers can be ranked."
            )
        ids = [id_ if id_ < offset else id_ - offset + first_item_id for id_ in processor(question)["input_ids"][0]]
        message = compose_message(record, items, question["partial"], question["candidates"])
        shown = letters[: len(question["candidates"])]
        probes.append(_Probe(question, processor.render(question), message, ids, shown, row[shown].float().cpu()))
        rows.append(row[:first_item_id].float().log_softmax(dim=-1))
    return probes, int(torch.stack(rows).mean(dim=0).argmin())


def _probe_questions(processor: BundleMLLMProcessor) -> list[dict[str, list[str]]]:
    """Draw a few questions over the catalog, always the same ones."""
    rng, problem = random.Random(0), None
    for num_partial, num_candidates in _PROBES:
        num_candidates = min(num_candidates, processor.num_items - num_partial, processor.max_options)
        draws = [rng.sample(processor.item_ids, num_partial + num_candidates) for _ in range(_NUM_PROBES)]
        questions = [{"partial": drawn[:num_partial], "candidates": drawn[num_partial:]} for drawn in draws]
        try:
            processor.answer_token_ids(num_candidates)
            processor(questions)
            return questions
        except ValueError as error:  # too long a prompt, too few letters or too few items
            problem = error
    raise BundleMLLMError(f"Not even a question of two candidates can be put to this model: {problem}")


def _fold(model: BundleMLLMForCausalLM, num_tokens: int, first_item_id: int, never_id: int) -> PreTrainedModel:
    """Return the backbone's own class around the backbone, its matrices extended by separator and items."""
    model.model.item_check.remove()  # items become tokens of the text embedding
    base, config = model.model.language_model, model.config
    head: Any = model.lm_head
    embedding: Any = base.get_input_embeddings()
    stock = _stock_class(base, head)
    scale = _embedding_scale(embedding)
    vocab_size, width = embedding.weight.shape
    size = max(vocab_size, num_tokens)
    rows = embedding.weight.new_zeros(size, width)
    rows[:vocab_size] = embedding.weight
    targets = {}
    if config.separator_token_id is not None:
        targets[config.separator_token_id] = model.model.separator().unsqueeze(0)
    for start in range(0, config.num_items, _ROWS_AT_ONCE):
        chunk: Any = torch.arange(start, min(start + _ROWS_AT_ONCE, config.num_items), device=embedding.weight.device)
        targets[first_item_id + start] = model.get_item_embeddings(chunk)
    for first, target in targets.items():
        rows[first : first + len(target)] = (target.double() / scale).to(rows.dtype)
    embedding.weight, embedding.num_embeddings = nn.Parameter(rows, requires_grad=False), size
    for first, target in targets.items():
        _check_embedded(embedding(torch.arange(first, first + len(target), device=rows.device)), target)
    new = torch.arange(size, device=head.weight.device)
    new = (new >= vocab_size) | ((new >= first_item_id) & (new < first_item_id + config.num_items))
    for name, parameter in list(head.named_parameters()):
        grown = parameter.new_zeros(size, *parameter.shape[1:])  # a copy: the head may share the embedding's weight
        grown[:vocab_size] = parameter
        grown[new] = parameter[never_id]
        setattr(head, name, nn.Parameter(grown, requires_grad=False))
    head.out_features = size
    stock.config.get_text_config().vocab_size = size
    if model.can_generate():
        stock.generation_config = model.generation_config
    return stock


def _stock_class(base: PreTrainedModel, head: nn.Module) -> PreTrainedModel:
    """Return the causal language model of a base model's type, around this base model and head, untied."""
    config = copy.deepcopy(base.config)
    config.tie_word_embeddings, config.name_or_path = False, ""
    try:
        with torch.device("meta"), init.meta_device_safe_creation_ops():
            stock = AutoModelForCausalLM.from_config(config, dtype=base.dtype)
    except ValueError as error:
        raise _inexact(f"The backbone {config.model_type!r} is no causal language model of transformers") from error
    if type(stock.base_model) is not type(base):
        built_on = type(stock.base_model).__name__
        raise _inexact(f"{type(stock).__name__} is built on {built_on}, not on {type(base).__name__} as this model is")
    setattr(stock, stock.base_model_prefix, base)
    stock.set_output_embeddings(head)
    base.config = stock.config
    if left := [name for name, tensor in stock.named_parameters() if tensor.is_meta]:
        raise _inexact(f"{type(stock).__name__} has weights outside its base model and head ({', '.join(left[:3])})")
    return stock.eval()


def _embedding_scale(embedding: nn.Embedding) -> float:
    """Measure the factor between the rows of an embedding and what the module returns (Gemma 3: sqrt(hidden))."""
    some = torch.arange(min(1_024, embedding.weight.shape[0]), device=embedding.weight.device)
    rows, embedded = embedding.weight.detach()[some].double(), embedding(some).detach().double()
    scale = float((rows * embedded).sum() / rows.square().sum()) if embedded.shape == rows.shape else 0.0
    tolerance = _tolerance(embedding.weight, embedded)
    if not scale or not torch.allclose(embedded, scale * rows, rtol=0, atol=tolerance):  # nan is close to nothing
        raise _inexact(f"{type(embedding).__name__} does more than scale the rows of its matrix")
    return scale


def _check_embedded(embedded: torch.Tensor, target: torch.Tensor) -> None:
    difference = float((embedded.double() - target.double()).abs().max())
    if not difference <= _tolerance(embedded, target):
        raise _inexact(
            f"The embedding does not return the item rows that were stored in it (largest difference {difference:.3g})"
        )


def _tolerance(tensor: torch.Tensor, values: torch.Tensor) -> float:
    return 4 * torch.finfo(tensor.dtype).eps * float(values.abs().max())


def _inexact(problem: str) -> BundleMLLMError:
    return BundleMLLMError(f"{problem}, so this model cannot be exported exactly: serve the model folder itself.")


def _record(
    model: BundleMLLMForCausalLM, processor: BundleMLLMProcessor, modalities: list[str], first_item_id: int
) -> dict[str, Any]:
    """Return what `bundle_mllm_export.json` holds of model and processor."""
    nouns = {"item_noun": processor.item_noun, "bundle_noun": processor.bundle_noun}
    body = processor.prompt_template.format(
        instruction=processor.instruction.format(**nouns), partial="\0partial", options="\0options", **nouns
    )
    body = body.strip() if processor.is_conversational else body + processor.answer_cue
    body = body.replace("{", "{{").replace("}", "}}")
    return {
        "bundle_mllm_version": version("bundle-mllm"),
        "dtype": str(model.dtype).removeprefix("torch."),
        "modalities": modalities,
        "num_items": model.config.num_items,
        "items_hash": processor.items_hash,
        "weights": sample_weights(model),
        "first_item_token_id": first_item_id,
        "separator_token_id": processor.separator_token_id,
        "max_prompt_tokens": processor.max_length,
        "conversational": processor.is_conversational,
        "prompt_template": body.replace("\0partial", "{partial}").replace("\0options", "{options}"),
        "partial_item_template": processor.partial_item_template,
        "option_template": processor.option_template,
        "item_separator_text": processor.item_separator_text,
        "letters": _letters(processor),
    }


def _letters(processor: BundleMLLMProcessor) -> dict[str, dict[str, Any]]:
    letters = {}
    with suppress(ValueError):  # the tokenizer has fewer letters than the alphabet
        for index, letter in enumerate(LETTERS):
            token_id = processor.answer_token_ids(index + 1)[index]
            letters[letter] = {"text": processor.completion(index), "token_id": token_id}
    return letters


def _verify_tokens(folder: Path, probes: Sequence[_Probe]) -> None:
    """Load the tokenizer as anyone would, and compare what it makes of prompts and of user messages."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    for probe in probes:
        actual = {"text": tokenizer(probe.prompt)["input_ids"], "message": chat_ids(tokenizer, probe.message)}
        for given, ids in actual.items():
            if ids != probe.ids:
                raise _inexact(
                    f"{type(tokenizer).__name__}, which AutoTokenizer loads, tokenizes a question given as a {given} "
                    f"otherwise than the tokenizer of this model ({ids[:8]}... instead of {probe.ids[:8]}...)"
                )


def _verify_scores(folder: Path, dtype: torch.dtype, probes: Sequence[_Probe]) -> None:
    """Load the model as anyone would, and compare the letters' scores."""
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    stock, info = loaded
    name = type(stock).__name__
    if problems := [str(key) for what in ("missing", "unexpected", "mismatched") for key in info[f"{what}_keys"]]:
        raise _inexact(f"{name} does not read the weights it was saved with ({', '.join(problems[:3])})")
    stock.eval()
    for probe in probes:
        scores = stock(input_ids=torch.tensor([probe.ids])).logits[0, -1, probe.letters].float()
        tolerance = max(1e-5, 8 * torch.finfo(dtype).eps) * max(1.0, float(probe.scores.abs().max()))
        difference = float((scores - probe.scores).abs().max())
        if not difference <= tolerance:
            raise _inexact(
                f"The exported {name} scores letters differently from this model (largest difference "
                f"{difference:.3g}, allowed {tolerance:.3g})"
            )
