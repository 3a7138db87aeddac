"""How results look on the terminal.

Knows nothing about how they were computed.
"""

from __future__ import annotations

import json
import shlex
import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from bundle_mllm import progress
from bundle_mllm.evaluation.tables import (
    OF_CATALOGS,
    Row,
    better_baseline,
    main_metric,
    methods_table,
    parts_table,
    value_text,
)

if TYPE_CHECKING:
    from bundle_mllm.hub.repository import PublishReport

Metrics = Mapping[str, Any]
Options = Mapping[str, Any]
_JOINERS = "\u200c\u200d"  # of letters in Persian and Hindi, and of emoji


def say(text: str, stream: TextIO | None = None) -> None:
    """Print a text to a terminal; see [`printable`]."""
    target: TextIO = sys.stdout if stream is None else stream
    print(printable(text, target.encoding or "ascii"), file=target)


def note(text: str) -> None:
    """Show a note about a result, unless only results are wanted."""
    progress.note(printable(f"note: {text}", sys.stderr.encoding or "ascii"))


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


def demo(result: Mapping[str, Any], options: Options) -> str:
    """Return what `demo.json` holds as text, and where the page is."""
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
            f"{head}, {round(1 / result['random'])} candidates each",
            f"{'':32}  hit_rate@1",
            *(f"{label:32}  {result[key]:10.3f}" for label, key in rows),
            f"\nvalid_ratio {result['valid_ratio']:.3f} · standard error {result['hit_rate@1_se']:.3f}\n",
            "A bundle of the test split: " + " + ".join(item["title"] for item in completion["partial"]),
            ranking(completion["ranked"][:5], answer=completion["answer"]),
            f"The same as a page: {options['output_dir'] / 'demo.html'}",
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
            sources = explanation.pop("contributions", {})
            probabilities = [f"{part} {value:.1%}" for part, value in explanation.items()]
            summands = [f"{name} {value:+.2f}" for name, value in sources.items()]
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


def trained(folder: Path, options: Options) -> str:
    """Return the validation figures of a run, where its model is, and the commands that measure it."""
    from bundle_mllm.training.trained import read_run, validation_figures

    record = read_run(folder)
    found = validation_figures(record)
    lines = [f"{label:18} {value_text(figures, 'hit_rate@1', 3)}" for label, figures in found.items()]
    if found:
        number = max(figures["num_questions"] for figures in found.values())
        candidates = record["settings"]["validation_candidates"]
        lines.insert(0, f"{'':18} hit_rate@1 on {number} validation questions of {candidates} candidates")
    if "continued" in record:
        lines.append(f"The {'new' if record['continued']['is_kept'] else 'old'} weights are kept.")
    data, model = shlex.quote(str(options["data"])), shlex.quote(str(folder))
    return "\n".join(
        [
            *lines,
            model_folder(folder, options),
            f"next: bundle-mllm questions --data {data} --split test --output questions.jsonl",
            f"      bundle-mllm evaluate --model {model} --data {data} --questions questions.jsonl --baselines all",
        ]
    )


def retriever(figures: Mapping[str, Metrics], options: Options) -> str:
    """Return the validation figures of a ranker that got a retriever."""
    return f"{parts(figures)}\nretriever added to {options['model']}"


def calibrated(counts: Mapping[str, int], options: Options) -> str:
    """Return on what a model was calibrated."""
    return (
        f"calibrated on {counts['num_questions']} bundles, a question of up to {counts['num_candidates']} candidates "
        f"about each -> {options['model']}"
    )


def exported(folder: Path, options: Options) -> str:
    """Return the folder of a stock language model, and what stays behind."""
    behind = json.loads((folder / "bundle_mllm_export.json").read_text(encoding="utf-8"))["left_behind"]
    lines = [f"It is the ranker alone: the {part} stays in {options['model']}." for part in behind]
    return "\n".join([f"language model: {folder}", *lines])


def metrics(values: Metrics, options: Options) -> str:
    """Return the metrics of a model, its parts side by side."""
    counts = f"{values['num_questions']} about {values['num_bundles']} bundles"
    lines = [parts(values["parts"]), *(_slices(values) if "protocol" in values else [])]
    sets = values.get("prediction_sets", ())
    lines += [_set(each) for each in sets]
    if sets and (number := sets[0]["num_left_out"]):
        lines.append(f"sets leave out {number:,} questions about bundles that calibrated them")
    return "\n".join([*lines, f"questions    {counts}", f"written to   {options['output']}"])


def _set(figures: Metrics) -> str:
    """Return the figures of the sets of one stated probability."""
    return (
        f"sets of {100 * figures['asked']:g}%  hold the answer {value_text(figures, 'coverage', 3)}, size "
        f"{value_text(figures, 'size', 2)}; nothing fits {value_text(figures, 'nothing_fits', 3)}, without the answer "
        f"{value_text(figures, 'nothing_fits_without_answer', 3)}"
    )


def _slices(values: Metrics) -> list[str]:
    """Return Recall and NDCG of cold and warm items, and by the number of items shown."""
    names = {"relevant": "{} items", "partial_length": "{} shown"}
    lines = []
    for name, template in names.items():
        for label, of_slice in values["slices"].get(name, {}).items():
            figures = "  ".join(f"{metric} {value_text(of_slice, metric)}" for metric in OF_CATALOGS[:2])
            lines.append(f"{template.format(label):11}  {figures}  ({of_slice['num_questions']} questions)")
    return lines


def parts(values: Mapping[str, Metrics]) -> str:
    """Return the metrics of ranker, retriever and both, side by side."""
    table = parts_table(values)
    width = max(len(name) for name, *_ in table)
    lines = (f"{name:{width}}" + "".join(f"  {cell:15}" for cell in cells) for name, *cells in table)
    return "\n".join(line.rstrip() for line in lines)


def methods(rows: Mapping[str, Row]) -> str:
    """Return the metrics and seconds of several methods, the best first, and how much better the model is."""
    table = methods_table(rows)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ("  ".join(f"{c:{w}}" for c, w in zip(cells, widths, strict=True)).rstrip() for cells in table)
    return "\n" + "\n".join(lines)


def advice(rows: Mapping[str, Row]) -> str | None:
    """Return what to do where a baseline is better than the model; `None` where none is."""
    if (found := better_baseline(rows)) is None:
        return None
    name, paired = found
    return (
        f"the baseline {name} is better than the model by {-paired['difference']:.4f} ± {paired['se']:.4f} "
        f'({main_metric(rows)}): docs/guides/evaluation.md, "When a baseline is better", says what to try.'
    )


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
    lines = [f"{row['questions']:24}  {row['variant']:28}  {value_text(row, 'hit_rate@1', 3)}" for row in rows]
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
    space = [] if report.space is None else ["the Space:", published(report.space, _)]
    return "\n".join([*lines, done, *space])
