"""PPO with completions that something else draws: any callable, or an engine with own weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.data import toy
from pipeline.errors import UserError
from pipeline.lm.generation import Completion, sample_tokens
from pipeline.ppo import PPOConfig, PPOTrainer
from pipeline.ppo.engines import Drawn, Request
from pipeline.ppo.rollout import importance_ratios
from pipeline.ppo.upkeep.metrics import engine_metrics

PROMPTS = ["the film is", "the plot is", "a story about", "this movie about"]
TOKENS = 6


def reward(prompts: list[str], completions: list[str]) -> list[float]:
    return [float(len(completion)) for completion in completions]


def trainer(tmp_path: Path, sampler: Any = None, **settings: Any) -> PPOTrainer:
    arguments = PPOConfig(
        output_dir=str(tmp_path), use_cpu=True, bf16=False, disable_tqdm=True,
        report_to=[], total_episodes=16, per_device_train_batch_size=4, num_mini_batches=2,
        num_ppo_epochs=2, response_length=TOKENS, learning_rate=1e-3,
        **{"save_strategy": "no", **settings},
    )  # fmt: skip
    model, tokenizer = toy.toy_language_model(0), toy.toy_tokenizer()
    return PPOTrainer(model, reward, arguments, tokenizer, PROMPTS * 2, sampler=sampler)


class OwnLoop:
    """Draws as the trainer's loop does, from the weights that are being trained."""

    def __init__(self) -> None:
        self.trainer: Any = None
        self.requests: list[Request] = []

    def __call__(self, request: Request) -> Drawn:
        self.requests.append(request)
        policy, tokenizer = self.trainer.actor_critic.policy, self.trainer.tokenizer
        tokens = sample_tokens(
            policy, tokenizer, request.prompt_ids, max_new_tokens=request.max_new_tokens,
            temperature=request.temperature, batch_size=8, seed=0, draws=request.draws,
        )  # fmt: skip
        return Drawn([self._cut(row, request) for row in tokens], self.logps(request, tokens))

    def _cut(self, row: list[int], request: Request) -> list[int]:
        ends = [i for i, token in enumerate(row) if token in request.stop]
        return row[: ends[0] + 1] if ends else row

    def logps(self, request: Request, tokens: list[list[int]]) -> list[list[float]] | None:
        """Not told."""
        return None


class TellingLoop(OwnLoop):
    """Tells the log-probabilities too, moved by ``shift`` nats."""

    def __init__(self, shift: float = 0.0) -> None:
        super().__init__()
        self.shift = shift

    @torch.no_grad()
    def logps(self, request: Request, tokens: list[list[int]]) -> list[list[float]]:
        said = []
        for prompt, row in zip(request.prompt_ids, tokens, strict=True):
            kept = self._cut(row, request)
            logits = self.trainer.actor_critic.policy(torch.tensor([[*prompt, *kept]])).logits[0]
            of = logits[len(prompt) - 1 : -1].log_softmax(-1).gather(1, torch.tensor(kept)[:, None])
            said.append((of[:, 0] - self.shift).tolist())
        return said


def trained(tmp_path: Path, sampler: OwnLoop | None = None, **settings: Any) -> PPOTrainer:
    made = trainer(tmp_path, sampler, **settings)
    if sampler is not None:
        sampler.trainer = made
    made.train()
    return made


def weights(made: PPOTrainer) -> Tensor:
    return torch.cat([p.detach().flatten() for p in made.actor_critic.parameters()])


def logged(made: PPOTrainer, name: str) -> list[float]:
    return [row[name] for row in made.state.log_history if name in row]


def test_a_sampler_that_draws_as_the_loop_trains_the_same_policy(tmp_path: Path) -> None:
    sampler = OwnLoop()
    assert torch.equal(weights(trained(tmp_path / "a")), weights(trained(tmp_path / "b", sampler)))
    assert [request.step for request in sampler.requests] == [0, 4]
    assert len({request.seed for request in sampler.requests}) == 2


@pytest.mark.parametrize("kind", [torch.tensor, np.array])
def test_tokens_in_a_tensor_end_where_the_stop_token_is(kind: Any, tmp_path: Path) -> None:
    """What ``generate`` returns, say: padded rows of one tensor."""

    class Padded(OwnLoop):
        def __call__(self, request: Request) -> Any:
            (stop,) = request.stop
            rows = super().__call__(request).tokens
            return kind([[*row, *[stop] * (TOKENS - len(row))] for row in rows])

    own = OwnLoop()
    expected = weights(trained(tmp_path / "a", own))
    made = trained(tmp_path / "b", Padded())
    assert torch.equal(weights(made), expected)
    assert min(logged(made, "val/length_min")) < TOKENS


def test_an_engine_that_agrees_is_not_corrected(tmp_path: Path) -> None:
    made = trained(tmp_path / "b", TellingLoop())
    torch.testing.assert_close(weights(trained(tmp_path / "a")), weights(made))
    assert logged(made, "engine/importance") == pytest.approx([1.0, 1.0], abs=1e-4)
    assert logged(made, "engine/kl") == pytest.approx([0.0, 0.0], abs=1e-5)


@pytest.mark.parametrize(("cap", "factor"), [(None, 1.0), (2.0, 2.0), (4.0, math.e)])
def test_advantages_are_weighted_by_truncated_ratios(
    cap: float | None, factor: float, tmp_path: Path
) -> None:
    found = []
    for sampler in (TellingLoop(), TellingLoop(shift=1.0)):
        made = sampler.trainer = trainer(tmp_path, sampler, importance_cap=cap)
        found.append(made._collect(PROMPTS * 2)[0])
    agreeing, differing = found
    torch.testing.assert_close(differing.advantages, agreeing.advantages * factor)
    torch.testing.assert_close(differing.returns, agreeing.returns)


def test_an_engine_that_differs_is_told_of(tmp_path: Path) -> None:
    made = trained(tmp_path, TellingLoop(shift=1.0))
    assert logged(made, "engine/importance") == pytest.approx([math.e] * 2, rel=1e-3)
    assert logged(made, "engine/truncated") == [1.0, 1.0]


def test_engine_metrics_by_hand() -> None:
    mask = torch.tensor([[True, True], [True, False]])
    ratio = torch.tensor([[1.0, 4.0], [0.5, 9.0]])
    metrics = engine_metrics(ratio, mask, 2.0, lambda sums: sums)
    assert metrics["engine/importance"] == pytest.approx(5.5 / 3)
    assert metrics["engine/truncated"] == pytest.approx(1 / 3)
    k3 = (0 + (3 - math.log(4)) + (-0.5 + math.log(2))) / 3
    assert metrics["engine/kl"] == pytest.approx(k3)
    assert metrics["engine/logp_difference"] == pytest.approx((math.log(4) + math.log(2)) / 3)


def test_a_token_that_one_side_holds_for_impossible_leaves_finite_metrics() -> None:
    drawn = [Completion("", (1,), (2, 3), "", False, logps=(0.0, -150.0))]
    mask = torch.ones(1, 2, dtype=torch.bool)
    ratio = importance_ratios(drawn, torch.tensor([[-150.0, 0.0]]), mask)
    assert ratio is not None and float(ratio[0, 0]) < 1e-30 < 1e30 < float(ratio[0, 1])
    metrics = engine_metrics(ratio, mask, 2.0, lambda sums: sums)
    assert all(math.isfinite(value) for value in metrics.values())


BAD: dict[str, tuple[Callable[[int], Any], str]] = {
    "nothing": (lambda n: None, "no lists of token numbers"),
    "texts": (lambda n: ["a text"] * n, "no lists of token numbers"),
    "fractions": (lambda n: torch.full((n, 2), 3.5), "no lists of token numbers"),
    "one too few": (lambda n: [[3]] * (n - 1), "7 completions of 8 prompts"),
    "empty": (lambda n: [[3]] * (n - 1) + [[]], "completion 7 has 0 tokens"),
    "too long": (lambda n: [[3] * (TOKENS + 1)] * n, "completion 0 has 7 tokens; return 1 to 6"),
    "no such token": (lambda n: [[10**6]] * n, "token 1000000, but the model's vocabulary"),
    "few log-probabilities": (lambda n: Drawn([[3, 4]] * n, [[-1.0]] * n), "2 tokens and 1 log-"),
    "a positive one": (lambda n: Drawn([[3]] * n, [[0.5]] * n), "a log-probability of 0.5"),
    "NaN": (lambda n: Drawn([[3]] * n, [[math.nan]] * n), "a log-probability of nan"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_completions_is_refused(case: str, tmp_path: Path) -> None:
    drawn, message = BAD[case]
    made = trainer(tmp_path, lambda request: drawn(len(request.prompt_ids)))
    with pytest.raises(UserError, match=message):
        made.train()


class Copy(OwnLoop):
    """An engine: it draws from a copy of the weights, and notes when it was given them."""

    def __init__(self) -> None:
        super().__init__()
        self.begun: list[int] = []
        self.loaded: list[int] = []

    def begin(self, policy: Any, tokenizer: Any, longest: int) -> None:
        self.begun.append(longest)

    def load(self, policy: Any, step: int) -> None:
        self.loaded.append(step)


def test_an_engine_gets_every_steps_weights_before_it_draws(tmp_path: Path) -> None:
    engine = Copy()
    made = trained(tmp_path, engine, eval_strategy="no")
    assert engine.loaded == [0, 4]
    assert len(engine.begun) == 1 and engine.begun[0] > TOKENS
    made.evaluate(PROMPTS)
    made.evaluate(PROMPTS)
    assert engine.loaded == [0, 4, 8]


def test_an_engine_is_given_a_checkpoint_s_weights_though_the_step_is_the_same(
    tmp_path: Path,
) -> None:
    """As ``load_best_model_at_end`` puts them back."""
    engine = Copy()
    engine.trainer = made = trainer(tmp_path, engine, save_strategy="steps", save_steps=4)
    made.train()
    made.evaluate(PROMPTS)
    made._load_from_checkpoint(str(tmp_path / "checkpoint-4"))
    made.evaluate(PROMPTS)
    made.evaluate(PROMPTS)
    assert (engine.loaded, len(engine.begun)) == ([0, 4, 8, 8], 2)
