"""Where PPO's completions come from: the trainer's loop or an engine, now or one update before."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from pipeline.data.records import Prompt
from pipeline.lm.compiling import uncompiled
from pipeline.lm.generation import (
    Completion,
    completions_of,
    encode_prompt,
    end_tokens,
    sample_tokens,
)
from pipeline.lm.models import base_of
from pipeline.ppo.engines import Drawn, Engine, Request, checked
from pipeline.ppo.upkeep import distributed
from pipeline.ppo.upkeep.base import BaseTrainer
from pipeline.ppo.upkeep.overlap import prompts_of, told
from pipeline.ppo.upkeep.sharing import rollout_draws


class DrawingTrainer(BaseTrainer):
    """The trainer's part that draws completions.

    A subclass sets ``engine``, ``_beside`` and ``_longest`` before it calls ``__init__``.
    """

    engine: Engine | None
    """What draws in the place of the trainer's own loop."""
    _beside: bool
    """Whether it draws beside an update (``PPOConfig.overlap``)."""
    _longest: int
    """Tokens of the longest sequence to expect."""
    _loaded: float | None = None
    """The optimizer step whose weights the engine has; infinite where it no longer has any's."""

    def _sample(
        self,
        prompts: Sequence[Prompt],
        encoded: Sequence[tuple[int, ...]],
        draws: Tensor,
        seed: int,
    ) -> list[Completion]:
        """A completion of each prompt, by the weights of now."""
        self.ahead.wait()  # an engine is asked one thing at a time
        return self._made(prompts, encoded, self._draw(self._request(encoded, draws, seed)))

    def _request(self, encoded: Sequence[tuple[int, ...]], draws: Tensor, seed: int) -> Request:
        args, stop = self.args, end_tokens(self.actor_critic.policy)
        return Request(
            encoded, args.response_length, args.temperature, frozenset(stop), seed,
            args.process_index * len(encoded), draws, self.state.global_step,
        )  # fmt: skip

    def _draw(self, request: Request) -> Drawn:
        if self.engine is None:
            return Drawn(self._loop(request))
        self._load_engine(self.engine)
        return self._ask(self.engine, request)

    def _ask(self, engine: Engine, request: Request) -> Drawn:
        """What the engine draws from the weights that it has; also called in another thread."""
        known = base_of(self.actor_critic.policy).config.get_text_config().vocab_size
        return checked(engine(request), request, known)

    def _made(
        self, prompts: Sequence[Prompt], encoded: Sequence[tuple[int, ...]], drawn: Drawn
    ) -> list[Completion]:
        stop = end_tokens(self.actor_critic.policy)
        tokens, logps = drawn.tokens, drawn.logps
        return completions_of(self.tokenizer, prompts, encoded, tokens, stop, logps)

    def _completions(self, prompts: Sequence[Prompt]) -> list[Completion]:
        """This rollout's; with ``overlap`` those drawn ahead, and the next one's are begun."""
        rollout, encoded = self.rollout_index, self._encoded(prompts)
        if not self.args.overlap:
            return self._sample(prompts, encoded, *self._draws(encoded, rollout))
        drawn = self.ahead.take(rollout, encoded)
        if drawn is None:  # the first one, or the first since an error
            drawn = told(self._draw(self._request(encoded, *self._draws(encoded, rollout))))
        self._draw_ahead(rollout + 1)
        return self._made(prompts, encoded, drawn)

    def _draw_ahead(self, rollout: int) -> None:
        """Begin to draw ``rollout``'s completions by the weights of now, if there will be one."""
        args, engine = self.args, self.engine
        if rollout >= -(-self.state.max_steps // args.steps_per_rollout) or engine is None:
            return
        rows = prompts_of(self._sampler, rollout, args)
        encoded = self._encoded([self.train_dataset[row] for row in rows])  # type: ignore[index]
        request = self._request(encoded, *self._draws(encoded, rollout))
        self._load_engine(engine)
        self.ahead.start(
            rollout, request, lambda request: told(self._ask(engine, request)), self._beside
        )

    def _encoded(self, prompts: Sequence[Prompt]) -> list[tuple[int, ...]]:
        return [encode_prompt(self.tokenizer, prompt) for prompt in prompts]

    def _draws(self, encoded: Sequence[tuple[int, ...]], rollout: int) -> tuple[Tensor, int]:
        """The random numbers of ``rollout``'s completions, and its seed."""
        seed = self._seed(0, rollout)
        return rollout_draws([len(ids) for ids in encoded], self.args, seed), seed

    def _load_engine(self, engine: Engine) -> None:
        """Give the engine the weights of now, where it has others."""
        step, model = self.state.global_step, self.actor_critic
        if step == self._loaded:
            return
        if self._loaded is not None and step < self._loaded:
            # It has seen other weights of this step, and may remember what it made of them.
            engine.begin(model.policy, self.tokenizer, self._longest)

        def load() -> None:
            if self.is_world_process_zero():
                engine.load(model.policy, step)

        distributed.sample_whole(model, load)
        self.accelerator.wait_for_everyone()
        self._loaded = step

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self._loaded is not None:
            self._loaded = math.inf

    def _loop(self, request: Request) -> list[list[int]]:
        """Tokens from the policy as it is, as many rows at once as fit."""
        args, model = self.args, self.actor_critic

        def draw(rows: int) -> list[list[int]]:
            return sample_tokens(
                model.policy,
                self.tokenizer,
                request.prompt_ids,
                max_new_tokens=request.max_new_tokens,
                temperature=request.temperature,
                batch_size=rows,
                seed=request.seed,
                draws=request.draws,
            )

        rows = args.generation_batch_size or len(request.prompt_ids)
        with self.accelerator.autocast(), uncompiled(model.policy):
            return distributed.sample_whole(
                model, lambda: self.memory.fit("generating", rows, draw)
            )

    def _seed(self, purpose: int, rollout: int | None = None) -> int:
        """A seed of a rollout, this one or another, and ``purpose``; no state to save.

        It is that of all processes.
        """
        parts = (self.args.seed, self.rollout_index if rollout is None else rollout, purpose)
        seed = 0
        for part in parts:
            seed = (seed * 1_000_003 + part + 1) % (2**63 - 1)
        return seed
