"""Teach a small Llama what a multiple-choice question is, before it has seen a word (the offline default backbone).

    python training_scripts/pretrain_scratch_backbone.py --output src/bundle_mllm/training/scratch.safetensors

Words and items are fresh random vectors in every batch, so nothing can be learned about any of them. What can be
learned is the form: the option that shares most directions with the items shown (in title words, in the item token, or
in both) is the answer, and an answer is the option's letter. Only the embeddings of the prompt's own tokens (wording,
digits, letters, punctuation, soft separator) are parameters.

Two auxiliary losses on the last token of each option (does it match? what would the answer be, had the list ended
here?) shorten the plateau before letters bind to options; so do an initial key map equal to the query map, and slow
rotary frequencies. The number of options grows from 2 to 26 as it learns.

The shipped file is the last of a chain of such runs, each continued from the one before by --start-from (about 75
minutes of one busy core in all). The first ones used easier questions than this version draws (one trait, no small
subspaces); the last 8 minutes are this script as it stands, with `--options 14 --seed 10`. One run from nothing has
not been tried at this length.
"""

from __future__ import annotations

import argparse
import json
import random
import string
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F  # noqa: N812
from tqdm.auto import tqdm
from transformers import LlamaConfig, LlamaModel

from bundle_mllm.training.scratch import EMBEDDING_STD, SEPARATOR

LETTERS = string.ascii_uppercase
INSTRUCTION = ["Which", "Ġitem", "Ġcompletes", "Ġthe", "Ġbundle", "?", "Ċ", "Bundle", ":"]
TOKENS = list(
    dict.fromkeys(
        [
            *INSTRUCTION,
            "Options",
            "Answer",
            ".",
            *map(str, range(1, 31)),
            *LETTERS,
            *(f"Ġ{x}" for x in LETTERS),
            SEPARATOR,
        ]
    )
)
TOKEN_ID = {token: index for index, token in enumerate(TOKENS)}
END, OTHER = len(LETTERS), len(LETTERS) + 1  # rows of the head after the letters: end of sequence, any other token
LOG_OTHERS = 7.0  # about the logarithm of how many other tokens a vocabulary has


def make_llama(hidden_size: int, layers: int, heads: int) -> LlamaModel:
    """Build the layers, with key maps equal to query maps: similar vectors attend to each other from the start."""
    config = LlamaConfig(
        vocab_size=8,  # embeddings are kept apart
        hidden_size=hidden_size,
        intermediate_size=5 * hidden_size // 2,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        rope_parameters={"rope_type": "linear", "factor": 8.0, "rope_theta": 10_000.0},
    )
    model = LlamaModel(config)
    layers_of_model: Any = model.layers
    for layer in layers_of_model:
        attention, mlp = layer.self_attn, layer.mlp
        for linear in (attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj):
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
        for linear in (attention.o_proj, mlp.down_proj):
            nn.init.normal_(linear.weight, std=(2 * layers * linear.in_features) ** -0.5)
        attention.k_proj.weight.data.copy_(attention.q_proj.weight.data)
    return model


class QuestionMaker:
    """Draw batches of questions about random vectors; all questions of a batch have one layout."""

    def __init__(self, width: int, batch_size: int, rng: random.Random):
        self.width, self.batch_size, self.rng = width, batch_size, rng
        self.every = torch.arange(batch_size)

    def draw(
        self, embeddings: torch.Tensor, num_options: int, num_shown: int, signal: str
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Draw a batch.

        Args:
            embeddings: [len(TOKENS), width], of the prompt's own tokens.
            num_options: Options of each question.
            num_shown: Items of each partial bundle.
            signal: What the answer shows in: "text", "item" or "both".

        Returns:
            Input embeddings [batch, length, width], answers [batch], positions of the options' last tokens
            [num_options], and whether each option matches [batch, num_options].
        """
        rng, b, width = self.rng, self.batch_size, self.width
        answers = torch.randint(num_options, (b,))
        num_items, decoys, loyal = num_shown + num_options, rng.choice([0, 0.25, 0.5]), rng.choice([1, 0.8])
        by_text = self._traits(answers, num_items, num_shown, decoys, loyal) if signal != "item" else None
        by_item = self._traits(answers, num_items, num_shown, decoys, loyal) if signal != "text" else None
        matches = _as_good_as_the_answer(by_text, by_item, answers, num_shown)
        num_words = by_text.shape[-1] if by_text is not None else rng.choice([0, 1])
        lengths = [rng.randint(num_words, num_words + rng.choice([0, 1, 2])) for _ in range(num_items)]
        same_word, share = rng.random() < 0.4, rng.uniform(0.6, 0.95)
        draw_word, draw_item = (self._space(rng.choice([4, 8, 16, 32, width])) for _ in range(2))
        word_topics, item_topics = draw_word(3), draw_item(4)

        ids = [TOKEN_ID[token] for token in INSTRUCTION]
        vectors: list[tuple[int, torch.Tensor]] = []  # (position, [batch, n, width])
        ends = []
        for j, length in enumerate(lengths):
            is_option = j >= num_shown
            if j == num_shown:
                ids += [TOKEN_ID["Ċ"], TOKEN_ID["Options"], TOKEN_ID[":"]]
            mark = LETTERS[j - num_shown] if is_option else str(j + 1)
            ids += [TOKEN_ID["Ċ"], TOKEN_ID[mark], TOKEN_ID["."]]
            if length:
                title = torch.randn(b, length, width)
                if by_text is not None:
                    for trait, place in enumerate(rng.sample(range(length), num_words)):
                        topic = word_topics[:, trait]
                        vector = topic if same_word else _mix(topic, draw_word(1)[:, 0], share)
                        title[:, place] = torch.where(by_text[:, j, trait, None], vector, draw_word(1)[:, 0])
                vectors.append((len(ids), title))
                ids += [0] * length
            if by_item is not None:
                traits = draw_item(by_item.shape[-1])
                traits = torch.where(by_item[:, j, :, None], item_topics[:, : traits.shape[1]], traits)
                item = _mix(traits.mean(1) * traits.shape[1] ** 0.5, draw_item(1)[:, 0], share)
                item = F.normalize(item, dim=-1) * width**0.5
                ids.append(TOKEN_ID[SEPARATOR])
                vectors.append((len(ids), item[:, None]))
                ids.append(0)
            if is_option:
                ends.append(len(ids) - 1)
        ids += [TOKEN_ID["Ċ"], TOKEN_ID["Answer"], TOKEN_ID[":"]]

        is_vector = torch.zeros(len(ids), dtype=torch.bool)
        values = torch.zeros(b, len(ids), width)
        for position, value in vectors:
            span = slice(position, position + value.shape[1])
            is_vector[span] = True
            values[:, span] = value * EMBEDDING_STD
        inputs = torch.where(is_vector[None, :, None], values, embeddings[torch.tensor(ids)][None])
        return inputs, answers, torch.tensor(ends), matches[:, num_shown:].float()

    def _space(self, dimensions: int) -> Callable[[int], torch.Tensor]:
        """Choose a random subspace, in which vectors are more or less alike; return what draws [batch, n, width]."""
        basis = torch.randn(dimensions, self.width) * (1 / dimensions) ** 0.5
        return lambda n: torch.randn(self.batch_size, n, dimensions) @ basis

    def _traits(
        self, answers: torch.Tensor, num_items: int, num_shown: int, decoys: float, loyal: float
    ) -> torch.Tensor:
        """Draw which items share which of 1 to 3 traits with the bundle, [batch, num_items, num_traits]."""
        traits = torch.rand(self.batch_size, num_items, self.rng.choice([1, 1, 2, 3])) < decoys
        traits[:, :num_shown] = torch.rand(self.batch_size, num_shown, 1) < loyal
        traits[:, self.rng.randrange(num_shown)] = True
        traits[self.every, num_shown + answers] = True
        return traits


def _as_good_as_the_answer(
    by_text: torch.Tensor | None, by_item: torch.Tensor | None, answers: torch.Tensor, num_shown: int
) -> torch.Tensor:
    """Return which items share all traits, [batch, num_items]; take a trait from every wrong option that does."""
    drawn = [traits for traits in (by_text, by_item) if traits is not None]
    matches = torch.stack([traits.all(-1) for traits in drawn]).all(0)
    wrong = matches.clone()
    wrong[:, :num_shown] = False
    wrong[torch.arange(len(answers)), num_shown + answers] = False
    drawn[-1][..., 0] &= ~wrong
    return matches & ~wrong


def _mix(topic: torch.Tensor, noise: torch.Tensor, share: float) -> torch.Tensor:
    return share * topic + (1 - share**2) ** 0.5 * noise


def pretrain(args: argparse.Namespace) -> None:
    """Pretrain for a number of minutes and write the weights."""
    torch.manual_seed(args.seed)
    rng = random.Random(args.seed)
    model = make_llama(args.hidden_size, args.layers, args.heads)
    embeddings = nn.Parameter(torch.randn(len(TOKENS), args.hidden_size) * EMBEDDING_STD)
    head = nn.Linear(args.hidden_size, OTHER + 1, bias=False)
    matches_head = nn.Linear(args.hidden_size, 1)
    most_options = 2
    if args.start_from:
        most_options = args.options
        with safe_open(args.start_from, "pt") as weights:
            tensors = {name: weights.get_tensor(name).float() for name in weights.keys()}  # noqa: SIM118
        embeddings.data, rows = tensors.pop("embeddings"), tensors.pop("head")
        head.weight.data[: len(rows)] = rows
        model.load_state_dict(tensors, strict=False)
    parameters = [embeddings, *(p for m in (model, head, matches_head) for p in m.parameters())]
    optimizer = torch.optim.AdamW(parameters, lr=args.learning_rate, betas=(0.9, 0.95), weight_decay=0.01)
    maker = QuestionMaker(args.hidden_size, args.batch_size, rng)
    skill, step = 0.0, 0  # skill: accuracy above chance, 0 to 1, smoothed
    start, seconds = time.monotonic(), 60 * args.minutes
    with tqdm(total=seconds, unit="s") as bar:
        while (passed := time.monotonic() - start) < seconds:
            num_options = rng.randint(2, most_options) if rng.random() < 0.7 else most_options
            num_shown = rng.randint(1, 10) if rng.random() < 0.2 else rng.randint(1, 4)
            inputs, answers, ends, matches = maker.draw(
                embeddings, num_options, num_shown, rng.choice(["text", "item", "both"])
            )
            decay = min(1.0, max(0.05, (seconds - passed) / (0.6 * seconds)))
            optimizer.param_groups[0]["lr"] = args.learning_rate * min(1.0, (step + 1) / 100) * decay
            letters = embeddings[torch.tensor([TOKEN_ID[f"Ġ{LETTERS[index]}"] for index in answers.tolist()])]
            inputs = torch.cat([inputs, letters[:, None]], dim=1)
            hidden = model(inputs_embeds=inputs, use_cache=False).last_hidden_state
            logits = head(hidden[:, -2]) + LOG_OTHERS * (torch.arange(OTHER + 1) == OTHER)
            after = head(hidden[:, -1]) + LOG_OTHERS * (torch.arange(OTHER + 1) == OTHER)
            options = hidden[:, ends]
            seen = torch.arange(num_options) >= answers[:, None]  # the answer is among the options so far
            so_far = torch.where(seen, answers[:, None], -100)
            loss = (
                F.cross_entropy(logits, answers)
                + 0.1 * F.cross_entropy(after, torch.full_like(answers, END))
                + F.cross_entropy(head(options).transpose(1, 2), so_far)
                + F.binary_cross_entropy_with_logits(matches_head(options)[..., 0], matches)
            )
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            accuracy = (logits[:, :num_options].argmax(-1) == answers).float().mean().item()
            skill = 0.97 * skill + 0.03 * (accuracy - 1 / num_options) / (1 - 1 / num_options)
            step += 1
            if skill > 0.6 and most_options < len(LETTERS):
                most_options, skill = most_options + 2, 0.3
            bar.update(time.monotonic() - start - passed)
            bar.set_postfix(options=most_options, skill=f"{skill:.2f}", step=step)
            if step % 1000 == 0:
                save(args.output, model, embeddings, head)
    save(args.output, model, embeddings, head)


def save(path: Path, model: LlamaModel, embeddings: torch.Tensor, head: nn.Linear) -> None:
    """Write what `bundle_mllm.training.scratch` reads, in half precision."""
    tensors = {name: p for name, p in model.state_dict().items() if not name.startswith("embed_tokens.")}
    tensors |= {"embeddings": embeddings.detach(), "head": head.weight.data}
    config = {
        name: getattr(model.config, name)
        for name in (
            "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
            "rope_parameters",
        )
    }  # fmt: skip
    metadata = {"format": "pt", "tokens": json.dumps(TOKENS), "config": json.dumps(config)}
    save_file({name: t.half().contiguous() for name, t in tensors.items()}, path, metadata)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--hidden-size", type=int, default=128)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--minutes", type=float, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start-from", type=Path, help="weights of an earlier run to go on from")
    parser.add_argument("--options", type=int, default=10, help="most options at first, with --start-from")
    pretrain(parser.parse_args())
