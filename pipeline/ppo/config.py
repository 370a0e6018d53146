"""Every knob of the PPO trainer."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal, get_type_hints

from annotated_types import Ge, Gt, Le
from transformers import TrainingArguments

from common.service import ServiceMistake, parsed
from pipeline.bounds import AboveZero, Count, NotNegative, out_of_bounds


@dataclass
class PPOConfig(TrainingArguments):
    r"""PPO for language models; a :class:`transformers.TrainingArguments` with these fields added.

    One *rollout* draws one completion for each of ``rollout_batch_size`` prompts and is learned
    from in ``num_ppo_epochs × num_mini_batches`` optimizer steps, whatever the gradient
    accumulation. Per process a rollout holds ``per_device_train_batch_size ×
    gradient_accumulation_steps × num_mini_batches`` completions.

    The bounds of a number are in its field's type; the same types are read when an experiment is
    loaded, before any stage begins.

    > Sampling

    Args:
        total_episodes: completions to draw in all (rounded up to whole rollouts); sets
            ``max_steps``. ``None`` leaves ``max_steps`` / ``num_train_epochs`` in charge, an epoch
            being one pass over the prompts.
        num_ppo_epochs: passes over each rollout, each in a fresh random order.
        num_mini_batches: optimizer steps per pass.
        response_length: longest completion, in tokens, EOS included.
        temperature: divides the logits of policy *and* reference, in sampling and in training.
        generation_batch_size: completions generated at once per process; ``None`` = all.
        importance_cap: where another engine draws the completions and tells their log-probabilities
            log μ, each token's advantage is multiplied by min(π_old/μ, cap), which corrects for the
            engine's μ not being the policy the trainer computes (truncated importance sampling,
            Espeholt et al. 2018, arXiv 1802.01561; for engines Yao et al. 2025, "Your Efficient RL
            Framework Secretly Brings You Off-Policy RL Training"); ``None`` = no correction.
        overlap: draw a rollout's completions while the one before is learned from, by the weights
            before that update: one step off-policy, corrected by ``importance_cap``. For engines
            with weights of their own; docs/overlap.md says what it changes and when it pays.

    > Engine (docs/generation.md)

        generation: what draws completions: ``loop``, the trainer's own; ``continuous``, the
            continuous batching of transformers, in the trainer's process; ``vllm``, a server that
            runs beside.
        server: the address of that server, ``http://host:port``.
        server_weights: how it gets the weights: ``adapter`` loads LoRA's from a folder, ``folder``
            all of them, ``nccl`` sends them from card to card; ``auto`` is adapter for LoRA and
            folder without.
        server_folder: where those folders are; the server must see it too. ``None`` is ``server``
            in the output folder.
        server_header_env: environment variable that holds a header for the server,
            ``Authorization: Bearer …``.
        server_timeout: seconds for one request.
        server_retries: further tries of a request that was not answered, with the same seeds, after
            1, 2, 4, … up to 60 seconds.
        server_tolerance: nats a token by which the server's log-probabilities may differ from the
            trainer's, on average over a few sequences, before the run ends; ``None`` is 0.02 where
            the trainer computes in float32 and 0.2 where it does in half that.

    > Reward

        reward_clip: clip scores to ±this before anything else; ``None`` = no. Not with a reward
            that gives every token a score: a limit of their sum does not say which one to change.
        normalize_rewards: divide scores by their running standard deviation over all rollouts;
            β is then in units of that deviation. Scores of tokens are divided by that of their
            sums.
        missing_eos_penalty: subtracted from the score of a completion without EOS, of the last
            token's where each has its own; ``None`` = 0.
        cut_off: what a completion that ``response_length`` cuts off teaches. ``keep``: its score
            as it stands, as if it had ended there, less ``missing_eos_penalty``; the optimum is
            that of texts of at most this length. ``mask``: nothing, none of its tokens is in a
            loss, a deviation or a fit (DAPO's overlong filtering, Yu et al. 2025, section 3.4,
            arXiv 2503.14476; TRL's ``mask_truncated_completions``); among completions that end the
            optimum is the same, but how many end is nobody's aim. ``bootstrap``: it would have
            gone on, so it is paid no score but the critic's value of where it stands (Pardo et al.
            2018, arXiv 1712.00378; Gymnasium's ``truncated``): the problem of texts without a
            limit, as far as the critic knows what none has shown it. See ``docs/cut-off.md``.

    > KL

        kl_coef: β, the price of one nat of KL, in reward units.
        kl_estimator: per-token estimate that the reward is charged with (Schulman 2020). Only k1
            and exact have the KL-regularised optimum in the reward: k2 and k3 end far from it,
            which the trainer warns of, see ``docs/certificate.md``. ``exact`` has no noise of
            sampled tokens in it: the KL of the whole next-token distribution, of the states that a
            token leads to in its return, and of its own state in the loss, differentiated (Amini et
            al. 2025, arXiv 2504.10637). An update then needs the reference's logits: a second
            product with the head, and the reference's final states kept for the rollout.
        kl_in: charge the KL to the reward, or add β times its estimate, k2 or k3, to the loss.
            There a token does not answer for the KL of those after it: another optimum.
        kl_target: adaptive control when set: the coefficient is steered until the KL per
            completion is this many nats (Ziegler et al. 2019, section 2.2).
        kl_horizon: episodes in which KL at 1.2 times the target or more raises β e^0.2-fold, and
            at 0.8 times or less lowers it as much; ``None`` is a twentieth of the run's, so that
            over a whole run β can be moved 50-fold, and tenfold in about half of it.

    > Advantages

        gamma: discount per token.
        lam: GAE's λ. A critic begins at 0, and until it has learned token t of T is credited with
            λ^(T − t) of a score that comes at the end: of 256 tokens the first would see 2e-6 of
            it with λ = 0.95. Below 1, for short completions, it lowers the variance.
        whiten_advantages: zero mean, unit variance over the whole rollout (all processes).
        whiten_rewards: divide token rewards by their global standard deviation (mean kept).

    > Loss

        cliprange: ε of the clipped surrogate.
        entropy_coef: weight of the entropy bonus.
        target_kl: skip what is left of an update once a minibatch's approximate KL to the rollout
            policy exceeds this; ``None`` = never.

    > Critic

        critic: ``head``: a value head learns V(s_t) from nothing. ``prefix``: V(s_t) = a · score
            of the completion's first t tokens + b + the head, a and b refitted by least squares for
            groups of positions, so that there is a critic from the first rollout on. The reward is
            asked once for every prefix, ``val/reward_queries`` in all, with the same clipping and
            normalisation. No use where a beginning's score says nothing of the whole's; not
            with a reward that gives every token a score, which says what was paid, not what will.
        prefix_every: ask for every k-th position's prefix; its score stands for the next k − 1
            positions too. For rewards that are dear.
        vf_coef: weight of the value loss in the policy's gradient, with ``value_backprop``.
            Without, it does next to nothing: the head's gradients are clipped apart, and the size
            of Adam's steps does not depend on theirs. Set ``value_learning_rate``.
        cliprange_value: how far a value may move per rollout before its loss is clipped; ``None``
            = no clipping (rewards of unknown scale make a fixed range hurt).
        value_learning_rate: learning rate of the value head, which begins at nothing; ``None`` is
            ten times ``learning_rate``.
        value_head_hidden: width of the value head's hidden layer, in multiples of the model's.
        value_backprop: let the value loss change the policy's own weights too.
        value_warmup_rollouts: first rollouts in which only the value head learns.

    > Guards

        reward_timeout: seconds that one call of the reward function may take; ``None`` = for ever.
            With one, the function is called in a thread, which is left behind when it hangs.
        reward_retries: further tries, with the same completions after 1, 2, 4, … seconds, when the
            function does not answer in time or raises what may pass (a connection's or a client
            library's error). A mistake in it or a wrong result is not tried again.
        kl_warning: warn when the exact KL per completion (nats) rises above this; ``None`` = never.
            A policy that far from the reference has mostly left the texts that the reward was
            made for, and at 50 nats few of its completions could have come from the reference.
        kl_stop: end the run there, with a checkpoint and an error; ``None`` = never.
        gold_stop: end the run, without an error, at the evaluation where the judge's mean mark is
            below its best by more than the interval of the difference (95 %, paired by prompt and
            shared by all pairs of evaluations). The last weights are the result; with
            ``load_best_model_at_end`` and ``metric_for_best_model: gold`` the best checkpoint's,
            chosen by the judge, so that its marks on those prompts are no longer free of choice.

    > Memory and logging

        microbatch_tokens: score, and learn from, as many rows at once as make this many tokens,
            prompt, completion and padding, instead of a fixed number of rows; one that has more
            stands alone. ``per_device_train_batch_size × gradient_accumulation_steps`` are then
            only the rows of a minibatch, whose gradient stays what it is. ``None`` =
            ``per_device_train_batch_size`` rows.
        packing: score, and learn from, rows one behind the other without padding. Tried on the
            model at the start, and refused where rows would see each other. It pays with flash
            attention; others compute the attention between rows too and drop it.
        cache_trunk: keep the activations below the lowest trainable layer for the whole rollout
            when the lower layers are frozen, so that every pass runs the upper layers only. Where
            they would take over a quarter of the memory that is free the host's holds them, if a
            GPU has one with room, and else they are computed again in every pass.
        logits_chunk: completion tokens whose logits exist at once; ``None`` = as suits the device.
        float32_logits: compute the head's matrix product in float32 under bfloat16 too, in sampling
            and in scoring; ``benchmarks/head_precision.py`` prints what it changes.
        log_completions: completions kept of each rollout, for the sample log and ``rlhf inspect``.

    ``logging_steps`` (default: one rollout), ``save_steps``, ``eval_steps`` and ``max_steps``
    count optimizer steps as everywhere in the Trainer; saving and stopping are moved up to the
    end of their rollout, where a run can resume exactly. With ``logging_steps`` below a rollout
    the metrics of an update stand in the first row of the next.

    Raises:
        ValueError: a number is out of its bounds, or two values clash.
    """

    # Other defaults of inherited fields
    learning_rate: float = field(default=1e-5)
    lr_scheduler_type: str = field(default="linear")
    per_device_train_batch_size: int = field(default=16)
    max_grad_norm: float = field(default=1.0)
    logging_steps: float | None = field(default=None)  # type: ignore[assignment]
    report_to: None | str | list[str] = field(default="none")
    remove_unused_columns: bool | None = field(default=False)
    # The Trainer's filter asks the device after every microbatch; the guards look at each step.
    logging_nan_inf_filter: bool = field(default=False)
    ddp_find_unused_parameters: bool | None = field(default=False)
    ddp_broadcast_buffers: bool | None = field(default=False)  # rotary tables, which never change

    # Sampling
    total_episodes: Count | None = None
    num_ppo_epochs: Count = 4
    num_mini_batches: Count = 4
    response_length: Count = 64
    temperature: AboveZero = 1.0
    generation_batch_size: Count | None = None
    importance_cap: AboveZero | None = 2.0
    overlap: bool = False

    # Engine
    generation: Literal["loop", "continuous", "vllm"] = "loop"
    server: str | None = None
    server_weights: Literal["auto", "adapter", "folder", "nccl"] = "auto"
    server_folder: str | None = None
    server_header_env: str | None = None
    server_timeout: AboveZero = 600.0
    server_retries: Annotated[int, Ge(0)] = 8
    server_tolerance: AboveZero | None = None

    # Reward
    reward_clip: AboveZero | None = None
    normalize_rewards: bool = False
    missing_eos_penalty: NotNegative | None = None
    cut_off: Literal["keep", "mask", "bootstrap"] = "keep"

    # KL
    kl_coef: NotNegative = 0.05
    kl_estimator: Literal["k1", "k2", "k3", "exact"] = "k1"
    kl_in: Literal["reward", "loss"] = "reward"
    kl_target: AboveZero | None = None
    kl_horizon: Count | None = None

    # Advantages
    gamma: Annotated[float, Gt(0), Le(1)] = 1.0
    lam: Annotated[float, Ge(0), Le(1)] = 1.0
    whiten_advantages: bool = True
    whiten_rewards: bool = False

    # Loss
    cliprange: AboveZero = 0.2
    entropy_coef: NotNegative = 0.0
    target_kl: AboveZero | None = None

    # Critic
    critic: Literal["head", "prefix"] = "head"
    prefix_every: Count = 1
    vf_coef: NotNegative = 0.5
    cliprange_value: AboveZero | None = None
    value_learning_rate: AboveZero | None = None
    value_head_hidden: AboveZero = 1.0
    value_backprop: bool = False
    value_warmup_rollouts: Annotated[int, Ge(0)] = 0

    # Guards
    reward_timeout: AboveZero | None = None
    reward_retries: Annotated[int, Ge(0)] = 2
    kl_warning: AboveZero | None = 50.0
    kl_stop: AboveZero | None = None
    gold_stop: bool = False

    # Memory and logging
    microbatch_tokens: Count | None = None
    packing: bool = False
    cache_trunk: bool = True
    logits_chunk: Count | None = None
    float32_logits: bool = False
    log_completions: Annotated[int, Ge(0)] = 4

    @property
    def rollout_size(self) -> int:
        """Completions per rollout in this process."""
        return (
            self.per_device_train_batch_size
            * self.gradient_accumulation_steps
            * self.num_mini_batches
        )

    @property
    def rollout_batch_size(self) -> int:
        """Completions per rollout over all processes."""
        return self.rollout_size * self.world_size

    @property
    def charges_exact_kl(self) -> bool:
        """Whether the update needs each token's exact KL, and so the reference's states."""
        return self.kl_estimator == "exact" and self.kl_coef > 0

    @property
    def steps_per_rollout(self) -> int:
        """Optimizer steps learned from one rollout."""
        return self.num_ppo_epochs * self.num_mini_batches

    def planned_episodes(self, prompts: int) -> int:
        """Completions that the whole run will draw, given the number of training prompts."""
        if self.max_steps > 0:
            return self.max_steps // self.steps_per_rollout * self.rollout_batch_size
        epoch = max(1, prompts // self.rollout_batch_size) * self.rollout_batch_size
        return math.ceil(self.num_train_epochs * epoch)

    @staticmethod
    def clashes(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Fields whose value does not go with PPO or with another's, and what they must be.

        Args:
            values: plain values by field name, those not set at their default.
        """
        if values["deepspeed"] is not None:
            yield "deepspeed", "null (FSDP2 splits weights, gradients and optimizer state)"
        if values["fp16"] and (values["fsdp"] or values["use_cpu"]):
            yield "fp16", "false (use bf16, or neither for float32): it is for one GPU a process"
        if values["kl_in"] == "loss" and values["kl_estimator"] in ("k1", "exact"):
            # k1's gradient is 0 on average; exact is in the loss by itself, and in the return.
            yield "kl_estimator", "k2 or k3 with kl_in: loss"
        if values["kl_target"] is not None and values["kl_coef"] == 0:
            yield "kl_coef", "above 0 with kl_target"
        if values["cut_off"] != "keep" and values["missing_eos_penalty"] is not None:
            how = "learns nothing from" if values["cut_off"] == "mask" else "goes on beyond"
            yield "missing_eos_penalty", f"null with cut_off: {values['cut_off']}, which {how} them"
        if values["overlap"] and values["importance_cap"] is None:
            yield "importance_cap", "a number with overlap, whose completions are one update old"
        if values["gold_stop"] and values["eval_strategy"] in ("no", None):
            yield "eval_strategy", "steps or epoch with gold_stop, which looks at evaluations"
        if values["generation"] == "vllm":
            problem = _address_problem(values["server"])
            if problem is not None:
                yield "server", problem
        elif values["server"] is not None:
            yield "generation", "vllm with a server"
        if values["save_steps"] < 1:
            yield "save_steps", "a number of steps, at least 1"

    def __post_init__(self) -> None:
        values = {item.name: getattr(self, item.name) for item in fields(self) if item.init}
        for name, hint in get_type_hints(PPOConfig, include_extras=True).items():
            bounds = out_of_bounds(hint, values.get(name))
            if bounds is not None:
                raise ValueError(f"{name} must be {bounds}, got {values[name]!r}")
        for name, expected in self.clashes(values):
            raise ValueError(f"{name} must be {expected}, got {values[name]!r}")
        rollout = self.steps_per_rollout
        if self.logging_steps is None:
            self.logging_steps = rollout
        self.save_steps = _up_to(int(self.save_steps), rollout)
        if self.eval_steps is not None and self.eval_steps >= 1:
            self.eval_steps = _up_to(int(self.eval_steps), rollout)
        if self.max_steps > 0:
            self.max_steps = _up_to(self.max_steps, rollout)
        super().__post_init__()
        if self.total_episodes is not None:
            self.max_steps = -(-self.total_episodes // self.rollout_batch_size) * rollout
        elif self.max_steps > 0:
            self.max_steps = _up_to(self.max_steps, rollout)


def sharded(args: TrainingArguments) -> bool:
    """Whether FSDP splits the weights over the processes, by these arguments or by accelerate's."""
    return bool(args.fsdp) or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def _address_problem(url: str | None) -> str | None:
    """What ``server`` must be, where it is not."""
    if url is None:
        return "the address of a vLLM server, http://host:port, with generation: vllm"
    try:
        parsed(url, "it", "server_header_env")
    except ServiceMistake as error:
        return f"http://host:port; {error}"
    return None


def _up_to(steps: int, multiple: int) -> int:
    return -(-steps // multiple) * multiple
