"""Pairs whose labels follow Bradley–Terry, so that DPO's optimum is PPO's; how they are sampled."""

from __future__ import annotations

import json
import math
import os
import socket
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from common.files import write_text
from pipeline.config import Experiment, load_experiment
from pipeline.data.splits import load_data
from pipeline.data.toy import toy_language_model, toy_tokenizer
from pipeline.errors import UserError
from pipeline.lm.generation import Completion, sample
from pipeline.lm.kept import keep_samples, kept_samples
from pipeline.lm.models import load_checkpoint
from pipeline.stages import preferences, samples
from pipeline.stages.preferences import (
    first_wins_probability,
    label_pairs,
    make_pairs,
    read_pairs,
)
from reward_models.interface import ChatPrompt
from tests.nursery import Nursery

CONFIG = """
data: {dataset_name: toy, demonstrations: 8, heldout: 8, train_prompts: 16, eval_prompts: 8}
model: {model_name_or_path: toy}
generation: {max_new_tokens: 6, batch_size: 10}
pairs: {per_prompt: 2, max_pairs: 23}
tracking: {report_to: []}
"""
REWARD = """
import os

def words(completions):
    if os.environ.get("SERVICE_IS_AWAY"):
        raise ConnectionError("503")
    return [float(len(set(text.split()))) for text in completions]
"""


def completion(*tokens: int) -> Completion:
    return Completion("p", (1,), tokens, " ".join(map(str, tokens)), tokens[-1] == 0)


def test_bradley_terry_probability() -> None:
    assert first_wins_probability(2.0, 0.5) == pytest.approx(1 / (1 + math.exp(-1.5)))
    assert first_wins_probability(0.5, 2.0) == pytest.approx(1 / (1 + math.exp(1.5)))
    assert first_wins_probability(-800.0, 800.0) == 0.0
    assert first_wins_probability(1.0, 0.0, hard=True) == 1.0
    assert first_wins_probability(0.0, 0.0, hard=True) == 0.5


def test_labels_follow_the_probability_and_hard_labels_the_reward() -> None:
    count = 4000
    completions = [completion(5, 0), completion(6, 0)] * count
    rewards = [1.0, 0.0] * count
    drawn = label_pairs(completions, rewards, "sampled", seed=0)
    share = sum(pair["chosen_reward"] == 1.0 for pair in drawn) / count
    assert share == pytest.approx(1 / (1 + math.exp(-1)), abs=4 * 0.5 / count**0.5)
    hard = label_pairs(completions, rewards, "hard", seed=0)
    assert all(pair["chosen_reward"] == 1.0 for pair in hard)
    assert drawn == label_pairs(completions, rewards, "sampled", seed=0)
    assert {pair["probability"] for pair in hard} == {1.0}


def test_a_soft_label_is_the_probability_that_the_better_one_wins() -> None:
    completions = [completion(5, 0), completion(6, 0), completion(7, 0), completion(8, 0)]
    pairs = label_pairs(completions, [-1.0, 1.5, 2.0, 2.0], "soft", seed=0)
    assert [pair["chosen_ids"][0] for pair in pairs] == [6, 7]
    assert [pair["probability"] for pair in pairs] == pytest.approx([1 / (1 + math.exp(-2.5)), 0.5])
    drawn = label_pairs(completions[:2] * 200, [-1.0, 1.5] * 200, "sampled", seed=0)
    for pair in drawn:
        difference = pair["chosen_reward"] - pair["rejected_reward"]
        assert pair["probability"] == pytest.approx(first_wins_probability(difference, 0.0))
    assert len({pair["probability"] for pair in drawn}) == 2


def test_all_pairs_of_a_group_are_used_and_none_between_groups() -> None:
    completions = [completion(token, 0) for token in (5, 6, 7, 8, 8, 9)]
    pairs = label_pairs(completions, [1.0, 2.0, 3.0, 4.0, 4.0, 6.0], "hard", seed=0, group=3)
    chosen = [(pair["chosen_ids"][0], pair["rejected_ids"][0]) for pair in pairs]
    assert chosen == [(6, 5), (7, 5), (7, 6), (9, 8), (9, 8)]  # 8 and 8 are the same


def test_equal_completions_make_no_pair_and_tokens_are_kept() -> None:
    rows = [completion(5, 0), completion(5, 0), completion(7, 8), completion(9, 0)]
    pairs = label_pairs(rows, [0.0, 0.0, 9.0, -9.0], "hard", seed=0)
    assert len(pairs) == 1
    assert pairs[0]["chosen_ids"] == [7, 8]  # ran into the limit: no EOS is added
    assert pairs[0]["rejected_ids"] == [9, 0]
    assert pairs[0]["prompt_ids"] == [1]


# --- Sampling -------------------------------------------------------------------------------------


def experiment(folder: Path, output: Path) -> Experiment:
    """An experiment with an SFT model in place and a reward that is a function."""
    folder.mkdir(exist_ok=True)
    config, reward = folder / "pairs.yaml", folder / "words_of_pairs.py"
    for path, text in ((config, CONFIG), (reward, REWARD)):
        write_text(path, text)  # whole at once: another process may be reading it
    settings = [f"output_dir={output}", f"reward.source={reward}:words", "reward.retries=0"]
    made = load_experiment(config, settings)
    if not made.stage_dir("sft").exists():
        for part in (toy_language_model(0), toy_tokenizer()):
            part.save_pretrained(made.stage_dir("sft") / "model")
    return made


def test_pairs_are_those_of_one_stream_of_random_numbers(tmp_path: Path) -> None:
    """Batch after batch, as sampling without numbers that are given draws them."""
    made = experiment(tmp_path, tmp_path / "run")
    pairs = make_pairs(made)
    model, tokenizer = load_checkpoint(made.stage_dir("sft") / "model")
    completions = sample(
        model,
        tokenizer,
        load_data(made).train_prompts[:12],
        samples_per_prompt=4,
        max_new_tokens=6,
        batch_size=10,
        seed=made.seed + 1,
    )
    scores = [float(len(set(c.text.split()))) for c in completions]
    assert pairs == label_pairs(completions, scores, "sampled", seed=made.seed)[:23]
    assert len(pairs) > 15
    path = made.stage_dir("dpo") / "pairs.jsonl"
    assert read_pairs(path) == pairs == make_pairs(made)
    assert sorted(file.name for file in path.parent.iterdir()) == ["pairs.json", "pairs.jsonl"]


def test_a_reward_query_serves_several_pairs(tmp_path: Path) -> None:
    made = experiment(tmp_path, tmp_path / "run")
    groups = {"samples_per_prompt": 4, "per_prompt": 1, "max_pairs": 36}
    made = made.model_copy(update={"pairs": made.pairs.model_copy(update=groups)})
    asked: list[int] = []
    plain = preferences.proxy_reward

    def counted(given: Experiment) -> Any:
        reward = plain(given)

        def call(prompts: Any, completions: Any) -> list[float]:
            asked.append(len(completions))
            return reward(prompts, completions)

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preferences, "proxy_reward", counted)
        pairs = make_pairs(made)
    assert asked == [24]  # 36 pairs of 6 groups: 2 · 36 / (4 − 1)
    assert 30 <= len(pairs) <= 36
    prompts = load_data(made).train_prompts[:6]
    assert [p for i, p in enumerate(prompts) if p not in prompts[:i]] == list(
        dict.fromkeys(pair["prompt"] for pair in pairs)
    )


def pairs_of_a_process(folder: str, output: str, rank: str, port: str) -> int:
    """`make_pairs` in one of two processes, which writes what it got and how much it sampled."""
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    sampled: list[int] = []

    def counted(model: Any, tokenizer: Any, prompts: Any, **settings: Any) -> list[Completion]:
        sampled.append(len(prompts))
        return sample(model, tokenizer, prompts, **settings)

    samples.sample = counted
    pairs = make_pairs(experiment(Path(folder), Path(output)))
    result = {"pairs": pairs, "sampled": sampled}
    (Path(output) / f"{rank}.json").write_text(json.dumps(result))
    return 0


def test_two_processes_share_the_sampling_of_the_same_pairs(
    tmp_path: Path, nursery: Nursery
) -> None:
    one = experiment(tmp_path, tmp_path / "one")
    pairs = make_pairs(one)
    two = experiment(tmp_path, tmp_path / "two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    logs = [tmp_path / f"log-{rank}" for rank in range(2)]
    words = [str(tmp_path), str(two.output_dir)]
    started = [
        nursery.start(log, f"{__name__}:pairs_of_a_process", *words, str(rank), port)
        for rank, log in enumerate(logs)
    ]
    for pid, log in zip(started, logs, strict=True):
        assert nursery.wait(pid) == 0, log.read_text()
    results = [json.loads((two.output_dir / f"{rank}.json").read_text()) for rank in range(2)]
    assert results[0]["pairs"] == results[1]["pairs"] == pairs
    # 48 samples in batches of 10: the first, third and fifth, the second and fourth.
    assert [result["sampled"] for result in results] == [[28], [20]]
    files = [made.stage_dir("dpo") / "pairs.jsonl" for made in (one, two)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_reward_that_fails_costs_no_sampling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = experiment(tmp_path, tmp_path / "run")
    monkeypatch.setenv("SERVICE_IS_AWAY", "1")
    with pytest.raises(UserError, match="reward.source: .*raised ConnectionError: 503"):
        make_pairs(made)
    assert not (made.stage_dir("dpo") / "pairs.jsonl").exists()
    monkeypatch.delenv("SERVICE_IS_AWAY")

    def never(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("sampled again")

    with monkeypatch.context() as again:
        again.setattr(samples, "sample", never)
        pairs = make_pairs(made)
    assert pairs == make_pairs(experiment(tmp_path, tmp_path / "undisturbed"))


def test_samples_are_read_back_as_they_were(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "line\u2028break"}]
    kept = [
        Completion("p\u2028q", (1, 2), (3, 0), "a\nb\x85c", True),
        Completion(ChatPrompt("user: line", messages), (4,), (5,), "", False),
    ]
    assert kept_samples(tmp_path / "kept", ["p\u2028q", messages]) is None
    keep_samples(tmp_path / "kept", kept)
    read = kept_samples(tmp_path / "kept", ["p\u2028q", messages])
    assert read is not None and read == kept
    assert [asdict(one) for one in read] == [asdict(one) for one in kept]
    assert isinstance(read[1].prompt, ChatPrompt) and read[1].prompt.messages == messages
