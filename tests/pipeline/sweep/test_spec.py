"""From a config to its trials."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from pipeline.config import load_experiment
from pipeline.errors import UserError
from pipeline.sweep import spec
from pipeline.sweep.spec import Sweep

POLICIES = "policies={ppo: null, dpo: null, ipo: {method: dpo, loss_type: ipo, beta: 0.1}}"


@pytest.fixture
def read(tiny: Path, tmp_path: Path) -> Callable[..., Sweep]:
    """A sweep of configs/tiny.yaml with overrides."""
    words = [f"output_dir={tmp_path / 's'}", POLICIES, "sweep.seeds=[0,1]"]
    return lambda *overrides: spec.read(tiny, [*words, *overrides])


def names(sweep: Sweep) -> list[str]:
    return [trial.name for trial in sweep.trials]


def test_seeds_by_beta_by_policy(read: Callable[..., Sweep], tmp_path: Path) -> None:
    sweep = read("sweep.betas=[0.5, 1]", "sweep.policies=[ppo, ipo]")
    assert names(sweep) == [
        f"{policy}-b{beta}-s{seed}"
        for seed in (0, 1)
        for beta in ("0.5", "1")
        for policy in ("ppo", "ipo")
    ]
    assert list(sweep.shared) == [tmp_path / "s" / "shared"]
    assert [job.name for job in sweep.jobs()] == ["shared", *names(sweep)]
    assert all(job.after == ("shared",) for job in sweep.jobs()[1:])


def test_without_the_section_it_is_all_policies_at_the_experiments_beta(tiny: Path) -> None:
    sweep = spec.read(tiny, [])
    assert names(sweep) == [f"{p}-b1-s{s}" for s in (0, 1, 2) for p in ("ppo", "dpo")]


def test_a_trial_is_an_ordinary_experiment(read: Callable[..., Sweep], tmp_path: Path) -> None:
    sweep = read("sweep.betas=[0.25]")
    trial = next(t for t in sweep.trials if t.name == "ipo-b0.25-s1")
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(dict(trial.tree)), encoding="utf-8")
    experiment = load_experiment(path)
    assert experiment == trial.experiment
    assert experiment.output_dir == tmp_path / "s" / "trials" / trial.name
    assert experiment.shared == tmp_path / "s" / "shared"
    assert list(experiment.policies) == ["ipo"] and experiment.seed == 1
    view = experiment.of("ipo")
    assert view.beta == experiment.beta == 0.25  # the sweep's, not the policy's own
    assert view.trainer_args("dpo")["loss_type"] == "ipo"
    assert experiment.data_seed == 0  # compared on the same prompts as the other seeds


def test_further_axes_count_for_those_that_read_them(read: Callable[..., Sweep]) -> None:
    sweep = read("sweep.over={pairs.max_pairs: [16, 32], ppo.total_episodes: [64]}")
    assert names(sweep)[:5] == [
        "ppo-b1-s0-total_episodes64",
        "dpo-b1-s0-max_pairs16",
        "dpo-b1-s0-max_pairs32",
        "ipo-b1-s0-max_pairs16",
        "ipo-b1-s0-max_pairs32",
    ]
    assert sweep.trials[2].experiment.of("dpo").pairs.max_pairs == 32
    assert sweep.trials[2].label() == "dpo, pairs.max_pairs = 32"
    assert len(sweep.shared) == 1


def test_a_policys_own_setting_gives_way_to_the_axis(read: Callable[..., Sweep]) -> None:
    long = "long: {method: ppo, total_episodes: 512}"
    few = "d: {method: dpo, pairs: {max_pairs: 8}}"
    sweep = read(
        f"policies={{{long}, {few}}}",
        "sweep.over={ppo.total_episodes: [64], pairs.max_pairs: [16]}",
    )
    first, second = sweep.trials[:2]
    assert first.experiment.of("long").trainer_args("ppo")["total_episodes"] == 64
    assert second.experiment.of("d").pairs.max_pairs == 16


def test_an_axis_of_the_shared_stages_gives_each_value_its_own(read: Callable[..., Sweep]) -> None:
    sweep = read("sweep.over={reward.num_train_epochs: [1, 2]}", "sweep.policies=[ppo]")
    assert [f.name for f in sweep.shared] == [
        "shared-num_train_epochs1",
        "shared-num_train_epochs2",
    ]
    one, two = sweep.trials[:2]
    assert one.shared.name.endswith("1") and two.shared.name.endswith("2")
    assert one.pool != two.pool


def test_every_seed_its_own_reference(read: Callable[..., Sweep]) -> None:
    sweep = read("sweep.share=false")
    assert [f.name for f in sweep.shared] == ["shared-s0", "shared-s1"]
    assert [made.experiment.seed for made in sweep.shared.values()] == [0, 1]
    assert len({trial.pool for trial in sweep.trials}) == 1


def test_a_shared_folder_of_the_config_is_used(read: Callable[..., Sweep], tmp_path: Path) -> None:
    sweep = read(f"shared={tmp_path / 'finished'}")
    assert not sweep.shared and sweep.trials[0].shared == tmp_path / "finished"
    assert all(job.after == () for job in sweep.jobs())


def test_dpo_at_beta_zero_is_no_trial(read: Callable[..., Sweep]) -> None:
    sweep = read("sweep.betas=[0, 1]", "sweep.seeds=[0]")
    assert names(sweep) == ["ppo-b0-s0", "ppo-b1-s0", "dpo-b1-s0", "ipo-b1-s0"]
    assert any(line.startswith("dpo at β = 0: beta: DPO learns nothing") for line in sweep.left_out)


def test_what_does_not_aim_at_beta_is_trained_once_a_seed(read: Callable[..., Sweep]) -> None:
    steered = "steered: {method: ppo, kl_target: 2}"
    preferred = "preferred: {method: dpo, loss_type: sft}"
    mixed = "mixed: {method: dpo, loss_type: [sft, sigmoid]}"
    policies = f"policies={{{steered}, {preferred}, rejection: null, {mixed}}}"
    for betas, single in (("[0.5, 1]", "0.5"), ("[0, 1]", "1")):
        sweep = read(policies, f"sweep.betas={betas}", "sweep.seeds=[3]")
        once = [trial for trial in sweep.trials if trial.policy != "mixed"]
        expected = [f"{name}-b{single}-s3" for name in ("steered", "preferred", "rejection")]
        assert [trial.name for trial in once] == expected
        assert all(trial.betas == tuple(sweep.betas) for trial in once)
        each = [trial.name for trial in sweep.trials if trial.policy == "mixed"]
        assert each == [f"mixed-b{b:g}-s3" for b in sweep.betas if b > 0]


def test_a_kl_target_that_is_an_axis_counts_by_its_value(read: Callable[..., Sweep]) -> None:
    axis = "sweep.over={ppo.kl_target: [null, 2]}"
    sweep = read("sweep.policies=[ppo]", "sweep.betas=[0.5, 1]", "sweep.seeds=[0]", axis)
    assert names(sweep) == [
        "ppo-b0.5-s0-kl_targetNone",
        "ppo-b0.5-s0-kl_target2",
        "ppo-b1-s0-kl_targetNone",
    ]


def test_a_further_axis_beside_beta_zero(read: Callable[..., Sweep]) -> None:
    axis = "sweep.over={pairs.max_pairs: [16, 32]}"
    sweep = read("sweep.policies=[dpo]", "sweep.betas=[0, 1]", "sweep.seeds=[0]", axis)
    assert names(sweep) == ["dpo-b1-s0-max_pairs16", "dpo-b1-s0-max_pairs32"]


def test_a_shared_folder_of_any_name_is_one_pool(
    read: Callable[..., Sweep], tmp_path: Path
) -> None:
    sweep = read(f"shared={tmp_path / 'base-s1'}")
    assert len({trial.pool for trial in sweep.trials}) == 1


@pytest.mark.parametrize(
    ("override", "place", "words"),
    [
        ("sweep.policies=[pp]", "sweep.policies", "did you mean ppo?"),
        ("sweep.policies=[zz]", "sweep.policies", "there are ppo, dpo, ipo"),
        ("sweep.over={beta: [1]}", "sweep.over", "set sweep.betas instead"),
        ("sweep.over={output_dir: [a]}", "sweep.over", "cannot be another one"),
        ("sweep.over={compare.bootstrap: [1, 2]}", "sweep.over", "none of the policies reads it"),
        ("sweep.over={pairs.max_pairs: [-1]}", "sweep.over.pairs.max_pairs", "at least 1"),
        ("sweep.over={pairs.maxpairs: [1]}", "sweep.over.pairs.maxpairs", "pairs.max_pairs"),
        (
            "policies={ppo: {push_to_hub: true, hub_model_id: me/it}}",
            "policies",
            "would be that of every trial",
        ),
        ("sweep.over={ppo: [{total_episodes: 64}]}", "sweep.over.ppo", "is no setting"),
        ("sweep.over={generation.batch_size.x: [1]}", "generation.batch_size", "whole number"),
        ("sweep.over={name.x: [1]}", "sweep.over.name", "cannot be another one"),
        ("sweep.over={seed.x: [1]}", "sweep.over.seed.x", "is no setting"),
        ("sweep.over={pears.max_pairs: [1]}", "sweep.over.pears.max_pairs", "is no setting"),
        ("sweep.seeds=[1, 1]", "sweep", "would be named ppo-b1-s1"),
        ("sweep.seeds=[]", "sweep.seeds", "must not be empty"),
        ("sweep.jobs=0", "sweep.jobs", "at least 1"),
        ("sweep.runner=slurm", "sweep.runner", "ray"),
        ("sweep.betas=[-1]", "sweep.betas", "at least 0"),
        ("sweep.ray.retries=1", "sweep.ray.retries", "unknown key"),
    ],
)
def test_a_mistake_is_one_line_before_any_work(
    read: Callable[..., Sweep], override: str, place: str, words: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as caught:
        read(override)
    message = str(caught.value)
    assert place in message and words in message and "\n" not in message, message
    assert not (tmp_path / "s").exists()
