"""Push, pull, load: what an experiment finished comes back from a hub as it was. On loopback."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard, snapshot_download
from peft import AutoPeftModelForCausalLM, PeftModel
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from common.files import write_json, write_text
from pipeline import cli, runner
from pipeline.config import Experiment, load_experiment
from pipeline.data.toy import toy_language_model, toy_tokenizer
from pipeline.errors import UserError
from pipeline.launch.command import Job, jobs
from pipeline.launched import told
from pipeline.lm.models import load_pretrained
from pipeline.lm.saving import save_adapter, save_policy
from pipeline.stages import reward_sources, training
from pipeline.stages.encoders import new_encoder
from reward_models import load_reward
from reward_models.adapters import save_adapter_classifier
from tests.hub import Account, Hub, hub

__all__ = ["hub"]
PROMPTS, COMPLETIONS = ["the film about love", "a movie"], [" is wonderful", " is dull"]
LORA = ["model.use_peft=true", "model.lora_r=4", "policies={ppo: null}"]
Load = Callable[..., Experiment]


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model.eval()(input_ids=torch.arange(3, 15)[None]).logits


class Made:
    """Stages that train nothing, and save as the real ones do. ``ran`` notes them."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.expected: dict[str, torch.Tensor] = {}

    def function(self, stage: str) -> Callable[[Experiment], None]:
        def run(experiment: Experiment) -> None:
            self.ran.append(stage)
            folder = experiment.stage_dir(stage)
            folder.mkdir(parents=True, exist_ok=True)
            {"sft": self.sft, "ppo": self.ppo, "reward": self.reward}.get(stage, self.other)(
                experiment, folder
            )

        return run

    def sft(self, experiment: Experiment, folder: Path) -> None:
        model = toy_language_model(0)
        self.expected["sft"] = logits(model)
        save_policy(model, toy_tokenizer(), folder / "model", torch.float32)

    def ppo(self, experiment: Experiment, folder: Path) -> None:
        policy, tokenizer = training.load_trainable_sft(experiment)
        assert isinstance(policy, PeftModel)
        moved(policy)
        self.expected["ppo"] = logits(policy)
        form, base = experiment.model.save, experiment.stage_dir("sft") / "model"
        if form != "merged":
            save_adapter(policy, tokenizer, folder / "adapter", base)
        if form != "adapter":
            save_policy(copy.deepcopy(policy), tokenizer, folder / "model", torch.float32)

    def reward(self, experiment: Experiment, folder: Path) -> None:
        for seed, part in enumerate(("proxy", "gold")):
            model, tokenizer = new_encoder(experiment, seed)
            if isinstance(model, PeftModel):
                moved(model)
                save_adapter_classifier(model, folder / part)
            else:
                model.save_pretrained(str(folder / part))
            tokenizer.save_pretrained(folder / part)
            (folder / part / "README.md").write_text("---\ntags:\n- reward-model\n---\n# reward\n")

    def other(self, experiment: Experiment, folder: Path) -> None:
        name = "index.html" if folder.name == "report" else "output"
        (folder / name).write_text("<html></html>")


def moved(model: nn.Module) -> None:
    """Change what is trained, as some steps would."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Made:
    made = Made()
    monkeypatch.setattr(runner, "stage_function", made.function)
    monkeypatch.setattr(runner, "check_ahead", lambda *_: None)
    monkeypatch.setattr(runner, "free_memory", lambda: None)
    return made


@pytest.fixture
def load(tiny: Path, tmp_path: Path) -> Load:
    def load(*overrides: str) -> Experiment:
        return load_experiment(tiny, [f"output_dir={tmp_path / 'out'}", *LORA, *overrides])

    return load


ALL = tuple(f"{name}.push_to_hub=true" for name in ("sft", "reward", "ppo", "report"))


def test_all_of_a_run_comes_back(hub: Hub, made: Made, load: Load, tmp_path: Path) -> None:
    """Policy, adapter, reward model, report and cards, loaded by their ids and by snapshot."""
    experiment = load(*ALL, "model.save=both", "reward.hub_model_id=team/mark")
    runner.run(experiment, "run")
    assert {name for _, name in hub.repos} == {
        *("me/tiny-sft", "me/tiny-ppo", "me/tiny-ppo-adapter", "me/tiny-report"),
        *("team/mark-proxy", "team/mark-gold"),
    }
    policy = AutoModelForCausalLM.from_pretrained("me/tiny-ppo")
    assert torch.equal(logits(policy), logits(load_pretrained(str(_out(experiment)), "auto")[0]))
    assert torch.allclose(logits(policy), made.expected["ppo"], atol=1e-5)
    assert len(AutoTokenizer.from_pretrained("me/tiny-ppo")) == len(toy_tokenizer())
    adapted = AutoPeftModelForCausalLM.from_pretrained("me/tiny-ppo-adapter")
    assert torch.allclose(logits(adapted), made.expected["ppo"], atol=1e-5)
    assert torch.equal(logits(adapted.get_base_model().to("cpu")), logits(adapted))
    ours, _ = load_pretrained("me/tiny-ppo-adapter", "auto")  # this project's own loader
    assert torch.allclose(logits(ours), made.expected["ppo"], atol=1e-5)
    folder = snapshot_download("team/mark-gold")
    local = reward_sources.gold_reward(experiment)(PROMPTS, COMPLETIONS)
    assert load_reward(folder, max_length=64)(PROMPTS, COMPLETIONS) == local
    assert load_reward("team/mark-gold", max_length=64)(PROMPTS, COMPLETIONS) == local
    for kind, name in hub.repos:
        assert str(tmp_path) not in str(hub.files(name, kind))  # no path of this machine
    page = hub.files("me/tiny-report", "space")
    assert page["index.html"] == b"<html></html>" and b"sdk: static" in page["README.md"]


def test_cards_come_back_and_adapters_name_their_base(
    hub: Hub, made: Made, load: Load, tmp_path: Path
) -> None:
    runner.run(load(*ALL, "model.save=adapter"), "run")
    card = ModelCard.load("me/tiny-ppo")
    assert card.data.get("base_model") == "me/tiny-sft" and card.data.get("library_name") == "peft"
    assert card.data.to_dict()["base_model_relation"] == "adapter"
    config = json.loads(hub.files("me/tiny-ppo")["adapter_config.json"])
    sft = hub.repos["model", "me/tiny-sft"]
    assert config["base_model_name_or_path"] == "me/tiny-sft"
    assert config["revision"] == sft.commits[sft.branches["main"]][0]
    assert "model.safetensors" not in hub.files("me/tiny-ppo")
    kept = json.loads((tmp_path / "out/ppo/adapter/adapter_config.json").read_text())
    assert kept["base_model_name_or_path"] == str(tmp_path / "out/sft/model")


def test_a_reward_over_the_sft_model_finds_it_there(hub: Hub, made: Made, load: Load) -> None:
    experiment = load("sft.push_to_hub=true", "reward.push_to_hub=true", "reward.encoder=sft")
    runner.run(experiment, "reward")
    local = reward_sources.proxy_reward(experiment)(PROMPTS, COMPLETIONS)
    (experiment.stage_dir("sft") / "model").rename(experiment.stage_dir("sft") / "gone")
    there = load_reward(snapshot_download("me/tiny-reward-proxy"), max_length=64)
    assert there(PROMPTS, COMPLETIONS) == pytest.approx(local, abs=1e-5)
    assert local[0] != local[1]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["ppo.hub_model_id=other/x"], "ppo.push_to_hub: other/x is somebody else's"),
        (["policies.ppo.push_to_hub=true"], "policies.ppo.push_to_hub: the token of me may only"),
        (["ppo.push_to_hub=false"], "sft.push_to_hub: the token of me may only read"),
        (
            ["model.save=adapter", "sft.push_to_hub=false"],
            "ppo.push_to_hub: tiny-ppo would be adapters over the SFT model, and that is not",
        ),
        (["reward.source=rules:ended", "reward.gold=rules:ended"], "no reward is trained here"),
        (
            ["ppo.hub_model_id=me/x", "sft.hub_model_id=me/x"],
            "ppo.hub_model_id: me/x is that of sft too",
        ),
    ],
)
def test_no_rights_are_one_line_before_any_work(
    hub: Hub, made: Made, load: Load, settings: list[str], said: str
) -> None:
    if "the token" in said:
        hub.accounts["hf_me"] = Account("me", role="read")
    pushed = () if "policies" in settings[0] else ALL
    with pytest.raises(UserError) as caught:
        runner.run(load(*pushed, *settings), "run")
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert made.ran == [] and hub.repos == {}


def test_a_push_that_fails_loses_nothing(
    hub: Hub,
    made: Made,
    load: Load,
    tiny: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    hub.refuse_after = 1
    given = [f"output_dir={tmp_path / 'out'}", *LORA, *ALL]
    assert cli.main(["run", "--config", str(tiny), *given]) == 2
    assert made.ran == ["sft", "reward", "ppo", "compare", "report"]
    told = capsys.readouterr().err.splitlines()
    assert any("warning: ppo: me/tiny-ppo: not pushed" in line for line in told)
    last = told[-1]
    assert last.startswith("error: reward: me/tiny-reward-proxy: not pushed (")
    assert "All of it is finished and kept: `rlhf push` with this config sends" in last
    assert "model.safetensors" not in hub.files("me/tiny-ppo")
    hub.refuse_after = None
    assert cli.main(["push", "--config", str(tiny), *given]) == 0
    assert len(hub.sent) == len(set(hub.sent)) == 4
    policy = AutoModelForCausalLM.from_pretrained("me/tiny-ppo")
    assert torch.allclose(logits(policy), made.expected["ppo"], atol=1e-5)


def test_adapters_wait_for_their_base(hub: Hub, made: Made, load: Load) -> None:
    """They name the commit that it is in, and the first of its repository holds nothing."""
    hub.refuse_after = 0
    with pytest.raises(UserError, match="ppo: me/tiny-ppo: not pushed, as it is over the SFT mod"):
        runner.run(
            load("sft.push_to_hub=true", "ppo.push_to_hub=true", "model.save=adapter"), "ppo"
        )
    assert made.ran == ["sft", "reward", "ppo"]
    assert "adapter_config.json" not in hub.files("me/tiny-ppo")


def test_push_names_what_it_is_given(
    hub: Hub, made: Made, load: Load, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--config", str(tiny), f"output_dir={tmp_path / 'out'}", *LORA]

    def push(*words: str) -> str:
        assert cli.main(["push", *given, *words]) == 2
        return capsys.readouterr().err.splitlines()[-1]

    assert "nothing asks to be pushed: name it" in push()
    assert "pp: nothing to push; there are sft, reward, ppo, report; did you mean ppo?" in push(
        "pp"
    )
    assert "sft: is not finished; run `rlhf sft`" in push("ppo")
    assert "report: is not finished; run `rlhf report`" in push("report")
    assert hub.asked == []
    runner.run(load(), "ppo")
    assert "ppo.lam = 0.95, the config now has 0.5" in push("ppo", "ppo.lam=0.5")
    assert cli.main(["push", *given, "ppo", "ppo.hub_model_id=team/best"]) == 0
    assert [name for _, name in hub.repos] == ["team/best"]


def test_a_launcher_asks_at_the_start_and_pushes_at_the_end(
    hub: Hub, made: Made, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hub that is gone for a while, between two stages, ends no run of many processes."""
    planned = jobs(load(*ALL), "run", 2, False)
    assert [job.command for job in planned] == ["sft", "reward", "ppo", "compare", "report", "push"]
    assert hub.asked and planned[-1] == Job("push", several=False)
    assert jobs(load(), "run", 2, False)[-1].command == "report"
    hub.asked.clear()
    for name, value in told("run", 2).items():
        monkeypatch.setenv(name, value)
    runner.run(load(*ALL), "sft")
    assert made.ran == ["sft"] and hub.asked == []


def test_where_it_goes_voids_nothing(hub: Hub, made: Made, load: Load) -> None:
    """A finished run is pushed by asking for it, and its cards void nothing made from it."""
    runner.run(load(), "run")
    made.ran.clear()
    runner.run(load(*ALL, "ppo.hub_private_repo=true"), "run")
    assert made.ran == ["report"]
    assert hub.repos["model", "me/tiny-ppo"].private


def test_a_comparison_alone_sends_the_cards_that_it_completes(
    hub: Hub, made: Made, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = load("ppo.push_to_hub=true")
    runner.run(experiment, "ppo")
    before = hub.files("me/tiny-ppo")["README.md"]
    assert b"It was not measured yet" in before

    def compare(experiment: Experiment, folder: Path) -> None:
        row = {"reward": 1.0, "kl": 0.5, "objective": 0.5, "optimality": 0.5, "gold": 2.0}
        results = {"beta": 1.0, "prompts": 2, "samples_per_prompt": 1}
        results |= {"methods": {"sft": row, "ppo": row}}
        write_json(folder / "results.json", results)
        write_text(folder / "samples.jsonl", "")

    monkeypatch.setattr(made, "other", compare)
    runner.run(experiment, "compare")
    assert b"**Optimality 50" in hub.files("me/tiny-ppo")["README.md"]
    assert [name for _, name in hub.repos] == ["me/tiny-ppo"]
    assert len(hub.sent) == 1  # the weights once


def _out(experiment: Experiment) -> Path:
    return experiment.stage_dir("ppo") / "model"
