"""Run by test_remote_code.py in a process that cannot import `bundle_mllm`: load a folder by its own code; save it.

    python clean_process.py FOLDER ADAPTER WORK

WORK/questions.json holds the questions; what was found is written to WORK/found.json.
"""

import json
import sys
from pathlib import Path

sys.modules["bundle_mllm"] = None  # an import of it now fails, as if it were not installed

import torch  # noqa: E402
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoProcessor, AutoTokenizer, pipeline  # noqa: E402

TRUST = {"trust_remote_code": True}


@torch.no_grad()
def look_at(folder: Path, questions: list[dict]) -> dict:
    """Load everything that a folder holds, and answer the questions in each way."""
    model, processor = (auto.from_pretrained(folder, **TRUST) for auto in (AutoModelForCausalLM, AutoProcessor))
    base, tokenizer = (auto.from_pretrained(folder, **TRUST) for auto in (AutoModel, AutoTokenizer))
    completer = pipeline("bundle-completion", model=str(folder), **TRUST)
    inputs = [processor(question, return_tensors="pt") for question in questions]
    head = model.get_output_embeddings()
    loaded = (AutoConfig.from_pretrained(folder, **TRUST), model, base, processor, tokenizer, completer)
    return {
        "classes": [f"{type(part).__module__}.{type(part).__name__}" for part in loaded],
        "input_ids": [one["input_ids"][0].tolist() for one in inputs],
        "tokenized": tokenizer([processor.render(question) for question in questions])["input_ids"],
        "logits": [model(**one).logits[0, -1].tolist() for one in inputs],
        "base_logits": [head(base(**one).last_hidden_state[0, -1]).tolist() for one in inputs],
        "completions": completer(questions),
        "batched": completer(questions, batch_size=len(questions)),
    }


@torch.no_grad()
def main() -> None:
    """Load, save by parts and by the pipeline, load again; load the processor's folder and the adapter."""
    folder, adapter, work = map(Path, sys.argv[1:])
    questions = json.loads((work / "questions.json").read_text())
    found = {"folder": look_at(folder, questions)}
    for auto in (AutoModelForCausalLM, AutoTokenizer, AutoProcessor):
        auto.from_pretrained(folder, **TRUST).save_pretrained(work / "by_parts")
    pipeline("bundle-completion", model=str(folder), **TRUST).save_pretrained(work / "by_pipeline")
    found |= {name: look_at(work / name, questions) for name in ("by_parts", "by_pipeline")}
    processor = AutoProcessor.from_pretrained(folder, **TRUST)
    processor.save_pretrained(work / "processor")
    again = AutoProcessor.from_pretrained(work / "processor", **TRUST)
    found["processor_alone"] = [again(question)["input_ids"][0] for question in questions]
    adapted = AutoModelForCausalLM.from_pretrained(adapter, **TRUST)
    found["adapter_logits"] = [
        adapted(**again(question, return_tensors="pt")).logits[0, -1].tolist() for question in questions
    ]
    found["imported"] = sorted({name.split(".")[0] for name in sys.modules} & {"bundle_mllm", "transformers_modules"})
    (work / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
