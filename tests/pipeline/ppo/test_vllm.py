"""PPO from a vLLM server: a stand-in on loopback that loses, delays, forgets and lies."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from pipeline.config import load_experiment
from pipeline.data import toy
from pipeline.errors import UserError
from pipeline.ppo import PPOConfig
from pipeline.ppo.engines import Request
from pipeline.ppo.engines import server as asking
from pipeline.ppo.engines.vllm import VLLM
from pipeline.stages import ppo
from tests.pipeline.ppo.test_trainer import PROMPTS, make_trainer, weights
from tests.pipeline.ppo.vllm_standin import NAME, StandIn

SHORT: dict[str, Any] = {
    "per_device_train_batch_size": 4,
    "total_episodes": 16,
    "response_length": 4,
}  # two rollouts of 8 completions
LORA = {"trainable_layers": None, "use_peft": True}
ALL = {"trainable_layers": None}
WAYS = pytest.mark.parametrize("section", [LORA, ALL], ids=["adapter", "folder"])


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that would have been waited."""
    made: list[float] = []
    monkeypatch.setattr(asking, "time", type("Clock", (), {"sleep": made.append}))
    return made


def trained(
    folder: Path, section: dict[str, Any], prepare: Callable[[StandIn], None], **settings: Any
) -> tuple[dict[str, torch.Tensor], list[dict[str, float]], StandIn]:
    """A run's weights and log, from a stand-in that ``prepare`` has told what to do."""
    with StandIn(toy.toy_language_model(0)) as server:
        prepare(server)
        trainer, recorder = make_trainer(
            folder, section=section, generation="vllm", server=server.url,
            **{**SHORT, **settings},
        )  # fmt: skip
        trainer.train()
    return weights(trainer), [row for row in recorder.logs if "loss" in row], server


def stopped(
    folder: Path, section: dict[str, Any], prepare: Callable[[StandIn], None], **settings: Any
) -> str:
    """Why the run ended, in one line."""
    with pytest.raises(UserError) as error:
        trained(folder, section, prepare, **settings)
    assert "\n" not in str(error.value)
    return str(error.value)


def well(server: StandIn) -> None:
    """Nothing is wrong with it."""


def never(prompts: list[str], completions: list[str]) -> list[float]:
    """A reward of what is not to be drawn."""
    raise AssertionError("drawn")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The weights that runs end with whose server has no trouble."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return {
        "adapter": trained(folder / "a", LORA, well)[0],
        "folder": trained(folder / "b", ALL, well)[0],
    }


def end_of(undisturbed: dict[str, Any], section: dict[str, Any]) -> dict[str, torch.Tensor]:
    return undisturbed["adapter" if section is LORA else "folder"]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


@WAYS
def test_the_server_has_every_step_s_weights(tmp_path: Path, section: dict[str, Any]) -> None:
    """Its log-probabilities are the trainer's to rounding, in every rollout, while the policy
    moves."""
    _, rows, server = trained(tmp_path, section, well, temperature=0.7)
    assert len(rows) == 2 and rows[-1]["objective/kl_exact"] > 0.01
    for row in rows:
        assert row["engine/logp_difference"] < 1e-5
    salts = [body["cache_salt"] for body in server.completions()]
    assert len(set(salts)) == 2 and len(salts) == 2 * 8
    kept = list((tmp_path / "server").iterdir())
    assert [folder.name for folder in kept] == [salts[-1]]  # the others' are removed
    names = {body["model"] for body in server.completions()}
    assert names == (set(salts) if section is LORA else {NAME})


def test_rollouts_are_drawn_beside_updates(tmp_path: Path) -> None:
    """The second from the weights that the first came from, whose log-probabilities it tells."""
    _, rows, server = trained(tmp_path, LORA, well, overlap=True, total_episodes=24)
    steps = [body["cache_salt"].rpartition("-")[2] for body in server.completions()]
    assert steps == ["0"] * 16 + ["4"] * 8
    assert [row["engine/logp_difference"] > 1e-3 for row in rows] == [False, True, True]


def test_a_request_says_all_that_would_change_the_distribution(tmp_path: Path) -> None:
    *_, server = trained(tmp_path, LORA, well, temperature=0.7)
    bodies = server.completions()
    for body in bodies:
        assert (body["top_p"], body["top_k"], body["min_p"]) == (1.0, -1, 0.0)
        assert body["repetition_penalty"] == 1.0 and body["min_tokens"] == 0
        assert body["presence_penalty"] == body["frequency_penalty"] == 0.0
        assert body["temperature"] == 0.7 and body["max_tokens"] == 4
        assert body["ignore_eos"] and body["stop_token_ids"] == [toy.toy_tokenizer().eos_token_id]
    assert len({body["seed"] for body in bodies}) == len(bodies)


def test_the_stage_leaves_no_weights_that_were_sent(tiny: Path, tmp_path: Path) -> None:
    model = toy.toy_language_model(0)
    for made in (model, toy.toy_tokenizer()):
        made.save_pretrained(tmp_path / "sft" / "model")
    with StandIn(model) as server:
        given = ["ppo.generation=vllm", f"ppo.server={server.url}", "ppo.total_episodes=64"]
        experiment = load_experiment(tiny, [f"output_dir={tmp_path}", *given])
        ppo.train(experiment, reward=lambda prompts, completions: [len(c) for c in completions])
        assert len(server.completions()) == 64
    assert (tmp_path / "ppo" / "model" / "config.json").is_file()
    assert (tmp_path / "ppo" / "checkpoints").is_dir()
    assert not (tmp_path / "ppo" / "checkpoints" / "server").exists()


@WAYS
def test_a_checkpoint_put_back_is_drawn_from_though_the_step_is_the_same(
    tmp_path: Path, section: dict[str, Any]
) -> None:
    with StandIn(toy.toy_language_model(0)) as server:
        trainer, _ = make_trainer(
            tmp_path, section=section, generation="vllm", server=server.url,
            save_strategy="steps", save_steps=4, **SHORT,
        )  # fmt: skip
        trainer.train()
        trainer.evaluate(PROMPTS[:4])
        trainer._load_from_checkpoint(str(tmp_path / "checkpoint-4"))
        trainer.evaluate(PROMPTS[:4])
        salts = list(dict.fromkeys(body["cache_salt"] for body in server.completions()))
        assert [salt.rpartition("-")[2] for salt in salts] == ["0", "4", "8", "8"]
        assert len(set(salts)) == 4
        assert [folder.name for folder in (tmp_path / "server").iterdir()] == salts[-1:]
        if section is LORA:
            assert set(server.adapters) == {salts[-1]}


def test_a_row_is_the_same_whichever_process_asks(tmp_path: Path) -> None:
    model = toy.toy_language_model(0)
    prompts = [(9, 20, 31)] * 4
    whole = Request(prompts, 6, 1.0, frozenset({0}), 7, 0, torch.zeros(4, 6), 0)
    half = replace(whole, prompt_ids=prompts[2:], first=2)
    with StandIn(model) as server:
        engine = VLLM(server.url, tmp_path)
        engine.begin(model, toy.toy_tokenizer(), 20)
        engine.load(model, 0)
        rows = engine(whole).tokens
        assert engine(half).tokens == rows[2:]
        assert len(set(map(tuple, rows))) == 4
        assert engine(replace(whole, seed=8)).tokens != rows


# -- what passes -----------------------------------------------------------------------------------


class Trouble:
    """Does something at the n-th request for a completion, and at others nothing."""

    def __init__(self, server: StandIn, at: dict[int, Any]) -> None:
        self.server, self.at, self.seen = server, at, 0

    def __call__(self, path: str, body: dict[str, Any]) -> Any:
        if path != "/v1/completions" or "logprob_token_ids" in body:
            return None
        self.seen += 1
        what = self.at.get(self.seen)
        return what() if callable(what) else what


@pytest.mark.parametrize(
    ("section", "at"),
    [
        (LORA, {3: "drop", 6: 503, 12: 502}),
        (ALL, {3: "drop", 6: 503, 12: 502}),
        (LORA, {5: 2.0}),
    ],
    ids=["adapter", "folder", "a late one"],
)
def test_what_is_asked_again_is_the_same(
    tmp_path: Path,
    section: dict[str, Any],
    at: dict[int, Any],
    waits: list[float],
    undisturbed: dict[str, Any],
) -> None:
    def troubled(server: StandIn) -> None:
        server.trouble = Trouble(server, at)

    asked_again, *_ = trained(tmp_path / "b", section, troubled, server_timeout=1.0)
    assert waits and same(end_of(undisturbed, section), asked_again)


@WAYS
def test_a_server_that_starts_anew_gets_its_weights_again(
    tmp_path: Path,
    section: dict[str, Any],
    waits: list[float],
    undisturbed: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In the midst of the second rollout: its answers are those of a server that stayed."""

    def killed(server: StandIn) -> None:
        def dies() -> str:
            server.start_anew()
            return "drop"

        server.trouble = Trouble(server, {12: dies})

    again, rows, _ = trained(tmp_path / "b", section, killed)
    assert waits and same(end_of(undisturbed, section), again)
    assert all(row["engine/logp_difference"] < 1e-5 for row in rows)
    assert "try 2 of" in capsys.readouterr().err


def test_a_server_that_starts_anew_unseen_is_found_out_by_the_version_it_tells(
    tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    """No connection breaks, as behind a proxy: the rollout is drawn again."""

    def killed(server: StandIn) -> None:
        server.trouble = Trouble(server, {14: server.start_anew})

    again, _, server = trained(tmp_path / "b", ALL, killed)
    assert same(undisturbed["folder"], again)
    assert len(server.completions()) == 3 * 8


def test_a_broken_answer_is_asked_for_again(
    tmp_path: Path, waits: list[float], undisturbed: dict[str, Any]
) -> None:
    def aborts(server: StandIn) -> None:
        honest, seen = server.answer, []

        def answer(path: str, body: dict[str, Any]) -> Any:
            said = honest(path, body)
            if path == "/v1/completions" and "logprob_token_ids" not in body:
                seen.append(body)
                if len(seen) == 5:
                    choice = said["choices"][0]
                    choice["token_ids"] = choice["token_ids"][:2]
                    choice["logprobs"]["token_logprobs"] = [-1.0, -1.0]
                    choice["finish_reason"] = "abort"
            return said

        server.answer = answer  # type: ignore[method-assign]

    again, *_ = trained(tmp_path / "b", LORA, aborts)
    assert waits and same(undisturbed["adapter"], again)


# -- what does not ---------------------------------------------------------------------------------


@WAYS
def test_a_server_that_keeps_old_weights_is_noticed(
    tmp_path: Path, section: dict[str, Any]
) -> None:
    def keeps(server: StandIn) -> None:
        server.keeps_old = True

    assert "answers from old weights" in stopped(tmp_path, section, keeps)


def test_a_server_with_another_model_is_refused_before_any_work(tmp_path: Path) -> None:
    def other(server: StandIn) -> None:
        server.base = toy.toy_language_model(1).eval()

    line = stopped(tmp_path, LORA, other, reward=never)
    assert "answers from another model than is trained" in line and "server_tolerance" in line


def test_a_server_that_comes_back_with_another_model_ends_the_run(tmp_path: Path) -> None:
    def changes(server: StandIn) -> None:
        def dies() -> str:
            server.base = toy.toy_language_model(1).eval()
            server.start_anew()
            return "drop"

        server.trouble = Trouble(server, {12: dies})

    assert "another model" in stopped(tmp_path, LORA, changes)


def test_a_server_that_is_gone_ends_the_run_and_nothing_is_lost(
    tmp_path: Path, waits: list[float], undisturbed: dict[str, Any]
) -> None:
    """Started again, from its checkpoint, the run ends where an undisturbed one does."""
    settings: dict[str, Any] = {"save_strategy": "steps", "save_steps": 4}
    settings |= SHORT
    with StandIn(toy.toy_language_model(0)) as server:
        gone = threading.Event()
        server.trouble = lambda path, body: "drop" if gone.is_set() else None
        trainer, _ = make_trainer(
            tmp_path / "b", section=LORA, generation="vllm", server=server.url, server_retries=2,
            **settings,
        )  # fmt: skip
        at_once = trainer._collect

        def collect(prompts: Any) -> Any:
            if trainer.state.global_step == 4:
                waits.clear()
                gone.set()
            return at_once(prompts)

        trainer._collect = collect  # type: ignore[method-assign]
        with pytest.raises(UserError) as error:
            trainer.train()
        assert "no answer in 3 tries" in str(error.value) and "checkpoint" in str(error.value)
        assert len(waits) == 2
        gone.clear()
        resumed, _ = make_trainer(
            tmp_path / "b", section=LORA, generation="vllm", server=server.url, **settings
        )
        resumed.train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-4"))
    assert same(undisturbed["adapter"], weights(resumed))


def _set(**values: Any) -> Callable[[StandIn], None]:
    def prepare(server: StandIn) -> None:
        for name, value in values.items():
            setattr(server, name, value)

    return prepare


@pytest.mark.parametrize(
    ("section", "server", "settings", "words"),
    [
        (LORA, {"window": 6}, {}, "--max-model-len"),
        (LORA, {"lora": False}, {}, "--enable-lora"),
        (ALL, {"development": False}, {}, "VLLM_SERVER_DEV_MODE=1"),
        (LORA | {"lora_r": 32}, {}, {}, "max_lora_rank 16"),
        (LORA, {"raw": True}, {"temperature": 0.7}, "--logprobs-mode processed_logprobs"),
        (LORA, {}, {"temperature": 0.005}, "raise it"),
        (LORA, {}, {"server_weights": "folder"}, "set it to adapter"),
        (ALL, {}, {"server_weights": "adapter"}, "set folder or nccl"),
    ],
    ids=["window", "no adapters", "no weights", "rank", "raw", "cold", "folder", "adapter"],
)
def test_a_server_that_cannot_is_refused_before_any_work(
    tmp_path: Path,
    section: dict[str, Any],
    server: dict[str, Any],
    settings: dict[str, Any],
    words: str,
) -> None:
    assert words in stopped(tmp_path, section, _set(**server), reward=never, **settings)


def test_what_is_no_vllm_is_told(tmp_path: Path) -> None:
    def other(server: StandIn) -> None:
        server.answer = lambda path, body: {"hello": 1}  # type: ignore[method-assign]

    assert "is no vLLM server" in stopped(tmp_path, LORA, other)


def test_settings_that_do_not_go_together() -> None:
    given: dict[str, Any] = {"output_dir": "x", "use_cpu": True, "bf16": False}
    with pytest.raises(ValueError, match="server must be the address"):
        PPOConfig(**given, generation="vllm")
    with pytest.raises(ValueError, match="generation must be vllm"):
        PPOConfig(**given, server="http://127.0.0.1:8000")
    with pytest.raises(ValueError, match="server_header_env"):
        PPOConfig(**given, generation="vllm", server="http://me:secret@127.0.0.1:8000")


def test_the_header_goes_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_HEADER", "Authorization: Bearer abc")
    seen = []

    def watches(server: StandIn) -> None:
        handler = server._server.RequestHandlerClass
        inner = handler._reply  # type: ignore[attr-defined]

        def reply(self: Any, body: Any) -> None:
            seen.append(self.headers["Authorization"])
            inner(self, body)

        handler._reply = reply  # type: ignore[attr-defined]

    trained(tmp_path, LORA, watches, server_header_env="MY_HEADER", total_episodes=8)
    assert set(seen) == {"Bearer abc"}


# -- NCCL, by TRL's client -------------------------------------------------------------------------


def test_nccl_is_trl_s_client_given_every_parameter(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in of its class: the real one needs cards. What is called is there with these
    parameters."""
    from trl.generation import vllm_client

    real = vllm_client.VLLMClient
    calls: list[Any] = []

    class Client:
        def __init__(self, base_url: str) -> None:
            calls.append(base_url)

        def init_communicator(self, device: Any) -> None:
            calls.append(device)

        def update_model_params(self, model: nn.Module) -> None:
            calls.append({name for name, _ in model.named_parameters()})

    for name in ("init_communicator", "update_model_params"):
        ours = inspect.signature(getattr(Client, name)).parameters
        assert set(ours) <= set(inspect.signature(getattr(real, name)).parameters)
    assert "base_url" in inspect.signature(real.__init__).parameters
    monkeypatch.setattr(vllm_client, "VLLMClient", Client)
    model = toy.toy_language_model(0)
    with StandIn(model) as server:
        engine = VLLM(server.url, Path("unused"), weights="nccl")
        engine.begin(model, toy.toy_tokenizer(), 20)
        names = {name for name, _ in model.named_parameters()}
        assert calls == [server.url, model.device, names]
        engine.load(model, 4)
        assert calls[3:] == [names] and server.version.startswith(f"{engine._run}-4.")
        with pytest.raises(UserError, match="start the run again"):
            server.start_anew()
            engine(Request([(1,)], 3, 1.0, frozenset({0}), 7, 0, torch.zeros(1, 3), 4))


def test_nccl_without_cards_is_refused_in_one_line() -> None:
    model = toy.toy_language_model(0)
    with StandIn(model) as server, pytest.raises(UserError, match="server_weights to folder"):
        VLLM(server.url, Path("unused"), weights="nccl").begin(model, toy.toy_tokenizer(), 20)


def test_an_adapter_of_another_name_is_found_by_the_server(tmp_path: Path) -> None:
    model = toy.toy_language_model(0)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear")
    policy = get_peft_model(model, config, adapter_name="mine")
    with StandIn(toy.toy_language_model(0)) as server:
        VLLM(server.url, tmp_path).begin(policy, toy.toy_tokenizer(), 20)
        assert len(server.adapters) == 1
