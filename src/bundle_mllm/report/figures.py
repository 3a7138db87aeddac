"""Draw the sections of a report from their rows, one PNG each.

Knows nothing about models: it computes nothing but places and colors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bundle_mllm.data.files import atomic_path
from bundle_mllm.errors import BundleMLLMError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, Any]
COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")  # safe for color-blind readers
MARKERS = "os^DvP"
GRAY = "#8a8f98"
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GRAY,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e8eb",
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}
WIDTH, DPI = 8.0, 150
HIT_RATE, RANDOM_TIES = "hit_rate@1", "hit_rate@1_random_ties"


def check_drawable() -> None:
    """Refuse to begin where figures could not be drawn in the end.

    Raises:
        BundleMLLMError: If matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise BundleMLLMError(
            "matplotlib is not installed, so a report could not be drawn: pip install 'bundle-mllm[report]'."
        ) from error


def draw(section: str, rows: Sequence[Row], chances: Mapping[str, float], path: Path) -> None:
    """Draw a section.

    Args:
        section: One of `FIGURES`.
        rows: Its rows.
        chances: By question set, what guessing would reach.
        path: The PNG file to write.
    """
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
    variants, groups = _values(rows, "variant"), _values(rows, "questions")
    figure, ax = _figure(height=0.9 + len(variants) * (0.16 + 0.2 * len(groups)))
    height = 0.8 / len(groups)
    by_key = {(row["variant"], row["questions"]): row for row in rows}
    for number, group in enumerate(groups):
        for place, variant in enumerate(variants):
            if (row := by_key.get((variant, group))) is None:
                continue
            y = place - 0.4 + height * (number + 0.5)
            error = row.get(f"{name}_se") or 0.0
            label = group if place == 0 else None
            ax.barh(y, row[name], height * 0.9, color=COLORS[number % len(COLORS)], label=label)
            if error:
                ax.errorbar(row[name], y, xerr=error, color="#333333", elinewidth=1, capsize=2)
            if "expected" in row:
                ax.vlines(row["expected"], y - height / 2, y + height / 2, color="#1d2733", linewidth=2)
            ax.text(row[name] + error + 0.008, y, _number(row[name]), va="center", fontsize=8)
    for chance in sorted({round(chances[group], 6) for group in groups}):
        ax.axvline(chance, color=GRAY, linestyle=":", linewidth=1)
    ax.set_yticks(range(len(variants)), variants)
    ax.set_ylim(len(variants) - 0.45, -0.55)
    ax.set_xlim(0, min(1.1, 1.15 * max(row[name] + (row.get(f"{name}_se") or 0) for row in rows) + 0.05))
    ax.set_xlabel(f"{name}, ± standard error (dotted: guessing)")
    ax.grid(False, axis="y")
    if len(groups) > 1:
        figure.legend(loc="outside upper right", ncols=len(groups))
    return figure


def _by_length(rows: Sequence[Row], chances: Mapping[str, float]) -> Figure:
    """Draw accuracy against the number of candidates, one panel for each kind of negatives, and what it costs."""
    kinds = _values(rows, "negatives")
    figure, axes = _panels(1, len(kinds) + 1, height=3.3)
    sizes = sorted({row["num_candidates"] for row in rows})
    for ax, kind in zip(axes[0], kinds, strict=False):
        subset = [row for row in rows if row["negatives"] == kind]
        for number, method in enumerate(_values(rows, "method")):
            points = [row for row in subset if row["method"] == method]
            _line(ax, points, "num_candidates", number, label=method)
        ax.plot(*_points(subset, "num_candidates", "chance"), color=GRAY, linestyle=":", label="guessing")
        ax.set_title(f"{kind} negatives", fontsize=9)
        ax.set_ylim(0, 1.02)
    axes[0][0].set_ylabel("hit_rate@1, ± standard error")
    axes[0][0].legend(loc="upper right")
    cost = axes[0][-1]
    for number, method in enumerate(_values(rows, "method")):
        points = [row for row in rows if row["method"] == method and row["prompts"]]
        xs, ys = _points(points, "num_candidates", "prompts")
        cost.plot(xs, ys, color=COLORS[number], marker=MARKERS[number], markersize=4, label=method)
    cost.set_yscale("log")
    cost.set_title("prompts per question", fontsize=9)
    cost.yaxis.set_major_formatter("{x:g}")
    cost.yaxis.set_minor_formatter("{x:g}")
    shown: list[int] = []
    for size in sizes:
        shown += [size] if not shown or size >= 1.9 * shown[-1] else []  # closer ones would overlap
    for ax in axes[0]:
        ax.set_xscale("log")
        ax.set_xticks(shown, [f"{size:,}" for size in shown], fontsize=8)
        ax.set_xticks([], minor=True)
        ax.set_xlabel("candidates")
    return figure


def _training(rows: Sequence[Row], chances: Mapping[str, float]) -> Figure:
    """Draw the loss of each stage and, below, the accuracy on validation questions at its checkpoints."""
    stages = _values(rows, "stage")
    figure, axes = _panels(2, len(stages), height=4.4, sharex="col", sharey="row")
    for column, stage in enumerate(stages):
        subset = [row for row in rows if row["stage"] == stage]
        losses = [row for row in subset if row.get("loss") is not None]
        axes[0][column].plot(*_points(losses, "step", "loss"), color=COLORS[0], linewidth=1.2)
        axes[0][column].set_title(stage, fontsize=9)
        _line(
            axes[1][column],
            [row for row in subset if row.get(f"validation_{HIT_RATE}") is not None],
            "step",
            2,
            name=f"validation_{HIT_RATE}",
        )
        axes[1][column].set_xlabel("step")
    axes[0][0].set_ylabel("training loss")
    axes[1][0].set_ylabel("validation hit_rate@1")
    axes[0][0].set_ylim(bottom=0)
    axes[1][0].set_ylim(bottom=0)
    return figure


def _cold_start(rows: Sequence[Row], chances: Mapping[str, float]) -> Figure:
    """Draw accuracy by slice, a row of panels for each question set."""
    groups, slices = _values(rows, "questions"), _values(rows, "slice")
    titles = {"answer": "answer in some training bundle (warm) or in none (cold)", "partial_length": "items shown"}
    figure, axes = _panels(len(groups), len(slices), height=0.6 + 2.5 * len(groups), sharey="row")
    for panels, group in zip(axes, groups, strict=True):
        for ax, name in zip(panels, slices, strict=True):
            subset = [row for row in rows if row["questions"] == group and row["slice"] == name]
            values = _values(subset, "value")
            for number, variant in enumerate(_values(rows, "variant")):
                by_key = {row["value"]: row for row in subset if row["variant"] == variant}
                points = [{**by_key[value], "place": place} for place, value in enumerate(values) if value in by_key]
                shift = 0.08 * (number - (len(_values(rows, "variant")) - 1) / 2)
                _line(
                    ax, [p | {"place": p["place"] + shift} for p in points], "place", number, label=variant, joined=0
                )
            counts = {row["value"]: row["num_questions"] for row in subset}
            ax.set_xticks(range(len(values)), [f"{value}\n(n = {counts[value]})" for value in values], fontsize=8)
            ax.set_xlim(-0.5, len(values) - 0.5)
            ax.axhline(chances[group], color=GRAY, linestyle=":", linewidth=1)
            ax.set_xlabel(titles.get(name, name))
        panels[0].set_ylabel(f"{group}\nhit_rate@1, ± standard error")
        panels[0].set_ylim(bottom=0)
    handles, labels = axes[0][-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=len(labels))
    return figure


def _position(rows: Sequence[Row], chances: Mapping[str, float]) -> Figure:
    """Draw by letter how often it is right, how often the ranker chooses it, and how often it is then right."""
    groups = _values(rows, "questions")
    figure, axes = _panels(1, len(groups), height=2.9, sharey="row")
    series = (("share_right", "answer stands there"), ("share_of_answers", "ranker chooses it"))
    for ax, group in zip(axes[0], groups, strict=True):
        subset = [row for row in rows if row["questions"] == group]
        for number, (name, label) in enumerate(series):
            places = [place + 0.38 * (number - 0.5) for place in range(len(subset))]
            heights = [row[name] for row in subset]
            ax.bar(places, heights, 0.36, color=(GRAY, COLORS[0])[number], label=label)
        by_key = [(place, row["accuracy"]) for place, row in enumerate(subset) if row["accuracy"] is not None]
        ax.plot(
            *zip(*by_key, strict=True),
            "o",
            color=COLORS[5],
            markersize=4,
            label="hit_rate@1 where the answer stands there",
        )
        ax.set_xticks(range(len(subset)), [row["letter"] for row in subset])
        ax.set_title(group, fontsize=9)
        ax.set_xlabel("letter")
        ax.grid(False, axis="x")
    axes[0][0].set_ylabel("share of questions")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3)
    return figure


def _backbones(rows: Sequence[Row], chances: Mapping[str, float]) -> Figure:
    """Draw accuracy against the number of parameters."""
    figure, ax = _figure(height=3.6)
    groups = _values(rows, "questions")
    for number, group in enumerate(groups):
        subset = sorted((row for row in rows if row["questions"] == group), key=lambda row: row["parameters"])
        _line(ax, subset, "parameters", number, label=group)
    for row in rows:
        if row["questions"] == groups[0]:
            place = (row["parameters"], row[HIT_RATE])
            ax.annotate(row["name"], place, xytext=(6, 6), textcoords="offset points", fontsize=8)
    for chance in sorted({round(chances[group], 6) for group in groups}):
        ax.axhline(chance, color=GRAY, linestyle=":", linewidth=1)
    ax.set_xscale("log")
    ax.set_ylim(bottom=0)
    ax.margins(x=0.15)
    ax.set_xlabel("parameters")
    ax.set_ylabel("hit_rate@1, ± standard error")
    figure.legend(loc="outside upper right", ncols=len(groups))
    return figure


FIGURES: dict[str, Callable[[Sequence[Row], Mapping[str, float]], Figure]] = {
    "by_stage": _bars,
    "baselines": _bars,
    "bayes_optimal": _bars,
    "by_length": _by_length,
    "ablation": _bars,
    "cold_start": _cold_start,
    "training": _training,
    "position": _position,
    "backbones": _backbones,
}
"""What draws each section that has a figure."""


def _line(
    ax: Axes, rows: Sequence[Row], x: str, number: int, *, name: str = HIT_RATE, label: str = "", joined: float = 1.2
) -> None:
    """Draw points with error bars, joined by a line or not."""
    xs, ys = [row[x] for row in rows], [row[name] for row in rows]
    errors = [row.get(f"{name}_se") or 0.0 for row in rows]
    style = {"color": COLORS[number % len(COLORS)], "marker": MARKERS[number % len(MARKERS)]}
    lines = {"markersize": 4.5, "linewidth": joined, "linestyle": "-" if joined else "none", "elinewidth": 1}
    ax.errorbar(xs, ys, yerr=errors, capsize=2, label=label or None, **style, **lines)


def _points(rows: Sequence[Row], x: str, y: str) -> tuple[list[float], list[float]]:
    """Return two columns, sorted by the first, each value of it once."""
    by_key = {row[x]: row[y] for row in rows}
    return sorted(by_key), [by_key[value] for value in sorted(by_key)]


def _figure(height: float) -> tuple[Figure, Axes]:
    figure, axes = _panels(1, 1, height=height)
    return figure, axes[0][0]


def _panels(rows: int, columns: int, *, height: float, **shared: Any) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure  # without pyplot: no window, no state that outlives the figure

    figure = Figure(figsize=(WIDTH, height))
    return figure, figure.subplots(rows, columns, squeeze=False, **shared)


def _values(rows: Sequence[Row], name: str) -> list[Any]:
    """Return the values of a column, each once, in the order in which they come."""
    return list(dict.fromkeys(row[name] for row in rows))


def _number(value: float) -> str:
    return f"{value:.3f}".removeprefix("0") if value < 1 else f"{value:.3f}"
