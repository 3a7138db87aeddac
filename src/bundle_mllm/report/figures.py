"""Draw the sections of a report from their rows, one PNG each.

Knows nothing about models: it computes nothing but places and colors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bundle_mllm.data.files import atomic_path
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.evaluation.metrics import RANDOM_TIES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, Any]
COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")  # safe for color-blind readers
MARKERS = "os^DvP"
GRAY = "#8a8f98"
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GRAY,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e8eb",
    "legend.frameon": False,
    "axes.titlesize": 10,
    "figure.constrained_layout.use": True,
}
WIDTH, DPI = 4.6, 200
"""Inches, and pixels of an inch: narrow, with panels below each other, so that a phone shows letters in their size."""
HIT_RATE = "hit_rate@1"


def check_drawable() -> None:
    """Refuse to begin where figures could not be drawn in the end, since matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise BundleMLLMError(
            "matplotlib is not installed, so a report could not be drawn: pip install 'bundle-mllm[report]'."
        ) from error


def draw(section: str, rows: Sequence[Row], chances: Mapping[str, float], path: Path) -> None:
    """Draw the rows of a section (one of `FIGURES`) as a PNG; `chances` has what guessing reaches, by question set."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        figure = FIGURES[section](rows, chances)
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="png", dpi=DPI, metadata={"Software": None})


def _bars(rows: Sequence[Row], chances: Mapping[str, float]) -> Figure:
    """Draw one bar per variant and question set: of the answer, with ties broken at random where rows have that."""
    answer = rows[-1].get("part")
    rows = [row for row in rows if row.get("part") == answer]
    name = RANDOM_TIES if all(RANDOM_TIES in row for row in rows) else HIT_RATE
    variants, groups = list(_by(rows, "variant")), _by(rows, "questions")
    figure, [[ax]] = _panels(1, 1, height=0.9 + len(variants) * (0.16 + 0.2 * len(groups)))
    height, right = 0.8 / len(groups), 0.0
    for number, (group, members) in enumerate(groups.items()):
        for row in members:
            place = variants.index(row["variant"])
            y, error = place - 0.4 + height * (number + 0.5), row.get(f"{name}_se") or 0.0
            label = group if place == 0 else None
            ax.barh(y, row[name], height * 0.9, color=COLORS[number % len(COLORS)], label=label)
            if error:
                ax.errorbar(row[name], y, xerr=error, color="#333333", elinewidth=1, capsize=2)
            if "expected" in row:
                ax.vlines(row["expected"], y - height / 2, y + height / 2, color="#1d2733", linewidth=2)
            text = f"{row[name]:.3f}"
            ax.text(row[name] + error + 0.008, y, text.removeprefix("0"), va="center", fontsize=9)
            right = max(right, row[name] + error)
    _mark_guessing(ax.axvline, chances, groups)
    ax.set_yticks(range(len(variants)), variants)
    ax.set_ylim(len(variants) - 0.45, -0.55)
    ax.set_xlim(0, min(1.1, 1.15 * right + 0.05))
    ax.set_xlabel("hit_rate@1 (dotted: guessing)")
    ax.grid(False, axis="y")
    if len(groups) > 1:
        figure.legend(loc="outside upper left", ncols=len(groups))
    return figure


def _by_length(rows: Sequence[Row], chances: Mapping[str, float]) -> Figure:
    """Draw accuracy against the number of candidates, one panel for each kind of negatives, and what it costs."""
    kinds = _by(rows, "negatives")
    figure, axes = _panels(len(kinds) + 1, 1, height=0.4 + 2.6 * (len(kinds) + 1))
    *accuracies, cost = axes = axes[:, 0]
    for ax, (kind, members) in zip(accuracies, kinds.items(), strict=True):
        for number, (method, points) in enumerate(_by(members, "method").items()):
            _line(ax, points, "num_candidates", number, label=method)
        ax.plot(*_points(members, "num_candidates", "chance"), color=GRAY, linestyle=":", label="guessing")
        ax.set_title(f"{kind} negatives")
        ax.set_ylim(0, 1.02)
        ax.set_ylabel("hit_rate@1")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper left", ncols=3)
    for number, (method, members) in enumerate(_by(rows, "method").items()):
        points = _points([row for row in members if row["prompts"]], "num_candidates", "prompts")
        cost.plot(*points, color=COLORS[number], marker=MARKERS[number], markersize=4, label=method)
    cost.set_yscale("log")
    cost.set_title("prompts per question")
    costs = sorted({row["prompts"] for row in rows if row["prompts"]})
    cost.set_yticks(_apart(costs), [f"{number:,}" for number in _apart(costs)])
    cost.set_yticks([], minor=True)
    shown = _apart(sorted(_by(rows, "num_candidates")))
    for ax in axes:
        ax.set_xscale("log")
        ax.set_xticks(shown, [f"{size:,}" for size in shown], fontsize=9)
        ax.set_xticks([], minor=True)
        ax.set_xlabel("candidates")
    return figure


def _training(rows: Sequence[Row], chances: Mapping[str, float]) -> Figure:
    """Draw the loss of each stage and, below, the accuracy on validation questions at its checkpoints."""
    stages, validated = _by(rows, "stage"), f"validation_{HIT_RATE}"
    figure, (losses, hits) = _panels(2, len(stages), height=4.6, sharex="col", sharey="row")
    for above, below, (stage, members) in zip(losses, hits, stages.items(), strict=True):
        logged = [row for row in members if row.get("loss") is not None]
        above.plot(*_points(logged, "step", "loss"), color=COLORS[0], linewidth=1.2)
        above.set_title(stage)
        _line(below, [row for row in members if row.get(validated) is not None], "step", 2, name=validated)
        below.set_xlabel("step")
    for ax, label in ((losses[0], "training loss"), (hits[0], "validation hit_rate@1")):
        ax.set_ylabel(label)
        ax.set_ylim(bottom=0)
    return figure


def _cold_start(rows: Sequence[Row], chances: Mapping[str, float]) -> Figure:
    """Draw accuracy by slice, a row of panels for each question set."""
    groups, slices, variants = _by(rows, "questions"), _by(rows, "slice"), _by(rows, "variant")
    titles = {"answer": "answer in some training bundle (warm) or in none (cold)", "partial_length": "items shown"}
    figure, axes = _panels(len(groups) * len(slices), 1, height=0.9 + 2.6 * len(groups) * len(slices))
    axes = axes.reshape(len(groups), len(slices))
    for panels, (group, members) in zip(axes, groups.items(), strict=True):
        for ax, name in zip(panels, slices, strict=True):
            subset = [row for row in members if row["slice"] == name]
            counts = {row["value"]: row["num_questions"] for row in subset}
            for number, variant in enumerate(variants):
                shift = 0.08 * (number - (len(variants) - 1) / 2)
                points = [row for row in subset if row["variant"] == variant]
                points = [{**row, "place": list(counts).index(row["value"]) + shift} for row in points]
                _line(ax, points, "place", number, label=variant, joined=0)
            ax.set_xticks(range(len(counts)), [f"{value}\n(n = {n})" for value, n in counts.items()], fontsize=9)
            ax.set_xlim(-0.5, len(counts) - 0.5)
            _mark_guessing(ax.axhline, chances, [group])
            ax.set_title(group)
            ax.set_xlabel(titles.get(name, name))
            ax.set_ylabel("hit_rate@1")
            ax.set_ylim(bottom=0)
    figure.legend(*axes[0][-1].get_legend_handles_labels(), loc="outside upper left", ncols=2)
    return figure


def _position(rows: Sequence[Row], chances: Mapping[str, float]) -> Figure:
    """Draw by letter how often it is right, how often the ranker chooses it, and how often it is then right."""
    groups = _by(rows, "questions")
    figure, axes = _panels(len(groups), 1, height=0.8 + 2.5 * len(groups))
    axes = axes[:, 0]
    series = (("share_right", "answer stands there", GRAY), ("share_of_answers", "ranker chooses it", COLORS[0]))
    for ax, (group, members) in zip(axes, groups.items(), strict=True):
        for shift, (name, label, color) in zip((-0.19, 0.19), series, strict=True):
            places = [place + shift for place in range(len(members))]
            ax.bar(places, [row[name] for row in members], 0.36, color=color, label=label)
        known = [(place, row["accuracy"]) for place, row in enumerate(members) if row["accuracy"] is not None]
        label = "hit_rate@1 where the answer stands there"
        ax.plot(*zip(*known, strict=True), "o", color=COLORS[5], markersize=4, label=label)
        ax.set_xticks(range(len(members)), [row["letter"] for row in members])
        ax.set_title(group)
        ax.set_xlabel("letter")
        ax.set_ylabel("share of questions")
        ax.grid(False, axis="x")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper left", ncols=1)
    return figure


def _prediction_sets(rows: Sequence[Row], chances: Mapping[str, float]) -> Figure:
    """Draw how often sets hold the answer against how often they should, and below how large they are."""
    figure, [[coverage], [size]] = _panels(2, 1, height=5.2, sharex=True)
    asked = sorted({row["asked"] for row in rows})
    coverage.plot(asked, asked, color=GRAY, linestyle=":", label="as asked")
    for number, (group, members) in enumerate(_by(rows, "questions").items()):
        _line(coverage, members, "asked", number, name="coverage", label=group)
        _line(size, members, "asked", number, name="size")
    coverage.set_ylabel("share of sets with the answer")
    size.set_ylabel("candidates in a set")
    size.set_ylim(bottom=0)
    size.set_xticks(asked, [f"{value:g}" for value in asked])
    size.set_xlabel("probability asked for")
    figure.legend(*coverage.get_legend_handles_labels(), loc="outside upper left", ncols=2)
    return figure


def _backbones(rows: Sequence[Row], chances: Mapping[str, float]) -> Figure:
    """Draw accuracy against the number of parameters."""
    figure, [[ax]] = _panels(1, 1, height=3.6)
    groups = _by(rows, "questions")
    for number, (group, members) in enumerate(groups.items()):
        _line(ax, sorted(members, key=lambda row: row["parameters"]), "parameters", number, label=group)
    for row in next(iter(groups.values())):
        place = (row["parameters"], row[HIT_RATE])
        ax.annotate(row["name"], place, xytext=(6, 6), textcoords="offset points", fontsize=9)
    _mark_guessing(ax.axhline, chances, groups)
    ax.set_xscale("log")
    ax.set_ylim(bottom=0)
    ax.margins(x=0.15)
    ax.set_xlabel("parameters")
    ax.set_ylabel("hit_rate@1")
    figure.legend(loc="outside upper right", ncols=len(groups))
    return figure


FIGURES: dict[str, Callable[[Sequence[Row], Mapping[str, float]], Figure]] = {
    **dict.fromkeys(("by_stage", "baselines", "bayes_optimal", "ablation"), _bars),
    "by_length": _by_length,
    "cold_start": _cold_start,
    "training": _training,
    "position": _position,
    "prediction_sets": _prediction_sets,
    "backbones": _backbones,
}
"""What draws each section."""


def _line(
    ax: Axes, rows: Sequence[Row], x: str, number: int, *, name: str = HIT_RATE, label: str = "", joined: float = 1.2
) -> None:
    """Draw points with error bars, joined by a line or not."""
    style = {"color": COLORS[number % len(COLORS)], "marker": MARKERS[number % len(MARKERS)], "markersize": 4.5}
    style |= {"linewidth": joined, "linestyle": "-" if joined else "none", "elinewidth": 1, "capsize": 2}
    errors = [row.get(f"{name}_se") or 0.0 for row in rows]
    ax.errorbar([row[x] for row in rows], [row[name] for row in rows], yerr=errors, label=label or None, **style)


def _mark_guessing(line: Callable[..., Any], chances: Mapping[str, float], groups: Iterable[str]) -> None:
    for chance in sorted({round(chances[group], 6) for group in groups}):
        line(chance, color=GRAY, linestyle=":", linewidth=1)


def _points(rows: Sequence[Row], x: str, y: str) -> tuple[list[float], list[float]]:
    """Return two columns, sorted by the first, each value of it once."""
    by_key = {row[x]: row[y] for row in rows}
    return sorted(by_key), [by_key[value] for value in sorted(by_key)]


def _apart(values: Sequence[int]) -> list[int]:
    """Return the values, sorted, that can stand side by side on a logarithmic axis: closer ones would overlap."""
    shown: list[int] = []
    for value in values:
        shown += [value] if not shown or value >= 1.9 * shown[-1] else []
    return shown


def _panels(rows: int, columns: int, *, height: float, **shared: Any) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure  # without pyplot: no window, no state that outlives the figure

    figure = Figure(figsize=(WIDTH, height))
    return figure, figure.subplots(rows, columns, squeeze=False, **shared)


def _by(rows: Sequence[Row], name: str) -> dict[Any, list[Row]]:
    """Return the rows by their value in a column, in the order in which the values come."""
    members: dict[Any, list[Row]] = {}
    for row in rows:
        members.setdefault(row[name], []).append(row)
    return members
