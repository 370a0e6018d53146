"""The asset cache against a package index of our own in a folder, and the real assets' content."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest

from pipeline.data import cache, embedded
from pipeline.data.cache import Asset
from pipeline.errors import UserError
from tests.nursery import Nursery


def copy_out(archive: Path, target: Path) -> None:
    """Unpack the test package: its one payload file."""
    with zipfile.ZipFile(archive) as source:
        (target / "deep").mkdir()
        (target / "deep/payload.txt").write_bytes(source.read("demo_asset/payload.txt"))


def copy_slowly(archive: Path, target: Path) -> None:
    """The same, slow enough for processes to meet, and counted."""
    with (target.parent / "unpacked.log").open("a") as log:
        log.write("once\n")
    time.sleep(1.0)
    copy_out(archive, target)


def die_half_way(archive: Path, target: Path) -> None:
    """Write half a file and die as under the out-of-memory killer."""
    (target / "half.txt").write_text("ha", encoding="utf-8")
    os.kill(os.getpid(), signal.SIGKILL)


def demo(sha256: str, unpack=copy_out) -> Asset:
    return Asset("demo", "the demo", "demo-asset==1.0", sha256, 1, True, unpack)


@pytest.fixture
def index(tmp_path, monkeypatch) -> Path:
    """A folder that is all pip sees, with one package in it; an empty cache beside it."""
    pytest.importorskip("pip")
    folder = tmp_path / "index"
    folder.mkdir()
    about = "demo_asset-1.0.dist-info"
    with zipfile.ZipFile(folder / "demo_asset-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("demo_asset/payload.txt", "payload")
        wheel.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: demo-asset\nVersion: 1.0")
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{about}/RECORD", "")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("RLHF_CACHE", str(tmp_path / "cache"))
    cache.check.cache_clear()
    return folder


def archive_sha(index: Path) -> str:
    return hashlib.sha256(next(index.iterdir()).read_bytes()).hexdigest()


def take_offline(index: Path) -> None:
    """Empty the index, and forget what this process has checked."""
    for archive in index.iterdir():
        archive.unlink()
    cache.check.cache_clear()


def test_fetched_once_and_usable_offline(index, tmp_path):
    asset = demo(archive_sha(index))
    folder = cache.ready(asset)
    assert folder == tmp_path / "cache/demo"
    assert (folder / "deep/payload.txt").read_text() == "payload"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["files"]["deep/payload.txt"]["size"] == 7
    take_offline(index)
    assert cache.ready(asset) == folder
    assert {path.name for path in folder.parent.iterdir()} == {"demo", ".demo.lock"}


@pytest.mark.parametrize("damage", ["altered", "shorter", "gone", "manifest", "other archive"])
def test_damage_is_noticed_and_mended(damage, index, capsys):
    asset = demo(archive_sha(index))
    folder = cache.ready(asset)
    payload, manifest = folder / "deep/payload.txt", folder / "manifest.json"
    if damage == "altered":
        payload.write_text("pAyload")  # of the same size
    elif damage == "shorter":
        payload.write_text("pay")
    elif damage == "gone":
        payload.unlink()
    elif damage == "manifest":
        manifest.write_text(manifest.read_text()[:40])
    else:
        manifest.write_text(manifest.read_text().replace(asset.sha256, "0" * 64))
    cache.check.cache_clear()
    capsys.readouterr()
    assert cache.ready(asset) == folder
    assert payload.read_text() == "payload"
    assert "altered or half-finished" in capsys.readouterr().err


def test_another_archive_than_the_pinned_one_is_refused(index, tmp_path):
    with pytest.raises(UserError, match="demo-asset==1.0"):
        cache.ready(demo("0" * 64))
    assert not (tmp_path / "cache/demo").exists()


def test_no_network_and_no_cache_is_one_line(index):
    asset = demo(archive_sha(index))
    take_offline(index)
    with pytest.raises(UserError) as caught:
        cache.ready(asset)
    message = str(caught.value)
    assert "\n" not in message
    assert "the demo" in message and "network on" in message and "RLHF_CACHE" in message


def test_a_cache_that_cannot_be_written_is_one_line(index, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RLHF_CACHE", str(tmp_path / "file/cache"))
    with pytest.raises(UserError, match="cannot be written .*set RLHF_CACHE"):
        cache.ready(demo(archive_sha(index)))


def fetch(environment: str, sha256: str, unpack: str) -> int:
    """Have the package ready, in another process."""
    os.environ |= json.loads(environment)
    folder = cache.ready(demo(sha256, globals()[unpack]))
    return 0 if (folder / "deep/payload.txt").read_text() == "payload" else 1


def in_another_process(nursery: Nursery, log: Path, sha256: str, unpack: str) -> int:
    """Begin :func:`fetch` with this process's settings; the process id."""
    environment = {k: v for k, v in os.environ.items() if k.startswith(("PIP_", "RLHF_"))}
    return nursery.start(log, f"{__name__}:fetch", json.dumps(environment), sha256, unpack)


def test_processes_at_once_fetch_once(index, tmp_path, nursery):
    log, sha256 = tmp_path / "log", archive_sha(index)
    processes = [in_another_process(nursery, log, sha256, "copy_slowly") for _ in range(3)]
    assert [nursery.wait(pid) for pid in processes] == [0, 0, 0], log.read_text()
    assert (tmp_path / "cache/unpacked.log").read_text() == "once\n"


def test_a_killed_process_leaves_nothing_behind(index, tmp_path, nursery):
    pid = in_another_process(nursery, tmp_path / "log", archive_sha(index), "die_half_way")
    assert nursery.wait(pid) == -signal.SIGKILL
    assert not (tmp_path / "cache/demo").exists()
    cache.ready(demo(archive_sha(index)))
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {"demo", ".demo.lock"}


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("RLHF_CACHE", str(tmp_path))
    assert cache.cache_folder() == tmp_path
    monkeypatch.delenv("RLHF_CACHE")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.cache_folder() == tmp_path / "xdg/rlhf"


@pytest.mark.parametrize(
    ("published", "typed"),
    [
        ("all comics    even those", "all comics -- even those"),
        ("new ''Conan'' and", 'new "Conan" and'),
        ("Lovely &amp;amp; Amazing", "Lovely & Amazing"),
        ("rose hips .", "rose hips."),
        ("Bow Wow ... tones it down", "Bow Wow ... tones it down"),
        ("love this :D  THATS it :)", "love this :D THATS it :)"),
        ("no picture:  hopefully", "no picture: hopefully"),
        (" plain, 'quoted' -- text? ", "plain, 'quoted' -- text?"),
    ],
)
def test_clean_snippet(published, typed):
    assert embedded.clean_snippet(published) == typed


def test_unknown_kind():
    with pytest.raises(UserError, match="nearest: embedded:tweets"):
        embedded.ratings("tweet")


# --- The real ones --------------------------------------------------------------------------------


@pytest.mark.assets
@pytest.mark.parametrize(
    ("kind", "count", "raters"),
    [("movie-reviews", 10605, 14), ("product-reviews", 3708, 20), ("editorials", 5190, 20)]
    + [("tweets", 4200, 20)],
)
def test_ratings(kind, count, raters):
    rated = embedded.ratings(kind)
    assert len(rated) == count
    assert all(text.text and -4 <= text.rating <= 4 for text in rated)
    assert min(len(text.ratings) for text in rated) >= raters
    assert all(score in range(-4, 5) for text in rated for score in text.ratings)
    assert all(text.text == text.text.strip() and "\t" not in text.text for text in rated)


@pytest.mark.assets
def test_movie_reviews_are_read_in_their_encoding_and_order():
    first, *others = embedded.ratings()
    assert first.text.startswith('The Rock is destined to be the 21st Century\'s new "Conan"')
    assert first.rating == pytest.approx(2.2666667)
    assert first.ratings[:4] == (3.0, 2.0, 2.0, 2.0)
    assert sum("é" in text.text for text in others) > 50
    assert not any("Ã" in text.text or "\ufffd" in text.text for text in others)


@pytest.mark.assets
def test_base_model():
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = embedded.base_model()
    assert not list(folder.glob("*.gguf"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert not hasattr(model.config, "quantization_config")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert tokenizer.eos_token == tokenizer.pad_token == "<|im_end|>"
    assert model.config.eos_token_id == model.config.pad_token_id == tokenizer.eos_token_id == 2
    for text in [
        "Café – naïve,  in 2013\n\nit's 'great'.",
        *(t.text for t in embedded.ratings()[:200]),
    ]:
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    chat = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    batch = tokenizer(chat, return_tensors="pt")
    answer = model.generate(**batch, max_new_tokens=12, do_sample=False)[0]
    text = tokenizer.decode(answer[batch["input_ids"].shape[1] :])
    assert text == "The capital of France is Paris.<|im_end|>"


@pytest.mark.assets
def test_encoder_places_like_near_like():
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder = embedded.encoder()
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    texts = ["a great film", "a wonderful movie", "the budget of the city council"]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    mask = batch["attention_mask"].unsqueeze(-1)
    with torch.no_grad():
        mean = (model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1)
    near, far = torch.cosine_similarity(mean[:1], mean[1:]).tolist()
    assert near > 0.6 > 0.3 > far
