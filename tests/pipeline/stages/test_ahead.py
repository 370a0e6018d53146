"""What the data and the tokenizer do not allow together is told before any stage starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from pipeline import runner
from pipeline.config import Experiment, load_experiment
from pipeline.data.tally import listening
from pipeline.data.toy import toy_tokenizer
from pipeline.errors import UserError
from pipeline.stages import ahead


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


SYSTEM = {"role": "system", "content": "Be kind."}
LONG = "the film is good " * 30
COUNTS = ["demonstrations=3", "heldout=1", "train_prompts=2", "eval_prompts=1"]
REFUSING = (
    "{% for m in messages %}{% if m['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}{{ m['content'] }}{% endfor %}"
)
FORGETTING = (
    "{% for m in messages %}{% if m['role'] != 'system' %}{{ m['content'] }}{% endif %}{% endfor %}"
)


@pytest.fixture
def make(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An experiment on rows of one's own, and a chat template (None: without any)."""

    def make(
        key: str, rows: list[Any], template: str | None = "", overrides: tuple[str, ...] = ()
    ) -> Experiment:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        counts = [f"data.{count}" for count in COUNTS]
        tokenizer: PreTrainedTokenizerBase = toy_tokenizer()
        if template != "":
            tokenizer.chat_template = template
        monkeypatch.setattr(ahead, "load_tokenizer", lambda _: tokenizer)
        (tmp_path / "lengths.py").write_text(
            "def f(completions):\n    return map(len, completions)\n"
        )
        named = [f"data.{key}={path}", f"output_dir={tmp_path / 'out'}"]
        named.append(f"reward.source={tmp_path / 'lengths.py'}:f")
        return load_experiment(tiny, [*named, *counts, *overrides])

    return make


def rows_of(key: str, *before: dict[str, str]) -> list[dict[str, Any]]:
    """Five rows that begin with these messages, in the shape that the key reads."""
    rows = []
    for n in range(5):
        ask, say = [*before, user(f"film {n}")], [assistant(f"good {n}")]
        rows.append(
            {"messages": ask + say}
            if key == "dataset_name"
            else {"prompt": ask}
            if key == "prompts_name"
            else {"prompt": ask, "chosen": say, "rejected": [assistant("bad")]}
        )
    return rows


KEYS = {"dataset_name": ["sft"], "prompts_name": ["ppo"], "preferences_name": ["dpo"]}


@pytest.mark.parametrize("key", KEYS)
def test_templates(key: str, make) -> None:
    ahead.check(make(key, rows_of(key, SYSTEM)), KEYS[key])
    with pytest.raises(UserError, match=f"^data.{key}: .*has no chat template"):
        ahead.check(make(key, rows_of(key), None), KEYS[key])
    ahead.check(make(key, rows_of(key), REFUSING), KEYS[key])
    with pytest.raises(UserError, match=f"^data.{key}: .*refuses .*System role not supported"):
        ahead.check(make(key, rows_of(key, SYSTEM), REFUSING), KEYS[key])
    with pytest.raises(UserError, match=f"^data.{key}: .*leaves out the system message"):
        ahead.check(make(key, rows_of(key, SYSTEM), FORGETTING), KEYS[key])


def test_it_is_told_before_any_stage(make, tmp_path: Path) -> None:
    experiment = make("preferences_name", rows_of("preferences_name"), None)
    with pytest.raises(UserError, match="has no chat template"):
        runner.run(experiment, "run")
    assert not (tmp_path / "out" / "sft").exists()


def pair(prompt: str, chosen: str = " good", rejected: str = " bad") -> dict[str, str]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def test_pairs_beyond_the_limit(make) -> None:
    limit = ("dpo.max_length=16",)
    rows = [pair("the film is"), pair(LONG), pair(LONG), pair("the film is", LONG)]
    with listening() as lines:
        ahead.check(make("preferences_name", rows, overrides=limit), ["dpo"])
    name = lines[0].partition(":")[0]
    assert lines == [
        f"{name}: 2 of 4 pairs left out: the prompt alone fills dpo.max_length (16 tokens)",
        f"{name}: 1 of 4 pairs are longer than dpo.max_length (16 tokens) and cut",
    ]
    with pytest.raises(UserError, match="^dpo.max_length: in none of the 2 pairs .* does 16 leave"):
        ahead.check(make("preferences_name", rows[1:3], overrides=limit), ["dpo"])
    with listening() as lines:
        none = ("dpo.max_length=null",)
        ahead.check(make("preferences_name", rows[1:3], overrides=none), ["dpo"])
    assert not lines


def test_demonstrations_beyond_the_limit(make) -> None:
    rows = [{"prompt": f"{LONG} {n}", "completion": " good"} for n in range(5)]
    with pytest.raises(UserError, match="^sft.max_length: in none of the 3 demonstrations"):
        ahead.check(make("dataset_name", rows, overrides=("sft.max_length=16",)), ["sft"])


@pytest.mark.parametrize(
    ("rows", "switch", "expected"),
    [
        ("texts", "assistant_only_loss", "holds no conversations"),
        ("texts", "completion_only_loss", "holds plain texts, without a prompt"),
        ("pairs", "assistant_only_loss", "holds no conversations"),
        ("talks", "assistant_only_loss", "does not mark the assistant's turns"),
        ("pairs", "completion_only_loss", None),
        ("talks", "completion_only_loss", None),
    ],
)
def test_what_the_loss_is_on_must_be_there(
    rows: str, switch: str, expected: str | None, make
) -> None:
    made: dict[str, list[Any]] = {
        "texts": [{"text": " ".join(f"word{n}{m}" for m in range(9))} for n in range(5)],
        "pairs": [{"prompt": f"film {n}", "completion": " good"} for n in range(5)],
        "talks": rows_of("dataset_name"),
    }
    experiment = make("dataset_name", made[rows], overrides=(f"sft.{switch}=true",))
    if expected is None:
        return ahead.check(experiment, ["sft"])
    with pytest.raises(UserError, match=expected) as caught:
        ahead.check(experiment, ["sft"])
    assert str(caught.value).startswith(f"sft.{switch}: ")


def test_several_answers_of_which_one_is_learnt_are_told(make) -> None:
    rows = rows_of("dataset_name", user("who"), assistant("I"))
    with listening() as lines:
        ahead.check(make("dataset_name", rows), ["sft"])
    assert "SFT learns the last answer of each conversation" in lines[-1]
