"""What PPO logs, keeps of its rollouts, and says about the machine."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from classic_rl.losses import explained_variance
from pipeline.lm.generation import Completion
from pipeline.lm.scoring import TokenBatch
from pipeline.ppo import PPOConfig
from pipeline.ppo.actor_critic import TokenRecord
from pipeline.ppo.rollout import Microbatch, Rollout
from pipeline.ppo.upkeep import journal
from pipeline.ppo.upkeep.metrics import UpdateMetrics, engine_metrics, rollout_metrics
from pipeline.ppo.upkeep.performance import PHASES
from reward_models import Scores
from tests.checkout import ROOT
from tests.pipeline.ppo.test_trainer import letters, make_trainer, weights

CPU = torch.device("cpu")
DOC = ROOT / "docs" / "ppo-metrics.md"


def _operations() -> Any:
    """The benchmark's module, which is no package's."""
    path = ROOT / "benchmarks" / "ppo_operations.py"
    spec = importlib.util.spec_from_file_location("ppo_operations", path)
    assert spec is not None and spec.loader is not None
    module = sys.modules["ppo_operations"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


operations = _operations()
ModelShape, phase_work = operations.ModelShape, operations.phase_work
measured_matmul_throughput = operations.measured_matmul_throughput


def config(**arguments: Any) -> PPOConfig:
    return PPOConfig(output_dir="x", use_cpu=True, bf16=False, **arguments)


def same(values: torch.Tensor) -> torch.Tensor:
    """Sum over the processes where there is one."""
    return values.clone()


def alone(values: torch.Tensor) -> torch.Tensor:
    """Gather over the processes where there is one."""
    return values[None]


def some_rollout(rows: int, seed: int) -> Rollout:
    """Made-up numbers on completions of 1 to 6 tokens."""
    generator = torch.Generator().manual_seed(seed)
    completions = [
        Completion("p", (3,), tuple(range(4, 5 + (i * i + seed) % 6)), "t", i % 3 > 0)
        for i in range(rows)
    ]
    batch = TokenBatch.collate(completions, 0, CPU)

    def column() -> torch.Tensor:
        return torch.where(batch.mask, torch.randn(batch.mask.shape, generator=generator), 0.0)

    old = TokenRecord(column(), column(), column().abs(), column(), column().abs())
    scores = torch.randn(rows, generator=generator)
    return Rollout(
        completions, batch, None, scores, old, column(), column(), column() * 2 + old.values
    )


def halves(rollout: Rollout) -> list[Rollout]:
    """The same rollout as two processes would hold it."""
    count, parts = len(rollout.completions) // 2, []
    for index in (torch.arange(count), torch.arange(count, 2 * count)):
        batch = rollout.batch.rows(index)
        steps = batch.mask.shape[1]
        columns = [getattr(rollout, n) for n in ("token_rewards", "advantages", "returns")]
        parts.append(
            Rollout(
                [rollout.completions[i] for i in index],
                batch,
                None,
                rollout.scores[index],
                TokenRecord(*(c[index, :steps] for c in rollout.old)),
                *(c[index, :steps] for c in columns),
            )
        )
    return parts


def test_rollout_metrics_are_those_of_all_processes_together() -> None:
    rollout = some_rollout(12, seed=0)
    whole = rollout_metrics(rollout, 0.3, same, alone)
    sent: list[list[torch.Tensor]] = []
    for part in halves(rollout):  # first note what each process has to say, in order
        said: list[torch.Tensor] = []
        rollout_metrics(part, 0.3, lambda v, s=said: s.append(v) or v, lambda v: v[None])
        gathered: list[torch.Tensor] = []
        rollout_metrics(part, 0.3, same, lambda v, g=gathered: g.append(v) or v[None])
        sent.append([*said, *gathered])
    pairs = iter([torch.stack(pair) for pair in zip(*sent, strict=True)])
    together = rollout_metrics(
        halves(rollout)[0], 0.3, lambda _: next(pairs).sum(0), lambda _: next(pairs)
    )
    assert together == pytest.approx(whole, rel=1e-9)


def test_rollout_metrics_by_definition() -> None:
    rollout = some_rollout(40, seed=1)
    old, mask, scores = rollout.old, rollout.batch.mask, rollout.scores
    logged = rollout_metrics(rollout, 0.3, same, alone)
    log_r = (old.ref_logps - old.logps)[mask].double()
    assert logged["objective/kl_k3"] == pytest.approx(float((log_r.exp() - 1 - log_r).sum()) / 40)
    assert logged["objective/kl"] == pytest.approx(float(-log_r.sum()) / 40)
    assert logged["objective/scores_q50"] == pytest.approx(float(scores.double().quantile(0.5)))
    assert logged["objective/scores_q95"] == pytest.approx(float(scores.double().quantile(0.95)))
    raw = (rollout.returns - old.values)[mask]
    assert logged["val/advantages_std"] == pytest.approx(float(raw.std(unbiased=False)), rel=1e-5)
    assert logged["val/advantages_min"] == pytest.approx(float(raw.min()))
    assert logged["val/advantages_max"] == pytest.approx(float(raw.max()))
    lengths = mask.sum(1).double()
    assert (logged["val/length_min"], logged["val/length_max"]) == (
        float(lengths.min()),
        float(lengths.max()),
    )
    assert logged["val/length_std"] == pytest.approx(float(lengths.std(unbiased=False)))
    expected = explained_variance(old.values[mask], rollout.returns[mask])
    assert logged["val/explained_variance"] == pytest.approx(float(expected), rel=1e-4)
    assert logged["policy/entropy_avg"] == pytest.approx(float(old.entropy[mask].mean()), rel=1e-6)


def test_update_metrics_see_completion_tokens_only_and_begin_anew() -> None:
    rollout = some_rollout(6, seed=2)
    mask = rollout.batch.mask
    assert not mask.all()
    old = rollout.old
    columns = (old.logps, old.ref_logps, old.values, rollout.advantages, rollout.returns)
    data = Microbatch(rollout.batch, torch.arange(len(columns[0])), None, *columns, normalizer=1.0)
    log_ratio = torch.full(mask.shape, 9.0)  # what lies behind a completion's end is no extreme
    log_ratio[mask] = torch.linspace(-0.5, 0.4, int(mask.sum()))
    metrics = UpdateMetrics()
    metrics.add(config(), data, log_ratio, log_ratio, log_ratio, old.values)
    metrics.add_norms(3.0, torch.tensor(1.0))
    metrics.add_norms(1.0, torch.tensor(5.0))
    update = metrics.collect(same, alone)
    assert update["val/ratio_min"] == pytest.approx(math.exp(-0.5))
    assert update["val/ratio_max"] == pytest.approx(math.exp(0.4))
    assert update["val/ratio"] == pytest.approx(float(log_ratio[mask].exp().mean()))
    assert (update["policy/grad_norm"], update["policy/grad_norm_max"]) == (2.0, 3.0)
    assert (update["val/grad_norm"], update["val/grad_norm_max"]) == (3.0, 5.0)
    assert metrics.tokens == mask.sum()
    metrics.add(config(), data, 0 * log_ratio, log_ratio, log_ratio, old.values)
    again = metrics.collect(same, alone)
    assert again["val/ratio_min"] == again["val/ratio_max"] == 1.0
    assert "policy/grad_norm" not in again


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A real toy run: what it logged and what it kept."""
    folder = tmp_path_factory.mktemp("run")

    def reward(prompts: list[str], completions: list[str]) -> Scores:
        scores = letters(prompts, completions)
        return Scores(scores, None, {"<name>": [*scores]})

    kept = {"log_completions": 2, "whiten_advantages": False}
    trainer, recorder = make_trainer(
        folder, reward, gold=letters, eval_strategy="steps", eval_steps=12, **kept
    )
    trainer.train()
    rows = [row for row in recorder.logs if "objective/scores" in row]
    evaluated = [row for row in recorder.logs if "eval_scores" in row]
    return {
        "folder": folder / "rollouts", "logs": rows, "trainer": trainer, "evaluated": evaluated
    }  # fmt: skip


def test_the_documentation_lists_exactly_what_is_logged(run: dict[str, Any]) -> None:
    documented = re.findall(r"^\| `([^`]+)` \|", DOC.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(documented) == len(set(documented))
    of_parts = {name for name in run["evaluated"][-1] if "/" in name}  # as those of a rollout
    assert {name.removeprefix("eval_") for name in of_parts} <= set(documented)
    ones = torch.ones(1, 2)
    engine = engine_metrics(ones, ones.bool(), None, same)  # where another engine draws
    assert set(documented) == {*run["logs"][-1], *run["evaluated"][-1], *engine} - of_parts


def test_logged_numbers_agree_with_each_other(run: dict[str, Any]) -> None:
    assert len(run["logs"]) == 3
    for row in run["logs"]:
        assert all(math.isfinite(value) for value in row.values())
        quantiles = [row[f"objective/scores_q{q:02d}"] for q in (5, 25, 50, 75, 95)]
        assert quantiles == sorted(quantiles)
        for name in ("length", "ratio"):
            assert row[f"val/{name}_min"] <= row[f"val/{name}"] <= row[f"val/{name}_max"], name
        assert row["val/advantages_min"] < row["val/advantages_max"]
        assert 0 < row["val/advantages_std"] < row["val/advantages_max"] - row["val/advantages_min"]
        assert row["objective/kl_k3"] >= 0
        assert 0 < row["policy/grad_norm"] <= row["policy/grad_norm_max"]
        assert 0 < row["val/grad_norm"] <= row["val/grad_norm_max"]
        seconds = {phase: row[f"time/{phase}"] for phase in PHASES}
        speed = row["perf/tokens_per_second_generate"] * seconds["generate"]
        tokens = row["val/length"] * 16
        assert speed == pytest.approx(tokens)
        learned = row["perf/tokens_per_second_update"] * seconds["update"]
        assert learned == pytest.approx(2 * tokens)  # two epochs
        assert row["perf/tokens_per_second"] * sum(seconds.values()) == pytest.approx(tokens)
        assert 0.05 < row["perf/memory_peak_gib"] < 64


def test_the_journal_keeps_what_was_trained_on(run: dict[str, Any]) -> None:
    folder = run["folder"]
    assert journal.steps(folder) == [0, 4, 8]
    for step, row in zip((0, 4, 8), run["logs"], strict=True):
        record = json.loads(journal.path(folder, step).read_text())
        assert record["step"] == step
        assert record["metrics"]["episode"] == row["episode"]
        assert record["metrics"]["objective/kl_exact"] == pytest.approx(
            row["objective/kl_exact"], rel=1e-3
        )
        assert len(record["completions"]) == 2
        for kept in record["completions"]:
            assert all(len(kept[n]) == len(kept["tokens"]) for n in journal.TOKEN_COLUMNS)
            ours, theirs, paid = (kept[n] for n in ("logp", "ref_logp", "reward"))
            change = [a - b for a, b in zip(ours, theirs, strict=True)]
            expected = kept["score"] - 0.1 * sum(change)  # β = 0.1, k1
            assert sum(paid) == pytest.approx(expected, abs=0.01)
            raw = [r - v for r, v in zip(kept["return"], kept["value"], strict=True)]
            assert kept["advantage"] == pytest.approx(raw, abs=0.01)
            if step == 0:
                assert kept["kl"] == pytest.approx([0.0] * len(ours), abs=1e-5)
            assert (kept["tokens"][-1] == "<eos>") is kept["ended"]


def test_the_journal_follows_a_resumed_run_and_can_be_switched_off(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"save_strategy": "steps", "save_steps": 4}
    first, _ = make_trainer(tmp_path, **settings)
    first.train()
    folder = tmp_path / "rollouts"
    whole = {step: journal.path(folder, step).read_bytes() for step in (0, 4, 8)}
    journal.path(folder, 8).write_text("of another run")
    journal.path(folder, 400).write_text("of a longer run")
    again, _ = make_trainer(tmp_path, **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert {s: journal.path(folder, s).read_bytes() for s in journal.steps(folder)} == whole
    off, _ = make_trainer(tmp_path, log_completions=0)
    off.train()
    assert journal.steps(folder) == []
    for name, value in weights(first).items():
        assert torch.equal(value, weights(off)[name]), name


@pytest.mark.parametrize("limit", ["LIMIT", "MOST"])
def test_a_long_journal_thins_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    """Beyond 8 files, or the bytes of as many."""
    monkeypatch.setattr(journal, limit, 8 if limit == "LIMIT" else 8 * 300)
    kept = journal.Journal(tmp_path, byte_level_tokenizer())
    rollout = some_rollout(2, seed=0)
    args = config(log_completions=1, num_ppo_epochs=2, num_mini_batches=2)
    for step in range(0, 400, 4):
        kept.write(step, rollout, {}, args)
    written = journal.steps(tmp_path)
    assert 270 < journal.path(tmp_path, 0).stat().st_size < 300
    assert 4 <= len(written) <= 8
    assert (written[0], written[-1]) == (0, 396)
    assert max(b - a for a, b in itertools.pairwise(written)) <= 400 // 3  # all over the run


def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE without merges: every token is one byte."""
    vocabulary = {character: byte for byte, character in bytes_to_unicode().items()}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore
    backend.decoder = decoders.ByteLevel()  # type: ignore
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def test_pieces_of_characters_are_given_by_their_bytes() -> None:
    tokenizer = byte_level_tokenizer()
    ids = tuple("a é\n".encode())
    assert journal.pieces(tokenizer, (120,), ids) == ["a", " ", "⟨C3⟩", "⟨A9⟩", "\n"]


def test_pieces_keep_the_space_that_a_first_word_loses() -> None:
    vocabulary = {"▁the": 0, "▁end": 1, "s": 2, "<unk>": 3}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.decoder = decoders.Metaspace(prepend_scheme="always")  # type: ignore[assignment]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    assert tokenizer.decode([1]) == "end"
    assert journal.pieces(tokenizer, (0,), (1, 2)) == [" end", "s"]


class Operations(TorchDispatchMode):
    """Counts the operations of products with weights, which attention's are not."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm):
            count = flop_registry[func._overloadpacket]
            self.total += count(*args, **(kwargs or {}), out_val=out)
        return out


@pytest.mark.parametrize("layers", [2, None], ids=["upper layers", "all weights"])
def test_needed_operations_are_those_of_the_matrix_products(
    tmp_path: Path, layers: int | None
) -> None:
    """Against torch's own count, without attention; the model is fed every token."""
    trainer, _ = make_trainer(tmp_path, section={"trainable_layers": layers})
    model, args = trainer.actor_critic, trainer.args
    rows = [Completion("", (3,) * 4, tuple(range(4, 10)), "", True)] * 16
    batch = TokenBatch.collate(rows, 0, CPU)
    shape = dataclasses.replace(ModelShape.of(model), attention_width=0)
    one_more = dataclasses.replace(batch, prompt_lengths=batch.prompt_lengths + 1)
    work = phase_work(shape, one_more, args)
    with Operations() as counted, torch.no_grad():
        trunk = model.trunk(batch.sequences)
        model(batch, trunk)
    assert counted.total == work.score + work.value
    with Operations() as counted:
        output = model(batch, trunk)
        (output.logps.sum() + output.values.sum()).backward()
    assert counted.total * args.num_ppo_epochs == work.update


def test_needed_operations_by_hand() -> None:
    shape = ModelShape(
        lower_layers=1, lower_weights=100, upper_layers=2, upper_weights=200, adapter_weights=10,
        trained_weights=10, attention_width=8, head_weights=50, head_trained=False, value_weights=5,
        kept_trunk=True,
    )  # fmt: skip
    batch = TokenBatch.collate([Completion("", (3, 3, 3), (4, 5), "", True)], 0, CPU)
    # Four tokens are fed, which see 1 + 2 + 3 + 4 = 10 positions; two are predicted.
    lower, upper = 2 * 100 * 4 + 4 * 8 * 10, 2 * 200 * 4 + 2 * 4 * 8 * 10
    head, value = 2 * 50 * 2, 2 * 5 * 2
    work = phase_work(shape, batch, config(num_ppo_epochs=3))
    assert work.generate == work.score == lower + upper + head
    assert work.reference == upper + head
    adapted = upper + 2 * 10 * 4
    backward = adapted + 2 * 4 * 8 * 10 + 2 * 10 * 4
    assert work.update == 3 * (adapted + backward + 2 * head + 3 * value)
    assert work.total == work.generate + work.scoring + work.update
    again = phase_work(
        dataclasses.replace(shape, kept_trunk=False), batch, config(num_ppo_epochs=3)
    )
    assert again.reference - work.reference == lower
    assert again.update - work.update == 3 * lower


def test_the_machine_is_measured_once_and_costs_no_random_number() -> None:
    before = torch.get_rng_state()
    first = measured_matmul_throughput(CPU, torch.float32)
    assert 1e8 < first < 1e15
    assert measured_matmul_throughput(CPU, torch.float32) == first
    assert torch.equal(before, torch.get_rng_state())
