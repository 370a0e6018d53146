r"""The problem of the certificate: a real language model, small enough to list all it can write.

A random GPT-2 writes at most three of five tokens, and every completion has a random reward. The
model's next-token table over all prefixes makes a `classic_rl.envs.TokenMDP`, whose optimum

.. math:: \pi^*(y) \propto \pi_{ref}(y)\, e^{r(y) / \beta}, \qquad
          J^* = \beta \log E_{y \sim \pi_{ref}} e^{r(y) / \beta}

is the judge of every trainer (Korbak et al. 2022; Rafailov et al. 2023, appendix A.1). What is
measured of a policy is a sum over all completions: it has no sampling noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from classic_rl.deep.reference import objective, optimality
from classic_rl.envs import TokenMDP
from pipeline.lm.generation import Completion
from pipeline.lm.models import prepare
from pipeline.lm.scoring import hidden_states, lm_head

TOKENS = ("<eos>", "a", "b", "c", "d")
EOS = 0
PROMPT = "a"
PROMPT_IDS = (1,)
LENGTH = 3
HEAD_SCALE = 0.2
"""The LM head's weights are made this much smaller: a reference with preferences, none decided."""


def tokenizer() -> PreTrainedTokenizerFast:
    """Words as tokens. No word is a special token, so different completions are different texts.

    Pad is EOS: a mask found by token id would lose every EOS.
    """
    backend = Tokenizer(models.WordLevel({t: i for i, t in enumerate(TOKENS)}, unk_token="d"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", pad_token="<eos>")


def language_model(seed: int) -> GPT2LMHeadModel:
    """A GPT-2 of two layers with random weights: π_ref.

    Its positions are learned. With rotary ones, attention over equal tokens gives the same result
    however many they are: "a" and "a a" would be one state, and π* out of reach.
    """
    config = GPT2Config(
        vocab_size=len(TOKENS), n_positions=8, n_embd=32, n_layer=2, n_head=2,
        bos_token_id=None, eos_token_id=EOS, initializer_range=0.3,
        tie_word_embeddings=False,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = GPT2LMHeadModel(config)
        model.lm_head.weight *= HEAD_SCALE
    return model


@dataclass(frozen=True)
class Measurement:
    """A policy held against an optimum, exactly.

    Attributes:
        optimality: (J(π) − J(π_ref)) / (J* − J(π_ref)); 1 is the best that any method can reach.
        distance: total variation distance ½ Σ_y |π(y) − π*(y)| to π*.
        own_distance: the same to the optimum that the method itself aims at.
        kl: KL(π‖π_ref) in nats. reward: E_π[r].
    """

    optimality: float
    distance: float
    own_distance: float
    kl: float
    reward: float


class Problem:
    """Reference, rewards and optimum of one seed.

    Args:
        seed: of the reference's weights and of the rewards. beta: reward per nat of KL.

    Attributes:
        env: the `TokenMDP`; N completions in the order of ``env.sequences``.
        texts: what a reward function sees of each completion; all different.
        reference, rewards, optimal: π_ref(y), r(y) and π*(y), each ``(N,)``.
        kl: KL(π*‖π_ref) in nats.
        ended: bool ``(N,)``, whether each completion ends by EOS.
    """

    def __init__(self, seed: int, beta: float) -> None:
        self.seed, self.beta = seed, beta
        self.tokenizer = tokenizer()
        drawn = np.random.default_rng(seed)
        blank = TokenMDP(TOKENS, LENGTH, lambda _: drawn.normal(), eos=EOS)
        table = next_token_table(self.model(), blank)
        self.env = TokenMDP(TOKENS, LENGTH, blank.sequence_rewards, table, eos=EOS)
        self.rewards = self.env.sequence_rewards
        self.ended = np.array([y[-1] == EOS for y in self.env.sequences])
        self.texts = [self.text(y) for y in self.env.sequences]
        assert len(set(self.texts)) == len(self.texts)
        self._paid = dict(zip(self.texts, self.rewards.tolist(), strict=True))
        self.reference = np.exp(self.env.sequence_logps(self.env.reference))
        self.optimal, self.best = self.env.optimum(beta)
        self.kl = _kl(self.optimal, self.reference)

    def model(self) -> GPT2LMHeadModel:
        """A fresh copy of π_ref, to be trained."""
        return prepare(language_model(self.seed), self.tokenizer)  # type: ignore[return-value]

    def text(self, completion: Sequence[int]) -> str:
        """A completion's text."""
        return str(self.tokenizer.decode(list(completion), skip_special_tokens=True)).strip()

    def pay(self, prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
        """The reward function.

        Asked for a completion's beginning, it pays what the text would get if it ended there, as
        any reward of text does. Rewards being drawn one by one, that says nothing of how a text
        goes on: the hardest case for a critic made of it.
        """
        return [self._paid[text.strip()] for text in completions]

    def draw(self, count: int, seed: int) -> list[Completion]:
        """``count`` completions y ~ π_ref, drawn from its exact distribution."""
        drawn = np.random.default_rng((self.seed, seed))
        share = self.reference / self.reference.sum()
        made = [
            Completion(PROMPT, PROMPT_IDS, y, text, y[-1] == EOS)
            for y, text in zip(self.env.sequences, self.texts, strict=True)
        ]
        return [made[i] for i in drawn.choice(len(made), size=count, p=share)]

    def measure(
        self, model: nn.Module, own: np.ndarray | None = None, given: np.ndarray | None = None
    ) -> Measurement:
        """Hold ``model`` against π* and against the optimum ``own`` ``(N,)`` of its method.

        Args:
            given: ``(N,)`` completions that ``own`` says something of; ``None`` is all of them.
        """
        table = next_token_table(model, self.env)
        logps = self.env.sequence_logps(table)
        written = np.exp(logps)
        target = self.optimal if own is None else own
        return Measurement(
            optimality=optimality(self.env, table, self.beta),
            distance=distance(written, self.optimal),
            own_distance=distance(_conditional(written, given), _conditional(target, given)),
            kl=_kl(written, self.reference),
            reward=float(written @ self.rewards),
        )

    def optimality_of(self, distribution: np.ndarray) -> float:
        """Optimality of a distribution over completions ``(N,)``."""
        start = float(self.reference @ self.rewards)
        value = float(distribution @ self.rewards) - self.beta * _kl(distribution, self.reference)
        assert abs(start - objective(self.env, self.env.reference, self.beta)) < 1e-6
        return (value - start) / (self.best - start)


@torch.no_grad()
def next_token_table(model: nn.Module, env: TokenMDP) -> np.ndarray:
    """The policy as a table ``(S, A)``: one forward pass over every prefix that goes on."""
    inner = np.flatnonzero(~env.terminal)
    rows = [PROMPT_IDS + env.prefixes[state] for state in inner]
    width = max(map(len, rows))
    sequences = torch.tensor([[*row] + [EOS] * (width - len(row)) for row in rows])
    last = torch.tensor([len(row) - 1 for row in rows])
    hidden = hidden_states(model, sequences)[torch.arange(len(rows)), last]
    table = np.full(env.reference.shape, 1 / len(TOKENS))
    table[inner] = lm_head(model)(hidden).double().softmax(-1).numpy()
    return table


def distance(first: np.ndarray, second: np.ndarray) -> float:
    """Total variation distance of two distributions over completions ``(N,)``."""
    return 0.5 * float(np.abs(first - second).sum())


def _conditional(distribution: np.ndarray, given: np.ndarray | None) -> np.ndarray:
    kept = distribution if given is None else np.where(given, distribution, 0.0)
    return kept if given is None else kept / kept.sum()


def _kl(first: np.ndarray, second: np.ndarray) -> float:
    some = first > 0
    return float(first[some] @ (np.log(first[some]) - np.log(second[some])))
