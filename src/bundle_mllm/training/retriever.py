"""Train a retriever: towers, then the stacker on bundles that the towers have not seen, then the towers on all.

Knows nothing about language models or prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.nn import functional

from bundle_mllm.data.catalog import ItemCatalog
from bundle_mllm.data.features import FeatureStore
from bundle_mllm.data.folds import OutOfFoldFeatures
from bundle_mllm.data.questions import Question
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.modeling.groups_bundle_mllm import ItemPairs
from bundle_mllm.modeling.retriever_bundle_mllm import BundleRetriever, BundleRetrieverConfig
from bundle_mllm.training.config import RetrieverSettings
from bundle_mllm.training.memberships import load_memberships
from bundle_mllm.training.optimize import minimize, training_only
from bundle_mllm.training.out_of_fold import QuestionRows, fold_rows
from bundle_mllm.training.run_data import RunData

STATISTICS_OF = 4_096
"""Questions whose co-occurrence gives the stacker the mean and standard deviation of its inputs."""


def make_retriever(data: RunData) -> tuple[BundleRetriever, list[list[float]]]:
    """Train a retriever on the data of a run.

    Returns:
        The retriever, and the scores of the held-out questions; see `fit_retriever`.

    Raises:
        BundleMLLMError: If there are no features, or the user log encodes held-out bundles.
    """
    settings, seed, store = data.settings.retriever, data.settings.seed, data.features
    if store is None:
        raise BundleMLLMError(
            f"{data.folder.path} has no item features, so there is nothing to retrieve by: write "
            "features/*.safetensors first (bundle-mllm encode)."
        )
    memberships = load_memberships(
        data.folder,
        settings.memberships,
        list(store.modalities),
        data.out_of_fold,
        allow_leakage=data.settings.allow_leakage,
    )
    retriever = new_retriever(store, memberships, settings, seed=seed)
    scores = fit_retriever(
        retriever,
        data.catalog,
        data.retriever_questions(),
        settings,
        stacking_bundles=data.stacking_bundles,
        held_out_questions=data.held_out_questions,
        out_of_fold=data.out_of_fold,
        seed=seed + 1,
    )
    return retriever, scores


def new_retriever(
    store: FeatureStore, memberships: dict[str, ItemPairs], settings: RetrieverSettings, *, seed: int
) -> BundleRetriever:
    """Make an untrained retriever over the catalog of a dataset folder."""
    config = BundleRetrieverConfig(
        modalities=dict(store.modalities),
        memberships=dict.fromkeys(memberships, 0),
        hidden_size=settings.hidden_size,
        dropout=settings.dropout,
        collaborative_dropout=settings.collaborative_dropout,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        retriever = BundleRetriever(config).eval()
    features, present = store.load()
    retriever.set_catalog(features, present, memberships, fit_statistics=True)
    return retriever


def fit_retriever(
    retriever: BundleRetriever,
    catalog: ItemCatalog,
    questions: Sequence[Question],
    settings: RetrieverSettings,
    *,
    stacking_bundles: set[str],
    held_out_questions: Sequence[Question] = (),
    out_of_fold: OutOfFoldFeatures | None = None,
    seed: int,
) -> list[list[float]]:
    """Train a retriever in place.

    The stacker learns how far to trust the towers beside co-occurrence on bundles that they have not seen; then the
    towers begin again with all bundles.

    Args:
        retriever: A new retriever.
        catalog: The items.
        questions: Training questions.
        settings: Steps, batches, learning rate.
        stacking_bundles: Ids of the training bundles that only the stacker is trained on at first.
        held_out_questions: Questions about further training bundles, which neither towers nor stacker see before the
            scores that are returned are computed.
        out_of_fold: Out-of-fold features of the training bundles.
        seed: Seed of batches and dropout.

    Returns:
        The scores of each held-out question's candidates, by the retriever that has not seen their bundles.
    """
    rows = QuestionRows(questions, catalog, out_of_fold)
    held_out = {question.bundle_id for question in held_out_questions}
    is_stacking = torch.tensor([question.bundle_id in stacking_bundles for question in questions])
    is_held_out = torch.tensor([question.bundle_id in held_out for question in questions])
    everything = torch.arange(len(rows))
    steps = _num_steps(settings, questions)
    generator = torch.Generator().manual_seed(seed)
    scores: list[list[float]] = []
    with fold_rows(retriever.catalog, out_of_fold):
        if retriever.stacker is not None or held_out:
            stacking = everything[is_stacking & ~is_held_out]
            seen = everything[~is_stacking & ~is_held_out]
            if not len(stacking) or not len(seen):  # too few bundles to part
                stacking = seen = everything[~is_held_out] if not is_held_out.all() else everything
            start = {name: value.clone() for name, value in retriever.towers.state_dict().items()}
            fit_towers(retriever, rows, seen, settings, steps, generator, seed)
            fit_stacker(retriever, rows, stacking, settings, steps // 2, generator, seed)
            if held_out_questions:
                scores = score_rows(retriever, QuestionRows(held_out_questions, catalog, out_of_fold))
            retriever.towers.load_state_dict(start)
        fit_towers(retriever, rows, everything, settings, steps, generator, seed)
    return scores


def continue_towers(retriever: BundleRetriever, data: RunData) -> None:
    """Train the towers of a trained retriever further, a quarter as long, on the data of a run.

    The stacker stays as it is: it learned how far to trust towers about bundles that they have not seen, and there are
    no such bundles any more but the new ones.
    """
    settings, questions = data.settings.retriever, data.retriever_questions()
    rows = QuestionRows(questions, data.catalog, data.out_of_fold)
    steps = -(-_num_steps(settings, questions) // 4)
    generator, seed = torch.Generator().manual_seed(data.settings.seed + 1), data.settings.seed + 1
    with fold_rows(retriever.catalog, data.out_of_fold):
        fit_towers(retriever, rows, torch.arange(len(rows)), settings, steps, generator, seed)


def _num_steps(settings: RetrieverSettings, questions: Sequence[Question]) -> int:
    return settings.num_steps(len({question.bundle_id for question in questions}))


def fit_towers(
    retriever: BundleRetriever,
    rows: QuestionRows,
    among: torch.Tensor,
    settings: RetrieverSettings,
    steps: int,
    generator: torch.Generator,
    seed: int,
) -> None:
    """Train the towers to give the answer the highest score among the options (cross-entropy).

    Batches are drawn by `generator` from the questions with the indices `among`; `seed` is that of dropout.
    """

    parameters = list(retriever.towers.parameters())
    with training_only(retriever, parameters, seed):
        _fit("towers", retriever.tower_scores, parameters, rows, among, settings, steps, generator)


def fit_stacker(
    retriever: BundleRetriever,
    rows: QuestionRows,
    among: torch.Tensor,
    settings: RetrieverSettings,
    steps: int,
    generator: torch.Generator,
    seed: int,
) -> None:
    """Train the stacker, if any, the same way, with the towers as they are and no dropout."""
    if retriever.stacker is None:
        return
    partial, options, _ = rows.batch(among[:STATISTICS_OF])
    table, _ = retriever.co_occurrence(partial, options)
    retriever.stacker.fit_statistics(table[options >= 0])

    def scores(partial: torch.Tensor, options: torch.Tensor) -> torch.Tensor:
        return retriever(partial, options).scores

    parameters = list(retriever.stacker.parameters())
    with training_only(retriever, parameters, seed):
        retriever.eval()  # no dropout: the stacker weighs the scores as they will be
        _fit("stacker", scores, parameters, rows, among, settings, steps, generator)


def _fit(
    name: str,
    scores: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    parameters: Sequence[torch.nn.Parameter],
    rows: QuestionRows,
    among: torch.Tensor,
    settings: RetrieverSettings,
    steps: int,
    generator: torch.Generator,
) -> None:
    """Minimize the cross-entropy of the answers of questions, a batch a step; `scores` takes partials and options."""

    def loss() -> torch.Tensor:
        chosen = among[torch.randint(len(among), (settings.batch_size,), generator=generator)]
        partial, options, answers = rows.batch(chosen)
        return functional.cross_entropy(scores(partial, options), answers)

    rates = {"lr": settings.learning_rate, "weight_decay": settings.weight_decay}
    minimize(loss, list(parameters), steps, f"retriever: {name}", **rates)


@torch.no_grad()
def score_rows(retriever: BundleRetriever, rows: QuestionRows) -> list[list[float]]:
    """Score the options of questions about training bundles, with the rows of their folds."""
    scores: list[list[float]] = []
    for chosen in torch.arange(len(rows)).split(512):
        partial, options, _ = rows.batch(chosen)
        batch = retriever(partial, options).scores
        scores += [row[is_option].tolist() for row, is_option in zip(batch, options >= 0, strict=True)]
    return scores
