"""Stages and a model with few positions: refused before any work, or cut and said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from pipeline import cli
from pipeline.config import load_experiment
from pipeline.data import load_data, toy

POSITIONS = 16


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 of 16 positions, with the toy's tokenizer."""
    folder = tmp_path_factory.mktemp("short") / "model"
    tokenizer = toy.toy_tokenizer()
    sizes: dict[str, Any] = {"vocab_size": len(tokenizer), "n_embd": 32, "n_layer": 2, "n_head": 4}
    tokens: dict[str, Any] = {"bos_token_id": tokenizer.eos_token_id}
    tokens |= {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    GPT2LMHeadModel(GPT2Config(**sizes, **tokens, n_positions=POSITIONS)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def rlhf(root: Path, words: str, model: Path, out: Path) -> int:
    command, *more = words.split()
    own = [f"model.model_name_or_path={model}", f"output_dir={out}", "sft.max_steps=1"]
    return cli.main([command, "--config", str(root / "configs" / "tiny.yaml"), *own, *more])


def test_prompts_that_leave_no_room_are_told_in_the_first_stage(
    root: Path, short: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert rlhf(root, "sft generation.max_new_tokens=13", short, tmp_path) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    data = load_data(load_experiment(root / "configs" / "tiny.yaml"))
    encode = toy.toy_tokenizer()
    row = next(i for i, p in enumerate(data.train_prompts) if len(encode(str(p))["input_ids"]) > 3)
    assert f"training prompt {row} (" in lines[0] and "GPT2LMHeadModel takes 16 tokens" in lines[0]
    assert not list(tmp_path.rglob("checkpoint-*"))


def test_longer_texts_are_cut_and_pairs_too(
    root: Path, short: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """SFT, DPO on own pairs and perplexity, all beyond the model's positions."""
    texts = tmp_path / "texts.jsonl"
    rows = [
        {"text": f"{t.text} {t.text} {t.text}", "label": t.rating} for t in toy.toy_texts(600, 1)
    ]
    texts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = tmp_path / "pairs.jsonl"
    long = " ".join(["the film about love"] * 5)
    pair = {"prompt": "the film", "chosen": f" is {long}", "rejected": f" a movie {long}"}
    pairs.write_text((json.dumps(pair) + "\n") * 16)
    own = f"data.dataset_name={texts} data.preferences_name={pairs} data.max_words=300"
    own += " dpo.max_steps=1 reward.max_steps=1 ppo.total_episodes=32 data.demonstrations=64"
    own += " data.positive_above=0 data.neutral_margin=0"
    for stage in ("sft", "reward", "ppo", "dpo", "compare"):
        assert rlhf(root, f"{stage} {own}", short, tmp_path / "run") == 0, capsys.readouterr().err
        said = capsys.readouterr().err
        if stage in ("sft", "dpo"):
            assert f"{stage}.max_length: GPT2LMHeadModel takes 16 tokens" in said
    results = json.loads((tmp_path / "run" / "compare" / "results.json").read_text())
    assert results["methods"]["dpo"]["perplexity"] > 1
