"""The work, piece by piece, each kept in its folder: a run that was killed goes on.

overoptimise/proxies/<size>-<member>/   an experiment's folder with a trained reward
overoptimise/samples/                   π_ref's samples, and what each proxy and gold say of them
overoptimise/ppo/<size>-<how>-<β>/      an experiment's folder with a PPO run

Beside each stands what it was made with; a piece of other settings, texts or models is
refused, not reused.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from common.files import read_json, write_json
from common.words import json_able
from pipeline.compare.evaluate import score
from pipeline.config import OVER_SFT, Experiment, TrackingSection
from pipeline.config.content import content_hash
from pipeline.data.records import RatedText, columns_of
from pipeline.data.splits import load_data
from pipeline.errors import UserError
from pipeline.lm.generation import Completion, sample
from pipeline.lm.hardware import policy_dtype
from pipeline.lm.kept import keep_samples, kept_samples
from pipeline.lm.models import load_checkpoint
from pipeline.lm.positions import check_prompts
from pipeline.output.metrics_file import read_metrics
from pipeline.output.policies import is_policy, policy_folder
from pipeline.overoptimise.grid import (
    Array,
    How,
    Proxy,
    Scale,
    Size,
    combine,
    optimised,
    scaled,
    texts_for,
)
from pipeline.runner import free_memory
from pipeline.stages import ppo
from pipeline.stages.reward_sources import folders_of, gold_reward, is_trained, proxy_reward
from pipeline.stages.reward_training import DEFAULTS, Job, calibrated_on, texts_of, train
from reward_models import RewardFunction

FOLDER = "overoptimise"
LEAST_STEPS = 60
"""Optimizer steps that a proxy gets at least: one of few texts sees them more often."""
EVALUATIONS = 6
"""Most evaluations of a PPO run, beside the one before it begins."""


def _folder(experiment: Experiment) -> Path:
    """Where the one proxy of ``experiment`` is."""
    return folders_of(experiment, "proxy")[0]


def _plain(recipe: Any) -> Any:
    """As JSON gives it back."""
    return json.loads(json.dumps(json_able(recipe)))


def _digest(items: list[Any]) -> str:
    """sha256 of what ``items`` hold, in their order."""
    return hashlib.sha256(repr(items).encode()).hexdigest()


def _link(link: Path, target: Path) -> None:
    """Make ``link`` lead to ``target`` by a relative path: both may be moved or copied together.

    Raises:
        UserError: a file or a folder is in its place, as where a copy followed the link.
    """
    # Of the folder that it is in, and not of what it leads to now.
    way = os.path.relpath(target.parent.resolve() / target.name, link.parent.resolve())
    if link.is_symlink():
        if os.readlink(link) == way:
            return
        link.unlink()
    elif link.exists():
        raise UserError(f"{link}: is no link to {target}; remove it")
    link.symlink_to(way)


class Work:
    """The pieces of one experiment's over-optimisation picture."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment, self.section = experiment, experiment.overoptimise
        self.folder = experiment.stage_dir(FOLDER)

    @cached_property
    def data(self) -> Any:
        """The splits."""
        return load_data(self.experiment)

    def _claim(self, folder: Path, recipe: dict[str, Any]) -> None:
        """Make ``folder`` for ``recipe``; UserError where it was made by another."""
        recipe = _plain(recipe)
        path = folder / "recipe.json"
        if not path.is_file():
            write_json(path, recipe)
            return
        before = read_json(path)
        changed = [key for key in recipe if before.get(key) != recipe[key]]
        if changed:
            raise UserError(
                f"{folder}: made with another {changed[0]}; remove it to make it anew, or set"
                " another output_dir"
            )

    def _experiment(self, name: str, settings: dict[str, dict[str, Any]]) -> Experiment:
        """An ordinary experiment of its own in ``name``, over this one's SFT model."""
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        _link(folder / "sft", self.experiment.stage_dir("sft"))
        changed = {
            key: getattr(self.experiment, key).model_copy(update=values)
            for key, values in settings.items()
        }
        silent = TrackingSection(report_to=[], log_samples=0)
        return self.experiment.model_copy(
            update={**changed, "output_dir": folder, "tracking": silent}
        )

    def _origin(self, stage: str) -> Any:
        """What a stage of the experiment was made from."""
        path = self.experiment.stage_dir(stage) / "stage.json"
        return read_json(path)["fingerprint"] if path.is_file() else None

    # -- proxies -------------------------------------------------------------------------------

    def _is_own(self, proxy: Proxy) -> bool:
        """Whether it is the one that the reward stage has trained anyway."""
        return proxy == Proxy("all", 0) and self.experiment.reward.members == 1

    def proxy(self, proxy: Proxy) -> Experiment:
        """The experiment in which ``proxy`` is, or will be, the reward."""
        if self._is_own(proxy):
            return self.experiment
        given = DEFAULTS | self.experiment.trainer_args("reward")
        epochs = given["num_train_epochs"]
        if proxy.size != "all":
            step = given["per_device_train_batch_size"]
            step *= given.get("gradient_accumulation_steps", 1)
            held = calibrated_on(proxy.size) if self.experiment.reward.calibrate else 0
            epochs = max(epochs, math.ceil(LEAST_STEPS * step / max(proxy.size - held, 1)))
        settings = {"num_train_epochs": epochs, "gold": None, "members": 1, "member_texts": "all"}
        own = self._experiment(f"proxies/{proxy.name}", {"reward": settings})
        return own.model_copy(update={"seed": self._seed(proxy)})

    def texts(self, proxy: Proxy) -> list[RatedText]:
        """What it learns from; UserError where there are fewer."""
        texts = texts_of(self.experiment, self.data, "proxy")
        above, seed = self.experiment.data.positive_above, self.experiment.data_seed
        return texts_for(texts, proxy.size, above, seed)

    def check_sizes(self) -> None:
        """UserError where there are fewer rated texts than a proxy is to learn from."""
        for size in self.section.sizes:
            self.texts(Proxy(size, 0))

    def has(self, proxy: Proxy) -> bool:
        """Whether it is trained."""
        return is_trained(_folder(self.proxy(proxy)))

    def train(self, proxy: Proxy) -> None:
        """Train ``proxy``, from its last checkpoint where there is one."""
        if self._is_own(proxy):
            return
        own, data = self.proxy(proxy), self.data
        self._claim(own.output_dir, self._recipe(proxy))
        if self.has(proxy):
            return
        data = replace(data, proxy=self.texts(proxy), neutral={})
        train(Job(own, "proxy", _folder(own)), data, None)
        shutil.rmtree(own.stage_dir("reward") / "checkpoints", ignore_errors=True)
        free_memory()

    def _recipe(self, proxy: Proxy | None) -> dict[str, Any]:
        """What a proxy, or gold, is made with."""
        if proxy is None or self._is_own(proxy):
            return {"reward stage": self._origin("reward")}
        own = self.proxy(proxy)
        return {
            "reward": own.reward.model_dump(mode="json"),
            "data": own.data.model_dump(mode="json"),
            "seed": self._seed(proxy),
            "data seed": self.experiment.data_seed,
            **self._contents[proxy.size],
        }

    @cached_property
    def _contents(self) -> dict[Size, dict[str, str | None]]:
        """By size, what its proxies are made from: settings do not tell whether that changed."""
        encoder = self.experiment.reward.encoder
        over = self._origin("sft") if encoder == OVER_SFT else content_hash(encoder)
        return {
            size: {
                "list of rated texts": _digest(self.texts(Proxy(size, 0))),
                "content of the encoder": over,
            }
            for size in self.section.sizes
        }

    def _seed(self, proxy: Proxy) -> int:
        digest = hashlib.sha256(f"{self.experiment.seed}/{FOLDER}/{proxy.name}".encode()).digest()
        return int.from_bytes(digest[:4], "big")

    # -- samples -------------------------------------------------------------------------------

    @property
    def _samples(self) -> Path:
        return self.folder / "samples"

    def sample(self) -> list[Completion]:
        """π_ref's samples of every evaluation prompt, prompt by prompt."""
        experiment, prompts = self.experiment, self.data.eval_prompts
        self._claim(
            self._samples,
            {
                "overoptimise.samples": self.section.samples,
                "sft model": self._origin("sft"),
                "generation.max_new_tokens": experiment.generation.max_new_tokens,
                "seed": experiment.seed,
                "data": experiment.data.model_dump(mode="json"),
            },
        )
        kept = self._samples / "samples.jsonl"
        rows = [prompt for prompt in prompts for _ in range(self.section.samples)]
        completions = kept_samples(kept, rows)
        if completions is None:
            dtype = policy_dtype(experiment.model)
            model, tokenizer = load_checkpoint(
                experiment.stage_dir("sft") / "model", dtype, experiment.model
            )
            length = experiment.generation.max_new_tokens
            check_prompts(model, tokenizer, prompts, length, "evaluation")
            completions = sample(
                model,
                tokenizer,
                prompts,
                samples_per_prompt=self.section.samples,
                max_new_tokens=length,
                batch_size=experiment.generation.batch_size,
                seed=experiment.seed,
                label="overoptimise: sampling",
            )
            keep_samples(kept, completions)
        return completions

    def has_samples(self) -> bool:
        """Whether they are drawn."""
        return (self._samples / "samples.jsonl").is_file()

    def _kept(self, proxy: Proxy | None) -> tuple[Path, list[float] | None]:
        """The file of a reward's scores, and those in it; None where they are another's."""
        path = self._samples / f"scores-{'gold' if proxy is None else proxy.name}.json"
        kept = read_json(path) if path.is_file() else {}
        made = kept.get("made") == _plain(self._recipe(proxy))
        return path, kept["scores"] if made else None

    def has_scores(self, proxy: Proxy | None) -> bool:
        """Whether :meth:`scores` only reads."""
        return self._kept(proxy)[1] is not None

    def scores(self, proxy: Proxy | None) -> Array:
        """What ``proxy``, or gold where it is None, says of the samples: ``(P, N)``."""
        name = "gold" if proxy is None else proxy.name
        path, scores = self._kept(proxy)
        if scores is None:
            reward = gold_reward(self.experiment) if proxy is None else self.reward(proxy)
            size = self.experiment.generation.batch_size
            scores = score(reward, self.sample(), size, f"overoptimise: scoring by {name}").total
            write_json(path, {"made": _plain(self._recipe(proxy)), "scores": scores})
            free_memory()
        return np.asarray(scores, dtype=np.float64).reshape(-1, self.section.samples)

    def reward(self, proxy: Proxy) -> RewardFunction:
        """The trained proxy."""
        return proxy_reward(self.proxy(proxy))

    def members(self, size: Size) -> list[Proxy]:
        """The proxies of one size."""
        return [Proxy(size, member) for member in range(self.section.members)]

    def gold_scale(self) -> Scale:
        """Of the judge."""
        return Scale.of(self.scores(None), "gold")

    def scales(self, size: Size) -> list[Scale]:
        """Of each proxy of ``size``."""
        return [Scale.of(self.scores(p), f"proxy {p.name}") for p in self.members(size)]

    def combined(self, size: Size, how: How) -> Array:
        """What ranks the samples: ``(P, N)``."""
        rows = [
            scale(self.scores(proxy))
            for proxy, scale in zip(self.members(size), self.scales(size), strict=True)
        ]
        return combine(np.array(rows), how, self.section.penalty)

    # -- PPO -----------------------------------------------------------------------------------

    def ppo(self, size: Size, how: How, beta: float) -> Experiment:
        """The experiment of one PPO run, evaluated along its way on the validation prompts."""
        given = self.experiment.trainer_args("ppo")
        rollout = given.get("num_ppo_epochs", 4) * given.get("num_mini_batches", 4)
        made = given.get("per_device_train_batch_size", 16) * given.get("num_mini_batches", 4)
        made *= given.get("gradient_accumulation_steps", 1)
        rollouts = math.ceil(self.section.episodes / made)
        settings = {
            "total_episodes": self.section.episodes,
            "eval_strategy": "steps",
            "eval_on_start": True,
            "eval_steps": rollout * math.ceil(rollouts / EVALUATIONS),
            "load_best_model_at_end": False,
            "gold_stop": False,
        }
        own = self._experiment(f"ppo/{size}-{how}-{beta:g}", {"ppo": settings})
        return own.model_copy(update={"beta": beta})

    def has_run(self, size: Size, how: How, beta: float) -> bool:
        """Whether that PPO run has ended."""
        return is_policy(policy_folder(self.ppo(size, how, beta).stage_dir("ppo")))

    def run(self, size: Size, how: How, beta: float) -> None:
        """Train PPO against the proxies of ``size``, combined ``how``, at ``beta`` a nat of KL."""
        own, members = self.ppo(size, how, beta), self.members(size)
        prompts = [*self.data.train_prompts, *self.data.validation_prompts]
        self._claim(
            own.output_dir,
            {
                "ppo": own.ppo.model_dump(mode="json"),
                "model": own.model.model_dump(mode="json"),
                "data": own.data.model_dump(mode="json"),
                "generation": own.generation.model_dump(mode="json"),
                "beta": beta,
                "overoptimise.penalty": self.section.penalty if how == "uncertainty" else None,
                "overoptimise.members": None if how == "single" else self.section.members,
                "overoptimise.samples": self.section.samples,
                "sft model": self._origin("sft"),
                "list of prompts": _digest([(p, columns_of(p)) for p in prompts]),
                "proxies": [self._recipe(p) for p in members[: 1 if how == "single" else None]],
                "gold": self._recipe(None),
                "seed": own.seed,
            },
        )
        if self.has_run(size, how, beta):
            return
        used = members[:1] if how == "single" else members
        functions = [self.reward(proxy) for proxy in used]
        reward = optimised(functions, self.scales(size), how, self.section.penalty)
        ppo.train(own, reward, scaled(gold_reward(self.experiment), self.gold_scale()))
        shutil.rmtree(own.stage_dir("ppo") / "checkpoints", ignore_errors=True)
        free_memory()

    def evaluations(self, size: Size, how: How, beta: float) -> list[dict[str, Any]]:
        """What a PPO run's evaluations measured, on the common scale."""
        return read_metrics(self.ppo(size, how, beta).stage_dir("ppo") / ppo.EVALUATIONS)
