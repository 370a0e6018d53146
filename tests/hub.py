"""A stand-in for the Hugging Face hub on loopback: accounts, repositories, commits, large files.

It speaks as much of the hub's HTTP interface as huggingface_hub uses to ask for rights, to push and
to download, and refuses as the hub does. What it holds is in memory. Xet storage is not spoken:
clients must have HF_HUB_DISABLE_XET=1 and send large files by LFS.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

LARGE = (".safetensors", ".png", ".bin")
"""Endings of what is sent as LFS."""


@dataclass
class Account:
    """Who a token is of, and what it may do."""

    name: str
    role: str = "write"
    orgs: dict[str, str] = field(default_factory=dict)
    fine: frozenset[str] | None = None
    """Of a token of fine grain: the repositories that it may write to."""

    def may_write(self, repo: str) -> bool:
        owner = repo.partition("/")[0]
        if self.role == "fineGrained":
            return repo in (self.fine or ())
        ours = owner == self.name or self.orgs.get(owner) in ("write", "admin")
        return self.role == "write" and ours

    def whoami(self) -> dict[str, Any]:
        orgs = [{"name": name, "roleInOrg": role} for name, role in self.orgs.items()]
        token = {"displayName": "test", "role": self.role}
        return {"type": "user", "name": self.name, "orgs": orgs, "auth": {"accessToken": token}}


@dataclass
class Repository:
    private: bool
    sdk: str | None
    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)
    branches: dict[str, int] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, bytes]) -> str:
        text = f"{len(self.commits)}" + "".join(
            f"{name}{hashlib.sha256(data).hexdigest()}" for name, data in sorted(files.items())
        )
        sha = hashlib.sha1(text.encode()).hexdigest()
        self.commits.append((sha, files))
        self.branches[branch] = len(self.commits) - 1
        return sha

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        if revision in self.branches:
            return self.commits[self.branches[revision]]
        return next((commit for commit in self.commits if commit[0] == revision), None)


class Hub:
    """What the hub holds and knows, and how it fails.

    Attributes:
        accounts: by token. repos: by kind and id. large: contents by sha256.
        sent: sha256 of each large file in the order in which they came.
        refuse_after: answer 400 to uploads after so many; None takes all.
    """

    def __init__(self) -> None:
        self.accounts: dict[str, Account] = {}
        self.repos: dict[tuple[str, str], Repository] = {}
        self.large: dict[str, bytes] = {}
        self.sent: list[str] = []
        self.refuse_after: int | None = None
        self.asked: list[str] = []
        self.url = ""

    def files(self, repo: str, kind: str = "model", revision: str = "main") -> dict[str, bytes]:
        """The files of a repository; KeyError where there is none."""
        found = self.repos[kind, repo].at(revision)
        assert found is not None
        return found[1]


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub at ``hub.url`` until the block ends."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub that this process's libraries take for theirs; the token is ``me``'s, who may write."""
    with serving() as hub:
        hub.accounts["hf_me"] = Account("me", orgs={"team": "write", "club": "read"})
        constants = "huggingface_hub.constants"
        monkeypatch.setattr(f"{constants}.HF_HUB_OFFLINE", False)
        monkeypatch.setattr(f"{constants}.HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(f"{constants}.ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(f"{constants}.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(f"{constants}.HF_HUB_CACHE", str(tmp_path / "hub-cache"))
        monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", hub.url)
        monkeypatch.setenv("HF_TOKEN", "hf_me")
        yield hub


class _Refusal(Exception):
    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


_KINDS = {"models": "model", "datasets": "dataset", "spaces": "space"}


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815

    # -- plumbing --------------------------------------------------------------------------------

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = self._chunks()
        self.hub.asked.append(f"{self.command} {path}")
        try:
            status, headers, content = self._route(path, body)
        except _Refusal as refusal:
            status, content = refusal.status, json.dumps({"error": refusal.message}).encode()
            headers = {"X-Error-Message": refusal.message}
            headers |= {"X-Error-Code": refusal.code} if refusal.code else {}
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _chunks(self) -> bytes:
        parts = []
        while size := int(self.rfile.readline().strip(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    @property
    def _account(self) -> Account | None:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token and token not in self.hub.accounts:
            raise _Refusal(401, message="Invalid credentials in Authorization header")
        return self.hub.accounts.get(token)

    def _repo(self, kind: str, name: str, write: bool = False) -> Repository:
        account, repo = self._account, self.hub.repos.get((kind, name))
        writer = account is not None and account.may_write(name)
        owner = account is not None and (writer or name.startswith(f"{account.name}/"))
        if repo is None or (repo.private and not owner):
            raise _Refusal(404 if account else 401, "RepoNotFound", "Repository not found")
        if write and not writer:
            raise _Refusal(403, message="you do not have the right to write to this repository")
        return repo

    # -- routes ----------------------------------------------------------------------------------

    def _route(self, path: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        if path == "/api/whoami-v2":
            account = self._account
            if account is None:
                raise _Refusal(401, message="Invalid username or password.")
            return _json(account.whoami())
        if path == "/api/validate-yaml":
            return _json({"errors": [], "warnings": []})
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if found := re.fullmatch(r"/api/(models|spaces|datasets)/([^/]+/[^/]+)(/.*)?", path):
            kind, name, rest = _KINDS[found[1]], found[2], found[3] or ""
            return self._api(kind, name, rest, body)
        if found := re.fullmatch(r"/(spaces/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            return self._batch("space" if found[1] else "model", found[2], json.loads(body))
        if found := re.fullmatch(r"/large/(\w+)", path):
            return self._put(found[1], body)
        if found := re.fullmatch(r"/(spaces/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._resolve("space" if found[1] else "model", found[2], found[3], found[4])
        raise _Refusal(404, message=f"nothing at {path}")

    def _create(self, asked: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        account = self._account
        if account is None:
            raise _Refusal(401, message="Invalid username or password.")
        kind = asked.get("type") or "model"
        name = f"{asked.get('organization') or account.name}/{asked['name']}"
        if not account.may_write(name):
            owner = name.partition("/")[0]
            raise _Refusal(
                403, message=f"You don't have the rights to create a {kind} under {owner}"
            )
        if (kind, name) in self.hub.repos:
            error = {"error": "You already created this repo", "url": f"{self.hub.url}/{name}"}
            return 409, {}, json.dumps(error).encode()
        made = Repository(asked.get("visibility") == "private", asked.get("sdk"))
        made.commit("main", {".gitattributes": b""})
        self.hub.repos[kind, name] = made
        return _json({"url": f"{self.hub.url}/{name}", "name": name})

    def _api(
        self, kind: str, name: str, rest: str, body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        if rest == "/auth-check":
            self._repo(kind, name)
            return _json({})
        if rest == "/auth-check/write":
            self._repo(kind, name, write=True)
            return _json({})
        if rest.startswith("/branch/"):
            repo = self._repo(kind, name, write=True)
            repo.branches.setdefault(rest.removeprefix("/branch/"), repo.branches["main"])
            return _json({})
        if rest.startswith("/preupload/"):
            self._repo(kind, name, write=True)
            return self._preupload(kind, name, rest.rpartition("/")[2], json.loads(body))
        if rest.startswith("/commit/"):
            repo = self._repo(kind, name, write=True)
            return self._commit(repo, name, rest.removeprefix("/commit/"), body)
        repo = self._repo(kind, name)
        revision, _, below = re.sub(r"^/(revision|tree)/", "", rest).partition("/")
        found = repo.at(revision or "main")
        if found is None:
            raise _Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if below and not any(path.startswith(f"{below}/") for path in found[1]):
            raise _Refusal(404, "EntryNotFound", f"{below} is not there")
        if rest.startswith("/tree/"):
            return _json([self._entry(path, data) for path, data in sorted(found[1].items())])
        about = {"_id": "0", "id": name, "sha": found[0], "private": repo.private}
        return _json(about | {"siblings": [{"rfilename": path} for path in sorted(found[1])]})

    @staticmethod
    def _entry(path: str, data: bytes) -> dict[str, Any]:
        entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data)}
        entry["oid"] = _git_oid(data)
        if path.endswith(LARGE):
            sha = hashlib.sha256(data).hexdigest()
            entry["lfs"] = {"oid": sha, "size": len(data), "pointerSize": 134}
        return entry

    def _preupload(
        self, kind: str, name: str, revision: str, asked: dict[str, Any]
    ) -> tuple[int, dict[str, str], bytes]:
        there = self.hub.files(name, kind, revision)
        files = []
        for file in asked["files"]:
            path, large = file["path"], file["path"].endswith(LARGE)
            answer = {"path": path, "uploadMode": "lfs" if large else "regular"}
            if path in there:
                data = there[path]
                answer["oid"] = hashlib.sha256(data).hexdigest() if large else _git_oid(data)
            files.append(answer | {"shouldIgnore": False})
        return _json({"files": files})

    def _batch(
        self, kind: str, name: str, asked: dict[str, Any]
    ) -> tuple[int, dict[str, str], bytes]:
        self._repo(kind, name, write=True)
        objects = []
        for item in asked["objects"]:
            answer = dict(item)
            if item["oid"] not in self.hub.large:
                answer["actions"] = {"upload": {"href": f"{self.hub.url}/large/{item['oid']}"}}
            objects.append(answer)
        return _json({"transfer": "basic", "objects": objects})

    def _put(self, oid: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        if self.hub.refuse_after is not None and len(self.hub.sent) >= self.hub.refuse_after:
            raise _Refusal(400, message="no more of that")
        assert hashlib.sha256(body).hexdigest() == oid
        self.hub.large[oid] = body
        self.hub.sent.append(oid)
        return _json({})

    def _commit(
        self, repo: Repository, name: str, branch: str, body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        files = dict(repo.commits[repo.branches[branch]][1])
        for line in body.splitlines():
            row = json.loads(line)
            value = row["value"]
            if row["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif row["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
            elif row["key"] == "deletedFile":
                del files[value["path"]]
        sha = repo.commit(branch, files)
        return _json({"success": True, "commitOid": sha, "commitUrl": f"/{name}/commit/{sha}"})

    def _resolve(
        self, kind: str, name: str, revision: str, path: str
    ) -> tuple[int, dict[str, str], bytes]:
        found = self._repo(kind, name).at(revision)
        if found is None:
            raise _Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        sha, files = found
        if path not in files:
            raise _Refusal(404, "EntryNotFound", f"{path} is not there")
        data = files[path]
        tag = hashlib.sha256(data).hexdigest() if path.endswith(LARGE) else _git_oid(data)
        headers = {"X-Repo-Commit": sha, "ETag": f'"{tag}"', "Content-Length": str(len(data))}
        return 200, headers | {"Content-Type": "application/octet-stream"}, data


def _git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _json(value: Any) -> tuple[int, dict[str, str], bytes]:
    return 200, {}, json.dumps(value).encode()
