"""How results look on the terminal.

Knows nothing about how they were computed.
"""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

if TYPE_CHECKING:
    from bundle_mllm.hub.repository import PublishReport

Metrics = Mapping[str, Any]
Options = Mapping[str, Any]
OF_CANDIDATES = ("hit_rate@1", "hit_rate@3", "hit_rate@5", "mrr")
OF_CATALOGS = ("recall@20", "ndcg@20", "hit_rate@20", "mrr", "coverage@20", "novelty@20", "diversity@20")
"""The metrics in tables, of given candidates and of whole catalogs."""
_JOINERS = "\u200c\u200d"  # of letters in Persian and Hindi, and of emoji


def say(text: str, stream: TextIO | None = None) -> None:
    """Print a text to a terminal; see [`printable`]."""
    target: TextIO = sys.stdout if stream is None else stream
    print(printable(text, target.encoding or "ascii"), file=target)


def printable(text: str, encoding: str) -> str:
    r"""Return a text that no terminal takes for commands, and that the encoding of a stream can hold.

    Control characters, and those that turn the direction of writing, become `\u001b`; so does what the encoding
    lacks. These are the escapes of JSON, so that a JSON document stays one, with the same values.
    """
    if text.isprintable() and text.isascii():
        return text
    return "".join(
        character if _is_plain(character, encoding) else json.dumps(character)[1:-1].replace("\x7f", "\\u007f")
        for character in text
    )


def _is_plain(character: str, encoding: str) -> bool:
    if character == "\n" or " " <= character <= "~":
        return True
    if not (character.isprintable() or character in _JOINERS or unicodedata.category(character) == "Zs"):
        return False
    try:
        character.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def demo(result: Mapping[str, Any], _: Options) -> str:
    """Return what `demo.json` holds as text."""
    rows = [
        ("random", "random"),
        ("retriever", "retriever"),
        ("ranker, stage one (titles only)", "stage_one"),
        ("ranker, stage two (multimodal)", "stage_two"),
        ("both", "both"),
        ("both, features permuted", "both_shuffled"),
    ]
    completion = result["completion"]
    head = f"Invented {result['domain']} catalog, seed {result['seed']}: {result['num_questions']} test questions"
    return "\n".join(
        [
            f"{head}, {round(1 / result['random'])} candidates each\n",
            f"{'':32}  hit_rate@1",
            *(f"{label:32}  {result[key]:10.3f}" for label, key in rows),
            f"\nvalid_ratio {result['valid_ratio']:.3f} · standard error {result['hit_rate@1_se']:.3f}\n",
            "A bundle of the test split: " + " + ".join(item["title"] for item in completion["partial"]),
            ranking(completion["ranked"][:5], answer=completion["answer"]),
        ]
    )


def ranking(ranked: Iterable[Mapping[str, Any]], answer: str | None = None) -> str:
    """Return ranked candidates, one line each; the right one is marked where it is known."""
    lines = []
    for entry in ranked:
        mark = "   <- the item that was left out" if entry["item_id"] == answer else ""
        guess = "   (a guess: nothing is known about it)" if entry.get("guess") else ""
        lines.append(f"  {entry['score']:6.1%}  {entry['item_id']}  {entry['title']}{guess}{mark}")
        if explanation := dict(entry.get("explanation", {})):
            terms = explanation.pop("retriever_terms", {})
            probabilities = [f"{part} {value:.1%}" for part, value in explanation.items()]
            summands = [f"{name} {value:+.2f}" for name, value in terms.items()]
            lines.append(f"          {', '.join(probabilities)}" + (f" ({', '.join(summands)})" if summands else ""))
    return "\n".join(lines)


def synthetic(catalog: Any, options: Options) -> str:
    """Return the size of a synthetic catalog."""
    items, bundles = len(catalog.item_ids), len(catalog.bundles["train"])
    return f"{items} invented items, {bundles} training bundles -> {options['output_dir']}"


def best_accuracy(result: tuple[Metrics, Mapping[Any, Metrics]], options: Options) -> str:
    """Return the Bayes-optimal accuracy, and the share of it that each metrics file reached."""
    best, shares = result
    lines = [f"Bayes-optimal  {best['expected']:.4f} expected, {best['realized']:.4f} realized -> {options['output']}"]
    lines += [
        f"share          {share['share']:.4f} ± {share['share_se']:.4f} of expected, "
        f"{share['share_of_realized']:.4f} of realized: {share['accuracy']:.4f} in {path}"
        for path, share in shares.items()
    ]
    return "\n".join(lines)


def questions(made: Sequence[Any], options: Options) -> str:
    """Return the number of questions."""
    bundles = len({question.bundle_id for question in made})
    return f"{len(made)} questions about {bundles} {options['split']} bundles -> {options['output']}"


def model_folder(folder: object, _: Options) -> str:
    """Return the folder of a model."""
    return f"model folder: {folder}"


def retriever(figures: Mapping[str, Metrics], options: Options) -> str:
    """Return the validation figures of a ranker that got a retriever."""
    return f"{parts(figures)}\nretriever added to {options['model']}"


def exported(folder: Path, options: Options) -> str:
    """Return the folder of a stock language model, and what stays behind."""
    behind = json.loads((folder / "bundle_mllm_export.json").read_text(encoding="utf-8"))["left_behind"]
    lines = [f"It is the ranker alone: the {part} stays in {options['model']}." for part in behind]
    return "\n".join([f"language model: {folder}", *lines])


def metrics(values: Metrics, options: Options) -> str:
    """Return the metrics of a model, its parts side by side."""
    counts = f"{values['num_questions']} about {values['num_bundles']} bundles"
    lines = [parts(values["parts"]), *(_slices(values) if "protocol" in values else [])]
    return "\n".join([*lines, f"questions    {counts}", f"written to   {options['output']}"])


def _slices(values: Metrics) -> list[str]:
    """Return Recall and NDCG of cold and warm items, and by the number of items shown."""
    names = {"relevant": "{} items", "partial_length": "{} shown"}
    lines = []
    for name, template in names.items():
        for label, of_slice in values["slices"].get(name, {}).items():
            figures = "  ".join(f"{metric} {_value(of_slice, metric)}" for metric in OF_CATALOGS[:2])
            lines.append(f"{template.format(label):11}  {figures}  ({of_slice['num_questions']} questions)")
    return lines


def parts(values: Mapping[str, Metrics]) -> str:
    """Return the metrics of ranker, retriever and both, side by side."""
    values = {part: numbers for part, numbers in values.items() if "mrr" in numbers}
    table: dict[str, list[str]] = {"": list(values)}
    for name in dict.fromkeys((*OF_CANDIDATES, "valid_ratio", *OF_CATALOGS)):
        table[name] = [_value(numbers, name) for numbers in values.values()]
    width = max(len(name) for name, cells in table.items() if any(cells))
    lines = (f"{name:{width}}" + "".join(f"  {c:15}" for c in cells) for name, cells in table.items() if any(cells))
    return "\n".join(line.rstrip() for line in lines)


def _value(numbers: Metrics, name: str, digits: int = 4) -> str:
    values = (numbers.get(name), numbers.get(f"{name}_se"))
    return " ± ".join(f"{value:.{digits}f}" for value in values if value is not None)


class Row(NamedTuple):
    """A method in a table: its metrics, what it cost, and how much the model is better, from `compare_metrics`."""

    metrics: Metrics
    seconds: float | None = None
    differences: Mapping[str, Any] = {}


def methods(rows: Mapping[str, Row]) -> str:
    """Return the metrics and seconds of several methods, the best first, and how much better the model is."""
    of_catalogs = any("recall@20" in row.metrics for row in rows.values())
    names = OF_CATALOGS if of_catalogs else ("hit_rate@1", "hit_rate@1_random_ties", "hit_rate@3", "mrr")
    main = names[0] if of_catalogs else names[1]
    compared = any(row.differences for row in rows.values())
    table = [["", *names, *([f"model better by ({main})"] if compared else []), "seconds"]]
    for name, row in sorted(rows.items(), key=lambda row: -row[1].metrics[main]):
        cells = [name, *(_value(row.metrics, metric) for metric in names)]
        if compared:
            paired = row.differences.get(main)
            cells.append(f"{paired['difference']:+.4f} ± {paired['se']:.4f}" if paired else "")
        table.append([*cells, "" if row.seconds is None else f"{row.seconds:.1f}"])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ("  ".join(f"{c:{w}}" for c, w in zip(cells, widths, strict=True)).rstrip() for cells in table)
    return "\n" + "\n".join(lines)


def comparison(differences: Mapping[str, Any], _: Options) -> str:
    """Return the metrics of two runs and their differences."""
    return "\n".join(
        f"{name:20} {row['a']:.4f} - {row['b']:.4f} = {row['difference']:+.4f} ± {row['se']:.4f}"
        for name, row in differences.items()
        if isinstance(row, dict) and "difference" in row
    )


def benchmark(result: Mapping[str, Any], options: Options) -> str:
    """Return the table of a benchmark, and where it is."""
    return f"{result['table']}\nwritten to {options['output_dir'] / 'benchmark.md'}"


def report(result: Mapping[str, Any], options: Options) -> str:
    """Return the first table of a report, and where the page is."""
    folder = options["output_dir"] or options["model"][0] / "report"
    rows = result["sections"]["by_stage"]["rows"]
    lines = [f"{row['questions']:24}  {row['variant']:28}  {_value(row, 'hit_rate@1', 3)}" for row in rows]
    page = f"measured in {result['seconds']['total']:.0f} s; the page: {folder / 'report.html'}"
    return "\n".join([*lines, page])


def published(report: PublishReport, _: Options) -> str:
    """Return the files of a repository and what became of it."""
    lines = [f"{size:>15,}  {path}" for path, size in report.files.items()]
    lines.append(f"{report.size:>15,}  bytes in {len(report.files)} files of {report.folder}")
    if report.left_out:
        lines.append(f"left out: {', '.join(report.left_out)}")
    lines += [f"published as they are: {note}" for note in report.notes]
    if (verified := report.verification) is not None:
        lines.append(
            f"verified: {verified.num_questions} questions answered without this package, largest difference "
            f"{verified.largest_difference:.1e}"
        )
    done = f"published: {report.commit_url}" if report.commit_url else f"dry run: {report.repo_id} was not touched"
    return "\n".join([*lines, done])
