"""A small shop with pictures, and untrained models of it in folders as `train` leaves them."""

import shutil

import pytest
from tiny_shop import make_folder, make_shop


@pytest.fixture(scope="session")
def pictured(tmp_path_factory):
    return make_shop(tmp_path_factory.mktemp("pictured"))


@pytest.fixture(scope="session")
def both_once(pictured, tmp_path_factory):
    return make_folder(pictured, tmp_path_factory.mktemp("both") / "model", ranker=True)


@pytest.fixture(scope="session")
def retriever_once(pictured, tmp_path_factory):
    return make_folder(pictured, tmp_path_factory.mktemp("alone") / "model", ranker=False)


@pytest.fixture
def both(both_once, tmp_path):
    """The folder of a ranker and a retriever, which a test may change."""
    return shutil.copytree(both_once, tmp_path / "model")


@pytest.fixture
def alone(retriever_once, tmp_path):
    """The folder of a retriever alone."""
    return shutil.copytree(retriever_once, tmp_path / "model")
