"""`rlhf play` on tiny policies: typed, piped and given prompts, numbers by hand, mistakes."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.cli import main
from pipeline.data.toy import toy_tokenizer
from pipeline.lm.models import load_checkpoint
from pipeline.play import command
from tests.pipeline.compare.elsewhere import lively, saved

CONFIG = """
model: {model_name_or_path: toy, dtype: float32}
data: {dataset_name: toy, demonstrations: 64, train_prompts: 16, eval_prompts: 4, heldout: 4}
generation: {max_new_tokens: 6}
reward:
  source:
    - {source: "rules:ended", weight: 2, name: ends}
    - {source: "rules:repetition", name: same}
  gold: rules:ended
tracking: {report_to: []}
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An experiment with a finished reference and a finished PPO."""
    folder = tmp_path_factory.mktemp("play")
    saved(lively("llama", seed=0), folder / "run" / "sft" / "model")
    saved(lively("llama", seed=1), folder / "run" / "ppo" / "model")
    path = folder / "experiment.yaml"
    path.write_text(CONFIG + f"output_dir: {folder / 'run'}\n", encoding="utf-8")
    return path


def played(capsys: pytest.CaptureFixture[str], config: Path, *words: str) -> list[dict[str, Any]]:
    assert main(["play", "--config", str(config), "--json", *words]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_every_finished_policy_continues_every_prompt(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = played(capsys, config, "--prompt", "the film", "--prompt", "a", "--samples", "3")
    names = [(row["given"], row["policy"]) for row in rows]
    assert names == [(p, name) for p in ("the film", "a") for name in ("sft", "ppo") for _ in "123"]
    for row in rows:
        assert row["reward"] == pytest.approx(2 * row["parts"]["ends"] + row["parts"]["same"])
        assert row["gold"] == row["parts"]["ends"]
        assert row["prompt"] == row["given"]
        assert row["tokens"] == len(row["log_ratios"]) <= 6
        assert row["note"] is None
        if row["policy"] == "sft":
            assert row["kl"] == row["log_ratio"] == 0


def test_kl_and_log_ratios_are_those_of_the_plain_models(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    [row] = played(capsys, config, "ppo", "--prompt", "the film", "--temperature", "0.7")
    run = config.parent / "run"
    tokenizer = toy_tokenizer()
    prompt: Any = tokenizer("the film")["input_ids"]
    by_text = {tokenizer.decode([i]): i for i in range(len(tokenizer))}
    ids = [by_text[text] for text, _ in row["log_ratios"]]
    tokens = torch.tensor([[*prompt, *ids]])
    logps = []
    for name in ("ppo", "sft"):
        model, _ = load_checkpoint(run / name / "model", torch.float32)
        with torch.no_grad():
            logits = model(input_ids=tokens).logits[0, len(prompt) - 1 : -1] / 0.7
        logps.append(logits.double().log_softmax(-1))
    ratios = (logps[0] - logps[1]).gather(-1, torch.tensor(ids)[:, None]).squeeze(-1)
    assert [ratio for _, ratio in row["log_ratios"]] == pytest.approx(ratios.tolist(), abs=1e-4)
    assert row["log_ratio"] == pytest.approx(float(ratios.sum()), abs=1e-4)
    kl = float((logps[0].exp() * (logps[0] - logps[1])).sum())
    assert kl > 0.1
    assert row["kl"] == pytest.approx(kl, rel=1e-4)


def test_the_seed_decides_and_each_prompt_has_its_own(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    twice = ("ppo", "--prompt", "the film", "--prompt", "the film")
    first, again, other = (
        [row["completion"] for row in played(capsys, config, *twice, "--seed", seed)]
        for seed in ("0", "0", "1")
    )
    assert first == again
    assert len(set(first)) == 2
    assert other[0] == first[1]


def test_a_policy_from_elsewhere_and_one_with_another_tokenizer(
    config: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    alike = saved(lively("gpt2"), tmp_path / "alike")
    other = toy_tokenizer()
    other.eos_token = other.pad_token = "<unk>"
    model = lively("llama")
    model.generation_config.eos_token_id = other.eos_token_id  # type: ignore[union-attr]
    ends = saved(model, tmp_path / "ends", other)
    rows = played(
        capsys, config, str(alike), "theirs", f"compare.policies={{theirs: '{ends}'}}",
        "--prompt", "the film",
    )  # fmt: skip
    assert [row["policy"] for row in rows] == [str(alike), "theirs"]
    assert rows[0]["kl"] > 0
    assert rows[1]["kl"] is rows[1]["log_ratio"] is None
    assert rows[1]["note"].startswith("its completions end by '<unk>', the reference's by ")


def test_piped_prompts_and_what_people_read(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("the film\n\n  \na\n"))
    assert main(["play", "ppo", "--config", str(config), "--tokens"]) == 0
    out, err = capsys.readouterr()
    assert "prompt>" not in err
    lines = [line for line in out.splitlines() if line]
    assert lines[0] == "the film"
    assert "a" in lines
    headings = [line for line in lines if line.startswith("ppo: reward ")]
    assert len(headings) == 2
    for part in ("(ends ", ", same ", " · gold ", " · KL ", " nats · log-ratio ", " tokens, "):
        assert part in headings[0]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_typed_prompt_that_does_not_fit_ends_nothing(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    long = "the film " * 60
    monkeypatch.setattr("sys.stdin", Terminal(f"{long}\nthe film\n"))
    many = "generation.max_new_tokens=6"
    monkeypatch.setattr(command, "_converses", lambda experiment: False)
    assert main(["play", "gpt2", "--config", str(config), many, _gpt2(config)]) == 0
    out, err = capsys.readouterr()
    assert err.count("prompt> ") == 3
    assert "error: the prompt 0 ('the film the film" in err
    assert out.count("gpt2: reward") == 1


def _gpt2(config: Path) -> str:
    """A policy of 64 learned positions, by an override."""
    folder = config.parent / "gpt2"
    if not folder.exists():
        saved(lively("gpt2"), folder)
    return f"compare.policies={{gpt2: '{folder}'}}"


def test_where_prompts_are_conversations_the_template_is_used(
    config: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    rows = [{"prompt": [{"role": "user", "content": f"the film {n}"}]} for n in range(40)]
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    [row] = played(capsys, config, "ppo", f"data.prompts_name={file}", "--prompt", "the film")
    tokenizer = toy_tokenizer()
    asked = [{"role": "user", "content": "the film"}]
    ids: Any = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=True)
    ids = ids["input_ids"] if isinstance(ids, dict) or hasattr(ids, "keys") else ids
    assert row["given"] == "the film"
    assert row["prompt"] == tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["dpo"], "dpo: .*/dpo/model is not there; run `rlhf dpo` first"),
        (["ppo", "ppo"], "ppo: is named twice"),
        (["nobody"], "nobody: cannot be loaded: .*; policies of this experiment: sft, ppo"),
        (["/no/folder"], "/no/folder: there is no such folder"),
        (["--prompt", " "], "--prompt: is empty"),
        (["--samples", "0"], "--samples: '0' is not a whole number above 0"),
        (["--prompt", "caf\udce9"], "--prompt: is not UTF-8"),
        (["--temperature", "inf"], "--temperature: 'inf' is not a number from 0.001 up"),
        (["--temperature", "1e-40"], "--temperature: '1e-40' is not a number from 0.001 up"),
        (["output_dir=/nowhere"], "/nowhere: no policy is finished there"),
        (["generation.max_new_token=3"], "max_new_token"),
        (["reward.source=rules:none"], "there is no such rule"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(
    config: Path, capsys: pytest.CaptureFixture[str], words: list[str], error: str
) -> None:
    given = [] if "--prompt" in words else ["--prompt", "the film"]
    assert main(["play", "--config", str(config), *words, *given]) == 2
    [line] = [row for row in capsys.readouterr().err.splitlines() if not row.startswith("play:")]
    assert line.startswith("error: ")
    assert re.search(error, line)


def test_piped_bytes_that_are_no_text_are_one_line(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    piped = io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), encoding="utf-8")
    monkeypatch.setattr("sys.stdin", piped)
    assert main(["play", "--config", str(config), "ppo"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("error: the prompts on stdin: are not UTF-8")


def test_control_characters_do_nothing_to_a_terminal() -> None:
    assert command._visible("a\x1b[2Jb\x07\nc\td") == "a\\x1b[2Jb\\x07\nc\td"
