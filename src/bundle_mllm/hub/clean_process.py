"""Load a repository folder as a stranger would, and write down its answers; run as a script, never imported.

Knows nothing of this package: it blocks its import, so that only the code in the folder can be at work.
"""

import json
import sys
from pathlib import Path
from typing import Any

modules: dict[str, Any] = sys.modules
modules["bundle_mllm"] = None  # any attempt to import the package fails


def answer(folder: str, questions: list[dict[str, Any]]) -> dict[str, Any]:
    """Load everything the folder offers and return what the pipeline answers, with explanations."""
    step = "importing transformers"
    try:
        from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoProcessor, AutoTokenizer, pipeline

        step = "AutoConfig.from_pretrained"
        config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
        writes = "AutoModelForCausalLM" in config.auto_map
        reads = (AutoTokenizer,) if "AutoTokenizer" in config.auto_map else ()
        for auto in (AutoProcessor, *reads, AutoModelForCausalLM if writes else AutoModel):
            step = f"{auto.__name__}.from_pretrained"
            auto.from_pretrained(folder, trust_remote_code=True)
        if (Path(folder) / "retriever").is_dir():
            step = 'AutoModel.from_pretrained(..., subfolder="retriever")'
            AutoModel.from_pretrained(folder, subfolder="retriever", trust_remote_code=True)
        step = 'pipeline("bundle-completion")'
        task: Any = "bundle-completion"  # transformers names its own tasks in its types
        completer: Any = pipeline(task, model=folder, trust_remote_code=True, device="cpu")
        step = 'scoring with pipeline("bundle-completion")'
        answers = [completer(question, explain=True) for question in questions]
    except Exception as error:
        return {"step": step, "error": f"{type(error).__name__}: {error}"}
    return {"answers": answers}


if __name__ == "__main__":
    request_file, response_file = map(Path, sys.argv[1:])
    response = answer(**json.loads(request_file.read_text(encoding="utf-8")))
    response_file.write_text(json.dumps(response), encoding="utf-8")
