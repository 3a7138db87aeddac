"""Put a folder on the Hub in one commit, or say in one line why that did not happen.

Knows nothing about what the files mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

from bundle_mllm.errors import BundleMLLMError


def check_repo_id(repo_id: str) -> None:
    """Check that a name can be one of a repository, and says whose it is.

    Raises:
        BundleMLLMError: It is not of the form `owner/name`, or has characters that the Hub refuses.
    """
    try:
        validate_repo_id(repo_id)
        problem = "" if repo_id.count("/") == 1 else "it does not say who owns it"
    except HFValidationError as error:
        problem = str(error).rstrip(".")
    if problem:
        raise BundleMLLMError(
            f"{repo_id!r} is not the name of a Hub repository ({problem}): write owner/name, with letters, digits, "
            '"-", "_" and ".", such as my-org/outfits.'
        )


def check_login() -> str:
    """Ask the Hub who the token belongs to.

    Returns:
        The name of the account.

    Raises:
        BundleMLLMError: There is no token, the Hub does not accept it, or it cannot be reached.
    """
    api = HfApi()
    with explained(api, "log in"):
        return api.whoami()["name"]


def upload(
    folder: Path,
    files: Iterable[str],
    repo_id: str,
    *,
    repo_type: str,
    private: bool,
    message: str,
    belongs: Callable[[str], bool],
) -> str:
    """Create the repository if need be, and bring it to the state of a folder.

    Everything becomes visible in one commit, after all contents have arrived; contents that have arrived before are
    not sent again, so a call that failed can simply be repeated.

    Args:
        folder: The folder.
        files: The files in it to upload.
        repo_id: The repository, `owner/name`.
        repo_type: "model" or "dataset".
        private: Whether only its owner may see it.
        message: Title of the commit.
        belongs: Whether a file of the repository is one that this package writes; those that `folder` no longer has,
            such as the shards of earlier weights, are deleted. Others stay.

    Returns:
        The address of the commit.

    Raises:
        BundleMLLMError: The Hub cannot be reached or refuses something, or the repository is public and `private` set.
    """
    api, names = HfApi(), set(files)
    with explained(api, f"publish {repo_id}"):
        api.create_repo(repo_id, repo_type=repo_type, private=True if private else None, exist_ok=True)
        if private and not api.repo_info(repo_id, repo_type=repo_type).private:
            raise BundleMLLMError(
                f"{repo_id} exists and is public, so --private would not hide anything: make it private in its "
                f"settings on {api.endpoint}, or choose another name. Nothing was uploaded."
            )
        there = api.list_repo_files(repo_id, repo_type=repo_type)
        # Not `upload_folder`: where hf_xet is installed that makes several commits of a large folder, and between two
        # of them the repository would be neither the old one nor the new one.
        commit = api.create_commit(
            repo_id,
            [
                *(CommitOperationDelete(name) for name in there if name not in names and belongs(name)),
                *(CommitOperationAdd(name, folder / name) for name in sorted(names)),
            ],
            repo_type=repo_type,
            commit_message=message,
        )
    return commit.commit_url


@contextmanager
def explained(api: HfApi, what: str) -> Iterator[None]:
    """Turn whatever goes wrong on the way to the Hub into a `BundleMLLMError` that names the endpoint and the fix."""
    where = api.endpoint
    try:
        yield
    except BundleMLLMError:
        raise
    except LocalTokenNotFoundError as error:
        raise BundleMLLMError(
            f"There is no token for {where}, so nobody would own what is published: run `hf auth login`, or set "
            "HF_TOKEN to a token with write access."
        ) from error
    except OfflineModeIsEnabled as error:
        raise BundleMLLMError(f"HF_HUB_OFFLINE is set, so {where} is not asked: unset it to {what}.") from error
    except Exception as error:  # the client raises what its transport raises, and that has changed before
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
        causes = [error, error.__cause__] if isinstance(error, RuntimeError) else [error]
        reasons = [" ".join((str(cause) or type(cause).__name__).split()) for cause in causes if cause]
        reason = " ".join(text if text.endswith((".", "!", "?")) else f"{text}." for text in reasons)
        if status == 401:
            fix = "The token is not valid: run `hf auth login`, or set HF_TOKEN to one with write access."
        elif status == 403:
            fix = "The token may not write there: use one with write access, of an account that owns the name."
        elif isinstance(error, ValueError):
            fix = "Correct what it names."
        else:
            fix = "Check the network, then repeat the command: what has arrived is not sent again."
        raise BundleMLLMError(
            f"Could not {what} on {where}: {reason} {fix} Files become visible together, once all have arrived."
        ) from error
