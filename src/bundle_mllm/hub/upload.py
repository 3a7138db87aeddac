"""Write a repository folder and put it on the Hub in one commit, or explain in one line why that did not happen.

Knows nothing about what the files mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.hub.repository import PublishReport, matches, repository_files, write_repository
from bundle_mllm.hub.settings import RepositoryOptions

_FIXES = {
    401: "The token is not valid: run `hf auth login`, or set HF_TOKEN to one with write access.",
    403: "The token may not write there: use one with write access, of an account that owns the name.",
}
_REPEAT = "Check the network, then repeat the command: what has arrived is not sent again."


def check_repo_id(repo_id: str) -> None:
    """Refuse a name of a repository that is not of the form `owner/name`, or has characters that the Hub refuses.

    Raises:
        BundleMLLMError: If it is such a name.
    """
    try:
        validate_repo_id(repo_id)
        problem = "" if repo_id.count("/") == 1 else "it lacks its owner"
    except HFValidationError as error:
        problem = str(error).rstrip(".")
    if problem:
        raise BundleMLLMError(
            f"{repo_id!r} is not the name of a Hub repository ({problem}): write owner/name, such as my-org/outfits."
        )


def publish_folder(
    source: Path,
    repo_id: str,
    options: RepositoryOptions,
    write: Callable[[Path], None],
    check: Callable[[Path], None],
    *,
    repo_type: str,
    written: Sequence[str],
    sources: Mapping[str, Path] | None = None,
) -> PublishReport:
    """Write and check a repository folder, and bring the repository to its state unless it is a dry run.

    Everything becomes visible in one commit. Contents that have arrived are not sent again when a call is repeated.
    Files of the repository that match a pattern of `written` and that the folder no longer has are deleted; for the
    arguments `source`, `write`, `check` and `sources` see `write_repository`.

    Raises:
        BundleMLLMError: If the folder cannot be written, the Hub cannot be reached or refuses something, or the
            repository is public and is to be private.
    """
    api = HfApi()
    if not options.dry_run:
        with _explained(api.endpoint, "log in"):
            api.whoami()  # before the minutes that verifying a large model takes
    beside = source.resolve()
    folder = options.output_dir or beside.with_name(f"{beside.name}-hub")
    write_repository(folder, source, write, check, sources)
    report = PublishReport(repo_id, folder, repository_files(folder))
    if options.dry_run:
        return report
    with _explained(api.endpoint, f"publish {repo_id}"):
        made: Any = {"space_sdk": "gradio"} if repo_type == "space" else {}
        api.create_repo(repo_id, repo_type=repo_type, private=options.private or None, exist_ok=True, **made)
        if options.private and not api.repo_info(repo_id, repo_type=repo_type).private:
            raise BundleMLLMError(
                f"{repo_id} exists and is public, so --private would not hide it: make it private in its settings on "
                f"{api.endpoint}, or choose another name. Nothing was uploaded."
            )
        present = api.list_repo_files(repo_id, repo_type=repo_type)
        obsolete = [name for name in present if name not in report.files and matches(name, written)]
        # Not `upload_folder`: with hf_xet that makes several commits of a large folder, with a mixture between them.
        changes = [
            *(CommitOperationDelete(name) for name in obsolete),
            *(CommitOperationAdd(name, folder / name) for name in sorted(report.files)),
        ]
        commit = api.create_commit(repo_id, changes, repo_type=repo_type, commit_message=options.commit_message)
    return replace(report, commit_url=commit.commit_url)


@contextmanager
def _explained(where: str, what: str) -> Iterator[None]:
    """Turn whatever goes wrong on the way to the Hub into a `BundleMLLMError` that names the endpoint and the fix."""
    try:
        yield
    except BundleMLLMError:
        raise
    except LocalTokenNotFoundError as error:
        raise BundleMLLMError(
            f"There is no token for {where}: run `hf auth login`, or set HF_TOKEN to one with write access."
        ) from error
    except OfflineModeIsEnabled as error:
        raise BundleMLLMError(f"HF_HUB_OFFLINE is set, so {where} is not reached: unset it to {what}.") from error
    except Exception as error:  # the client raises what its transport raises, and that has changed before
        causes = [error, error.__cause__] if isinstance(error, RuntimeError) else [error]
        reasons = [" ".join((str(cause) or type(cause).__name__).split()) for cause in causes if cause]
        reason = " ".join(text if text.endswith((".", "!", "?")) else f"{text}." for text in reasons)
        other = "Correct what it names." if isinstance(error, ValueError) else _REPEAT
        fix = _FIXES.get(error.response.status_code, other) if isinstance(error, HfHubHTTPError) else other
        raise BundleMLLMError(
            f"Could not {what} on {where}: {reason} {fix} Files become visible together, once all have arrived."
        ) from error
