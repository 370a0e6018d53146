"""PPO against the closed-form optimum of a problem small enough to enumerate.

A random reference language model over four words and an EOS, completions of at most three tokens,
a random reward for each: every completion can be listed, so KL, J_β and
π*(y) ∝ π_ref(y)·exp(r(y)/β) are exact and the measurement has no sampling noise.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from pipeline.config import ModelSection
from pipeline.models import make_trainable, prepare
from pipeline.ppo import PPOConfig, PPOTrainer

WORDS = ("a", "b", "c", "d")
EOS = 0
LENGTH = 3
BETA = 0.5


def tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {token: i for i, token in enumerate(("<eos>", "go", *WORDS))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="go"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<eos>", pad_token="<eos>", unk_token="go"
    )


def language_model(seed: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=6, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, eos_token_id=EOS, pad_token_id=EOS, bos_token_id=None,
        initializer_range=0.3, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(seed)
    return LlamaForCausalLM(config)


def completions() -> list[tuple[int, ...]]:
    """Every completion: at most LENGTH tokens, ended by the first EOS or by the limit."""
    tokens = range(6)
    found = set()
    for y in itertools.product(tokens, repeat=LENGTH):
        found.add(y[: y.index(EOS) + 1] if EOS in y else y)
    return sorted(found)


@torch.no_grad()
def distribution(model: Any, ys: list[tuple[int, ...]]) -> torch.Tensor:
    """π(y) of every completion of the prompt "go", by one forward pass over all of them."""
    rows = torch.tensor([(1, *y) + (EOS,) * (LENGTH - len(y)) for y in ys])
    logps = model(rows).logits.double().log_softmax(-1)[:, :-1].gather(-1, rows[:, 1:, None])
    mask = torch.arange(LENGTH)[None] < torch.tensor([len(y) for y in ys])[:, None]
    return torch.where(mask, logps.squeeze(-1), 0.0).sum(1).exp()


def solve(seed: int, folder: Path, **arguments: Any) -> tuple[float, float, float]:
    """Train; return exact optimality, total variation distance to π*, and π*'s KL in nats."""
    model, words = language_model(seed), tokenizer()
    ys = completions()
    reference = distribution(model, ys)
    assert reference.sum() == pytest.approx(1.0)
    generator = torch.Generator().manual_seed(seed)
    rewards = torch.randn(len(ys), generator=generator).double()
    table: dict[str, float] = {}
    # A text does not show its EOS: completions that differ only in it share a reward.
    texts = [str(words.decode(list(y), skip_special_tokens=True)).strip() for y in ys]
    for text, r in zip(texts, rewards.tolist(), strict=True):
        table.setdefault(text, r)
    rewards = torch.tensor([table[text] for text in texts])
    optimal = reference * (rewards / BETA).exp()
    optimal = optimal / optimal.sum()

    def objective(pi: torch.Tensor) -> float:
        return float((pi * (rewards - BETA * (pi / reference).log())).sum())

    settings: dict[str, Any] = {
        "output_dir": str(folder), "use_cpu": True, "bf16": False, "disable_tqdm": True,
        "save_strategy": "no", "seed": seed, "per_device_train_batch_size": 64,
        "num_mini_batches": 4, "num_ppo_epochs": 2, "total_episodes": 256 * 100,
        "response_length": LENGTH, "learning_rate": 1e-3, "lam": 1.0, "value_learning_rate": 1e-2,
        "kl_coef": BETA, "adam_beta2": 0.99,
    }  # fmt: skip
    choice = ModelSection(model_name_or_path="toy", trainable_layers=None)
    trainer = PPOTrainer(
        model=make_trainable(prepare(model, words), choice),  # type: ignore[arg-type]
        reward_function=lambda _, texts: [table[text.strip()] for text in texts],
        args=PPOConfig(**(settings | arguments)),
        processing_class=words,
        train_dataset=["go"] * 256,
    )
    trainer.train()
    learned = distribution(trainer.actor_critic.policy, ys)
    start, best = objective(reference), objective(optimal)
    optimality = (objective(learned) - start) / (best - start)
    kl = float((optimal * (optimal / reference).log()).sum())
    return optimality, 0.5 * float((learned - optimal).abs().sum()), kl


@pytest.mark.parametrize("seed", [0, 1])
def test_ppo_reaches_the_closed_form_optimum(seed: int, tmp_path: Path) -> None:
    """Seeds tried: 0 to 4; the figures are in the README's PPO section."""
    optimality, distance, kl = solve(seed, tmp_path)
    assert 0.3 < kl < 3.0
    assert optimality > 0.9
    assert distance < 0.12


def test_a_wrong_sign_of_the_kl_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.ppo import rollout

    plain = rollout.token_rewards
    monkeypatch.setattr(
        rollout,
        "token_rewards",
        lambda scores, old, mask, beta, kind: plain(scores, old, mask, -beta, kind),
    )
    optimality, _, _ = solve(0, tmp_path, total_episodes=256 * 20)
    assert optimality < 0.8


if __name__ == "__main__":  # the figures of five seeds
    import tempfile

    for number in range(5):
        print(number, *(f"{value:.3f}" for value in solve(number, Path(tempfile.mkdtemp()))))
