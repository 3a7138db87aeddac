"""Publish a Space: the app, opened on a published model.

Knows nothing about the app but its address in the package, and uploads no weights.
"""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from huggingface_hub import SpaceCardData

from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.hub.repository import CARD, PublishReport
from bundle_mllm.hub.settings import PublishSettings
from bundle_mllm.hub.upload import publish_folder

APP, REQUIREMENTS = "app.py", "requirements.txt"
_CODE = '''"""Opens https://huggingface.co/{repo} in the browser."""

from bundle_mllm.app.page import run_app

run_app(model="{repo}", host="0.0.0.0")
'''
_TEXT = """# {name}

Pick items, see what completes the bundle and why, set rules, and try an item of your own: the app of
[bundle-mllm](https://arxiv.org/abs/2407.11712) on the model [{repo}](https://huggingface.co/{repo}).

Items are shown by their titles. Pictures and sounds appear if `app.py` gives `run_app` a dataset folder, too:
`data=snapshot_download("org/data", repo_type="dataset")`. A private model needs a secret `HF_TOKEN` that may read it.
"""


def publish_space(settings: PublishSettings, space: str) -> PublishReport:
    """Write the folder of a Space and upload it in one commit.

    Args:
        settings: Those of the model, which the Space downloads when it starts.
        space: Name of the Space, org/name.

    Raises:
        BundleMLLMError: If gradio is missing, whose version the Space is to run; or see `publish_folder`.
    """
    gradio = gradio_version()
    card = SpaceCardData(
        title=space.partition("/")[2],
        emoji="🧩",
        colorFrom="green",
        colorTo="yellow",
        sdk="gradio",
        sdk_version=gradio,
        app_file=APP,
        models=[settings.repo],
        license=settings.license,
    )

    def write(target: Path) -> None:
        text = _TEXT.format(name=card.title, repo=settings.repo)
        (target / CARD).write_text(f"---\n{card.to_yaml()}\n---\n\n{text}", encoding="utf-8")
        (target / REQUIREMENTS).write_text(f"{settings.space_package}\n", encoding="utf-8")
        (target / APP).write_text(_CODE.format(repo=settings.repo), encoding="utf-8")

    beside = settings.model.resolve()
    options = replace(settings, output_dir=beside.with_name(f"{beside.name}-space"))
    written = (CARD, REQUIREMENTS, APP)
    return publish_folder(settings.model, space, options, write, lambda _: None, repo_type="space", written=written)


def gradio_version() -> str:
    """Return the version of gradio that is installed here.

    Raises:
        BundleMLLMError: If there is none.
    """
    try:
        return version("gradio")
    except PackageNotFoundError as error:
        raise BundleMLLMError(
            "A Space runs the version of gradio that is installed here, and there is none: pip install "
            '"bundle-mllm[app]".'
        ) from error
