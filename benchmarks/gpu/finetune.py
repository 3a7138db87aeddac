"""Fine-tune a pretrained ranker on the paper's 20,000 questions per stage, in pieces of a few minutes.

    python benchmarks/gpu/finetune.py --data DATA --base-model SMOLLM2 --output-dir OUT --questions hard.jsonl
    python benchmarks/gpu/finetune.py … --scoring options                    # without letters
    python benchmarks/gpu/finetune.py … --num-questions 32 --retriever.steps 10      # checks the script

Options that are not of this script are those of `bundle-mllm train`.

A run that is not over after `--minutes` is stopped, and the same command continues it: it loses no complete
checkpoint. Once it is over, the ranker after each stage, the retriever and both are evaluated. Prints JSON, which
`OUT/finetune.json` holds, too.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

CLI = [sys.executable, "-m", "bundle_mllm.cli"]
FIGURES = ("hit_rate@1", "hit_rate@1_se", "valid_ratio")


def train(args: argparse.Namespace, options: list[str]) -> bool:
    """Train for so many minutes at most, with further options of `train`, and return whether the run is over."""
    command = [*CLI, "train", "--data", args.data, "--output-dir", args.output_dir, "--base-model", args.base_model]
    command += ["--scoring", args.scoring, "--seed", str(args.seed)]
    for stage in ("stage-one", "stage-two"):
        command += [f"--{stage}.num-questions", str(args.num_questions), f"--{stage}.batch-size", str(args.batch_size)]
        command += [f"--{stage}.num-validations", str(args.num_validations)]
    try:
        subprocess.run(list(map(str, [*command, *options])), check=True, timeout=60 * args.minutes)
    except subprocess.TimeoutExpired:
        return False
    return True


def evaluate(model: Path, data: Path, questions: Path) -> dict[str, dict[str, float]]:
    """Return the figures of each part of a model folder on a question file."""
    output = model / f"metrics_{questions.stem}.json"
    command = [*CLI, "evaluate", "--model", model, "--data", data, "--questions", questions, "--output", output]
    subprocess.run(list(map(str, command)), check=True)
    metrics = json.loads(output.read_text(encoding="utf-8"))
    parts = metrics.get("parts") or {"ranker": metrics}
    return {part: {name: values[name] for name in FIGURES if name in values} for part, values in parts.items()}


def main() -> None:
    """Continue the run; evaluate it once it is over."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--base-model", required=True)
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--questions", type=Path, nargs="*", default=[])
    parser.add_argument("--scoring", choices=("letters", "options"), default="letters")
    parser.add_argument("--num-questions", type=int, default=20_000)
    parser.add_argument("--num-validations", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--minutes", type=float, default=7.0)
    parser.add_argument("--seed", type=int, default=0)
    args, options = parser.parse_known_args()
    start = time.perf_counter()
    result: dict[str, object] = {"finished": train(args, options), "minutes": (time.perf_counter() - start) / 60}
    if result["finished"]:
        models = {"stage_one": args.output_dir / "training/stage_one/model", "stage_two": args.output_dir}
        result["figures"] = {
            file.stem: {stage: evaluate(model, args.data, file) for stage, model in models.items()}
            for file in args.questions
        }
        (args.output_dir / "finetune.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
