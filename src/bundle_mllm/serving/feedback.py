"""Training bundles out of what users did with the answers of a service.

Knows nothing about models or HTTP.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bundle_mllm.data.tables import write_records
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.serving.answer_log import read_log
from bundle_mllm.serving.settings import FeedbackSettings
from bundle_mllm.settings import configured_by


@dataclass(frozen=True)
class FeedbackSummary:
    """What a log held.

    Attributes:
        answers: Number of answers.
        with_feedback: Answers that users did something with.
        bundles: Bundles that were written.
        unknown: Entries of feedback whose answer is not in the log.
        without_id: Answers with feedback that were about a new item without an id, and are left out.
    """

    answers: int
    with_feedback: int
    bundles: int
    unknown: int
    without_id: int

    def __str__(self) -> str:
        text = f"{self.bundles} bundles of {self.answers} answers, {self.with_feedback} of which have feedback"
        if self.unknown:
            text += f"\n{self.unknown} entries of feedback are about answers that are not in the log, and are left out"
        if self.without_id:
            text += f"\n{self.without_id} bundles held a new item that the catalog lacks, and are left out"
        return text


@configured_by(FeedbackSettings)
def write_feedback(settings: FeedbackSettings) -> FeedbackSummary:
    """Write a table of training bundles: partial bundles with the answers that were bought.

    Bundles of the same items are one.

    Returns:
        How many there are.

    Raises:
        BundleMLLMError: If there is no log, it is another file, or it holds nothing that was bought.
    """
    answers: dict[str, dict[str, Any]] = {}
    taken: dict[str, dict[str, None]] = {}
    signals = ("clicked", "bought") if settings.clicked else ("bought",)
    unknown = without_id = 0
    for record in read_log(settings.log):
        if not _is_record(record):
            raise BundleMLLMError(
                f"{settings.log} has the line {str(record)[:60]!r}, which is neither an answer nor feedback on one: "
                "give the --log of `bundle-mllm serve`."
            )
        if "items" in record:
            answers[record["answer_id"]] = record
        elif (answer := answers.get(record["answer_id"])) is None:
            unknown += 1
        else:
            ids = (item_id for signal in signals for item_id in record.get(signal, ()))
            taken.setdefault(record["answer_id"], {}).update(
                (item_id, None) for item_id in ids if item_id in answer["items"]
            )
    bundles: dict[frozenset[str], dict[str, Any]] = {}
    for answer_id, item_ids in taken.items():
        answer = answers[answer_id]
        if item_ids and answer["new"]:
            without_id += 1
        elif item_ids:
            items = [*answer["partial"], *item_ids]
            row = {"bundle_id": f"feedback-{answer_id}", "items": items, "split": "train"}
            bundles.setdefault(frozenset(items), row)
    if not bundles:
        raise BundleMLLMError(
            f"{settings.log} holds {len(answers)} answers, and nothing of them was {' or '.join(signals)}, so there "
            "would be no bundle: send POST /v1/feedback, or give --clicked."
        )
    write_records(settings.output, list(bundles.values()))
    return FeedbackSummary(len(answers), len(taken), len(bundles), unknown, without_id)


def _is_record(record: Any) -> bool:
    """Return whether a line of a log is an answer, or feedback on one."""
    if not isinstance(record, dict) or not isinstance(record.get("answer_id"), str):
        return False
    kinds: dict[str, Any] = {"items": str, "clicked": str, "bought": str, "partial": str | None, "new": int}
    lists = {name: record.get(name, []) for name in kinds}
    if not all(isinstance(values, list) for values in lists.values()):
        return False
    fits = all(isinstance(value, kinds[name]) for name, values in lists.items() for value in values)
    return fits and ("items" not in record or {"partial", "new"} <= record.keys())
