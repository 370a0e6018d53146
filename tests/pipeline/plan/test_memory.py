"""What a stage needs follows its settings, role by role."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from pipeline.config import load_experiment
from pipeline.plan.advice import changes
from pipeline.plan.devices import DEVICES, GIB, Machine, machine
from pipeline.plan.lengths import Lengths, read_lengths
from pipeline.plan.memory import Need, need_of
from pipeline.plan.needs import settings_of
from pipeline.plan.setting import Setting
from pipeline.plan.sizes import read_config
from tests.pipeline.plan.models import folder_of

CARD = Machine(DEVICES["h100"], 1, 70 * GIB, here=False)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Large enough that weights and activations are above what is always there."""
    return folder_of(
        tmp_path_factory.mktemp("model"), hidden_size=768, intermediate_size=2112,
        num_hidden_layers=8, vocab_size=5003,
    )  # fmt: skip


@cache
def lengths_of(tiny: Path, model: Path) -> Lengths:
    return read_lengths(load_experiment(tiny, [f"model.model_name_or_path={model}"]))[0]


def setting(
    tiny: Path, model: Path, stage: str, *overrides: str, of: Machine = CARD, split: bool = False
) -> Setting:
    given = [f"model.model_name_or_path={model}", "model.dtype=null", *overrides]
    experiment = load_experiment(tiny, given)
    config, lengths = read_config(experiment.model), lengths_of(tiny, model)
    return dict(settings_of(experiment, of, config, lengths, [stage], split))[stage]


def need(tiny: Path, model: Path, stage: str, *overrides: str, **more: object) -> Need:
    return need_of(stage, setting(tiny, model, stage, *overrides, **more))  # type: ignore


def phase(found: Need, name: str) -> dict[str, float]:
    return next(p.roles for p in found.phases if p.name == name)


def test_states_are_sixteen_bytes_a_weight_and_four_of_the_reference(
    tiny: Path, model: Path
) -> None:
    made = setting(tiny, model, "ppo")
    roles = phase(need_of("ppo", made), "stepping")
    n = made.policy.trained
    assert (roles["trained weights"], roles["gradients"], roles["Adam"]) == (4 * n, 4 * n, 8 * n)
    assert roles["reference"] == 4 * n
    assert roles["value head"] == 16 * (768**2 + 4 * 768 + 1)
    assert "reference" not in phase(need(tiny, model, "sft"), "stepping")


def test_adapters_have_no_reference_and_a_bfloat16_base(tiny: Path, model: Path) -> None:
    made = setting(tiny, model, "ppo", "model.use_peft=true")
    roles = phase(need_of("ppo", made), "learning")
    assert roles["frozen weights"] == 2 * made.policy.parameters
    assert "reference" not in roles and "copies for autocast" not in roles


def test_a_frozen_trunk_is_kept_for_the_rollout(tiny: Path, model: Path) -> None:
    shape = ("ppo.per_device_train_batch_size=8", "ppo.num_mini_batches=3")
    upper = ("model.trainable_layers=2", *shape)
    made = setting(tiny, model, "ppo", *upper)
    roles = phase(need_of("ppo", made), "learning")
    rows, length = 24, made.lengths.sequence
    assert roles["rollout's trunk"] == rows * length * 768 * 2
    exact = phase(need(tiny, model, "ppo", *upper, "ppo.kl_estimator=exact"), "learning")
    assert exact["reference's states"] == rows * made.lengths.response * 768 * 4
    off = phase(need(tiny, model, "ppo", *upper, "ppo.cache_trunk=false"), "learning")
    assert "rollout's trunk" not in off
    assert "rollout's trunk" not in phase(need(tiny, model, "ppo", *shape), "learning")


def test_activations_grow_with_the_batch_and_shrink_when_recomputed(
    tiny: Path, model: Path
) -> None:
    def activations(*overrides: str) -> float:
        return phase(need(tiny, model, "sft", *overrides), "learning")["activations"]

    few, many = (activations(f"sft.per_device_train_batch_size={n}") for n in (16, 64))
    assert many == pytest.approx(4 * few)
    assert activations("sft.gradient_checkpointing=true") < 0.4 * few
    assert activations("model.trainable_layers=2") < 0.4 * few


def test_microbatches_of_tokens_hold_no_more_than_those(tiny: Path, model: Path) -> None:
    rows = ("ppo.per_device_train_batch_size=64",)
    made = setting(tiny, model, "ppo", *rows)
    length = made.lengths.sequence
    four = f"ppo.microbatch_tokens={4 * length + 1}"
    all_rows = phase(need_of("ppo", made), "learning")["activations"]
    some = phase(need(tiny, model, "ppo", *rows, four), "learning")["activations"]
    assert some == pytest.approx(all_rows * 4 / 64, rel=0.01)


def test_adapters_are_merged_at_the_end_unless_they_are_kept(tiny: Path, model: Path) -> None:
    found = need(tiny, model, "ppo", "model.use_peft=true")
    roles = phase(found, "saving")
    n = setting(tiny, model, "ppo").policy.parameters
    assert roles["merged weights"] == 4 * n and "frozen weights" not in roles
    kept = need(tiny, model, "ppo", "model.use_peft=true", "model.save=adapter")
    assert [p.name for p in kept.phases] == [p.name for p in found.phases if p.name != "saving"]


def test_gradients_lie_beside_activations_only_when_they_are_accumulated(
    tiny: Path, model: Path
) -> None:
    assert "gradients" not in phase(need(tiny, model, "sft"), "learning")
    more = phase(need(tiny, model, "sft", "sft.gradient_accumulation_steps=2"), "learning")
    assert more["gradients"] > 0


def test_ddp_repeats_and_fsdp2_splits(tiny: Path, model: Path) -> None:
    one = phase(need(tiny, model, "ppo"), "stepping")
    eight = CARD.of(8)
    ddp = phase(need(tiny, model, "ppo", of=eight), "stepping")
    assert ddp["Adam"] == one["Adam"] and ddp["buckets of DDP"] == one["gradients"]
    found = need(tiny, model, "ppo", of=eight, split=True)
    split = phase(found, "stepping")
    for role in ("trained weights", "gradients", "Adam", "reference"):
        assert split[role] == one[role] / 8
    whole = 2 * setting(tiny, model, "ppo").policy.parameters
    assert phase(found, "sampling")["policy gathered whole"] == whole
    learning = phase(found, "learning")
    assert "copies for autocast" not in learning and learning["gathered by FSDP2"] > 0


def test_methods_differ_in_what_they_hold(tiny: Path, model: Path) -> None:
    policies = "policies={ppo: null, dpo: null, kto: null, simpo: null, rloo: null}"

    def roles(stage: str, *more: str) -> dict[str, float]:
        return phase(need(tiny, model, stage, policies, *more), "learning")

    assert "reference" in roles("kto") and "reference" in roles("rloo")
    assert "reference" not in roles("dpo")  # measured once, before
    assert "reference" not in roles("simpo")
    trunk = ("model.trainable_layers=2",)
    assert "cached trunk" in roles("dpo", *trunk) and "reference" in roles("kto", *trunk)


def test_pairs_of_a_group_share_their_completions(tiny: Path, model: Path) -> None:
    def kept(*more: str) -> float:
        pairs = ("model.trainable_layers=2", "pairs.per_prompt=1", "pairs.max_pairs=24", *more)
        return phase(need(tiny, model, "dpo", *pairs), "learning")["cached trunk"]

    assert kept() == 3 * kept("pairs.samples_per_prompt=4")  # 48 completions, and 16


def test_reward_models_count_with_their_members(tiny: Path, model: Path) -> None:
    def size(*overrides: str) -> float:
        roles = phase(need(tiny, model, "ppo", *overrides), "sampling")
        return roles.get("reward models", 0.0)

    one = size()
    three = size("reward.members=3", "reward.combine=mean")
    assert one > 0 and three == 3 * one
    judged = size("ppo.eval_strategy=steps", "ppo.eval_steps=8", "data.validation_prompts=4")
    assert judged == 2 * one
    assert size("reward.source=rules:repetition", "reward.gold=rules:repetition") == 0


def test_every_change_that_is_named_makes_it_fit(tiny: Path, model: Path) -> None:
    """Applied as they are printed, the settings give the memory that they are printed with."""
    large = ("ppo.per_device_train_batch_size=256", "generation.batch_size=512")
    plain = setting(tiny, model, "ppo", *large)
    peak = need_of("ppo", plain).peak.total
    small = Machine(DEVICES["h100"], 1, 0.75 * peak, here=False)
    found = changes("ppo", plain.with_(machine=small))
    kinds = {change.why for change in found}
    assert {"the same result, in more passes", "trains LoRA adapters"} <= kinds
    for change in found:
        if "cards" in change.settings:
            continue
        again = need(tiny, model, "ppo", *large, *change.settings.split(" "), of=small)
        assert again.peak.total == pytest.approx(change.need.peak.total)
        assert again.peak.total <= small.room


def test_what_nothing_alone_mends_is_mended_together(tiny: Path, model: Path) -> None:
    large = ("ppo.per_device_train_batch_size=256", "generation.batch_size=512")
    plain = setting(tiny, model, "ppo", *large)
    adapters = setting(tiny, model, "ppo", *large, "model.use_peft=true")
    least = need_of("ppo", adapters).phases[0].roles["frozen weights"]
    small = Machine(DEVICES["h100"], 1, CARD.base + 1.4 * least, here=False)
    one_card = [c for c in changes("ppo", plain.with_(machine=small)) if "cards" not in c.settings]
    assert [change.settings.count("=") > 2 for change in one_card] in ([True], [])
    for change in one_card:
        again = need(tiny, model, "ppo", *large, *change.settings.split(" "), of=small)
        assert again.peak.total <= small.room


def test_devices() -> None:
    assert machine("h200").room == pytest.approx(0.9 * 140.4 * GIB)
    assert machine("mine", memory=10).room == pytest.approx(9 * GIB)
    two = machine("cpu", 2, memory=8)
    assert two.room == 4 * GIB and two.of(4).room == 2 * GIB
    assert machine("h100", 8).of(2).room == machine("h100").room
