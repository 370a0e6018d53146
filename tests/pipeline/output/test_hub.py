"""Who may push where is known before any work; what is pushed is whole. On a loopback hub."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.output.hub import Repo, check_rights, head, push
from tests.hub import Account, Hub, hub

__all__ = ["hub"]
KEY = "ppo.push_to_hub"


def refusal(*ids: str) -> str:
    with pytest.raises(UserError) as caught:
        check_rights([Repo(KEY, name) for name in ids])
    line = str(caught.value)
    assert "\n" not in line and line.startswith(f"{KEY}: ")
    return line


def test_a_name_alone_is_in_ones_own_account_and_is_made(hub: Hub) -> None:
    repos = [Repo(KEY, "mine", private=True), Repo(KEY, "team/page", "space", revision="draft")]
    assert [repo.id for repo in check_rights(repos)] == ["me/mine", "team/page"]
    assert [repo.id for repo in check_rights(repos)] == ["me/mine", "team/page"]  # they are there
    assert hub.repos["model", "me/mine"].private
    page = hub.repos["space", "team/page"]
    assert not page.private and page.sdk == "static" and "draft" in page.branches


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("other/x", "other/x is somebody else's; this account can write for me, team"),
        ("club/x", "me may only read in the organisation club"),
        ("a--b", "'a--b' is no name for the hub"),
        ("a/b/c", "'a/b/c' is no name for the hub"),
        ("x" * 97, "is no name for the hub"),
    ],
)
def test_what_is_not_ones_own_is_refused(hub: Hub, name: str, said: str) -> None:
    assert said in refusal("mine", name)
    assert hub.repos == {}


def test_what_is_to_be_private_is_not_pushed_to_a_public_place(hub: Hub) -> None:
    check_rights([Repo(KEY, "page")])
    with pytest.raises(UserError, match="me/page .it is there already and public"):
        check_rights([Repo(KEY, "page", private=True)])


def test_tokens_that_may_not_write(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.accounts["hf_reader"] = Account("me", role="read")
    hub.accounts["hf_fine"] = Account("me", role="fineGrained", fine=frozenset({"me/a"}))
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    assert "the token of me may only read; make one that may write" in refusal("me/a")
    monkeypatch.setenv("HF_TOKEN", "hf_fine")
    check_rights([Repo(KEY, "a")])
    assert "me cannot push to me/b (" in refusal("a", "b")
    monkeypatch.setenv("HF_TOKEN", "hf_me")
    check_rights([Repo(KEY, "b")])
    monkeypatch.setenv("HF_TOKEN", "hf_fine")  # there now, and readable, but not to be written to
    line = refusal("a", "b")
    assert "me cannot push to me/b (" in line and "the right to write there" in line
    monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
    assert "the hub cannot be used (Invalid user token" in refusal("a")


def test_without_account_network_or_leave(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert "there is no account: set HF_TOKEN" in refusal("a")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_me")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert "the hub cannot be used (" in refusal("a")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set, so nothing can be pushed" in refusal("a")
    assert hub.asked == []


def test_a_push_replaces_its_own_weights_and_nothing_else(hub: Hub, tmp_path: Path) -> None:
    (repo,) = check_rights([Repo(KEY, "mine")])
    sharded = tmp_path / "sharded"
    for name in ("model-00001-of-00002", "model-00002-of-00002"):
        _file(sharded, f"{name}.safetensors")
    _file(sharded, "model.safetensors.index.json")
    _file(sharded, "original/weights.bin")
    _file(sharded, ".hidden/x")
    assert push(repo, sharded, {"README.md": b"# mine\n"}, "first")
    first = head(repo)
    assert set(hub.files("me/mine")) == {
        ".gitattributes",
        "README.md",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "original/weights.bin",
    }
    whole = tmp_path / "whole"
    _file(whole, "model.safetensors")
    push(repo, whole, {}, "second")
    assert set(hub.files("me/mine")) == {
        ".gitattributes",
        "README.md",
        "model.safetensors",
        "original/weights.bin",
    }
    second = head(repo)
    assert first != second
    assert not push(repo, whole, {}, "third")  # no commit, and nothing is sent
    assert head(repo) == second and len(hub.sent) == len(set(hub.sent))


def test_a_push_that_broke_off_sends_the_rest(hub: Hub, tmp_path: Path) -> None:
    (repo,) = check_rights([Repo(KEY, "mine")])
    for number in range(4):
        _file(tmp_path / "m", f"model-{number}.safetensors")
    hub.refuse_after = 2
    with pytest.raises(UserError, match="^me/mine: not pushed .*model-") as caught:
        push(repo, tmp_path / "m", {}, "broken")
    assert "\n" not in str(caught.value) and set(hub.files("me/mine")) == {".gitattributes"}
    hub.refuse_after = None
    push(repo, tmp_path / "m", {}, "whole")
    assert len(hub.files("me/mine")) == 5
    assert len(hub.sent) == len(set(hub.sent)) == 4  # the first two were not sent again


def _file(folder: Path, name: str) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(f"{folder.name}/{name}".encode() * 20)
