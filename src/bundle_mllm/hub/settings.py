"""Settings of `publish` and `publish_dataset`.

Knows nothing about what is uploaded; imports neither torch nor transformers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bundle_mllm.settings import Settings

LICENSE_UNKNOWN = "unknown"


@dataclass(frozen=True, kw_only=True)
class RepositoryOptions(Settings):
    """The repository."""

    private: bool = False
    """Make the repository private."""
    dry_run: bool = False
    """Write and check the repository folder, list its files, and stop. No token, no network."""
    license: str = LICENSE_UNKNOWN
    """The Hub's identifier of the license of the weights or data."""
    output_dir: Path | None = None
    """The repository folder; by default the name of the published folder with "-hub" at its end."""
    commit_message: str = "Publish with bundle-mllm"
    """Title of the commit."""


@dataclass(frozen=True)
class PublishSettings(RepositoryOptions):
    """Publish a model folder on the Hub: write the repository and its card, verify it in a clean process, upload it.

    Needs a token with write access (`hf auth login`, or HF_TOKEN), except for a dry run. Everything is uploaded in one
    commit; a call that failed can be repeated.
    """

    model: Path
    """Model folder (the output of `bundle-mllm train`)."""
    repo: str
    """Name of the repository, org/name."""
    metrics: tuple[Path, ...] = ()
    """Files of `bundle-mllm evaluate` for the card; the metrics*.json in the model folder if not given."""
    allow_no_metrics: bool = False
    """Publish although there are no metrics; the card states it."""
    base_model: str | None = None
    """Hub name of the base model, if it was trained from a local folder."""
    datasets: tuple[str, ...] = ()
    """Hub names of the data sets it was trained on."""
    space: str | None = None
    """Also publish a Space, org/name, that opens the model in the browser (see `app`)."""
    space_package: str = "bundle-mllm[app]"
    """How pip finds this package in the Space: a name and version, or an address such as that of a wheel."""
    share_user_log: bool = False
    """Publish a retriever that holds the pairs of user and item (users by number)."""


@dataclass(frozen=True)
class DatasetPublishSettings(RepositoryOptions):
    """Publish a dataset folder on the Hub, for `datasets.load_dataset` (items, bundles, questions) and `train`."""

    data: Path
    """Dataset folder."""
    repo: str
    """Name of the dataset repository, org/name."""
    include_interactions: bool = False
    """Publish the interactions and the `user_id` of bundles, too. They are personal data, so only if you may."""
    include_media: bool = False
    """Publish pictures and sounds, too. Only if you may."""
    share_order_ids: bool = False
    """Publish bundles that are orders with the numbers of these orders as ids."""
    columns: tuple[str, ...] = ()
    """Further columns of items, bundles and questions to publish, such as price; others than the format's own stay
    here."""
