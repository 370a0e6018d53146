"""SFT on texts, on prompts with completions and on conversations: what the loss is on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from trl import SFTConfig, SFTTrainer

from pipeline import runner
from pipeline.config import load_experiment
from pipeline.data.records import Demonstration
from pipeline.data.toy import toy_language_model, toy_tokenizer
from pipeline.errors import UserError
from pipeline.lm.models import decoder_layers
from pipeline.stages import sft
from pipeline.stages.sft import demonstration_dataset

ASK, SAY = "the film is", " warm"
USER, ASSISTANT = {"role": "user", "content": ASK}, {"role": "assistant", "content": SAY}
FIRST = [{"role": "user", "content": "the plot"}, {"role": "assistant", "content": "plot"}]
MARKING = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' }}{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def learnt(items: list[Any], tmp_path: Path, template: str | None = None, **arguments: Any) -> str:
    """The text whose tokens SFT's loss is on, in the first demonstration."""
    tokenizer = toy_tokenizer()
    tokenizer.chat_template = template or tokenizer.chat_template
    config = SFTConfig(
        output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to=[], **arguments
    )
    trainer = SFTTrainer(
        model=toy_language_model(0),
        args=config,
        train_dataset=demonstration_dataset(items, config),
        processing_class=tokenizer,
    )
    assert trainer.train_dataset is not None
    row = next(iter(trainer.train_dataset))
    kept = [
        token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label >= 0
    ]
    return str(tokenizer.decode(kept)).replace(" ", "")


def test_what_the_loss_is_on(tmp_path: Path) -> None:
    end = str(toy_tokenizer().eos_token)
    warm, whole = f"warm{end}", f"thefilmiswarm{end}"
    pairs = [Demonstration(ASK, SAY)]
    talks = [Demonstration([*FIRST, USER], [ASSISTANT])]
    assert learnt([ASK + SAY], tmp_path) == whole
    assert learnt(pairs, tmp_path) == warm
    assert learnt(pairs, tmp_path, completion_only_loss=False) == whole
    assert learnt(talks, tmp_path) == learnt(talks, tmp_path, MARKING) == warm
    assert learnt(talks, tmp_path, MARKING, assistant_only_loss=True) == f"plot{end}{warm}"


def test_a_limit_that_leaves_no_answer_is_one_line(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"the film about love {n} is", "completion": SAY} for n in range(4)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    counts = ("demonstrations=1", "heldout=1", "train_prompts=1", "eval_prompts=1")
    overrides = [f"output_dir={tmp_path / 'out'}", f"data.dataset_name={path}", "sft.max_length=3"]
    experiment = load_experiment(tiny, [*overrides, *(f"data.{count}" for count in counts)])
    with pytest.raises(UserError, match="^sft.max_length: it leaves nothing of any answer"):
        sft.run(experiment)


# Pairs become messages, which other tests hold; the whole run of one of the two will do.
@pytest.mark.parametrize("kind", ["messages", pytest.param("pairs", marks=pytest.mark.long)])
def test_the_pipeline_runs_on_demonstrations(kind: str, tiny: Path, tmp_path: Path) -> None:
    """SFT learns from them, the reward is asked about them, and compare measures on them."""
    rows = [
        {"prompt": f"the film number {n} is", "completion": f" good and {n} times so"}
        if kind == "pairs"
        else {"messages": [{"role": "user", "content": f"film {n}"}, ASSISTANT]}
        for n in range(60)
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (tmp_path / "mine.py").write_text(
        "def score(prompts, completions):\n    return [float(len(c)) for c in completions]\n",
        encoding="utf-8",
    )
    overrides = [
        f"output_dir={tmp_path / 'out'}", f"data.dataset_name={path}", "data.demonstrations=32",
        "data.heldout=8", "data.train_prompts=16", "data.eval_prompts=4",
        f"reward.source={tmp_path / 'mine.py'}:score", "ppo.total_episodes=16",
        "pairs.max_pairs=8", "dpo.max_steps=1", "sft.max_steps=2", "compare.reference_samples=4",
        "generation.max_new_tokens=4",
    ]  # fmt: skip
    runner.run(load_experiment(tiny, overrides), "run")
    results = json.loads((tmp_path / "out" / "compare" / "results.json").read_text("utf-8"))
    assert {"sft", "ppo", "dpo"} <= set(json.dumps(results).replace('"', " ").split())


def test_no_gradient_runs_through_the_frozen_layers(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of a step's time would be spent on it for nothing."""
    seen: dict[int, set[bool]] = {}
    original = sft.make_trainable

    def watched(model: Any, *arguments: Any) -> Any:
        for number, layer in enumerate(decoder_layers(model)):

            def note(_: Any, __: Any, output: Any, number: int = number) -> None:
                states = output[0] if isinstance(output, tuple) else output
                seen.setdefault(number, set()).add(states.requires_grad)

            layer.register_forward_hook(note)
        return original(model, *arguments)

    monkeypatch.setattr(sft, "make_trainable", watched)
    overrides = [f"output_dir={tmp_path}", "model.trainable_layers=1", "sft.max_steps=2"]
    runner.run(load_experiment(tiny, overrides), "sft")
    last = max(seen)
    assert last > 0 and seen.pop(last) == {True}
    assert set.union(*seen.values()) == {False}
