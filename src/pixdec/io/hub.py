"""Files from the Hugging Face hub: fetched once, checked when they come, and what goes wrong said in one line."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pixdec.io.files import first_line_of

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_CLIENTS = ("huggingface_hub", "httpx", "requests", "httpcore", "urllib3")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Access:
    """How to get at a repository: a branch, tag or commit; a token, None for that of `hf auth login` or HF_TOKEN; and
    whether to look into the cache only."""

    revision: str | None = None
    token: str | None = None
    local_files_only: bool = False


USUAL = Access()


def fetch_file(repository: str, file: str, access: Access = USUAL, sha256: str | None = None) -> Path:
    """A file of a repository, out of the hub's cache or downloaded into it.

    A file that was downloaded is compared with `sha256`, or with the hash that the hub names it by.

    Raises:
        OSError: one line that says why it cannot be had, and what to do.
    """
    from huggingface_hub import hf_hub_download  # pyright: ignore[reportUnknownVariableType]

    before = cached(repository, file, access.revision)
    try:
        path = Path(
            hf_hub_download(
                repository,
                file,
                revision=access.revision,
                token=access.token,
                local_files_only=access.local_files_only,
            )
        )
    except Exception as error:  # of the hub's client, of the HTTP library beneath it, or of the disk
        raise OSError(f"cannot fetch {file} of {repository}: {hub_reason(error, repository)}") from error
    if before != path:
        _verify(path, sha256)
    return path


def fetch_folder(repository: str, patterns: list[str], access: Access = USUAL, *, top_only: bool = False) -> Path:
    """The files of a repository that match, in the folder that the hub's cache has for it; top_only: none of its
    folders.

    Raises:
        OSError: as `fetch_file`.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                repository,
                revision=access.revision,
                token=access.token,
                local_files_only=access.local_files_only,
                allow_patterns=patterns,
                ignore_patterns=["*/*"] if top_only else None,
            )
        )
    except Exception as error:  # as above
        raise OSError(f"cannot fetch {repository}: {hub_reason(error, repository)}") from error


def cached(repository: str, file: str, revision: str | None = None) -> Path | None:
    """The file if it is in the hub's cache. Fetches nothing."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository, file, revision=revision)
    return Path(found) if isinstance(found, str) else None


def hub_reason(error: BaseException, repository: str) -> str:
    """Why something could not be had from the hub, and what to do. `error` may be another library's, with the hub's as
    its cause."""
    from huggingface_hub import constants

    chain = list(_chain(error))
    classes = {base for each in chain for base in type(each).__mro__}
    kinds = {each.__name__ for each in classes}
    status = next((code for each in chain if (code := _status(each)) is not None), None)
    log_in = "log in with `hf auth login` or set HF_TOKEN"
    page = f"{constants.ENDPOINT}/{repository}"
    if "GatedRepoError" in kinds:
        return f"the repository is gated: accept its terms at {page}, then {log_in}"
    if "RepositoryNotFoundError" in kinds:
        return f"there is no repository {page}, or it is private: check the name, or {log_in}"
    if status in (401, 403):
        return f"the hub refuses it ({status}): {log_in}, with an account that may read {page}"
    if "RevisionNotFoundError" in kinds:
        return f"{page} has no such revision: name a branch, a tag or a commit"
    if "RemoteEntryNotFoundError" in kinds or status == 404:
        return f"{page} has no such file"
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set and it is not in the cache: unset HF_HUB_OFFLINE, or name a local folder"
    if "LocalEntryNotFoundError" in kinds and len(chain) == 1:
        return "it is not in the cache, and only the cache may be asked"
    if not any(each.__module__.startswith(_CLIENTS) or each.__name__ == "ConnectionError" for each in classes):
        return first_line_of(error)
    return f"{first_line_of(chain[-1])}; check the connection, or download it elsewhere and name the local path"


def loading_reason(error: BaseException, name: str | Path) -> str:
    """Why a library could not load what `name` names, a local path or a repository of the hub."""
    local = Path(name).expanduser().exists() or not HUB_ID.fullmatch(str(name))
    return first_line_of(error) if local else hub_reason(error, str(name))


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and what led to it."""
    each: BaseException | None = error
    seen: set[int] = set()
    while each is not None and id(each) not in seen:
        seen.add(id(each))
        yield each
        each = each.__cause__ or each.__context__


def _status(error: BaseException) -> int | None:
    code = getattr(getattr(error, "response", None), "status_code", None)
    return code if isinstance(code, int) and code >= 400 else None


def _verify(path: Path, sha256: str | None) -> None:
    """Compares a file with its hash: the one given, or the one that the cache names large files by."""
    named = path.resolve().name
    expected = sha256 or (named if _SHA256.fullmatch(named) else None)
    if expected is None:
        return
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        path.resolve().unlink()
        path.unlink(missing_ok=True)
        raise OSError(f"{path}: has the SHA-256 {found} instead of {expected}, and is removed; download it again")
