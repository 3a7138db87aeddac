"""The `bundle-completion` pipeline: from a question to its candidates, best first, with probabilities.

Knows nothing about prompt wording, token ids, features or how ranker and retriever are joined.
"""

import os
from collections.abc import Collection, Mapping
from typing import Any

import torch
from transformers import Pipeline
from transformers.utils import logging

from .conformity_bundle_mllm import holds_answer
from .item_processing_bundle_mllm import BundleItemProcessor
from .loading_bundle_mllm import completer_of
from .questions_bundle_mllm import check_keys, field, shorten
from .ranking_bundle_mllm import MAX_OPTIONS, round_sizes

logger = logging.get_logger(__name__)

_NOT_SAVED = ("encoders", "group_names.json", "catalog.parquet")
"""What encodes new items, and columns such as prices: they may be private, and `push_to_hub` uploads all it saves."""


class BundleCompletionPipeline(Pipeline):
    """Complete partial bundles: which of the candidates belongs to the items that are there?

    ```python
    >>> completer = pipeline("bundle-completion", model=folder)
    >>> completer({"partial": ["i1", "i2"], "candidates": ["i3", "i4"]})
    [{"item_id": "i4", "title": "linen shirt", "letter": "B", "score": 0.93, "guess": False}, {"item_id": "i3", ...}]
    ```

    A list of questions gives a list of such lists; `batch_size` of them run at once. An item that the catalog does not
    hold is given as `{"title": ..., "features": {modality: vector}}`; or, where the package bundle-mllm is imported,
    as `{"title": ..., "image": path}` or whatever the encoders in the model's folder read. `top_k` keeps the best
    candidates only, and `explain=True` adds what each model contributed. `coverage=0.9` keeps the smallest set that
    holds the right answer with this probability, and no candidate where nothing fits (see `BundleCalibration`).
    Without candidates the whole catalog except the partial bundle is searched. `BundleCompleter`, the attribute
    `completer`, says how ranker and retriever are joined.

    The model is a ranker, whose folder or repository may hold a retriever, too, in `retriever/`, and how both are
    joined, in `combination.json`; or a retriever alone.
    """

    _load_processor = True
    _load_tokenizer = False
    _load_image_processor = False
    _load_video_processor = False
    _load_feature_extractor = False

    processor: BundleItemProcessor

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if self.processor is None:
            raise ValueError(
                "The pipeline has no processor, so it cannot read questions: give the model's folder, or a processor."
            )
        files = vars(self.model).pop("loaded_by", {})
        self.completer = completer_of(self.model, self.processor, self.model.config._name_or_path, **files)
        self.completer.to(self.device)
        self.processor = self.completer.processor
        if self.completer.ranker is None:
            self.feature_extractor: Any = self.processor  # without it transformers refuses batches

    def _sanitize_parameters(
        self,
        top_k: int | None = None,
        group_size: int | None = None,
        explain: bool | None = None,
        coverage: float | None = None,
        **unknown: Any,
    ) -> tuple[dict, dict, dict]:
        unknown.pop("local_files_only", None)  # transformers leaves it among the parameters
        if unknown:
            raise ValueError(
                f"bundle-completion has no parameters {sorted(unknown)}: use top_k, group_size, explain, coverage, "
                "batch_size."
            )
        if top_k is not None and (isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1):
            raise ValueError(
                f"top_k is {shorten(top_k)}, which is no number of candidates to keep: give 1 or more, or none."
            )
        if group_size is not None:
            round_sizes(MAX_OPTIONS, group_size)  # refuses a wrong size before anything runs
        if coverage is not None:
            holds_answer(self.completer, torch.ones(1), coverage)  # refuses what cannot be promised
        given = {"top_k": top_k, "group_size": group_size, "explain": explain, "coverage": coverage}
        given = {name: value for name, value in given.items() if value is not None}
        to_score = {name: value for name, value in given.items() if name != "explain"}
        return {}, to_score, {name: value for name, value in given.items() if name != "group_size"}

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Complete one bundle or a list of them; no questions have no answers."""
        if isinstance(inputs, (list, tuple)) and not inputs:
            return []
        return super().__call__(inputs, *args, **kwargs)

    def preprocess(self, question: Any) -> dict[str, Any]:
        """Check the question; it is encoded with its batch, which numbers dict items."""
        check_keys(question)
        entries: dict[str, Any] = {name: field(question, name) for name in ("question_id", "partial", "candidates")}
        for name, value in entries.items():  # a set or an array will do; the processor refuses what is no list
            if name != "question_id" and isinstance(value, Collection) and not isinstance(value, (str, Mapping)):
                entries[name] = list(value)
        [entries] = self.completer.prepare([entries])
        self.completer.check(entries)
        return {"questions": entries}

    def _forward(self, inputs: dict[str, Any], **parameters: Any) -> dict[str, Any]:
        questions = inputs["questions"] if isinstance(inputs["questions"], list) else [inputs["questions"]]
        completions = self.completer.score(
            questions,
            group_size=parameters.get("group_size"),
            num_retrieved=self.completer.num_retrieved(parameters.get("top_k"), parameters.get("coverage")),
        )
        return {"questions": questions, "completions": completions}

    def postprocess(self, outputs: dict[str, Any], **parameters: Any) -> list[dict[str, Any]]:
        """Return the candidates of one question, best first."""
        question, completion = outputs["questions"], outputs["completions"]
        if isinstance(question, list):
            question, completion = question[0], completion[0]
        return self.completer.answers(question, completion, **parameters)

    def save_pretrained(
        self, save_directory: str | os.PathLike, push_to_hub: bool = False, repo_id: str | None = None, **kwargs: Any
    ) -> None:
        """Save the models and, unlike the base class, the processor with its items.

        What encodes new items, and the columns that rules read, stay in the model folder; a warning names them.

        Args:
            save_directory: The folder.
            push_to_hub: Whether to upload it all as well, in one commit.
            repo_id: To which repository; by default one with the folder's name.
            **kwargs: For `save_pretrained` of the models; with `push_to_hub` for the method of that name.

        Raises:
            ValueError: See `BundleCompleter.save_pretrained`.
        """
        to_save = {name: value for name, value in kwargs.items() if not push_to_hub or name == "max_shard_size"}
        self.completer.save_pretrained(save_directory, **to_save)
        source = self.model.config._name_or_path
        kept = [name for name in _NOT_SAVED if source and os.path.exists(os.path.join(source, name))]
        if missing := [name for name in kept if not os.path.exists(os.path.join(save_directory, name))]:
            logger.warning(
                f"{save_directory} lacks {', '.join(missing)} of {source}, so it encodes no new items and rules find "
                "no columns: copy these, or publish the model folder (bundle-mllm publish)."
            )
        if push_to_hub:
            self.push_to_hub(repo_id or os.path.basename(os.path.normpath(save_directory)), **kwargs)
