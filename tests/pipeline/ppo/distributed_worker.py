"""Runs PPO in one and in several processes and writes what came out; test_distributed.py reads it.

`python distributed_worker.py FOLDER`: the libraries are imported once, then every
case forks its processes, which find each other as under torchrun (gloo). A process's results go to
`FOLDER/<case>/<rank>.json` and `.safetensors`.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

# As in conftest.py, which does not run here.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
ROOT = Path(__file__).resolve().parents[3]
sys.path[0] = str(ROOT)

from pipeline.output import quiet  # noqa: E402

quiet.before_imports()

import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from torch.distributed import TCPStore  # noqa: E402
from torch.distributed.tensor import DTensor  # noqa: E402
from transformers import PrinterCallback  # noqa: E402

from pipeline import cli  # noqa: E402
from pipeline.output import console  # noqa: E402
from pipeline.ppo import recording  # noqa: E402
from pipeline.ppo import trainer as ppo  # noqa: E402
from tests.pipeline.ppo.test_trainer import make_trainer  # noqa: E402

# Everything that has global statistics is on: both whitenings, the running scale of the rewards,
# the steered β. A larger Adam ε keeps directions without gradient from amplifying rounding.
SETTINGS: dict[str, Any] = {
    "total_episodes": 48,
    "response_length": 24,  # long enough for some completions to end before others
    "logging_steps": 1,
    "whiten_rewards": True,
    "normalize_rewards": True,
    "kl_target": 0.05,
    "kl_horizon": 200,
    "adam_epsilon": 1e-4,
    "save_strategy": "steps",
    "save_steps": 8,
    "ddp_timeout": 60,
}
LORA = {"trainable_layers": None, "use_peft": True}


def train(folder: Path, section: dict[str, Any] | None = None, **settings: Any) -> None:
    """Train with 8 completions a minibatch over all processes, and write the results."""
    processes = int(os.environ["WORLD_SIZE"])
    rows = 8 // processes // settings.get("gradient_accumulation_steps", 1)
    resume = settings.pop("resume", None)
    arguments = SETTINGS | {"per_device_train_batch_size": rows} | settings
    run = folder / "run"
    trainer, recorder = make_trainer(run, section=section, **arguments)
    trainer.pop_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    evaluation = trainer.evaluate()
    policy = trainer.actor_critic.policy
    rank = os.environ["RANK"]
    results = {
        "logs": recorder.logs,
        "evaluation": evaluation,
        "kl_coef": trainer.kl_control.coefficient,
        "split": sum(isinstance(p, DTensor) for p in policy.parameters()),
        "head": str(next(trainer.actor_critic.value_head.parameters()).dtype),
        "trunk": trainer.actor_critic._split is not None,
    }
    (folder / f"{rank}.json").write_text(json.dumps(results))
    trained = {name for name, p in policy.named_parameters() if p.requires_grad}
    gathered = trainer.policy_weights()
    whole = policy.state_dict() if gathered is None else gathered
    kept = {name: value for name, value in whole.items() if name in trained}
    head = trainer.actor_critic.value_head.state_dict()
    kept |= {f"value.{name}": value.clone() for name, value in head.items()}
    save_file({k: v.contiguous() for k, v in kept.items()}, folder / f"{rank}.safetensors")


def own_statistics(folder: Path, **settings: Any) -> None:
    """The same with whitening by each process's own rows: the mistake that must be seen."""
    shaped, whitened = recording.shaped_scores, recording.whitened
    recording.shaped_scores = lambda *a: shaped(*a[:-1], alone)  # type: ignore[assignment]
    for module in (recording, ppo):
        module.whitened = lambda values, mask, _, **k: whitened(values, mask, alone, **k)  # type: ignore
    train(folder, **settings)


def alone(values: torch.Tensor) -> torch.Tensor:
    """The sum over one process."""
    return values


def fail_together(folder: Path) -> None:
    """Every process has the same thing to complain about."""
    with (folder / "said").open("a") as sys.stderr:
        console.complain("error: the same mistake")


def sft(case: Path, rows: int, again: bool = False) -> None:
    """The SFT stage of the command line, in the same folder once more where it is to go on."""
    output = case.with_name("sft-fsdp") / "run" if again else case / "run"
    words = ["sft", "--config", str(ROOT / "configs" / "tiny.yaml"), f"output_dir={output}"]
    words += ["data.demonstrations=128", f"sft.per_device_train_batch_size={rows}"]
    code = cli.main([*words, "sft.save_steps=4"])
    assert code == 0, code


def interrupt_sft(run: Path) -> None:
    """Make a finished run one that was interrupted before its last checkpoint."""
    record = run / "sft" / "stage.json"
    record.write_text(record.read_text().replace('"finished",', '"started",', 1))
    shutil.move(run / "sft" / "model", run / "sft-model")
    shutil.rmtree(run / "sft" / "checkpoints" / "checkpoint-8")


def spread(processes: int, case: Path, function: Callable[..., None], **arguments: Any) -> None:
    """Run ``function(case, **arguments)`` in forked processes; exit when one of them fails."""
    case.mkdir()
    began = time.perf_counter()
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    children = []
    for rank in range(processes):
        child = os.fork()
        if child == 0:
            os.environ |= {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(processes),
                "LOCAL_WORLD_SIZE": str(processes),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(store.port),
                "TORCHELASTIC_USE_AGENT_STORE": "True",
            }
            try:
                function(case, **arguments)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        children.append(child)
    failed = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    if any(failed):
        sys.exit(f"{case.name}: exit codes {failed}")
    print(f"{case.name}: {time.perf_counter() - began:.1f} s", flush=True)


def main(root: Path) -> None:
    torch.set_num_threads(1)
    spread(1, root / "one", train)
    spread(2, root / "ddp", train)
    spread(1, root / "ddp-alone", train, resume=root / "ddp" / "run" / "checkpoint-8")
    spread(2, root / "ddp-tokens", train, microbatch_tokens=60, gradient_accumulation_steps=2)
    spread(2, root / "ddp-own-statistics", own_statistics, total_episodes=16)
    spread(1, root / "one-lora", train, section=LORA, total_episodes=32)
    spread(1, root / "sft-one", sft, rows=16)
    spread(2, root / "fail", fail_together)
    os.environ |= {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_RESHARD_AFTER_FORWARD": "true",
        "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
        "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
    }
    spread(2, root / "fsdp", train, gradient_accumulation_steps=2)
    checkpoint = root / "fsdp" / "run" / "checkpoint-8"
    spread(2, root / "fsdp-again", train, gradient_accumulation_steps=2, resume=checkpoint)
    spread(4, root / "fsdp-four", train, resume=checkpoint)
    spread(2, root / "sft-fsdp", sft, rows=8)
    interrupt_sft(root / "sft-fsdp" / "run")
    spread(1, root / "sft-again", sft, rows=16, again=True)
    os.environ["FSDP_STATE_DICT_TYPE"] = "SHARDED_STATE_DICT"
    each = {"gradient_accumulation_kwargs": {"sync_each_batch": True}}  # as docs/scaling.md says
    settings: dict[str, Any] = {"gradient_accumulation_steps": 2, "accelerator_config": each}
    lora: dict[str, Any] = {"section": LORA, "total_episodes": 32, "save_steps": 4}
    spread(2, root / "fsdp-lora", train, microbatch_tokens=60, **lora, **settings)
    checkpoint = root / "fsdp-lora" / "run" / "checkpoint-4"
    spread(1, root / "fsdp-lora-alone", train, **lora, resume=checkpoint)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
