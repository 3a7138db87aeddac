"""Collect what an import wrote, left out and repaired, for people to check against the source.

Knows nothing about formats.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bundle_mllm.data.interactions import NUM_EXAMPLES
from bundle_mllm.errors import BundleMLLMError


@dataclass(frozen=True)
class ImportNote:
    """Like cases that an import left out, repaired or counted once.

    Attributes:
        what: What they are and what became of them.
        count: How many there are.
        examples: Where the first few are.
        harmless: Whether nothing is lost, so that a strict import accepts them.
    """

    what: str
    count: int
    examples: tuple[str, ...] = ()
    harmless: bool = False

    def __str__(self) -> str:
        examples = ", ".join(self.examples) + (", …" if self.count > len(self.examples) else "")
        return f"{self.count} {self.what}" + f": {examples}" * bool(self.examples)


class ImportNotes:
    """The notes of one import while it runs; `strict` ones refuse what is not harmless, see [`~ImportNotes.check`]."""

    def __init__(self, strict: bool = False):
        self.strict = strict
        self.warnings: list[str] = []
        self._notes: dict[str, ImportNote] = {}

    def add(
        self, what: str, examples: str | Iterable[str] = (), *, count: int | None = None, harmless: bool = False
    ) -> None:
        """Count cases of one kind, see [`ImportNote`]; there are as many as examples if `count` is not given."""
        examples = [examples] if isinstance(examples, str) else list(examples)
        count = len(examples) if count is None else count
        if count:
            note = self._notes.get(what, ImportNote(what, 0, (), harmless))
            examples = (*note.examples, *examples)[:NUM_EXAMPLES]
            self._notes[what] = ImportNote(what, note.count + count, examples, harmless)

    def warn(self, text: str) -> None:
        """Add a warning."""
        self.warnings.append(text)

    def check(self) -> tuple[ImportNote, ...]:
        """Return all notes, those of losses first; refuse losses if the import is strict."""
        notes = sorted(self._notes.values(), key=lambda note: note.harmless)
        lost = [note for note in notes if not note.harmless]
        if self.strict and lost:
            raise BundleMLLMError(
                f"A strict import refuses {'; '.join(map(str, lost))}. Correct the source, or import without strict."
            )
        return tuple(notes)


@dataclass(frozen=True)
class ImportSummary:
    """What an import wrote.

    Attributes:
        path: The dataset folder.
        num_items: Number of its items.
        num_bundles: Number of bundles by split.
        num_interactions: Number of distinct pairs of user and item.
        num_users: Number of users of these pairs.
        num_questions: Number of questions by the name of their file.
        modalities: Width of the features by modality.
        notes: What was left out, repaired or counted once.
        warnings: What to know before using the data.
    """

    path: Path
    num_items: int
    num_bundles: Mapping[str, int]
    num_interactions: int = 0
    num_users: int = 0
    num_questions: Mapping[str, int] = field(default_factory=dict)
    modalities: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[ImportNote, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def dropped(self) -> dict[str, int]:
        """How many entries of the source were left out, repaired or counted once, by what they are."""
        return {note.what: note.count for note in self.notes}

    def __str__(self) -> str:
        splits = ", ".join(f"{number} {split}" for split, number in self.num_bundles.items())
        lines = [
            f"{self.path}: {self.num_items} items, {sum(self.num_bundles.values())} bundles ({splits})",
            f"  {self.num_interactions} interactions of {self.num_users} users" * bool(self.num_interactions),
            *(f"  {number} questions in {name}" for name, number in self.num_questions.items()),
            *(f"  features: {modality}, {width} wide" for modality, width in self.modalities.items()),
            *(f"  {note}" for note in self.notes),
            *(f"  warning: {warning}" for warning in self.warnings),
        ]
        return "\n".join(filter(None, lines))
