"""What kept pieces were made from, where their SFT model is, and how long proxies train."""

from __future__ import annotations

import csv
import math
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.files import write_json
from pipeline.config import load_experiment
from pipeline.errors import UserError
from pipeline.overoptimise import work
from pipeline.overoptimise.grid import Proxy
from pipeline.overoptimise.results import results
from pipeline.overoptimise.work import Work

FEW = Proxy(40, 0)

Make = Callable[..., Work]


@pytest.fixture
def make(tiny: Path, tmp_path: Path) -> Make:
    def made(*overrides: str, folder: str = "run") -> Work:
        grid = ["overoptimise.sizes=[40]", "overoptimise.ppo_sizes=[40]", "overoptimise.members=2"]
        return Work(load_experiment(tiny, [f"output_dir={tmp_path / folder}", *grid, *overrides]))

    return made


# --- What a proxy was made from -------------------------------------------------------------------


def write_texts(path: Path, seed: int) -> None:
    """Rated texts of random words."""
    draw = random.Random(seed)
    words = ["".join(draw.choices("abcdefghij", k=6)) for _ in range(400)]
    with path.open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["text", "label"])
        rows.writerows([" ".join(draw.choices(words, k=12)), n % 2] for n in range(800))


def sft_made(folder: Path, fingerprint: str) -> None:
    write_json(folder / "run" / "sft" / "stage.json", {"fingerprint": fingerprint})


@pytest.mark.parametrize("changed", ["list of rated texts", "content of the encoder", "SFT model"])
def test_a_proxy_made_from_something_else_is_refused(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    trained: list[Any] = []
    monkeypatch.setattr(work, "train", lambda *arguments: trained.append(arguments))
    texts, encoder = tmp_path / "texts.csv", tmp_path / "encoder"
    write_texts(texts, seed=0)
    write_json(encoder / "config.json", 1)
    sft_made(tmp_path, "one")
    over = "sft" if changed == "SFT model" else str(encoder)
    settings = [f"data.dataset_name={texts}", "data.positive_above=0.5", "data.neutral_margin=0"]
    settings += [f"reward.encoder={over}"]
    make(*settings).train(FEW)
    make(*settings).train(FEW)  # of the same
    assert len(trained) == 2
    if changed == "list of rated texts":
        write_texts(texts, seed=1)
    elif changed == "SFT model":
        sft_made(tmp_path, "another")
    else:
        write_json(encoder / "config.json", 2)
    named = "content of the encoder" if changed == "SFT model" else changed
    with pytest.raises(UserError, match=f"proxies/40-0: made with another {named}; remove it"):
        make(*settings).train(FEW)
    assert len(trained) == 2


def test_a_ppo_run_on_other_prompts_is_refused(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[Any] = []
    monkeypatch.setattr(work.ppo, "train", lambda *arguments: ran.append(arguments))
    monkeypatch.setattr(work, "gold_reward", lambda _: None)
    monkeypatch.setattr(Work, "reward", lambda *_: lambda prompts, completions: completions)
    monkeypatch.setattr(Work, "scores", lambda *_: np.arange(8.0))
    prompts = tmp_path / "prompts.txt"
    for name in ("film", "film", "story"):
        prompts.write_text("".join(f"the {name} number {n}\n" for n in range(99)))
        made = make(f"data.prompts_name={prompts}")
        if name == "film":
            made.run(40, "single", 0.5)
    with pytest.raises(UserError, match=r"40-single-0.5: made with another list of prompts"):
        made.run(40, "single", 0.5)
    assert len(ran) == 2


# --- Where the SFT model is -----------------------------------------------------------------------


def sft_of(made: Work) -> str:
    return (made.proxy(FEW).stage_dir("sft") / "whose").read_text()


def test_a_run_that_was_moved_or_copied_has_its_own_sft(make: Make, tmp_path: Path) -> None:
    def path(folder: str) -> Path:
        return tmp_path / folder / "sft" / "whose"

    path("run").parent.mkdir(parents=True)
    path("run").write_text("the run's")
    assert sft_of(make()) == "the run's"
    shutil.copytree(tmp_path / "run", tmp_path / "copy", symlinks=True)
    path("copy").write_text("the copy's")
    assert sft_of(make(folder="copy")) == "the copy's"
    (tmp_path / "run").rename(tmp_path / "moved")
    link = tmp_path / "moved" / "overoptimise" / "proxies" / "40-0" / "sft"
    assert (link / "whose").read_text() == "the run's"
    for old in (tmp_path / "run" / "sft", tmp_path / "copy" / "sft"):  # as once, absolute
        link.unlink()
        link.symlink_to(old)
        assert sft_of(make(folder="moved")) == "the run's"
    link.unlink()
    shutil.copytree(path("copy").parent, link)
    with pytest.raises(UserError, match=r"40-0/sft: is no link to .*/moved/sft; remove it"):
        sft_of(make(folder="moved"))


# --- How many texts and steps ---------------------------------------------------------------------


@pytest.mark.parametrize("calibrate", [False, True])
@pytest.mark.parametrize("accumulated", [1, 4])
def test_few_texts_have_their_steps(make: Make, accumulated: int, calibrate: bool) -> None:
    keys = {"gradient_accumulation_steps": accumulated, "calibrate": str(calibrate).lower()}
    made = make(*(f"reward.{key}={value}" for key, value in keys.items()))
    own = made.proxy(FEW)
    epochs = own.trainer_args("reward")["num_train_epochs"]
    texts, step = 36 if calibrate else 40, 16 * accumulated
    assert epochs == math.ceil(work.LEAST_STEPS * step / texts)
    assert epochs * math.ceil(texts / step) >= work.LEAST_STEPS


@pytest.mark.parametrize("labels", ["hard", "soft"])
def test_results_count_the_ratings_that_are_learnt(
    make: Make, monkeypatch: pytest.MonkeyPatch, labels: str
) -> None:
    made = make(
        *(f"reward.labels={labels}", "data.neutral_margin=1", "compare.bootstrap=5"),
        *("overoptimise.betas=[]", "overoptimise.samples=4"),
    )
    draw = np.random.default_rng(0)
    monkeypatch.setattr(Work, "scores", lambda *_: draw.normal(size=(16, 4)))
    decided, all_of_it = len(made.data.proxy), len(made.data.half("proxy"))
    assert decided < all_of_it
    assert results(made)["ratings"] == (decided if labels == "hard" else all_of_it)
