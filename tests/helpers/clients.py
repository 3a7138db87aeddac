"""What a publisher and a stranger do, each in a process of its own; writes the outcomes to a JSON file.

Run as `clients.py ROLE ARGUMENTS.json OUTCOMES.json` with HF_ENDPOINT set to the server of the tests.
"""

import json
import os
import sys
import time
import traceback
import urllib.request
from pathlib import Path

OUTCOMES = {}


def attempt(name, action, *args, **kwargs):
    """Record what an action returns, or the error it raises: of the package in one line, others as a traceback."""
    try:
        OUTCOMES[name] = action(*args, **kwargs)
    except Exception as error:
        is_ours = type(error).__name__ == "BundleMLLMError"
        OUTCOMES[name] = f"{'error' if is_ours else 'TRACEBACK'}: {error if is_ours else traceback.format_exc()}"


def control(**state):
    request = urllib.request.Request(f"{os.environ['HF_ENDPOINT']}/_control", json.dumps(state).encode())
    urllib.request.urlopen(request).read()


def publisher(model_dir, single_file_dir, data_dir, work):
    import transformers
    from huggingface_hub import HfApi, constants

    import bundle_mllm.hub.publish as module
    from bundle_mllm.hub.dataset import publish_dataset
    from bundle_mllm.hub.publish import publish
    from bundle_mllm.model_folder import load_ranker

    time.sleep = lambda seconds: None  # the client waits between its retries
    folder, api, token = Path(work, "repository"), HfApi(), os.environ.pop("HF_TOKEN")

    def run(repo_id="acme/outfits", source=model_dir, function=publish, **options):
        report = function(source, repo_id, **{"output_dir": folder, **options})
        verified = report.verification and [report.verification.num_questions, report.verification.largest_difference]
        space = report.space and {"files": sorted(report.space.files), "url": report.space.commit_url}
        seen = {"files": report.files, "left_out": report.left_out, "url": report.commit_url}
        return {**seen, "verified": verified, "space": space}

    attempt("dry run", run, dry_run=True, datasets=["acme/shop"], license="llama2")
    OUTCOMES["dry run folder"] = {
        path.name: path.read_text() for path in folder.iterdir() if path.suffix in (".md", ".json")
    }
    verification = module.verify_repository
    module.verify_repository = lambda folder, **options: (
        None
    )  # it was verified above; what follows is about the upload
    attempt("no token", run)
    os.environ["HF_TOKEN"] = "hf_wrong"
    attempt("wrong token", run)
    os.environ["HF_TOKEN"] = token
    endpoint, constants.ENDPOINT = constants.ENDPOINT, "http://127.0.0.1:1"
    attempt("no network", run)
    constants.ENDPOINT = endpoint
    constants.HF_HUB_OFFLINE = True
    attempt("offline", run)
    constants.HF_HUB_OFFLINE = False
    attempt("foreign owner", run, "other/outfits")
    attempt("license that the Hub does not know", run, license="my-own")

    control(uploads_before_death=1)
    attempt("server dies", run)
    control()
    attempt("after the death", api.list_repo_files, "acme/outfits")
    attempt("repeated", run)
    attempt("repeated once more", run)
    attempt("private after public", run, private=True)
    attempt("private", run, "acme/secret", private=True)
    attempt("with a Space", run, space="acme/try-outfits", space_package="bundle-mllm[app]==1.2.3")
    attempt("with a Space of no name", run, space="outfits")
    attempt("other weights", run, "acme/changing")
    attempt("other weights again", run, "acme/changing", single_file_dir)
    attempt("after other weights", api.list_repo_files, "acme/changing")
    module.verify_repository = verification

    attempt("data set", run, "acme/shop", data_dir, publish_dataset)

    model, processor = load_ranker(model_dir)
    attempt("push model", lambda: model.push_to_hub("acme/pushed") and None)
    attempt("push processor", lambda: processor.push_to_hub("acme/pushed") and None)
    completer = transformers.pipeline("bundle-completion", model=model_dir)
    attempt("push pipeline", lambda: completer.push_to_hub("acme/pipeline") and None)


def reader(folders, question, work):
    from huggingface_hub import HfApi
    from transformers import pipeline

    from bundle_mllm.model_folder import load_completer

    api, token, repo_id = HfApi(), os.environ["HF_TOKEN"], "acme/several"
    api.create_repo(repo_id, private=True)
    shas = [api.upload_folder(repo_id=repo_id, folder_path=folder).oid for folder in folders]
    del os.environ["HF_TOKEN"]

    def explained(answers):
        return {answer["item_id"]: answer["explanation"]["retriever"] for answer in answers}

    def by_completer(**files):
        return explained(load_completer(repo_id, token=token, **files).complete(question, explain=True))

    def by_pipeline(**files):
        completer = pipeline("bundle-completion", model=repo_id, token=token, device="cpu", **files)
        return explained(completer(question, explain=True))

    for number, sha in enumerate(shas):
        attempt(f"completer {number}", by_completer, revision=sha)
        attempt(f"pipeline {number}", by_pipeline, revision=sha)
    attempt("completer newest", by_completer, cache_dir=f"{work}/another")
    attempt("pipeline newest", by_pipeline)
    attempt("not downloaded", by_completer, cache_dir=f"{work}/third", local_files_only=True)


def stranger(questions, repositories, work):
    sys.modules["bundle_mllm"] = None
    from datasets import load_dataset
    from huggingface_hub import snapshot_download
    from transformers import AutoModelForCausalLM, AutoProcessor, pipeline

    def scores(repo_id):
        completer = pipeline("bundle-completion", model=repo_id, trust_remote_code=True, device="cpu")
        return [{option["letter"]: option["score"] for option in completer(question)} for question in questions]

    def logits(repo_id):
        model = AutoModelForCausalLM.from_pretrained(repo_id, trust_remote_code=True)
        processor = AutoProcessor.from_pretrained(repo_id, trust_remote_code=True)
        return [model(**processor(q, return_tensors="pt")).logits[0, -1].tolist() for q in questions]

    def push_again(repo_id):
        completer = pipeline("bundle-completion", model=repo_id, trust_remote_code=True, device="cpu")
        completer.push_to_hub("tester/again")
        return scores("tester/again")

    for repo_id in repositories:
        attempt(repo_id, scores, repo_id)
    attempt("logits", logits, repositories[0])
    attempt("again", push_again, repositories[0])
    attempt("snapshot", snapshot_download, repositories[0])
    attempt("data snapshot", snapshot_download, "acme/shop", repo_type="dataset")

    def table(config):
        loaded = load_dataset("acme/shop", config)
        return {split: [len(rows), rows[0]] for split, rows in loaded.items()}

    for config in ("items", "bundles", "questions"):
        attempt(config, table, config)


if __name__ == "__main__":
    role, arguments, outcomes = sys.argv[1:]
    {"publisher": publisher, "reader": reader, "stranger": stranger}[role](**json.loads(Path(arguments).read_text()))
    Path(outcomes).write_text(json.dumps(OUTCOMES))
