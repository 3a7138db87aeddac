"""Load a repository folder as a stranger would, and write down what it answers; run as a script, never imported.

Knows nothing of this package: it blocks its import, so that only the code in the folder can be at work.
"""

import json
import sys
from typing import Any

modules: dict[str, Any] = sys.modules
modules["bundle_mllm"] = None  # any attempt to import the package fails


def answer(folder: str, questions: list[dict[str, Any]]) -> dict[str, Any]:
    """Load everything the folder offers and return the option logits and the pipeline's scores."""
    step = "importing transformers"
    try:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM, AutoProcessor, AutoTokenizer, pipeline

        step = "AutoConfig.from_pretrained"
        AutoConfig.from_pretrained(folder, trust_remote_code=True)
        step = "AutoTokenizer.from_pretrained"
        AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
        step = "AutoProcessor.from_pretrained"
        processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
        step = "AutoModelForCausalLM.from_pretrained"
        model: Any = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
        step = "scoring with AutoModelForCausalLM"
        processor.modalities = processor.modalities or dict(model.config.modalities)  # as the pipeline does
        logits = []
        for question in questions:
            inputs = processor(question, return_tensors="pt")
            letters = torch.tensor(processor.answer_token_ids(len(question["candidates"])))
            with torch.inference_mode():
                logits.append(model.option_logits(**inputs, option_token_ids=letters)[0].float().tolist())
        del model
        step = 'pipeline("bundle-completion")'
        task: Any = "bundle-completion"  # transformers names its own tasks in its types
        completer: Any = pipeline(task, model=folder, trust_remote_code=True, device="cpu")
        step = 'scoring with pipeline("bundle-completion")'
        scores = [{o["letter"]: o["score"] for o in completer(question)} for question in questions]
    except Exception as error:
        return {"step": step, "error": f"{type(error).__name__}: {error}"}
    return {"logits": logits, "scores": scores}


if __name__ == "__main__":
    request_file, response_file = sys.argv[1:]
    with open(request_file, encoding="utf-8") as file:
        request = json.load(file)
    response = answer(request["folder"], request["questions"])
    with open(response_file, "w", encoding="utf-8") as file:
        json.dump(response, file)
