"""A small shop with pictures, models of it as the app holds them, and titles that try to be HTML."""

import pytest
from tiny_shop import make_folder, make_shop

from bundle_mllm.app.answers import AppModel


@pytest.fixture(scope="session")
def shop(tmp_path_factory):
    """The dataset folder, and the folders of a ranker with a retriever and of a retriever alone."""
    folder = tmp_path_factory.mktemp("shop")
    (folder / "data").mkdir()
    data = make_shop(folder / "data")
    make_folder(data, folder / "both", ranker=True)
    make_folder(data, folder / "alone", ranker=False)
    return folder


@pytest.fixture(scope="session")
def both(shop):
    """A ranker and a retriever."""
    return AppModel(str(shop / "both"), shop / "data", "cpu")


@pytest.fixture(scope="session")
def alone(shop):
    """A retriever alone."""
    return AppModel(str(shop / "alone"), shop / "data", "cpu")
