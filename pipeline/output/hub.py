"""The Hugging Face hub: whether something may be pushed, asked before hours of work; and pushing.

What is pushed is a finished folder, in one commit. The client sends no file that the repository
holds already, so a push that broke off goes on where it was.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from common.words import first_line
from pipeline.errors import UserError
from pipeline.output import quiet

# At the top of a repository: what would be loaded in place of, or beside, what is pushed now.
_WEIGHTS = ("model", "adapter_model", "pytorch_model")
_WEIGHT_ENDINGS = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json")
_TOKENS = "https://huggingface.co/settings/tokens"


@dataclass(frozen=True)
class Repo:
    """A place on the hub.

    Attributes:
        key: the setting that asks for it.
        id: ``owner/name``, or a name alone in one's own account until `check_rights`.
        kind: a model's, or a Space of static pages.
        private: of a new one; None is as the account has it.
        revision: the branch; None is main.
    """

    key: str
    id: str
    kind: Literal["model", "space"] = "model"
    private: bool | None = None
    revision: str | None = None


# --- Rights ---------------------------------------------------------------------------------------


def check_rights(repos: Sequence[Repo]) -> list[Repo]:
    """Make sure that each of ``repos`` can be pushed to, and make those that are not there.

    Returns:
        them, each with its owner.

    Raises:
        UserError: there is no account or network, or the account may not write there; one line.
    """
    from huggingface_hub import HfApi, constants, get_token
    from huggingface_hub.utils import validate_repo_id

    for repo in repos:
        try:
            validate_repo_id(repo.id)
        except ValueError as error:
            raise UserError(f"{repo.key}: {repo.id!r} is no name for the hub: {error}") from None
    key = repos[0].key
    off = f"; mend that, or set {key}=false"
    if constants.HF_HUB_OFFLINE:
        raise UserError(f"{key}: HF_HUB_OFFLINE is set, so nothing can be pushed{off}")
    if get_token() is None:
        raise UserError(f"{key}: there is no account: set HF_TOKEN, or run `hf auth login`{off}")
    api = HfApi()
    try:
        account = api.whoami()
    except Exception as error:  # whatever the client makes of a refusal or of no network
        raise UserError(f"{key}: the hub cannot be used ({_reason(error)}){off}") from error
    owned = [_owned(repo, account) for repo in repos]
    for repo in owned:
        try:
            _open(api, repo)
        except Exception as error:
            raise UserError(
                f"{repo.key}: {account['name']} cannot push to {repo.id} ({_reason(error)}); give"
                f" the token the right to write there ({_TOKENS}), or set another place"
            ) from error
    return owned


def _owned(repo: Repo, account: Mapping[str, Any]) -> Repo:
    """``repo`` with its owner.

    Raises:
        UserError: by what the hub says of the account, nothing may be written there.
    """
    me, token = account["name"], (account.get("auth") or {}).get("accessToken") or {}
    if token.get("role") == "read":
        raise UserError(
            f"{repo.key}: the token of {me} may only read; make one that may write at {_TOKENS}"
        )
    owner, _, name = repo.id.rpartition("/")
    roles = {org["name"]: org.get("roleInOrg") for org in account.get("orgs") or []}
    if owner and owner != me and owner not in roles:
        own = ", ".join([me, *(name for name, role in roles.items() if role != "read")])
        raise UserError(
            f"{repo.key}: {repo.id} is somebody else's; this account can write for {own}"
        )
    if roles.get(owner) == "read":
        raise UserError(f"{repo.key}: {me} may only read in the organisation {owner}")
    return replace(repo, id=f"{owner or me}/{name}")


def _open(api: Any, repo: Repo) -> None:
    """Make the repository and its branch where they are not there, and ask for the right to write.

    Only the hub itself knows what a token of fine grain may do.
    """
    sdk = "static" if repo.kind == "space" else None
    api.create_repo(
        repo.id, repo_type=repo.kind, private=repo.private, exist_ok=True, space_sdk=sdk
    )
    api.auth_check(repo.id, repo_type=repo.kind, write=True)
    if repo.private and api.repo_info(repo.id, repo_type=repo.kind).private is False:
        raise ValueError("it is there already and public: make it private on the hub")
    if repo.revision is not None:
        api.create_branch(repo.id, branch=repo.revision, repo_type=repo.kind, exist_ok=True)


# --- Pushing --------------------------------------------------------------------------------------


def push(repo: Repo, folder: Path, instead: Mapping[str, bytes], message: str) -> bool:
    """Push a folder's files in one commit.

    Weights at the top of the repository that ``folder`` does not hold (of another form, in other
    parts) are removed by it; nothing else is.

    Args:
        repo: as `check_rights` gave it. instead: contents of files in the place of the folder's.

    Returns:
        whether anything was new there.

    Raises:
        UserError: it was not pushed; nothing is changed there.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    _quieten()
    api, place = HfApi(), {"repo_type": repo.kind, "revision": repo.revision}
    contents: dict[str, Path | bytes] = {
        path.relative_to(folder).as_posix(): path for path in _files(folder)
    }
    contents |= instead
    try:
        before: Any = api.repo_info(repo.id, **place)
        former = _stale([file.rfilename for file in before.siblings or ()], contents)
        operations: list[Any] = [
            CommitOperationAdd(name, given if isinstance(given, bytes) else str(given))
            for name, given in sorted(contents.items())
        ]
        operations += [CommitOperationDelete(name) for name in former]
        made = api.create_commit(repo.id, operations, commit_message=message, **place)
        return made.oid != before.sha
    except Exception as error:  # the client's, the network's, the disk's
        raise UserError(f"{repo.id}: not pushed ({_reason(error)})") from error


def head(repo: Repo) -> str:
    """The last commit of a repository that was pushed to.

    Raises:
        UserError: the hub does not say.
    """
    from huggingface_hub import HfApi

    try:
        return str(HfApi().repo_info(repo.id, repo_type=repo.kind, revision=repo.revision).sha)
    except Exception as error:
        raise UserError(f"{repo.id}: cannot be looked at ({_reason(error)})") from error


def address(repo: Repo) -> str:
    """Where a person looks at it."""
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{'spaces/' if repo.kind == 'space' else ''}{repo.id}"


def _quieten() -> None:
    """Leave the client its bars where somebody sees them, and its errors."""
    from huggingface_hub.utils import disable_progress_bars, logging

    if not quiet.verbose():
        logging.set_verbosity_error()
        if not sys.stderr.isatty():
            disable_progress_bars()


def _files(folder: Path) -> Iterable[Path]:
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.is_file() and not hidden:
            yield path


def _stale(there: Iterable[str], contents: Mapping[str, Any]) -> list[str]:
    """Weights in a repository that would be loaded beside or instead of those in ``contents``."""
    if not any(name.endswith(_WEIGHT_ENDINGS) for name in contents):
        return []
    return [
        name
        for name in there
        if name not in contents and name.startswith(_WEIGHTS) and name.endswith(_WEIGHT_ENDINGS)
    ]


def _reason(error: BaseException) -> str:
    """The first line of what the client says, with the cause where it only says that it failed."""
    said = first_line(error) or type(error).__name__
    cause = error.__cause__
    return f"{said} {first_line(cause)}" if cause and said.startswith("Error while") else said
