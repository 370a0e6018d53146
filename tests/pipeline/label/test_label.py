"""`rlhf label`: pairs in, preference pairs out, and a killed run goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.files import write_json
from pipeline.cli import main as rlhf
from pipeline.config import load_experiment
from pipeline.data.preferences import load_preferences
from pipeline.label.labelling import Label, label_file, read_unlabelled
from pipeline.provenance import stage_inputs
from reward_models import RewardError
from reward_models.judge import Judge

REWARD = "def score(prompts, completions):\n    return [float(c.count('o')) for c in completions]\n"
ROWS = [
    {"prompt": f"the film {i}", "completions": [" o" * (i % 3), " o" * ((i + 1) % 3) + " x"]}
    for i in range(1, 11)
]
ROWS = [row for row in ROWS if row["completions"][0]]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "mine.py").write_text(REWARD)
    return path


def label(folder: Path, *words: str) -> tuple[int, list[dict[str, Any]]]:
    output = folder / "labelled.jsonl"
    code = rlhf(["label", "--output", str(output), *words])
    text = output.read_text(encoding="utf-8") if output.is_file() else ""
    return code, [json.loads(line) for line in text.splitlines()]


def by_reward(pairs: Path) -> list[str]:
    return ["--pairs", str(pairs), "--reward", f"{pairs.parent / 'mine.py'}:score"]


def test_a_reward_labels_pairs_that_are_read_back(pairs: Path, tmp_path: Path) -> None:
    code, rows = label(tmp_path, *by_reward(pairs))
    assert code == 0 and len(rows) == len(ROWS)
    for row, given in zip(rows, ROWS, strict=True):
        assert {row["chosen"], row["rejected"]} == set(given["completions"])
        assert row["chosen_reward"] == row["chosen"].count("o")
        assert row["chosen_reward"] >= row["rejected_reward"] and row["probability"] >= 0.5
        assert (row["probability"] == 0.5) == (row["chosen_reward"] == row["rejected_reward"])
    assert not (tmp_path / "labelled.jsonl.part").exists()
    read = load_preferences(str(tmp_path / "labelled.jsonl"))
    assert [pair["chosen"] for pair in read] == [row["chosen"] for row in rows]


def test_sampled_labels_follow_the_probability(pairs: Path, tmp_path: Path) -> None:
    row = {"prompt": "p", "completions": ["o", "oo"]}  # P(first) = σ(−1) = 0.27
    pairs.write_text(f"{json.dumps(row)}\n" * 2000)
    code, rows = label(tmp_path, *by_reward(pairs), "--sampled", "--batch-size", "500")
    assert code == 0
    share = sum(row["chosen"] == "oo" for row in rows) / len(rows)
    assert share == pytest.approx(0.731, abs=0.04)  # four standard errors
    for row in rows:
        assert row["probability"] == pytest.approx(
            0.731 if row["chosen"] == "oo" else 0.269, abs=1e-3
        )


def test_the_judge_of_a_toy_model(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--pairs", str(pairs), "--judge", "toy", "--criterion", "warmth"]
    code, rows = label(tmp_path, *words)
    assert code == 2 and rows == []  # its words are those of film remarks
    assert "does not tell A from B as single tokens" in capsys.readouterr().err
    monkeypatch.setattr(Judge, "_find_letters", lambda self: (8, 9))
    monkeypatch.setattr("reward_models.judge._limit", lambda model, tokenizer: 4096)
    code, rows = label(tmp_path, *words)
    out = capsys.readouterr().out
    assert code == 0 and len(rows) == len(ROWS)
    assert f"{len(ROWS)} pairs labelled" in out and "position: place A gets" in out
    assert "file's own labels" not in out
    assert set(rows[0]) == {"prompt", "chosen", "rejected", "probability"}


def test_a_files_own_labels_are_compared_with(
    tmp_path: Path, pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chat = [{"role": "user", "content": "hi"}]
    answers = [[{"role": "assistant", "content": text}] for text in ("oo", "x", "xx")]
    rows = [
        {"prompt": chat, "chosen": answers[0], "rejected": answers[1]},
        {"prompt": chat, "chosen": answers[2], "rejected": answers[0]},
        {"prompt": chat, "chosen": answers[0], "rejected": answers[2]},
        {"prompt": chat, "chosen": answers[1], "rejected": answers[2]},
    ]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, made = label(tmp_path, *by_reward(pairs))
    assert code == 0 and made[1]["chosen"] == answers[0] and made[1]["prompt"] == chat
    assert "own labels on 62.5% of the pairs" in capsys.readouterr().out  # a tie is half


def test_an_experiments_reward(tmp_path: Path, pairs: Path, root: Path) -> None:
    words = ["--config", str(root / "configs" / "tiny.yaml"), *by_reward(pairs)[:2]]
    code, rows = label(tmp_path, *words, f"reward.source={tmp_path / 'mine.py'}:score")
    assert code == 0 and [row["chosen_reward"] >= row["rejected_reward"] for row in rows]


STOPS = """
import pathlib
def score(prompts, completions):
    if {stop} and pathlib.Path(__file__).with_name("labelled.jsonl.part").stat().st_size > 999:
        raise RuntimeError("stop")
    return [{sign}float(c.count("o")) for c in completions]
"""


def test_another_experiments_reward_does_not_go_on(
    tmp_path: Path, pairs: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "stops.py"
    words = ["--config", str(root / "configs" / "tiny.yaml"), *by_reward(pairs)[:2]]
    words += [f"reward.source={mine}:score", "--batch-size", "2"]
    mine.write_text(STOPS.format(stop=True, sign=""))
    assert label(tmp_path, *words)[0] == 2
    assert (tmp_path / "labelled.jsonl.part").read_bytes().count(b"\n") > 2
    mine.write_text(STOPS.format(stop=False, sign="-"))
    capsys.readouterr()
    assert label(tmp_path, *words) == (2, [])
    assert "labelled.jsonl.part was begun with another reward" in capsys.readouterr().err


def test_a_trained_reward_is_this_configs_and_the_same_throughout(
    tmp_path: Path,
    pairs: Path,
    root: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config, folder = root / "configs" / "tiny.yaml", tmp_path / "run" / "reward"
    here = f"output_dir={tmp_path / 'run'}"
    words = ["--config", str(config), *by_reward(pairs)[:2], here, "--batch-size", "2"]
    inputs = stage_inputs(load_experiment(config, [here]))["reward"]

    def trained(status: str, weights: str) -> None:
        write_json(folder / "stage.json", {"inputs": inputs, "status": status})
        write_json(folder / "proxy" / "config.json", {})
        (folder / "proxy" / "weights").write_text(weights)

    asked: list[int] = []

    def reward(prompts: list[str], completions: list[str]) -> list[float]:
        asked.append(len(completions))
        if len(asked) == 3:
            raise RewardError("stop")
        return [float(c.count("o")) for c in completions]

    monkeypatch.setattr("pipeline.stages.reward_sources.proxy_reward", lambda _: reward)

    def refused(*more: str) -> str:
        capsys.readouterr()
        assert label(tmp_path, *words, *more) == (2, [])
        return capsys.readouterr().err

    trained("started", "one")
    assert "reward: is not finished; run `rlhf reward`" in refused()
    trained("finished", "one")
    assert "was made with seed = 0, the config now has 3; give the config" in refused("seed=3")
    assert not asked
    assert "stop" in refused()
    trained("finished", "another")
    assert "was begun with another trained reward" in refused()
    trained("finished", "one")
    assert label(tmp_path, *words)[0] == 0


@pytest.mark.parametrize("torn", [b"", b'{"prompt": "the fi', b"\n"])
def test_a_killed_run_goes_on_from_whole_batches(tmp_path: Path, pairs: Path, torn: bytes) -> None:
    given, own = read_unlabelled(str(pairs), "--pairs")
    assert not own
    asked: list[str] = []
    limit = [5]

    def labeller(prompts: list[str], first: list[str], second: list[str]) -> list[Label]:
        if len(asked) >= limit[0]:
            raise KeyboardInterrupt
        asked.extend(prompts)
        return [Label(0.1 * (int(p[-1]) or 9), {}, {}) for p in prompts]

    def run(output: Path, seed: int = 0) -> list[float]:
        return label_file(
            given, labeller, output, described={"judge": "x"}, batch_size=2, sampled=True, seed=seed
        ).probabilities

    output = tmp_path / "out.jsonl"
    with pytest.raises(KeyboardInterrupt):
        run(output)
    part = tmp_path / "out.jsonl.part"
    assert len(asked) == 6 and not output.exists()
    part.write_bytes(part.read_bytes().rstrip(b"\n") + b"\n" + torn.lstrip(b"\n"))
    limit[0] = 1000
    with pytest.raises(Exception, match="out.jsonl.part was begun with another seed; run the same"):
        run(output, seed=1)
    first = run(output)
    assert len(asked) == len(given) and not part.exists()  # none was asked for twice
    asked.clear()
    assert run(tmp_path / "whole.jsonl") == first
    assert (tmp_path / "whole.jsonl").read_bytes() == output.read_bytes()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda w: [*w, "--criterion", "x"], "--criterion: is for a --judge"),
        (lambda w: [*w[:2], "--judge", "toy"], "--criterion: say what makes an answer better"),
        (lambda w: [*w, "--judge", "toy"], "not allowed with argument"),
        (lambda w: w[2:], "--pairs: there is nothing to label"),
        (lambda w: [*w, "a.b=c"], "a.b=c: settings are for a --config"),
        (lambda w: [*w, "--batch-size", "0"], "'0' is not a whole number above 0"),
        (lambda w: ["--pairs", "nowhere.jsonl", *w[2:]], "nowhere.jsonl: there is no such file"),
        (lambda w: [*w[:2], "--reward", "no.py:score"], "--reward no.py:score: there is no file"),
        (lambda w: [*w[:2], "--judge", "./no", "--criterion", "x"], "--judge: './no' is no causal"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(
    pairs: Path,
    tmp_path: Path,
    change: Callable[[list[str]], list[str]],
    expected: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, rows = label(tmp_path, *change(by_reward(pairs)))
    error = capsys.readouterr().err.strip()
    assert code == 2 and rows == [] and expected in error and error.count("error: ") == 1


@pytest.mark.parametrize("output", ["pairs.jsonl/x.jsonl", f"{'x' * 250}.jsonl", "folder.jsonl"])
def test_an_output_that_cannot_be_written_is_refused_before_any_work(
    output: str, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder.jsonl.part").mkdir()
    words = ["--pairs", "nowhere.jsonl", *by_reward(pairs)[2:], "--output", str(tmp_path / output)]
    assert rlhf(["label", *words]) == 2
    error = capsys.readouterr().err.strip()
    assert error.count("error: ") == 1 and f"--output: {tmp_path / output}: cannot be" in error


def test_a_refused_run_leaves_no_part(pairs: Path, tmp_path: Path) -> None:
    assert label(tmp_path, "--pairs", "nowhere.jsonl", *by_reward(pairs)[2:])[0] == 2
    assert {path.name for path in tmp_path.iterdir()} == {"pairs.jsonl", "mine.py"}


def test_rows_without_two_answers_and_files_that_are_there(
    pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs.write_text(json.dumps(ROWS[0]) + "\n" + '{"prompt": "p", "completions": ["a"]}\n')
    assert label(tmp_path, *by_reward(pairs))[0] == 2
    assert "line 2: completions is ['a']; give a list of two answers" in capsys.readouterr().err
    (tmp_path / "labelled.jsonl").write_text("")
    assert label(tmp_path, *by_reward(pairs))[0] == 2
    assert "labelled.jsonl is there already" in capsys.readouterr().err
