"""The expected time is what the settings count to, and says nothing where it cannot be told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from pipeline import runner
from pipeline.config import Experiment, ModelSection, load_experiment
from pipeline.data.toy import toy_tokenizer
from pipeline.lm import speed as speeds
from pipeline.lm.speed import Speed, measure
from pipeline.stages import budget
from pipeline.stages.expected import Counter, Encoder
from pipeline.stages.expected_texts import Texts, look_at

AROUND = 10.0
# Primes of a millisecond, so that no sum is right by chance.
SPEED = Speed(
    layers=30, trained_layers=10, forward=2e-3, training=3e-3, head=5e-3, head_training=7e-3,
    drawing=11e-3, drawing_head=13e-3, step=0.5,
)  # fmt: skip
TEXTS = Texts(
    demonstrations=[20] * 8, learnt=96, prompt=4.0, response=16.0, heldout=10, rated=[64, 128],
    prompts=256, evaluated=5, validation=3,
)  # fmt: skip
SETTINGS = [
    "model.trainable_layers=2", "data.validation_prompts=3", "tracking.report_to=[]",
    "sft.per_device_train_batch_size=8", "sft.num_train_epochs=2",
    "reward.num_train_epochs=3", "reward.per_device_train_batch_size=32",
    "ppo.total_episodes=128", "ppo.per_device_train_batch_size=16", "ppo.num_mini_batches=2",
    "ppo.num_ppo_epochs=3", "pairs.max_pairs=40", "pairs.per_prompt=2",
    "dpo.per_device_train_batch_size=8", "dpo.num_train_epochs=1",
    "compare.samples_per_prompt=4", "compare.reference_samples=16",
]  # fmt: skip
ENCODER = Encoder(forward=0.1, training=0.2, step=0.3)
DRAW = 16 * (30 * 0.011 + 0.013) + 4 * 30 * 0.002
TRAINED = 10 * 0.003 + 2 * 0.007  # of a position: the upper layers and TRL's head


def counter(tiny: Path, *overrides: str, encoder: Encoder | None = ENCODER) -> Counter:
    return Counter(load_experiment(tiny, [*SETTINGS, *overrides]), TEXTS, SPEED, encoder)


def test_sft_counts_positions_steps_and_evaluations(tiny: Path) -> None:
    positions = 2 * 96 * 20
    steps = 2 * 12
    expected = positions * (TRAINED + 20 * 0.002) + steps * 0.5
    assert counter(tiny).seconds("sft") == pytest.approx(AROUND + expected)
    half = counter(tiny, "sft.max_steps=12").seconds("sft")
    assert half == pytest.approx(AROUND + expected / 2)
    on = ["sft.eval_strategy=steps", "sft.eval_steps=8"]
    held = 3 * 10 * 20 * (30 * 0.002 + 0.005)
    assert counter(tiny, *on).seconds("sft") == pytest.approx(AROUND + expected + held)
    assert counter(tiny, "sft.skip=true").seconds("sft") == AROUND


def test_padding_counts_unless_texts_of_like_length_share_a_batch(tiny: Path) -> None:
    texts = replace(TEXTS, demonstrations=[10, 30])
    experiment = load_experiment(tiny, SETTINGS)
    grouped = load_experiment(tiny, [*SETTINGS, "sft.train_sampling_strategy=group_by_length"])
    same = 2 * 96 * (TRAINED + 20 * 0.002)
    for made, positions in ((experiment, 30), (grouped, 20)):
        seconds = Counter(made, texts, SPEED, ENCODER).seconds("sft")
        assert seconds == pytest.approx(AROUND + positions * same + 24 * 0.5)


def test_the_classifiers(tiny: Path) -> None:
    expected = 3 * (64 + 128) * 20 * 0.2 + 3 * (2 + 4) * 0.3
    assert counter(tiny).seconds("reward") == pytest.approx(AROUND + expected)


def test_ppo_counts_from_its_rollouts(tiny: Path) -> None:
    # 4 rollouts of 32; the lower 20 layers once, policy's and reference's upper ten.
    record = 20 * (20 + 2 * 10) * 0.002 + 2 * 16 * 0.005
    update = 20 * 10 * 0.003 + 16 * 0.007
    judged = 20 * 0.1
    expected = 128 * (DRAW + judged + record + 3 * update) + 4 * 6 * 0.5
    assert counter(tiny).seconds("ppo") == pytest.approx(AROUND + expected)
    twice = counter(tiny, "ppo.gradient_accumulation_steps=2").seconds("ppo")  # half the steps
    assert twice == pytest.approx(AROUND + expected - 2 * 6 * 0.5)
    unknown = counter(tiny, encoder=None).seconds("ppo")
    assert unknown == pytest.approx(AROUND + expected - 128 * judged)
    evaluated = counter(tiny, "ppo.eval_strategy=steps", "ppo.eval_steps=12").seconds("ppo")
    assert evaluated == pytest.approx(AROUND + expected + 2 * 3 * (DRAW + judged + record))
    exact = counter(tiny, "ppo.kl_estimator=exact").seconds("ppo")
    assert exact == pytest.approx(AROUND + expected + 128 * 3 * 2 * 16 * 0.005)
    prefix = counter(tiny, "ppo.critic=prefix", "ppo.prefix_every=2").seconds("ppo")
    assert prefix == pytest.approx(AROUND + expected + 128 * 8 * 12 * 0.1)
    again = counter(tiny, "ppo.cache_trunk=false").seconds("ppo")
    lower = 20 * 20 * 0.002
    assert again == pytest.approx(AROUND + expected + 128 * (lower + 3 * lower))


def test_dpo_and_the_comparison(tiny: Path) -> None:
    drawn = DRAW + 20 * 0.1
    reference = 20 * 30 * 0.002 + 16 * 0.005  # whose trunk the policy goes on from
    policy = 20 * 10 * 0.003 + 16 * 0.007
    expected = 80 * (drawn + reference + policy) + 5 * 0.5
    assert counter(tiny).seconds("dpo") == pytest.approx(AROUND + expected)
    # 14 groups of three completions for 40 pairs; 16 completions a step are five groups.
    groups = counter(tiny, "pairs.samples_per_prompt=3")
    seconds = AROUND + 14 * 3 * (drawn + reference + policy) + 3 * 0.5
    assert groups.seconds("dpo") == pytest.approx(seconds)
    assert groups.tokens("dpo") / counter(tiny).tokens("dpo") == pytest.approx(14 * 3 / 80)
    # Of another loss every pair runs whole, policy and reference: 40 pairs, 80 completions.
    ipo = ("dpo.loss_type=ipo", "pairs.samples_per_prompt=3")
    whole = TRAINED + 0.005 + 20 * 0.002 + 30 * 0.002
    seconds = AROUND + 14 * 3 * drawn + 80 * 20 * whole + 5 * 0.5
    assert counter(tiny, *ipo).seconds("dpo") == pytest.approx(seconds)
    # Own pairs: nothing is drawn, and the files' texts are as long as they are.
    own = load_experiment(tiny, [*SETTINGS, "data.preferences_name=mine", "dpo.max_length=50"])
    made = Counter(own, replace(TEXTS, own_pairs={"mine": (24, [40, 60])}), SPEED, ENCODER)
    assert made.seconds("dpo") == pytest.approx(AROUND + 48 * 50 * whole + 3 * 0.5)
    assert made.tokens("dpo") == 48 * 50
    assert counter(tiny, *ipo).tokens("dpo") == counter(tiny).tokens("dpo")
    made, against = 5 * 16 + 2 * 5 * 4, 2 * 5 * 4
    expected = made * (DRAW + 2 * 20 * 0.1)
    # KL along their own samples and two of the reference's: of the layers the upper ten twice.
    expected += (against + 2 * 5 * 2) * (20 * (20 + 2 * 10) * 0.002 + 2 * 16 * 0.005)
    expected += 3 * 5 * 2 * (20 * 30 * 0.002 + 16 * 0.005)  # fluency
    expected += 3 * 10 * 20 * (30 * 0.002 + 0.005)
    assert counter(tiny).seconds("compare") == pytest.approx(AROUND + expected)
    without = counter(tiny, "compare.fluency_model=null").seconds("compare")
    assert without == pytest.approx(AROUND + expected - 30 * (20 * 30 * 0.002 + 16 * 0.005))


def test_lengths_are_the_texts(tiny: Path) -> None:
    from pipeline.data import load_data

    experiment = load_experiment(tiny)
    data = load_data(experiment)
    texts = look_at(experiment, data, toy_tokenizer())
    lengths = [len(toy_tokenizer()(text)["input_ids"]) for text in data.demonstrations]  # type: ignore
    assert texts.learnt == 256 == len(texts.demonstrations)
    assert sum(texts.demonstrations) - sum(lengths) in (0, 256)  # EOS, if it was not there
    assert 1 <= texts.response <= 8 and texts.heldout == 32 and texts.validation == 0
    assert texts.rated == [len(data.proxy), len(data.gold)]


def test_what_the_reward_stage_trains_is_counted(tiny: Path) -> None:
    """Every member of an ensemble, on its own half, and pairs of texts that are read once."""
    from pipeline.data import load_data

    def rows(*overrides: str) -> Texts:
        experiment = load_experiment(tiny, overrides)
        return look_at(experiment, load_data(experiment), toy_tokenizer())

    plain = rows()
    members = ["reward.members=3", "reward.combine=min", "reward.member_texts=half"]
    half = (plain.rated[0] + 1) // 2
    assert rows(*members).rated == [half, half, half, plain.rated[1]]
    soft = rows("reward.labels=soft", "reward.calibrate=true")
    assert soft.rated[0] > 0.9 * plain.rated[0]  # neutral ones too, less those calibrated on
    pairs = rows("reward.source=pairwise", "reward.comparisons_per_rater=2")
    assert 0.9 * 2 * 400 < pairs.rated[0] <= 2 * 500  # 10 raters in 40 to 50 batches
    assert 0.5 < pairs.a_row[0] < 2
    assert counter(tiny, *members).seconds("ppo") > counter(tiny).seconds("ppo")


def test_own_pairs_are_counted_in_their_file(tiny: Path, tmp_path: Path) -> None:
    from pipeline.data import load_data

    sides = {"chosen": " was good .", "rejected": " was bad ."}
    rows = [json.dumps({"prompt": f"the film {place}", **sides}) for place in range(9)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(rows))
    experiment = load_experiment(tiny, [f"data.preferences_name={path}"])
    looked = look_at(experiment, load_data(experiment), toy_tokenizer())
    [(count, lengths)] = looked.own_pairs.values()
    assert (count, len(lengths)) == (9, 18)
    written = len(toy_tokenizer()("the film 0 was good .").input_ids)
    assert 0 <= lengths[0] - written <= 1  # with the end of the text
    assert budget.smaller(experiment, {"dpo"}, 2) == {}  # of them nothing is drawn


# --- What a run says ------------------------------------------------------------------------------


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, tiny: Path) -> list[str]:
    """The lines of `budget.tell`, with the counter above in the place of a measurement."""
    lines: list[str] = []
    monkeypatch.setattr(budget, "say", lines.append)
    monkeypatch.setattr(budget, "counter_of", lambda made: Counter(made, TEXTS, SPEED, ENCODER))
    return lines


def named(tiny: Path, *overrides: str) -> Experiment:
    """An experiment whose model is no toy; nothing is loaded."""
    return load_experiment(tiny, [*SETTINGS, "model.model_name_or_path=some/model", *overrides])


def test_a_run_says_what_each_stage_takes(said: list[str], tiny: Path) -> None:
    budget.tell(named(tiny), {"sft": 0.0, "ppo": 100.0})
    sft, ppo = counter(tiny).seconds("sft"), counter(tiny).seconds("ppo") - 100
    whole, first, second = (round(each / 60) for each in (sft + ppo, sft, ppo))
    line = f"expected on this machine: about {whole} min (sft {first} min, ppo {second} min)"
    assert said == [line]


def test_a_long_run_names_a_smaller_budget(said: list[str], tiny: Path) -> None:
    experiment = named(tiny, "ppo.total_episodes=2560", "pairs.max_pairs=3072")
    budget.tell(experiment, {"ppo": 0.0, "dpo": 0.0, "compare": 0.0})
    assert said[0].startswith("expected on this machine: about ") and " h " in said[0]
    assert "ppo.total_episodes=640 pairs.max_pairs=768" in said[1]  # half is still too long
    assert "reference_samples" not in said[1]  # 16 is the least
    assert "about " in said[1]
    assert budget.smaller(experiment, {"compare"}, 2) == {}
    assert budget.smaller(experiment, {"ppo"}, 2) == {"ppo.total_episodes": 1280}
    assert budget.smaller(named(tiny), {"ppo", "dpo"}, 4) == {}  # 128 and 40 are few already
    groups = named(tiny, "pairs.samples_per_prompt=8", "pairs.max_pairs=10752")
    least = {"pairs.max_pairs": 28 * 128}  # 1,024 completions, as 512 pairs of two have
    assert budget.smaller(groups, {"dpo"}, 2) == {"pairs.max_pairs": 5376}
    assert budget.smaller(groups, {"dpo"}, 4) == least


def test_what_is_not_known_is_said_or_left_out(
    said: list[str], tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = named(tiny, "reward.source=mine.py:score")
    budget.tell(own, {"ppo": 0.0})
    assert said[0].endswith("; the reward's own time is not in it")
    said.clear()
    budget.tell(load_experiment(tiny), {"ppo": 0.0})  # the toy
    budget.tell(own, {})  # nothing to do
    monkeypatch.setattr(budget, "counter_of", lambda made: 1 / 0)
    budget.tell(own, {"ppo": 0.0})
    monkeypatch.setenv("WORLD_SIZE", "2")
    budget.tell(own, {"ppo": 0.0})
    assert said == []


def test_only_a_whole_run_says_it_and_finished_stages_do_not_count(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[dict[str, float]] = []
    monkeypatch.setattr(budget, "tell", lambda experiment, before: told.append(dict(before)))
    monkeypatch.setattr(runner, "stage_function", lambda stage: lambda experiment: None)
    experiment = named(tiny, f"output_dir={tmp_path}")
    runner.run(experiment, "sft")
    assert told == []
    runner.run(experiment, "run")
    assert told == [{"reward": 0.0, "ppo": 0.0, "dpo": 0.0, "compare": 0.0}]
    runner.run(experiment, "run")
    assert len(told) == 1


# --- The measurement ------------------------------------------------------------------------------


@pytest.mark.parametrize("overrides", [{}, {"trainable_layers": 4}, {"use_peft": True}])
def test_a_model_is_timed_by_its_own_layers(
    overrides: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speeds, "_LEAST_TIME", 0.01)
    tokenizer = toy_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=6,
        num_attention_heads=2, num_key_value_heads=1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    section = ModelSection(
        model_name_or_path=str(tmp_path),
        dtype="float32",
        **overrides,  # type: ignore[arg-type]
    )
    made = measure(section, tokenizer, rows=8)
    assert made is not None
    assert made.layers == 6 and made.trained_layers == (4 if "trainable_layers" in overrides else 6)
    assert made.training > made.forward > 0 and made.head_training > 0 and made.head > 0
    assert made.drawing_head + made.drawing > 0 and made.step > 0
    monkeypatch.setattr(speeds, "_MOST", 1000)
    assert measure(section, tokenizer, rows=8) is None


def test_a_model_of_few_words_is_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tokens of the timing are among those that it has: 62 were taken for granted."""
    monkeypatch.setattr(speeds, "_LEAST_TIME", 0.0)
    config = LlamaConfig(
        vocab_size=5, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    section = ModelSection(model_name_or_path=str(tmp_path), dtype="float32")
    assert measure(section, toy_tokenizer(), rows=2) is not None
