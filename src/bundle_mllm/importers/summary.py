"""Collect what an import wrote, left out and repaired, and what stops it, for people to check against the source.

Knows nothing about formats.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from bundle_mllm.data.interactions import NUM_EXAMPLES
from bundle_mllm.errors import BundleMLLMError

T = TypeVar("T")
MAX_PROBLEMS = 20
"""So many problems are named in the message about them; the others are counted."""


@dataclass(frozen=True)
class ImportNote:
    """Like cases that an import left out, repaired or counted once.

    Attributes:
        what: What they are and what became of them.
        count: How many there are.
        examples: Where the first few are.
        harmless: Whether nothing is lost, so that a strict import accepts them.
        num_items: How many different items they name, where one item may be in many of them.
    """

    what: str
    count: int
    examples: tuple[str, ...] = ()
    harmless: bool = False
    num_items: int | None = None

    def __str__(self) -> str:
        examples = ", ".join(self.examples) + (", …" if self.count > len(self.examples) else "")
        items = "" if self.num_items is None else f" ({count_items(self.num_items)})"
        return f"{self.count} {self.what}{items}" + f": {examples}" * bool(self.examples)


def count_items(number: int) -> str:
    """Return how many different items entries name, such as "1 item" or "37 different items"."""
    return "1 item" if number == 1 else f"{number} different items"


class ImportNotes:
    """The notes of one import while it runs; `strict` ones refuse what is not harmless, see [`~ImportNotes.check`].

    What stops the import is a *problem*. Problems are gathered, so that one run names those of all tables.
    """

    def __init__(self, strict: bool = False):
        self.strict = strict
        self.alarms: list[str] = []
        self.warnings: list[str] = []
        self._notes: dict[str, ImportNote] = {}
        self._problems: list[str] = []
        self._num_problems = 0

    def add(
        self,
        what: str,
        examples: str | Iterable[str] = (),
        *,
        count: int | None = None,
        harmless: bool = False,
        num_items: int | None = None,
    ) -> None:
        """Count cases of one kind, see [`ImportNote`]; there are as many as examples if `count` is not given."""
        examples = [examples] if isinstance(examples, str) else list(examples)
        count = len(examples) if count is None else count
        if count:
            note = self._notes.get(what, ImportNote(what, 0, (), harmless))
            examples = (*note.examples, *examples)[:NUM_EXAMPLES]
            self._notes[what] = ImportNote(what, note.count + count, examples, harmless, num_items)

    def warn(self, text: str) -> None:
        """Add a warning."""
        self.warnings.append(text)

    def alarm(self, text: str) -> None:
        """Add a warning that opens the summary: most of something is missing."""
        self.alarms.append(text)

    def problem(self, text: str) -> None:
        """Add a problem, and go on."""
        self._num_problems += 1
        if len(self._problems) < MAX_PROBLEMS:
            self._problems.append(text)

    @contextmanager
    def problems(self) -> Iterator[None]:
        """Take an error in the block, such as one about a row, as a problem."""
        try:
            yield
        except BundleMLLMError as error:
            self.problem(str(error))

    def attempt(self, function: Callable[[], T]) -> T | None:
        """Call a function, and return its result, or `None` where its error is a problem."""
        with self.problems():
            return function()
        return None

    def refuse_problems(self) -> None:
        """Raise all problems so far as one error.

        Raises:
            BundleMLLMError: If there is a problem.
        """
        if self._num_problems > 1:
            more = self._num_problems - len(self._problems)
            listed = " ".join(f"({number}) {text}" for number, text in enumerate(self._problems, start=1))
            rest = f" And {more:,} more problems like these." if more else ""
            raise BundleMLLMError(f"{self._num_problems:,} problems stop the import. {listed}{rest}")
        if self._problems:
            raise BundleMLLMError(self._problems[0])

    def check(self) -> tuple[ImportNote, ...]:
        """Return all notes, those of losses first; refuse losses if the import is strict.

        Raises:
            BundleMLLMError: If the import is strict and something is lost.
        """
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
        alarms: What is missing for the most part: the summary opens with it.
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
    alarms: tuple[str, ...] = ()

    @property
    def dropped(self) -> dict[str, int]:
        """How many entries of the source were left out, repaired or counted once, by what they are."""
        return {note.what: note.count for note in self.notes}

    def __str__(self) -> str:
        splits = ", ".join(f"{number} {split}" for split, number in self.num_bundles.items())
        lines = [
            *(f"WARNING: {alarm}" for alarm in self.alarms),
            f"{self.path}: {self.num_items} items, {sum(self.num_bundles.values())} bundles ({splits})",
            f"  {self.num_interactions} interactions of {self.num_users} users" * bool(self.num_interactions),
            *(f"  {number} questions in {name}" for name, number in self.num_questions.items()),
            *(f"  features: {modality}, {width} wide" for modality, width in self.modalities.items()),
            *(f"  {note}" for note in self.notes),
            *(f"  warning: {warning}" for warning in self.warnings),
        ]
        return "\n".join(filter(None, lines))
