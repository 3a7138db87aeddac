"""What requests and answers look like; the page of the API is made of it.

Knows nothing about models or how a request is answered.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Annotated, Any, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    EncodedBytes,
    EncoderProtocol,
    Field,
    FiniteFloat,
    StringConstraints,
    Tag,
    create_model,
)
from pydantic_core import PydanticCustomError

from bundle_mllm.bounds import Bounds
from bundle_mllm.completion import rules
from bundle_mllm.settings import field_types

MAX_ITEMS = 1000
"""Most items of a list: of a bundle, candidates, documents, changed items; and most answers."""
MAX_RULE = 10_000
"""Most ids of a rule, and characters of a condition."""
MAX_PAGE = 1000
_BOUNDS = Bounds()


class _Base64(EncoderProtocol):
    """Base64 (RFC 4648, section 4) that is refused where it holds anything else, such as a path."""

    @classmethod
    def decode(cls, data: bytes) -> bytes:
        try:
            return base64.b64decode(data, validate=True)
        except binascii.Error as error:
            raise PydanticCustomError(
                "base64", "Input should be the bytes of a file in Base64, no path or URL"
            ) from error

    @classmethod
    def encode(cls, value: bytes) -> bytes:
        return base64.b64encode(value)

    @classmethod
    def get_json_format(cls) -> str:
        return "byte"


Id = Annotated[str, StringConstraints(min_length=1, max_length=_BOUNDS.id_characters, pattern=r"\S")]
Title = Annotated[str, StringConstraints(max_length=_BOUNDS.title_characters)]
Text = Annotated[str, StringConstraints(max_length=_BOUNDS.text_characters)]
File = Annotated[bytes, EncodedBytes(encoder=_Base64), Field(min_length=1)]
Cell = bool | int | FiniteFloat | Text | list[bool | int | FiniteFloat | Text] | None
Vector = Annotated[list[FiniteFloat], Field(max_length=1 << 16)]


class _Item(BaseModel):
    model_config = ConfigDict(extra="allow", use_attribute_docstrings=True)
    __pydantic_extra__: dict[str, Cell]  # the columns of an items table, such as price

    title: Title | None = None
    description: Text | None = None
    category: Text | None = None
    image: File | None = None
    """The picture: the bytes of a JPEG, PNG, WebP, ... in Base64."""
    audio: File | None = None
    """The sound: the bytes of a WAV, FLAC, MP3, ... in Base64."""

    def given(self) -> dict[str, Any]:
        """Return what the request has of the item, files as bytes."""
        return {name: value for name, value in self if name in self.model_fields_set}


class NewItem(_Item):
    """An item that the catalog does not hold, with whatever the model's encoders read."""

    item_id: Id | None = None
    """What names it in the answer."""
    features: Annotated[dict[str, Vector], Field(max_length=100)] | None = None
    """Vectors by modality, which take the place of encoding."""


class ChangedItem(_Item):
    """An item to add or change, with any columns; `null` empties one."""

    item_id: Id


def _kind(value: Any) -> str:
    """Say which of two forms an entry of a list has, so that what is wrong with it is said of that form alone."""
    return "id" if isinstance(value, str) else "item"


Entry = Annotated[Annotated[Id, Tag("id")] | Annotated[NewItem, Tag("item")], Discriminator(_kind)]
Entries = Annotated[list[Entry], Field(min_length=1, max_length=MAX_ITEMS)]


def _rules_model() -> type[BaseModel]:
    """Return the rules as the body of a request has them: the fields of `Rules` that name no file."""
    columns: dict[str, Any] = {}
    for each in fields(rules.Rules):
        if each.name.endswith("_file"):
            continue
        hint = field_types(rules.Rules)[each.name]
        is_number = {int, float} & {hint, *get_args(hint)}
        default: Any = each.default if each.default_factory is MISSING else each.default_factory()
        columns[each.name] = hint, Field(default, max_length=None if is_number else MAX_RULE)
    model = create_model("Rules", __config__=ConfigDict(extra="forbid"), **columns)
    model.__doc__ = "What may be answered; see the guide on whole catalogs and rules."
    return model


if TYPE_CHECKING:
    RulesBody = BaseModel
else:
    RulesBody = _rules_model()


class CompletionRequest(BaseModel):
    """A bundle to complete."""

    model_config = ConfigDict(
        extra="forbid",
        use_attribute_docstrings=True,
        json_schema_extra={"examples": [{"partial": ["a12", "b7"], "top_k": 5}]},
    )

    partial: Entries
    """The items that the bundle has so far: ids, and new items."""
    candidates: Entries | None = None
    """The items to choose from; the whole catalog if not given."""
    rules: RulesBody | None = None
    top_k: Annotated[int, Field(ge=1, le=MAX_ITEMS)] = 10
    """How many answers."""
    page: Annotated[int, Field(ge=1, le=MAX_PAGE)] = 1
    """Which answers: 2 for those after the first `top_k`, and so on."""
    explain: bool = False
    """Whether to say what each model contributes to a score."""
    coverage: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Answer only with the set that holds the right item with this probability, if no items are left out: `set_size`
    0 says that nothing fits. The model must have been calibrated."""


class CompletedItem(BaseModel):
    """An answer."""

    item_id: str | None
    title: str
    letter: str | None
    score: float
    guess: bool
    p_value: float | None = None
    explanation: dict[str, Any] | None = None


class CompletionAnswer(BaseModel):
    """The answers, in the order in which they were selected; see `Answers`.

    `unranked` says why they are the retriever's alone, where the ranker runs elsewhere and does not answer.
    """

    answer_id: str
    items: list[CompletedItem]
    notes: list[str]
    unranked: str | None
    set_size: int | None


class Document(BaseModel):
    """A document as an object; other fields are left unread."""

    text: Annotated[str, StringConstraints(min_length=1, max_length=_BOUNDS.title_characters)]


class RerankRequest(BaseModel):
    """Documents to rank, as Cohere's and Jina's rerankers take them; their other options are left unread."""

    model_config = ConfigDict(
        use_attribute_docstrings=True,
        json_schema_extra={
            "examples": [{"query": '["a12", "b7"]', "documents": ["c3", "d4"], "top_n": 1}],
        },
    )

    query: Annotated[str, StringConstraints(min_length=1, max_length=_BOUNDS.text_characters)]
    """A wish in words, read as the title of an item; or a bundle, as a JSON list of item ids."""
    documents: Annotated[list[Id | Document], Field(min_length=1, max_length=MAX_ITEMS)]
    """Ids of items, or texts, read as titles of new items."""
    model: Annotated[str, StringConstraints(max_length=200)] | None = None
    """Left unread: the service has one model."""
    top_n: Annotated[int, Field(ge=1)] | None = None
    """How many results; all documents if not given."""
    return_documents: bool = False
    """Whether to repeat the texts of the documents."""


class RerankResult(BaseModel):
    """A document's place in the request, and the probability that it completes the bundle, among all documents."""

    index: int
    relevance_score: float
    document: dict[str, str] | None = None


class RerankAnswer(BaseModel):
    """The documents, best first."""

    id: str
    model: str
    results: list[RerankResult]
    unranked: str | None


class ItemsRequest(BaseModel):
    """Items to add or change."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"items": [{"item_id": "n1", "title": "linen shirt", "price": 39.0}]}]},
    )

    items: Annotated[list[ChangedItem], Field(min_length=1, max_length=MAX_ITEMS)]


class ItemsAnswer(BaseModel):
    """What became of the catalog; see `CatalogChange`."""

    added: int
    updated: int
    encoded: int
    removed: int
    num_items: int
    unknown: list[str]


class FeedbackRequest(BaseModel):
    """What became of an answer."""

    model_config = ConfigDict(
        extra="forbid",
        use_attribute_docstrings=True,
        json_schema_extra={"examples": [{"answer_id": "0" * 32, "clicked": ["c3"], "bought": ["c3"]}]},
    )

    answer_id: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
    shown: Annotated[list[Id], Field(max_length=MAX_ITEMS)] | None = None
    """The answers that the user saw; all of them if not given."""
    clicked: Annotated[list[Id], Field(max_length=MAX_ITEMS)] = []
    bought: Annotated[list[Id], Field(max_length=MAX_ITEMS)] = []


class Problem(BaseModel):
    """Why a request has no answer."""

    message: str
    request_id: str
