"""A config is checked whole, and each mistake is one line that names the place and the mend."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from transformers import TrainingArguments

from pipeline.config import Experiment, former, load_experiment
from pipeline.config.arguments import target
from pipeline.config.stages import find_stage, stage_names, trained
from pipeline.errors import UserError
from pipeline.ppo import PPOConfig

Writer = Callable[[str], Path]


def complaint(path: Path, *overrides: str) -> str:
    """The error of a config that must be refused; checks that it is one line."""
    with pytest.raises(UserError) as caught:
        load_experiment(path, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_data_keys_that_came_later_are_in_no_record_while_unset(tiny: Path) -> None:
    """Finished runs of before them keep their fingerprints."""
    later = {"columns", "label_values", "unit", "long_texts"}
    assert not later & set(load_experiment(tiny).model_dump(mode="json")["data"])
    overrides = ["data.columns.prompt=q", "data.unit=tokens", "data.label_values={good: 1}"]
    data = load_experiment(tiny, overrides).model_dump(mode="json")["data"]
    assert (data["columns"]["prompt"], data["unit"]) == ("q", "tokens")
    assert data["label_values"] == {"good": 1.0}


def test_shipped_configs_load(root: Path) -> None:
    paths = sorted((root / "configs").glob("*.yaml"))
    assert {"tiny.yaml", "quickstart.yaml", "gpt2-imdb.yaml"} <= {path.name for path in paths}
    for path in paths:
        experiment = load_experiment(path)
        assert experiment.name == path.stem
        assert experiment.output_dir == Path("runs") / path.stem


def test_defaults_and_paths(write_config: Writer) -> None:
    experiment = load_experiment(write_config("name: mine\nsft:\n"))
    assert experiment.output_dir == Path("runs/mine")
    assert [experiment.stage_dir(stage).name for stage in stage_names()] == list(stage_names())
    assert experiment.trainer_args("sft") == {}
    assert experiment == Experiment(name="mine")


def test_experiment_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Experiment().model.dtype = "float32"  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("text", ["1e-5", "1E-5", "1.0e-5", "0.00001", "+1e-05"])
def test_scientific_notation_is_a_number(write_config: Writer, text: str) -> None:
    path = write_config(f"sft:\n  learning_rate: {text}\n")
    assert load_experiment(path).trainer_args("sft")["learning_rate"] == 1e-5
    overridden = load_experiment(path, [f"ppo.learning_rate={text}", f"beta={text}"])
    assert overridden.trainer_args("ppo")["learning_rate"] == 1e-5
    assert overridden.beta == 1e-5


def test_no_is_a_word(write_config: Writer) -> None:
    path = write_config("sft:\n  save_strategy: no\n  gradient_checkpointing: false\n")
    assert load_experiment(path).trainer_args("sft") == {
        "save_strategy": "no",
        "gradient_checkpointing": False,
    }


def test_overrides(tiny: Path) -> None:
    experiment = load_experiment(
        tiny,
        [
            "seed=7",
            "model.model_revision=main",
            "compare.frontier_betas=[0.5, 2]",
            "sft.lr_scheduler_kwargs.num_cycles=2",
            "output_dir=elsewhere/a=b",
        ],
    )
    assert (experiment.seed, experiment.model.model_revision) == (7, "main")
    assert experiment.compare.frontier_betas == [0.5, 2.0]
    assert experiment.trainer_args("sft")["lr_scheduler_kwargs"] == {"num_cycles": 2}
    assert experiment.output_dir == Path("elsewhere/a=b")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("model.lora_r=x", "expected a whole number, found 'x'"),
        ("model.lora_r=0", "expected a number at least 1, found 0"),
        ("model.dtype=int8", "expected float32 or bfloat16 or float16 or null, found 'int8'"),
        ("model=3", "expected a section (`key: value` lines), found 3"),
        ("seed=true", "expected a whole number, found true"),
        ("data.train_prompts='8'", "expected a whole number, found '8'"),
        ("generation.temperature=.nan", "expected a finite number, found nan"),
        ("compare.frontier_betas=[]", "must not be empty"),
        ("tracking.report_to=3", "expected a list (text each), found 3"),
        ("data.demonstratoins=3", "did you mean data.demonstrations?"),
        ("data.max_new_tokens=3", "did you mean generation.max_new_tokens?"),
        ("trainable_layers=3", "did you mean model.trainable_layers?"),
        ("sft.lerning_rate=1e-5", "did you mean sft.learning_rate?"),
        ("reward.sorce=toy", "did you mean reward.source?"),
        ("ppo.num_ppo_epoch=2", "did you mean ppo.num_ppo_epochs?"),
        ("ppo.kl_coeff=0.1", "for kl_coef set the top-level beta"),
        ("dpo.beta=0.1", "the pipeline sets this; set the top-level beta"),
        ("sft.output_dir=x", "the pipeline sets this; set the top-level output_dir"),
        ("sft.seed=3", "the pipeline sets this; set the top-level seed"),
        ("sft.resume_from_checkpoint=x", "resumes when it is run again"),
        ("ppo.response_length=9", "set generation.max_new_tokens"),
        ("sft.learning_rate=fast", "expected a number, found 'fast'"),
        ("sft.learning_rate=-1", "expected a number at least 0, found -1"),
        ("ppo.gamma=1.5", "expected a number above 0, at most 1, found 1.5"),
        ("ppo.lam=1.5", "expected a number at least 0, at most 1, found 1.5"),
        ("ppo.kl_stop=.nan", "expected a number above 0, found nan"),
        ("ppo.fp16=true", "expected false (use bf16, or neither for float32): it is for one GPU"),
        ("ppo.save_steps=0.5", "expected a number of steps, at least 1, found 0.5"),
        ("sft.assistant_only_loss=true", "true cannot work here: demonstrations are plain texts"),
        ("sft.completion_only_loss=true", "true cannot work here: demonstrations are plain texts"),
        ("sft.do_eval=true", "the pipeline sets this; set eval_strategy"),
        ("dpo.load_best_model_at_end=true", "set dpo.eval_strategy=steps too"),
        ("sft.save_strategy=best", "set sft.eval_strategy=steps too"),
        (
            "ppo.metric_for_best_model=objective/scores",
            "expected one of objective, scores, gold, kl, length, ended, found"
            " 'objective/scores'; did you mean scores?",
        ),
        ("dpo.metric_for_best_model=eval_rewards/margin", "did you mean rewards/margins?"),
        ("reward.metric_for_best_model=f1", "expected one of loss, accuracy, found 'f1'"),
        ("ppo.metric_for_best_model=kl", "set ppo.greater_is_better to true or false"),
        ("beta=-1", "expected a number at least 0, found -1"),
        ("dpo.label_smoothing=0.5", "expected a number at least 0, below 0.5, found 0.5"),
        ("dpo.loss_type=ippo", "expected some of sigmoid, hinge, ipo, "),
        ("dpo.loss_type=[sigmoid, rebl]", "found 'rebl'; did you mean rebel?"),
        ("dpo.loss_type=[rebel, sft]", "rebel cannot be combined with other losses"),
        ("pairs.labels=firm", "expected sampled or soft or hard, found 'firm'"),
        ("pairs.samples_per_prompt=1", "expected a number at least 2, found 1"),
        ("ppo.kl_estimator=k4", "expected k1 or k2 or k3 or exact, found 'k4'"),
        ("reward.num_train_epochs=0", "expected a number above 0, found 0"),
        ("dpo.bf16=yes", "expected true or false or null, found 'yes'"),
        ("dpo.lr_scheduler_type=cosin", "did you mean cosine?"),
        ("data.prompt_words=8", "leaves nothing to complete"),
        ("data.columns.promt=q", "did you mean data.columns.prompt?"),
        ("data.label_values={3: 1}", "the name 3 must be text: put it in quotes"),
        ("data.label_values={good: best}", "expected"),
        ("compare.best_of_n=99", "is above compare.reference_samples (8)"),
    ],
)
def test_wrong_override(tiny: Path, override: str, expected: str) -> None:
    message = complaint(tiny, override)
    assert message.startswith(f"override {override}: ")
    assert expected in message


@pytest.mark.parametrize("override", ["foo", "=1", "a..b=1", "name.x=1", "sft.optim=["])
def test_malformed_override(tiny: Path, override: str) -> None:
    assert repr(override) in complaint(tiny, override)


def test_wrong_key_in_the_file_names_file_and_key(write_config: Writer) -> None:
    path = write_config("compare:\n  frontier_betas: [1, -1]\n")
    expected = f"{path}: compare.frontier_betas[1]: expected a number above 0, found -1"
    assert complaint(path) == expected


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["pairs.labels=soft", "dpo.loss_type=ipo"], "pairs.labels: soft does not go with"),
        (["pairs.labels=soft", "dpo.label_smoothing=0.1"], "dpo.label_smoothing: does not go"),
        (["dpo.loss_type=rebel", "dpo.ld_alpha=0.5"], "dpo.ld_alpha: does not go with dpo.loss_t"),
        (["dpo.loss_type=rebel", "data.preferences_name=p.jsonl"], "dpo.loss_type: rebel needs"),
        (["pairs.labels=soft", "pairs.hard_labels=true"], "pairs.hard_labels: an older key"),
    ],
)
def test_labels_and_losses_go_together(tiny: Path, overrides: list[str], expected: str) -> None:
    message = complaint(tiny, *overrides)
    assert expected in message or expected.partition(": ")[2] in message
    assert "\n" not in message


def test_the_older_key_of_labels_is_read(tiny: Path) -> None:
    for value, labels in (("true", "hard"), ("false", "sampled")):
        pairs = load_experiment(tiny, [f"pairs.hard_labels={value}"]).pairs
        assert pairs.labels == labels and "hard_labels" not in pairs.model_dump()
    load_experiment(tiny, ["pairs.labels=soft", "data.preferences_name=p.jsonl"])
    load_experiment(tiny, ["pairs.labels=soft", "dpo.loss_type=rebel"])


def test_lora_and_policy_modules_contradict(write_config: Writer) -> None:
    path = write_config("model:\n  use_peft: true\n  policy_modules: v_proj\n")
    expected = f"{path}: model.policy_modules: does not go with model.use_peft, whose modules are"
    assert complaint(path).startswith(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "the file is empty"),
        ("- a\n", "expected `key: value` lines, found list"),
        ("seed: 1\nbeta: [1\nname: x\n", ":3:5: "),
        ("seed: 1\nname: x\nseed: 2\n", ":3:1: the key 'seed' is there twice"),
        ("1: 2\n", "top level: the key 1 is not text"),
        ("data:\n  3: 4\n", "data: the key 3 is not text"),
        ("dta:\n  min_words: 3\n", "dta: unknown key; did you mean data?"),
    ],
)
def test_broken_yaml(write_config: Writer, text: str, expected: str) -> None:
    path = write_config(text)
    message = complaint(path)
    assert message.startswith(str(path))
    assert expected in message


def test_unreadable_files(tmp_path: Path) -> None:
    assert "no such file" in complaint(tmp_path / "none.yaml")
    latin = tmp_path / "latin.yaml"
    latin.write_bytes("name: café\n".encode("latin-1"))
    assert "not UTF-8 (byte 9)" in complaint(latin)
    assert str(tmp_path) in complaint(tmp_path)


def test_the_kl_in_the_loss_needs_another_estimator(tiny: Path) -> None:
    expected = "ppo.kl_estimator: expected k2 or k3 with kl_in: loss, found 'k1'"
    assert complaint(tiny, "ppo.kl_in=loss") == f"{tiny}: {expected}"
    experiment = load_experiment(tiny, ["ppo.kl_in=loss", "ppo.kl_estimator=k3"])
    assert experiment.trainer_args("ppo")["kl_in"] == "loss"


def test_what_is_off_may_be_written_down(tiny: Path) -> None:
    load_experiment(tiny, ["sft.assistant_only_loss=false", "sft.eval_strategy=no"])


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("dpo.loss_type=ipo", "loss_type", ["ipo"]),
        ("dpo.loss_weights=0.5", "loss_weights", [0.5]),
        ("dpo.loss_type=[sigmoid, sft]", "loss_type", ["sigmoid", "sft"]),
        ("sft.debug=underflow_overflow", "debug", "underflow_overflow"),
        ("tracking.report_to=wandb", "report_to", ["wandb"]),
        ("compare.frontier_betas=0.5", "frontier_betas", [0.5]),
        ("model.lora_target_modules=q_proj", "lora_target_modules", ["q_proj"]),
        ("model.lora_target_modules=all-linear", "lora_target_modules", "all-linear"),
    ],
)
def test_the_only_item_of_a_list_may_be_given_bare(
    tiny: Path, override: str, key: str, value: Any
) -> None:
    section = getattr(load_experiment(tiny, [override]), override.partition(".")[0])
    assert section.model_dump()[key] == value


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["dpo.save_steps=3", "dpo.eval_steps=2"], "must be a multiple of dpo.eval_steps (2)"),
        (["dpo.save_strategy=epoch"], "dpo.save_strategy (epoch) and dpo.eval_strategy (steps)"),
    ],
)
def test_evaluations_and_checkpoints_go_together(
    tiny: Path, overrides: list[str], expected: str
) -> None:
    chosen = ["dpo.eval_strategy=steps", "dpo.load_best_model_at_end=true"]
    assert expected in complaint(tiny, *chosen, *overrides)
    # PPO moves both up to whole rollouts, of four steps here.
    chosen = [override.replace("dpo", "ppo") for override in chosen]
    load_experiment(tiny, [*chosen, "ppo.save_steps=7", "ppo.eval_steps=6"])
    assert "multiple" in complaint(tiny, *chosen, "ppo.save_steps=9", "ppo.eval_steps=6")


@pytest.mark.parametrize("engine", [[], ["ppo.generation=continuous"]])
def test_nothing_overlaps_in_one_process(tiny: Path, engine: list[str]) -> None:
    message = complaint(tiny, *engine, "ppo.overlap=true")
    assert "ppo.overlap=true: true gains nothing with ppo.generation=" in message
    load_experiment(tiny, ["ppo.overlap=true", "ppo.generation=vllm", "ppo.server=http://a:1"])


@pytest.mark.parametrize(
    ("address", "why"),
    [("ftp://a", "no address of HTTP"), ("a:1", "no address of HTTP"), ("http://a:99999", "port")],
)
def test_a_generation_server_is_somewhere(tiny: Path, address: str, why: str) -> None:
    message = complaint(tiny, "ppo.generation=vllm", f"ppo.server={address}")
    assert f"ppo.server={address}: expected http://host:port" in message and why in message


@pytest.mark.parametrize(
    ("way", "lora"), [("adapter", "false"), ("folder", "true"), ("nccl", "true")]
)
def test_weights_go_to_the_server_as_the_policy_has_them(tiny: Path, way: str, lora: str) -> None:
    """Told before SFT and the reward are trained, not when PPO begins."""
    server = ["ppo.generation=vllm", "ppo.server=http://a:1", f"ppo.server_weights={way}"]
    message = complaint(tiny, *server, f"model.use_peft={lora}")
    assert f"ppo.server_weights={way}: {way} is for " in message
    other = "false" if lora == "true" else "true"
    load_experiment(tiny, [*server, f"model.use_peft={other}"])


def test_without_a_price_of_kl_nothing_steers_it(tiny: Path) -> None:
    load_experiment(tiny, ["beta=0"])
    message = complaint(tiny, "ppo.kl_target=3", "beta=0")
    assert message.startswith("override beta=0: 0 is no coefficient that ppo.kl_target")


OLD = [
    ("ppo.ppo_epochs=4", "ppo.num_ppo_epochs"),
    ("ppo_epochs=4", "ppo.num_ppo_epochs"),
    ("ppo.init_kl_coef=0.2", "the top-level beta"),
    ("ppo.batch_size=64", "ppo.per_device_train_batch_size"),
    ("dpo.batch_size=64", "generation.batch_size"),  # no old name of DPO's
    ("sft.max_seq_length=256", "sft.max_length"),
    ("dpo.max_seq_length=256", "dpo.max_length"),
    ("reward.warmup_ratio=0.1", "reward.warmup_steps: below 1 it is a share"),
    ("model.torch_dtype=float32", "model.dtype"),
    ("dpo.evaluation_strategy=steps", "dpo.eval_strategy"),
]


@pytest.mark.parametrize(("override", "today"), OLD)
def test_an_older_releases_name_tells_todays(tiny: Path, override: str, today: str) -> None:
    message = complaint(tiny, override)
    assert message.startswith(f"override {override}: unknown key; ") and today in message


@pytest.mark.parametrize("name", former.NAMES)
def test_old_names_are_no_names_of_today_and_today_s_are(name: str) -> None:
    section, _, key = name.rpartition(".")
    known = [stage.name for stage in trained() if stage.name in former.SECTIONS]
    for place in [section] if section else known:
        assert key not in valid_keys(place)
        told = former.today(place, key)
        assert told
        for other, wanted in re.findall(r"\b(\w+)\.([a-z_]+)\b", told):
            assert wanted in valid_keys(other), told


def valid_keys(section: str) -> set[str]:
    """Every key that a section takes; the project's own words for the top level's."""
    own = set(getattr(Experiment(), section).__class__.model_fields)
    if section in [stage.name for stage in trained()]:
        own |= {f.name for f in dataclasses.fields(target(find_stage(section))) if f.init}
    return own


def numeric_fields(config_class: type, base: type) -> dict[str, Any]:
    """Fields that ``config_class`` adds to ``base`` and that hold numbers: their plain types."""
    inherited = {field.name for field in dataclasses.fields(base)}
    hints = get_type_hints(config_class)
    own = (field.name for field in dataclasses.fields(config_class) if field.init)
    numbers = {int, float}
    return {
        name: hints[name]
        for name in own
        if name not in inherited and numbers & {hints[name], *get_args(hints[name])}
    }


OWN = numeric_fields(PPOConfig, TrainingArguments)
AROUND = (-1e9, -1.0, 0.0, 1e-9, 0.5, 1.0, 2.0, 1e9)


def test_there_are_fields_to_check() -> None:
    assert len(OWN) >= 25 and {"kl_stop", "kl_warning", "reward_timeout", "lam"} <= set(OWN)


@pytest.mark.parametrize("name", OWN)
def test_every_number_of_ppo_has_bounds_and_both_checks_read_them(tiny: Path, name: str) -> None:
    """The early check refuses exactly the numbers that PPOConfig does."""
    whole = float not in (OWN[name], *get_args(OWN[name]))
    owned = find_stage("ppo").owned
    refused = []
    for value in (int(value) if whole else value for value in AROUND):
        settings: dict[str, Any] = {"output_dir": "x", "use_cpu": True, "bf16": False}
        settings[name] = value
        try:
            PPOConfig(**settings)
        except ValueError as error:
            refused.append(value)
            assert str(error).startswith(f"{name} must be ")
        if name in owned:
            assert "the pipeline sets this" in complaint(tiny, f"ppo.{name}={value!r}")
            continue
        override = f"ppo.{name}={value!r}"
        if value in refused:
            assert "expected a number" in complaint(tiny, override)
        else:
            load_experiment(tiny, [override])
    assert refused, f"{name} has no bounds"


def test_sections_feed_dataclasses() -> None:
    assert target(find_stage("ppo")) is PPOConfig
    assert target(find_stage("reward")) is TrainingArguments
