"""How results look on the terminal.

Knows nothing about how they were computed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bundle_mllm.hub.repository import PublishReport

Metrics = Mapping[str, Any]
_HITS = ("hit_rate@1", "hit_rate@1_random_ties")


def ranking(ranked: Iterable[Mapping[str, Any]], answer: str | None = None) -> str:
    """Return ranked candidates, one line each; the right one is marked where it is known."""
    return "\n".join(
        f"  {entry['score']:6.1%}  {entry['item_id']}  {entry['title']}"
        + ("   <- the item that was left out" if entry["item_id"] == answer else "")
        for entry in ranked
    )


def metrics(values: Metrics, output: object) -> str:
    """Return the metrics of a model."""
    names = ("hit_rate@1", "hit_rate@3", "hit_rate@5", "mrr")
    lines = [f"{name:11}  {values[name]:.4f} ± {values[f'{name}_se']:.4f}" for name in names]
    return "\n".join(
        [
            *lines,
            f"valid_ratio  {values['valid_ratio']:.4f}",
            f"questions    {values['num_questions']} about {values['num_bundles']} bundles",
            f"written to   {output}",
        ]
    )


def methods(rows: Mapping[str, tuple[Metrics, float | None]]) -> str:
    """Return the hit rates and the seconds of several methods, the best first."""
    width = max(map(len, rows))
    lines = [f"\n{'':{width}}  hit_rate@1       ties at random   seconds"]
    for name, (values, seconds) in sorted(rows.items(), key=lambda row: -row[1][0]["hit_rate@1_random_ties"]):
        hits = "  ".join(f"{values[key]:.4f} ± {values[f'{key}_se']:.4f}" for key in _HITS)
        lines.append(f"{name:{width}}  {hits}  {'' if seconds is None else format(seconds, '7.1f')}".rstrip())
    return "\n".join(lines)


def comparison(differences: Mapping[str, Any]) -> str:
    """Return the metrics of two runs and their differences."""
    return "\n".join(
        f"{name:20} {row['a']:.4f} - {row['b']:.4f} = {row['difference']:+.4f} ± {row['se']:.4f}"
        for name, row in differences.items()
        if isinstance(row, dict) and "difference" in row
    )


def report_rows(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the first table of a report."""
    lines = []
    for row in rows:
        error = f" ± {row['hit_rate@1_se']:.3f}" if row.get("hit_rate@1_se") is not None else ""
        lines.append(f"{row['questions']:24}  {row['variant']:28}  {row['hit_rate@1']:.3f}{error}")
    return "\n".join(lines)


def published(report: PublishReport) -> str:
    """Return the files of a repository and what became of it."""
    lines = [f"{size:>15,}  {path}" for path, size in report.files.items()]
    lines.append(f"{report.size:>15,}  bytes in {len(report.files)} files of {report.folder}")
    if report.left_out:
        lines.append(f"left out: {', '.join(report.left_out)}")
    lines += [f"published as they are: {note}" for note in report.notes]
    if report.verification is not None:
        lines.append(
            f"verified: {report.verification.num_questions} questions answered without this package, largest "
            f"difference {report.verification.largest_difference:.1e}"
        )
    done = f"published: {report.commit_url}" if report.commit_url else f"dry run: {report.repo_id} was not touched"
    return "\n".join([*lines, done])
