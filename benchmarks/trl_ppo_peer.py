"""TRL 1.12's PPO under the settings of a JSON file: the peer of the PPO benchmarks.

Run by `ppo_throughput.py` and `ppo_quality.py` with the peer's own Python (trl 1.12.0); it imports
nothing of this project but `reward_models`. Prints one line of JSON.

TRL's trainer has no seam to time its phases by, so the functions that its loop calls are wrapped:
`batch_generation` is generate, `forward` without gradients the reference, `get_reward` the value or
the reward by the model it is given, and the rest of a rollout is the update.
"""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, inject_adapter_in_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
)
from trl.experimental.ppo import (  # type: ignore[import-not-found]  # trl 1.12 has it
    PPOConfig,
    PPOTrainer,
    ppo_trainer,
)

PHASES: tuple[str, ...] = ("generate", "reference", "value", "reward", "update")


class Clock:
    """Seconds by phase of the rollout that runs."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)

    def timed(self, phase: str, function: Any) -> Any:
        """``function``, its time counted as ``phase``."""

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            result = function(*args, **kwargs)
            self.seconds[phase] += time.perf_counter() - started
            return result

        return wrapper


class Rollouts(TrainerCallback):
    """Takes each rollout's seconds and metrics when TRL logs it."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.rows: list[dict[str, Any]] = []
        self.since = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.since = time.perf_counter()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        now = time.perf_counter()
        phases = dict(self.clock.seconds)
        phases["update"] = now - self.since - sum(phases.values())
        self.rows.append({"seconds": now - self.since, "phases": phases, **logs})
        print(json.dumps(self.rows[-1]), file=sys.stderr)
        self.clock.seconds.update(dict.fromkeys(PHASES, 0.0))
        self.since = time.perf_counter()


def text_reward(settings: dict[str, Any], tokenizer: Any) -> Any:
    """A `get_reward` that shows the decoded text to a classifier with another tokenizer."""
    from reward_models.loading import load_reward

    function = load_reward(settings["text_reward"], dtype=torch.bfloat16)

    def get_reward(_: Any, ids: torch.Tensor, pad: int, context: int) -> tuple[Any, ...]:
        prompts = tokenizer.batch_decode(ids[:, :context], skip_special_tokens=True)
        texts = tokenizer.batch_decode(ids[:, context:], skip_special_tokens=True)
        return None, torch.tensor(function(prompts, texts)), None

    return get_reward


def adapt(critic: torch.nn.Module, lora: dict[str, Any]) -> None:
    """Train adapters and the score layer of ``critic`` alone; TRL itself adapts only the policy."""
    inject_adapter_in_model(LoraConfig(task_type="SEQ_CLS", **lora), critic)
    for name, parameter in critic.named_parameters():
        parameter.requires_grad_("lora_" in name or name.startswith("score."))


def peak_gib() -> float:
    """This process's largest resident memory; unlike ``getrusage``'s, never its parent's."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 2**20


def main() -> None:
    settings: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(settings["threads"])
    dtype = getattr(torch, settings["dtype"])
    base = settings["model"]
    tokenizer = AutoTokenizer.from_pretrained(base, padding_side="left")
    # With pad equal to EOS, TRL would drop every EOS from the loss.
    tokenizer.pad_token = settings["pad_token"]
    policy = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    critic, reward = (
        AutoModelForSequenceClassification.from_pretrained(settings[name], dtype=dtype)
        for name in ("critic", "reward")
    )
    if settings["lora_critic"]:
        adapt(critic, settings["lora"])
    # Under autocast logits are bfloat16, whose log-probabilities are a sixteenth apart.
    logps = ppo_trainer.selective_log_softmax
    ppo_trainer.selective_log_softmax = lambda logits, ids: logps(logits.float(), ids)
    clock, plain, forward = Clock(), ppo_trainer.get_reward, ppo_trainer.forward
    if settings.get("text_reward"):
        scorer = clock.timed("reward", text_reward(settings, tokenizer))
    else:
        scorer = clock.timed("reward", plain)
    value, reference = clock.timed("value", plain), clock.timed("reference", forward)
    ppo_trainer.get_reward = lambda m, *a: scorer(m, *a) if m is reward else value(m, *a)
    ppo_trainer.forward = lambda *a: forward(*a) if torch.is_grad_enabled() else reference(*a)
    ppo_trainer.batch_generation = clock.timed("generate", ppo_trainer.batch_generation)
    rollouts = Rollouts(clock)
    trainer = PPOTrainer(
        args=PPOConfig(
            **settings["arguments"], use_cpu=True, bf16=False, report_to="none", logging_steps=1,
            disable_tqdm=True, save_strategy="no", num_sample_generations=0,
        ),
        processing_class=tokenizer,
        model=policy,
        ref_model=None,
        reward_model=reward,
        value_model=critic,
        train_dataset=Dataset.from_dict({"input_ids": settings["prompts"]}),
        eval_dataset=Dataset.from_dict({"input_ids": settings["prompts"][:1]}),
        peft_config=LoraConfig(task_type="CAUSAL_LM", **settings["lora"]),
        callbacks=[rollouts],
    )  # fmt: skip
    # Around the whole of training autocast must not keep its bfloat16 copies of the weights: they
    # would be those of the first step for ever.
    mixed = bool(settings.get("autocast"))
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed, cache_enabled=False):
        trainer.train()
    print(json.dumps({"rollouts": rollouts.rows, "peak_gib": peak_gib()}))


if __name__ == "__main__":
    main()
