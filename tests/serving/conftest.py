"""Services of untrained models of a small shop, in this process and in others."""

import shutil
from contextlib import contextmanager

import pytest
from fastapi.testclient import TestClient
from tiny_shop import make_folder, make_shop

from bundle_mllm.serving.app import create_app
from bundle_mllm.serving.served_model import ServedModel
from bundle_mllm.serving.settings import ServiceSettings


@pytest.fixture(scope="session")
def both_once(tmp_path_factory):
    folder = tmp_path_factory.mktemp("serving")
    return make_folder(make_shop(folder), folder / "model", ranker=True)


@pytest.fixture
def model(both_once, tmp_path):
    """The folder of a ranker and a retriever, which a test may change."""
    return shutil.copytree(both_once, tmp_path / "model")


@pytest.fixture
def start():
    """Start a service in this process and return its client."""

    @contextmanager
    def started(model, key=None, **settings):
        app = create_app(ServiceSettings(model, **settings), ServedModel(model), key)
        with TestClient(app, "http://localhost", raise_server_exceptions=False) as client:
            yield client

    return started


@pytest.fixture
def client(model, start):
    with start(model) as client:
        yield client
