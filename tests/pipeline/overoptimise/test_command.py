"""`rlhf overoptimise` from nothing to the page, stopped and resumed, on the toy."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli import main
from pipeline.overoptimise import work

EVIL = '<script>alert(1)</script> & "quoted"'


def command(tiny: Path, folder: Path, *more: str) -> list[str]:
    settings = [
        f"output_dir={folder}",
        "name=" + json.dumps(EVIL),
        "reward.num_train_epochs=1",
        "overoptimise.sizes=[32, all]",
        "overoptimise.members=2",
        "overoptimise.samples=4",
        "overoptimise.betas=[0.2]",
        "overoptimise.ppo_rewards=[uncertainty]",
        "overoptimise.ppo_sizes=[32]",
        "overoptimise.episodes=128",
        "compare.bootstrap=50",
    ]
    return ["overoptimise", "--config", str(tiny), *settings, *more]


@pytest.fixture(scope="module", autouse=True)
def short() -> Iterator[None]:
    """Proxies of few texts, and few steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(work, "LEAST_STEPS", 8)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    """A folder of finished work, interrupted once in the middle of PPO."""
    folder = tmp_path_factory.mktemp("over") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(work, "optimised", _interrupted(work.optimised, after=5))
        assert main(command(tiny, folder)) == 130
    over = folder / "overoptimise"
    assert list((over / "ppo" / "32-uncertainty-0.2").glob("ppo/checkpoints/checkpoint-*"))
    kept = _times(over)
    assert main(command(tiny, folder)) == 0
    assert {path: _times(over)[path] for path in kept} == kept  # nothing was made twice
    return folder


def _interrupted(make: Any, after: int) -> Any:
    """``make``, whose rewards end as Ctrl-C does at a call."""

    def made(*arguments: Any) -> Any:
        reward, calls = make(*arguments), [0]

        def stopped(prompts: list[str], completions: list[str]) -> list[float]:
            calls[0] += 1
            if calls[0] > after:
                raise KeyboardInterrupt
            return reward(prompts, completions)

        return stopped

    return made


def _times(over: Path) -> dict[Path, int]:
    files = [*over.glob("proxies/*/reward/proxy/*"), *over.glob("samples/*")]
    return {path: path.stat().st_mtime_ns for path in files}


def test_an_interrupted_run_ends_where_a_whole_one_does(finished: Path, tiny: Path) -> None:
    report = finished / "overoptimise" / "report" / "results.json"
    before = json.loads(report.read_text())
    run = finished / "overoptimise" / "ppo" / "32-uncertainty-0.2"
    run.rename(finished / "first")
    assert main(command(tiny, finished)) == 0
    assert json.loads(report.read_text()) == before


def test_results_hold_every_curve(finished: Path) -> None:
    found = json.loads((finished / "overoptimise" / "report" / "results.json").read_text())
    assert list(found["best_of_n"]) == ["32", "all"]
    hows = found["best_of_n"]["32"]
    assert list(hows) == ["single", "mean", "minimum", "uncertainty"]
    points = hows["single"]["curves"][0]["points"]
    assert len(points) == 3  # n = 1, 2, 4
    assert points[-1]["proxy"] > points[0]["proxy"] == 0
    run = found["ppo"]["32"]["uncertainty"]
    assert run["betas"] == [0.2] and len(run["curves"][0]["points"]) > 2
    assert run["curves"][0]["points"][-1]["kl"] > 0
    assert hows["mean"]["fits"]["gold"]["law"] == "d(alpha - beta d)"


def test_the_page_stands_alone_and_text_in_it_stays_text(finished: Path) -> None:
    html = (finished / "overoptimise" / "report" / "index.html").read_text()
    assert "<script" not in html and "&lt;script&gt;" in html
    assert "default-src &#39;none&#39;" in html or "default-src 'none'" in html
    for link in re.findall(r'(?:src|href)="([^"]*)"', html):
        assert link.startswith(("#", "https://arxiv.org", "results.json")), link
    ids: list[str] = []

    class Ids(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            ids.extend(value for name, value in attrs if name == "id" and value)

    Ids().feed(html)
    assert len(ids) == len(set(ids))


def test_other_settings_are_refused_and_not_mixed(
    finished: Path, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(tiny, finished, "overoptimise.samples=8")) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "samples: made with another overoptimise.samples; remove it" in error


def test_more_texts_than_there_are_are_refused_before_any_training(
    tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(tiny, tmp_path, "overoptimise.sizes=[32, 99999]")) == 2
    assert "overoptimise.sizes: 99999 texts are asked for" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_what_cannot_work_is_said_before_any_work(
    tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(tiny, tmp_path, "reward.source=module:function")) == 2
    assert "reward.source: overoptimise trains its proxies" in capsys.readouterr().err
    assert main(command(tiny, tmp_path, "overoptimise.ppo_sizes=[33]")) == 2
    assert "33 is none of overoptimise.sizes" in capsys.readouterr().err
    assert main(["overoptimise"]) == 2
    assert "--config" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
