"""Policies of the config: their names, methods, own settings, and what they are made from."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
import yaml
from trl import GRPOTrainer, KTOTrainer

from pipeline.config import Experiment, load_experiment
from pipeline.config.choices import left_out
from pipeline.config.stages import METHODS, find_stage
from pipeline.errors import UserError
from pipeline.provenance import stage_inputs

TINY = Path(__file__).resolve().parents[3] / "configs" / "tiny.yaml"
IPO = ("policies.ipo.method=dpo", "policies.ipo.loss_type=ipo")


def load(*overrides: str) -> Experiment:
    return load_experiment(TINY, overrides)


def written(tmp_path: Path, policies: object) -> Experiment:
    """The tiny experiment with a `policies` section."""
    tree = yaml.safe_load(TINY.read_text(encoding="utf-8")) | {"policies": policies}
    path = tmp_path / "experiment.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return load_experiment(path)


def test_the_default_is_ppo_and_dpo() -> None:
    experiment = load()
    assert experiment.methods() == {"ppo": "ppo", "dpo": "dpo"}
    assert [s.name for s in experiment.stages()] == ["sft", "reward", "ppo", "dpo", "compare"]
    assert experiment.stage("compare").takes == ("ppo", "dpo")


@pytest.mark.parametrize("short", [["ppo", "dpo"], {"ppo": None, "dpo": "dpo"}])
def test_short_forms(tmp_path: Path, short: object) -> None:
    assert written(tmp_path, short).methods() == {"ppo": "ppo", "dpo": "dpo"}


def test_a_section_of_policies_is_all_there_are(tmp_path: Path) -> None:
    experiment = written(tmp_path, {"slow": {"method": "ppo", "learning_rate": 1e-4}})
    assert experiment.methods() == {"slow": "ppo"}


def test_an_override_adds_to_the_default() -> None:
    assert list(load(*IPO).methods()) == ["ppo", "dpo", "ipo"]


def test_a_view_is_the_experiment_as_the_policy_has_it() -> None:
    experiment = load(*IPO, "policies.ipo.beta=0.3", "policies.ipo.pairs.max_pairs=32")
    view = experiment.of("ipo")
    assert view.policy == "ipo" and experiment.policy is None
    assert view.trainer_args("dpo")["loss_type"] == "ipo"
    assert view.trainer_args("dpo")["learning_rate"] == 1e-3  # of the method's section
    assert (view.beta, view.pairs.max_pairs) == (0.3, 32)
    assert view.stage_dir("dpo") == experiment.output_dir / "ipo"
    assert view.stage_dir("sft") == experiment.output_dir / "sft"
    assert view.called("dpo") == "ipo" and view.called("ppo") == "ppo"
    assert "loss_type" not in experiment.trainer_args("dpo")
    assert (experiment.beta, experiment.pairs.max_pairs) == (1.0, 64)


def test_a_policys_seed_leaves_the_data_divided_as_they_are() -> None:
    view = load("policies.ppo.seed=7").of("ppo")
    assert (view.seed, view.data_seed) == (7, 0)


def test_what_is_no_policy_has_no_view() -> None:
    experiment = load()
    assert experiment.of("sft") is experiment


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["policies.x.method=dpa"], r"found 'dpa'; did you mean dpo\?"),
        (["policies.ipo.learning_rate=1"], "policies.ipo.method: is missing"),
        (["policies.sft.method=ppo"], "'sft' is the name of something else"),
        (["policies.report=ppo"], "'report' is the name of something else"),
        (["policies.PPO=ppo"], "differs from 'ppo' in case alone"),
        (["policies=[]"], "must not be empty"),
        (["policies={a/b: ppo}"], "a name is up to 64 letters"),
        ([*IPO, "policies.ipo.loss_typ=x"], "unknown key; did you mean"),
        ([*IPO, "policies.ipo.beta=-1"], "expected a number at least 0, found -1"),
        ([*IPO, "policies.ipo.eval_share=2"], "expected a number below 1, found 2"),
        ([*IPO, "policies.ipo.pairs.labels=odd"], "expected sampled or soft or hard"),
        ([*IPO, "policies.ipo.output_dir=x"], "the pipeline sets this"),
        ([*IPO, "pairs.labels=soft"], "soft does not go with dpo.loss_type ipo"),
        (["policies.x.method=ppo", "policies.x.learning_rate=fast"], "expected a number"),
        (["policies.ppo.preferences_name=a.jsonl"], "preferences_name.*PPO learns from no pairs"),
        (["policies.x={method: rloo, pairs: {max_pairs: 4}}"], "RLOO learns from no pairs"),
        ([*IPO, "policies.ipo.preferences_name=a", "policies.ipo.pairs.max_pairs=4"], "are drawn"),
        (["model.use_peft=true", "policies.ppo.policy_modules=[v]"], "not go with model.use_peft"),
        (["policies.kto.loss_type=ktp"], "expected one of kto, apo_.*did you mean kto"),
        (["policies.kto.per_device_train_batch_size=1"], "kto.*_size.*expected 2 at least"),
        (["policies.kto.train_sampling_strategy=random"], "expected sequential"),
        (["policies.grpo.loss_type=dr-grpo"], "did you mean dr_grpo"),
        (["policies.grpo.scale_rewards=std"], "expected one of none, group, batch"),
        (["policies.rloo.auto_find_batch_size=true"], "whole groups of completions"),
        (
            ["policies.grpo={eval_strategy: steps, per_device_eval_batch_size: 4}"],
            "per_device_eval_batch_size.*4 completions are no whole groups of 8",
        ),
        (
            [*IPO, "dpo.push_to_hub=true", "dpo.hub_model_id=me/it"],
            "dpo.hub_model_id.*me/it is that of dpo too",
        ),
        (["policies.rloo.num_iterations=0"], "expected a number at least 1, found 0"),
        (["policies.grpo.num_generations=0"], "expected a number at least 1, found 0"),
        (["policies.kto.desirable_weight=-1"], "expected a number at least 0, found -1"),
        (["policies.x={method: simpo, beta: 0}"], "expected a number above 0, found 0"),
        (["policies.rejection.beta=1"], "policies.rejection.beta.*whatever β is"),
        (["policies.rloo.save_steps=0.5"], "expected a number of steps, at least 1, found 0.5"),
        (["policies.cpo.loss_type=simp"], "did you mean simpo"),
        (["policies.orpo.max_completion_length=4"], "set max_length, or generation"),
        (["policies.simpo.generate_during_eval=true"], "the pipeline's own sampler"),
        (["compare.policies={ppo: somewhere}"], "'ppo' is a policy of this experiment"),
    ],
)
def test_mistakes_are_one_line_with_the_place(overrides: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        load(*overrides)
    assert "\n" not in str(error.value)


def test_the_losses_that_are_named_are_those_of_the_installed_trl() -> None:
    kto, grpo = inspect.getsource(KTOTrainer), inspect.getsource(GRPOTrainer._compute_loss)
    for method, source in (("kto", kto), ("grpo", grpo)):
        said = re.findall(r"loss_type (?:==|in) (.+):", source)
        names = set(re.findall(r'"(\w+)"', " ".join(said)))
        assert names == set(find_stage(method).choices["loss_type"]), method


def test_the_place_of_a_policys_mistake_is_the_policys() -> None:
    with pytest.raises(UserError, match=r"policies\.ipo\.pairs\.labels"):
        load(*IPO, "policies.ipo.pairs.labels=odd")


def test_own_pairs_of_one_policy_void_nobody_elses_work(tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n', encoding="utf-8")
    before = stage_inputs(load(*IPO))
    after = stage_inputs(load(*IPO, f"policies.ipo.preferences_name={pairs}"))
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"ipo", "compare"}


def test_a_further_policy_changes_only_the_comparison() -> None:
    before, after = stage_inputs(load()), stage_inputs(load(*IPO))
    assert {name for name in before if before[name] != after[name]} == {"compare"}
    assert after["ipo"]["config"]["dpo.loss_type"] == "ipo"


def test_a_policy_of_the_same_settings_is_made_from_the_same() -> None:
    inputs = stage_inputs(load("policies.again=ppo"))
    assert inputs["again"] == inputs["ppo"]


def test_at_beta_zero_those_that_learn_nothing_are_left_out() -> None:
    out = left_out(load(*IPO, "beta=0", "policies.ipo.beta=0.2"))
    assert list(out) == ["dpo"]


def test_every_method_has_a_section_a_title_and_a_module() -> None:
    fields = Experiment.model_fields
    for method in METHODS:
        assert method.name in fields and method.title and method.module.endswith(method.name)
        assert method.name in method.reads
