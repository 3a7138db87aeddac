"""Model folders over the tiny dataset, with a ranker, a retriever and both."""

import pytest
from tiny_models import make_completer_for

from bundle_mllm.data import DatasetFolder, make_questions, save_questions
from bundle_mllm.model_folder import load_completer

PARTS = {"ranker": (True, False), "retriever": (False, True), "both": (True, True)}


@pytest.fixture(scope="session")
def data(tiny_data):
    return DatasetFolder.open(tiny_data)


@pytest.fixture(scope="session")
def folders(data, tmp_path_factory):
    """By their last part: "ranker", "retriever", "both"."""
    folders = {part: tmp_path_factory.mktemp(part) for part in PARTS}
    for part, folder in folders.items():
        make_completer_for(data, *PARTS[part]).save_pretrained(folder)
    return folders


@pytest.fixture(scope="session")
def model(folders):
    return folders["both"]


@pytest.fixture
def completer(model):
    return load_completer(model)


@pytest.fixture
def write_questions(data, tmp_path):
    def write(name="q.jsonl", **options):
        questions = make_questions(data.bundles.test, data.catalog, data.bundles, seed=0, **options)
        save_questions(tmp_path / name, questions)
        return tmp_path / name

    return write
