"""The plain tokenizer of an exported model: items as added tokens, and a chat template that writes our prompt.

Knows nothing about weights, files or where questions come from.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from transformers import AddedToken, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.modeling.processing_bundle_mllm import BundleMLLMProcessor
from bundle_mllm.modeling.tokenization_bundle_mllm import INHERITED_SETTINGS, BundleMLLMTokenizerFast

_MESSAGES_AS_THEY_ARE = (
    "{% for message in messages %}{% if message.content is string %}{{ message.content }}"
    "{% else %}{% for part in message.content %}{{ part.text }}{% endfor %}{% endif %}{% endfor %}"
)


def stock_tokenizer(source: BundleMLLMTokenizerFast, num_items: int) -> tuple[PreTrainedTokenizerBase, int]:
    """Build a tokenizer that needs no code of this package.

    Each item becomes a special token. They are added in one call (48,000 in .3 s); one by one the time would grow with
    their square.

    Returns:
        The tokenizer, without a chat template, and the id of `<|item_0|>`; those of the others follow.
    """
    backend = type(source.backend_tokenizer).from_str(source.backend_tokenizer.to_str())
    texts = [source.item_token(row) for row in range(num_items)]
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in texts])
    ids = [backend.token_to_id(text) for text in texts]
    first = backend.get_vocab_size() - num_items
    if ids != [*range(first, first + num_items)]:
        raise BundleMLLMError("This tokenizer has tokens named like items, so rows would be mixed up: rename them.")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **{name: source.init_kwargs[name] for name in INHERITED_SETTINGS if name in source.init_kwargs},
        **source.special_tokens_map,
        padding_side=source.padding_side,
        truncation_side=source.truncation_side,
        model_max_length=source.model_max_length,
        model_input_names=source.model_input_names,
    )
    return tokenizer, first


def set_chat_template(
    tokenizer: PreTrainedTokenizerBase, processor: BundleMLLMProcessor, cases: Sequence[tuple[str, list[int]]]
) -> None:
    """Give a tokenizer the chat template that turns a question, sent as a user message, into our prompt's tokens.

    For a conversational processor it is the tokenizer's own, which also begins the answer with the processor's
    answer cue; otherwise one that writes the messages as they are. Servers tokenize what a template writes without
    adding special tokens, so it must also write what the tokenizer would put in front. How that is spelled depends on
    the tokenizer (a metaspace one wants a space behind a special token), so the spellings are tried on the cases:
    messages, and the ids that each must become.

    Raises:
        BundleMLLMError: If no spelling gives these ids.
    """
    source, written = processor.tokenizer, ""
    body = _MESSAGES_AS_THEY_ARE
    if processor.is_conversational:
        own = source.get_chat_template().removesuffix("\n")  # Jinja would drop it, too
        body = f"{own}{{% if add_generation_prompt %}}{{{{ {_quoted(processor.answer_cue)} }}}}{{% endif %}}"
        written = source.bos_token or ""
    with_special, without = (source("a", add_special_tokens=add)["input_ids"] for add in (True, False))
    added = "".join(source.convert_ids_to_tokens(with_special[: len(with_special) - len(without)]))
    for cut in dict.fromkeys((0, len(written))):
        for lead in dict.fromkeys(("", added, added + " ")):
            tokenizer.chat_template = _spelled(body, lead, cut)
            if all(chat_ids(tokenizer, message) == ids for message, ids in cases):
                return
    raise BundleMLLMError(
        "No chat template makes this tokenizer write a prompt's tokens, so a server would give the model another text "
        "than it was trained on: serve the model folder itself."
    )


def _spelled(body: str, lead: str, cut: int) -> str:
    """Return a template that writes `lead`, then what `body` writes but for its first `cut` characters."""
    if cut:
        body = f"{{% set bundle_prompt %}}{body}{{% endset %}}{{{{ bundle_prompt[{cut}:] }}}}"
    return f"{{{{ {_quoted(lead)} }}}}{body}" if lead else body


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)  # also how Jinja spells a string


def chat_ids(tokenizer: PreTrainedTokenizerBase, message: str) -> list[int]:
    """Tokenize one user message, as a server does before it generates."""
    messages = [{"role": "user", "content": message}]
    encoded: Any = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    return encoded["input_ids"]
