"""The trainers that are certified, and the optimum that each of them has.

They are made by the functions that the pipeline's stages make theirs by: what is certified is what
runs. All train all weights of the same reference on the same rewards with the same β, and are set
to be exact rather than to look like a run on a large model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import PrinterCallback, Trainer
from trl import DPOConfig, GRPOConfig, KTOConfig, RLOOConfig, SFTConfig

from pipeline.certify import optima
from pipeline.certify.problem import EOS, LENGTH, PROMPT, Problem
from pipeline.certify.sampler import FromThePolicy
from pipeline.config.losses import REBEL
from pipeline.ppo import PPOConfig, PPOTrainer
from pipeline.stages import dpo, kto, selected
from pipeline.stages.on_policy import GRPO, RLOO
from pipeline.stages.pair_data import TOKENS
from pipeline.stages.preferences import label_pairs
from pipeline.stages.trl_compat import fit_tiles_to

ROLLOUT = 512
"""Completions drawn at once; the size of RLOO's and GRPO's one group."""
EPOCHS = 4
"""Optimizer steps from each rollout."""
ROLLOUTS = 100
PAIR_BATCH = 256
PAIR_STEPS = 1500
BEST_OF = 8
"""Samples that rejection sampling takes the best of."""
IPO_TAU = 0.25
"""IPO's τ prices preference probabilities, not rewards; this gives a KL of 1 to 2 nats."""

Settings = dict[str, Any]
Optimum = Callable[[Problem], np.ndarray]


@dataclass(frozen=True)
class Method:
    """A trainer with settings, and where it should end.

    Attributes:
        name: on the command line and in files. title: what it is, for tables.
        build: ``(problem, folder, method)`` to a trainer.
        settings: fields of the trainer's arguments.
        optimum: the distribution ``(N,)`` that the method aims at, where it is not π*.
        given: the completions ``(N,)`` that its optimum says something of, where not of all.
        why: one sentence: what the optimum is, and where a difference comes from.
        batch, rounds: completions of a rollout and rollouts; for pairs, of a step and steps.
    """

    name: str
    title: str
    build: Callable[[Problem, Path, Method], Trainer]
    why: str
    settings: Settings
    optimum: Optimum | None = None
    given: Optimum | None = None
    batch: int = ROLLOUT
    rounds: int = ROLLOUTS

    def trainer(self, problem: Problem, folder: Path, effort: float = 1.0) -> Trainer:
        """A trainer that prints nothing and saves nothing; ``effort`` scales its rounds."""
        fit_tiles_to("cpu")
        rounds = max(1, round(self.rounds * effort))
        made = self.build(problem, folder, replace(self, rounds=rounds))
        made.remove_callback(PrinterCallback)
        return made


def _common(problem: Problem, folder: Path) -> Settings:
    return {
        "output_dir": str(folder),
        "seed": problem.seed,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "lr_scheduler_type": "linear",
        "adam_beta2": 0.99,
    }


def _ppo(problem: Problem, folder: Path, method: Method) -> Trainer:
    """PPO by its own loop, or with ``overlap`` by a sampler that draws from the same policy."""
    arguments = _common(problem, folder) | {
        "per_device_train_batch_size": method.batch,
        "num_mini_batches": 1,
        "num_ppo_epochs": EPOCHS,
        "total_episodes": method.batch * method.rounds,
        "response_length": LENGTH,
        "kl_coef": problem.beta,
    }
    model, args = problem.model(), PPOConfig(**(arguments | method.settings))
    return PPOTrainer(
        model=model,
        reward_function=problem.pay,
        args=args,
        processing_class=problem.tokenizer,
        train_dataset=[PROMPT] * method.batch,
        sampler=FromThePolicy(model, problem.tokenizer) if args.overlap else None,
    )


def _pairs(problem: Problem, method: Method, labels: str = "sampled") -> list[dict[str, Any]]:
    """Bradley–Terry pairs of completions from π_ref, without those of a completion and itself."""
    drawn = problem.draw(2 * method.batch * method.rounds, seed=1)
    rewards = problem.pay([c.prompt for c in drawn], [c.text for c in drawn])
    return label_pairs(drawn, rewards, labels, seed=problem.seed)


def _tensors(
    rows: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]
) -> dict[str, Tensor]:
    """What TRL's own collators make of token lists, in a fifth of their time (half a step's)."""
    width = max(map(len, rows))
    inputs = [[*row] + [EOS] * (width - len(row)) for row in rows]
    ends = torch.tensor([len(row) for row in rows])[:, None]
    starts = ends - torch.tensor([len(y) for y in completions])[:, None]
    place = torch.arange(width)
    return {
        "input_ids": torch.tensor(inputs),
        "attention_mask": (place < ends).long(),
        "completion_mask": ((place >= starts) & (place < ends)).long(),
    }


def collate_pairs(examples: list[dict[str, Any]]) -> dict[str, Tensor]:
    """A batch for DPO: all chosen, then all rejected."""
    completions = [e[key] for key in ("chosen_ids", "rejected_ids") for e in examples]
    prompts = [e["prompt_ids"] for e in examples] * 2
    return _tensors([x + y for x, y in zip(prompts, completions, strict=True)], completions)


def collate_rows(examples: list[dict[str, Any]]) -> dict[str, Tensor]:
    """A batch for SFT on completions: the tokens, with those of the prompt not learnt."""
    rows = [e["input_ids"] for e in examples]
    completions = [[token for token in e["labels"] if token != -100] for e in examples]
    made = _tensors(rows, completions)
    learnt = made.pop("completion_mask").bool()
    return made | {"labels": made["input_ids"].masked_fill(~learnt, -100)}


def collate_labelled(examples: list[dict[str, Any]]) -> dict[str, Tensor]:
    """A batch for KTO, with the completions that its reference point is measured on."""
    batch = {"label": torch.tensor([e["label"] for e in examples])}
    for prefix in ("", "KL_"):
        completions = [e[f"{prefix}completion_ids"] for e in examples]
        rows = [e["prompt_ids"] + y for e, y in zip(examples, completions, strict=True)]
        batch |= {prefix + key: value for key, value in _tensors(rows, completions).items()}
    return batch


def _dpo_arguments(problem: Problem, folder: Path, method: Method) -> DPOConfig:
    arguments = _common(problem, folder) | {
        "per_device_train_batch_size": method.batch,
        "max_steps": method.rounds,
        "beta": problem.beta,
    }
    return DPOConfig(**(arguments | method.settings))


def _dpo(problem: Problem, folder: Path, method: Method, labels: str = "sampled") -> Trainer:
    """DPO on pairs by their labels, on probabilities as labels, or on differences of rewards."""
    arguments, rows = _dpo_arguments(problem, folder, method), []
    # Every pair is seen once: the loss is the population's, and nothing is learned by heart.
    for pair in _pairs(problem, method, labels):
        row = {key: pair[key] for key in TOKENS}
        if arguments.loss_type == [REBEL]:
            row["reward_difference"] = pair["chosen_reward"] - pair["rejected_reward"]
        elif labels == "soft":
            row["probability"] = pair["probability"]
        rows.append(row)
    pairs = Dataset.from_list(rows)
    return dpo.make_trainer(
        problem.model(), problem.tokenizer, arguments, pairs, data_collator=collate_pairs
    )


_soft = partial(_dpo, labels="soft")


def _kto(problem: Problem, folder: Path, method: Method) -> Trainer:
    arguments = _common(problem, folder) | {
        "per_device_train_batch_size": 2 * method.batch,
        "max_steps": method.rounds,
        "beta": problem.beta,
    }
    return kto.make_trainer(
        problem.model(),
        problem.tokenizer,
        KTOConfig(**(arguments | method.settings)),
        _pairs(problem, method),
        data_collator=collate_labelled,
    )


def _group(trainer: Any, config: Any, problem: Problem, folder: Path, method: Method) -> Trainer:
    """RLOO and GRPO: one group of a whole rollout, learned from `EPOCHS` times."""
    arguments = _common(problem, folder) | {
        "per_device_train_batch_size": method.batch,
        "num_generations": method.batch,
        "num_iterations": EPOCHS,
        "max_completion_length": LENGTH,
        "max_steps": EPOCHS * method.rounds,
        "beta": problem.beta,
    }
    return trainer(
        model=problem.model(),
        reward=problem.pay,
        args=config(**(arguments | method.settings)),
        prompts=[PROMPT] * 64,
        processing_class=problem.tokenizer,
        sampled_at_once=method.batch,
    )


_rloo = partial(_group, RLOO, RLOOConfig)
_grpo = partial(_group, GRPO, GRPOConfig)


def _selected(
    choose: Callable[[np.ndarray, Problem], np.ndarray],
    n: int,
    problem: Problem,
    folder: Path,
    method: Method,
) -> Trainer:
    """SFT on what ``choose`` takes of ``n`` samples at a time; every one of them is seen once."""
    arguments: Settings = _common(problem, folder) | {
        "per_device_train_batch_size": method.batch,
        "max_steps": method.rounds,
    }
    taken = choose(np.zeros((1, n)), problem).shape[1]
    groups = -(-method.batch * method.rounds // taken)
    drawn = problem.draw(groups * n, seed=1)
    rewards = np.array(problem.pay([], [c.text for c in drawn])).reshape(groups, n)
    samples = [{"prompt_ids": c.prompt_ids, "completion_ids": c.completion_ids} for c in drawn]
    rows = selected.rows_of(samples, choose(rewards, problem))
    config = SFTConfig(**(arguments | method.settings))
    return selected.make_trainer(
        problem.model(), problem.tokenizer, config, rows, data_collator=collate_rows
    )


def _resampled(rewards: np.ndarray, problem: Problem) -> np.ndarray:
    return selected.resampled(rewards, problem.beta, rewards.shape[1], problem.seed)


_rejection = partial(_selected, lambda rewards, _: selected.best(rewards), BEST_OF)
_reweighted = partial(_selected, _resampled, ROLLOUT)

_PPO: Settings = {
    "learning_rate": 1e-3,
    "lam": 1.0,
    "value_learning_rate": 1e-2,
    "value_head_hidden": 4.0,
    # At π* every advantage is 0: there whitening would size up what is left, the critic's error.
    "whiten_advantages": False,
}
_PAIRS: Settings = {"learning_rate": 3e-3}
_GROUP: Settings = {"learning_rate": 1e-3}
_GRPO = _GROUP | {"loss_type": "dr_grpo", "scale_rewards": "none"}

_on_pairs = partial(Method, batch=PAIR_BATCH, rounds=PAIR_STEPS)

METHODS = {
    method.name: method
    for method in (
        Method("ppo", "PPO", _ppo, "π*: every token is charged β(log π − log π_ref)", _PPO),
        Method(
            "dpo",
            "DPO",
            _dpo,
            "π*: pairs from π_ref, labelled by Bradley–Terry",
            _PAIRS,
            batch=2 * PAIR_BATCH,
            rounds=2000,
        ),
        _on_pairs(
            "dpo-soft",
            "DPO, soft labels",
            _soft,
            "π*: pairs from π_ref, each with its probability by Bradley–Terry",
            _PAIRS,
        ),
        _on_pairs(
            "rebel",
            "REBEL",
            _soft,
            "π*: β times the difference of log π/π_ref is that of the rewards",
            _PAIRS | {"loss_type": [REBEL]},
        ),
        _on_pairs(
            "ipo",
            "IPO",
            _dpo,
            "log π/π_ref = |y|(P(y)/τ + c), P the chance to win: TRL divides by the tokens",
            _PAIRS | {"loss_type": ["ipo"], "beta": IPO_TAU},
            partial(optima.ipo, tau=IPO_TAU, per_token=True),
        ),
        _on_pairs(
            "kto",
            "KTO",
            _kto,
            "what loses more often than it wins goes to 0, whatever its reward",
            _PAIRS,
            lambda problem: optima.kto(problem, problem.beta),
        ),
        Method(
            "rloo", "RLOO", _rloo, "π*: every completion is charged β(log π − log π_ref)", _GROUP
        ),
        Method(
            "grpo",
            "GRPO, KL × ratio",
            _grpo,
            "π ∝ π_ref exp(Q/β) at each token, Q without the KL that later tokens pay",
            _GRPO,
            partial(optima.grpo, group=ROLLOUT, tilt=optima.reverse_tilt),
        ),
        Method(
            "grpo-k3",
            "GRPO, plain k3",
            _grpo,
            "π = βπ_ref/(c − Q) at each token: k3's gradient is the forward KL's",
            _GRPO | {"use_bias_correction_kl": False},
            partial(optima.grpo, group=ROLLOUT, tilt=optima.forward_tilt),
        ),
        Method(
            "rejection",
            f"rejection sampling, best of {BEST_OF}",
            _rejection,
            f"SFT ends at what it is shown: the best of {BEST_OF}, whatever β is",
            _PAIRS,
            partial(optima.best_of_n, n=BEST_OF),
            rounds=1000,
        ),
        Method(
            "reweighted",
            "reward-weighted",
            _reweighted,
            f"π*: SFT on {ROLLOUT} draws of {ROLLOUT} samples, by exp(r/β)",
            _PAIRS,
            rounds=1000,
        ),
    )
}
