"""The `bundle-completion` pipeline: from a question to its options, best first, with probabilities.

Knows nothing about prompt wording, token ids or features.
"""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import Pipeline

from .processing_bundle_mllm import BundleMLLMProcessor


class BundleCompletionPipeline(Pipeline):
    """Complete partial bundles: which of the candidates belongs to the items that are there?

    ```python
    >>> completer = pipeline("bundle-completion", model=folder)
    >>> completer({"partial": ["i1", "i2"], "candidates": ["i3", "i4"]})
    [{"item_id": "i4", "title": "linen shirt", "letter": "B", "score": 0.93}, {"item_id": "i3", ...}]
    ```

    A list of questions gives a list of such lists; `batch_size` of them run at once. An item that the catalog does not
    hold is given as `{"title": ..., "features": {modality: vector}}`. `top_k` keeps the best options only.
    """

    _load_processor = True
    _load_tokenizer = False
    _load_image_processor = False
    _load_video_processor = False
    _load_feature_extractor = False

    processor: BundleMLLMProcessor

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if self.processor is None:
            raise ValueError(
                "the pipeline has no processor, so it cannot write questions: give the model's folder, or pass "
                "processor=BundleMLLMProcessor.from_pretrained(folder) beside the model."
            )
        config = self.model.config
        if self.processor.num_items != config.num_items:
            raise ValueError(
                f"the processor has {self.processor.num_items} items and the model {config.num_items}, so ids would "
                "name the wrong rows: load both from one folder, or call set_catalog with the processor's items."
            )
        if self.processor.modalities is None:
            self.processor.modalities = dict(config.modalities)

    def _sanitize_parameters(self, top_k: int | None = None, **unknown: Any) -> tuple[dict, dict, dict]:
        unknown.pop("local_files_only", None)  # transformers leaves it among the parameters
        if unknown:
            raise ValueError(f"bundle-completion has no parameters {sorted(unknown)}; it has top_k and batch_size.")
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k is {top_k}, so no option would be left: give at least 1, or leave it out.")
        return {}, {}, {} if top_k is None else {"top_k": top_k}

    def preprocess(self, question: Any) -> dict[str, Any]:
        """Check the question by writing it once. It is tokenized with its batch, which numbers dict items."""
        self.processor.render(question)
        return {"questions": question}

    def _forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        questions = inputs["questions"]
        questions = questions if isinstance(questions, list) else [questions]
        encoded = self.processor(questions, return_tensors="pt")
        num_options = [len(_candidates(question)) for question in questions]
        letters = torch.tensor(self.processor.answer_token_ids(max(num_options)))
        logits = self.model.option_logits(**self.ensure_tensor_on_device(**encoded), option_token_ids=letters)
        scores = [row[:count].float().softmax(dim=-1).tolist() for row, count in zip(logits, num_options, strict=True)]
        return {"scores": scores, "questions": questions}

    def postprocess(self, outputs: dict[str, Any], top_k: int | None = None) -> list[dict[str, Any]]:
        """Return the options of one question, best first."""
        question, scores = outputs["questions"], outputs["scores"]
        if isinstance(question, list):
            question, scores = question[0], scores[0]
        letters = self.processor.answer_letters(len(scores))
        options = [
            {**self._describe(entry), "letter": letter, "score": score}
            for entry, letter, score in zip(_candidates(question), letters, scores, strict=True)
        ]
        return sorted(options, key=lambda option: -option["score"])[:top_k]

    def _describe(self, entry: Any) -> dict[str, str | None]:
        if isinstance(entry, Mapping):
            return {"item_id": entry.get("item_id"), "title": entry.get("title", "")}
        return {"item_id": entry, "title": self.processor.titles[self.processor.row(entry)]}

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Save the model and, unlike the base class, the processor with its items."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)


def _candidates(question: Any) -> list:
    return list(question["candidates"] if isinstance(question, Mapping) else question.candidates)


__all__ = ["BundleCompletionPipeline"]
