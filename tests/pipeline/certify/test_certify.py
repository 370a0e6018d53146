"""The certificate: PPO and DPO reach the exact optimum, and five broken PPO trainers do not."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from classic_rl.advantages import mean_and_variance, moments
from classic_rl.tabular.soft import soft_value_iteration
from pipeline.certify import optima, sources, study
from pipeline.certify.command import main
from pipeline.certify.methods import METHODS, Method
from pipeline.certify.problem import EOS, Problem, distance
from pipeline.certify.study import certify, passes
from pipeline.errors import UserError
from pipeline.lm.scoring import TokenBatch
from pipeline.ppo import actor_critic, recording, rollout

BETA = 0.6
Patch = pytest.MonkeyPatch


# -- the judge -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
def test_the_optimum_is_half_a_nat_to_two_nats_away(seed: int) -> None:
    problem = Problem(seed, BETA)
    assert 0.5 <= problem.kl <= 2.0
    assert problem.reference.sum() == pytest.approx(1.0)
    assert problem.optimality_of(problem.optimal) == pytest.approx(1.0)
    assert len(set(problem.texts)) == len(problem.texts) == 1 + 4 + 16 * 5


def test_a_policy_is_measured_as_its_own_samples_say() -> None:
    problem = Problem(0, BETA)
    exact = problem.measure(problem.model())
    assert (exact.optimality, exact.kl) == pytest.approx((0.0, 0.0), abs=1e-6)
    assert exact.distance == pytest.approx(distance(problem.reference, problem.optimal), abs=1e-6)
    drawn = problem.draw(20_000, seed=5)
    mean = np.mean(problem.pay([c.prompt for c in drawn], [c.text for c in drawn]))
    assert mean == pytest.approx(exact.reward, abs=0.03)  # deviation of the mean: 0.007


def test_the_optimum_is_soft_value_iterations() -> None:
    problem = Problem(3, BETA)
    solution = soft_value_iteration(problem.env.mdp(), problem.env.reference, BETA)
    assert solution.objective == pytest.approx(problem.best)
    soft = np.exp(problem.env.sequence_logps(solution.policy))
    assert distance(soft, problem.optimal) < 1e-9


# -- where the others end --------------------------------------------------------------------------


def gradient_norm(loss: Callable[[Tensor], Tensor], distribution: np.ndarray) -> float:
    """Norm of a loss's gradient over all distributions, at one of them."""
    logits = torch.tensor(np.log(distribution), requires_grad=True)
    (gradient,) = torch.autograd.grad(loss(logits.log_softmax(0)), logits)
    return float(gradient.norm())


@pytest.mark.parametrize("per_token", [True, False])
def test_ipo_ends_where_its_loss_has_no_gradient(per_token: bool) -> None:
    problem, tau = Problem(1, BETA), 0.25
    reference = torch.tensor(problem.reference)
    rewards = torch.tensor(problem.rewards)
    wins = torch.sigmoid(rewards[:, None] - rewards[None])
    lengths = torch.tensor([len(y) if per_token else 1 for y in problem.env.sequences])

    def loss(logps: Tensor) -> Tensor:
        score = (logps - reference.log()) / lengths
        margin = score[:, None] - score[None]
        squares = wins * (margin - 0.5 / tau) ** 2 + (1 - wins) * (-margin - 0.5 / tau) ** 2
        return (reference[:, None] * reference[None] * squares).sum()

    found = optima.ipo(problem, tau, per_token)
    assert found.sum() == pytest.approx(1.0)
    assert gradient_norm(loss, found) < 1e-8 < 1e-2 < gradient_norm(loss, problem.reference)


def test_ktos_end_beats_what_is_near_it() -> None:
    problem = Problem(1, BETA)
    gain = 2 * optima.win_probability(problem) - 1

    def utility(distribution: np.ndarray) -> float:
        ratio = np.log(np.maximum(distribution, 1e-300) / problem.reference)
        return float((problem.reference * gain) @ (1 / (1 + np.exp(-BETA * ratio))))

    found = optima.kto(problem, BETA)
    best = utility(found)
    generator = np.random.default_rng(0)
    for scale in (0.01, 0.1, 1.0):
        for _ in range(50):
            other = (found + 1e-9) * np.exp(scale * generator.normal(size=found.size))
            assert utility(other / other.sum()) < best


def test_the_best_of_n_is_what_many_draws_say() -> None:
    problem, n = Problem(4, BETA), 8
    found = optima.best_of_n(problem, n)
    assert found.sum() == pytest.approx(1.0)
    ratio = np.log(np.maximum(found, 1e-300) / problem.reference)
    assert float(found @ ratio) <= np.log(n) - (n - 1) / n  # the bound of Beirami et al.
    drawn = np.random.default_rng(0).choice(len(found), (40_000, n), p=problem.reference)
    best = drawn[np.arange(len(drawn)), problem.rewards[drawn].argmax(1)]
    shares = np.bincount(best, minlength=len(found)) / len(best)
    assert distance(shares, found) < 0.02  # 0.01 from noise alone


@pytest.mark.parametrize("kind", ["reverse", "forward"])
def test_a_penalty_in_the_loss_ends_where_the_expected_update_is_zero(kind: str) -> None:
    """The update's sum over all completions, by autograd through the loss as GRPO writes it."""
    problem = Problem(2, BETA)
    env = problem.env
    tilt = {"reverse": optima.reverse_tilt, "forward": optima.forward_tilt}[kind](BETA)
    table = optima.token_by_token(env, tilt)
    probabilities = np.exp(env.sequence_logps(table))
    mean = float(probabilities @ problem.rewards)
    logits = torch.tensor(np.log(table), requires_grad=True)
    logps, reference = logits.log_softmax(-1), torch.tensor(np.log(env.reference))
    total = torch.zeros((), dtype=torch.float64)
    for y, weight, reward in zip(env.sequences, probabilities, problem.rewards, strict=True):
        state = 0
        for token in y:
            new = logps[state, token]
            log_r = reference[state, token] - new
            k3 = torch.expm1(log_r) - log_r
            ratio = (new - new.detach()).exp()
            penalty = k3 * ratio if kind == "reverse" else k3
            total = total + weight * (-ratio * (reward - mean) + BETA * penalty)
            state = int(env.children[state, token])
    (gradient,) = torch.autograd.grad(total, logits)
    assert float(gradient.abs().max()) < 1e-9


# -- the certificate -------------------------------------------------------------------------------


def short(**settings: Any) -> Method:
    """PPO as it is certified, in a third of the time: fewer rollouts, more learned from each."""
    plain = METHODS["ppo"]
    faster = {"learning_rate": 2e-3, "num_ppo_epochs": 8, "adam_beta1": 0.8}
    return replace(plain, settings=plain.settings | faster | settings)


def run(patch: Patch, settings: dict[str, Any], offset: float) -> study.Result:
    """Short PPO on seed 6; ``offset`` is added to every reward, which changes no π*.

    Unbroken, seeds 2, 4, 6 and 8 end at optimality 0.98 to 0.99 and distance 0.02 to 0.04.
    """
    pay = Problem.pay
    patch.setattr(
        Problem, "pay", lambda self, x, y: [reward + offset for reward in pay(self, x, y)]
    )
    return certify(short(**settings), 6, BETA, effort=0.4)


PLAIN: tuple[dict[str, Any], float] = ({}, 0.0)
WHITENED: tuple[dict[str, Any], float] = ({"whiten_rewards": True}, 6.0)


@pytest.mark.slow
@pytest.mark.parametrize(("settings", "offset"), [PLAIN, WHITENED])
def test_ppo_passes(settings: dict[str, Any], offset: float, monkeypatch: Patch) -> None:
    result = run(monkeypatch, settings, offset)
    assert passes(result)
    start, end = result["curve"][0], result["curve"][-1]
    assert start["optimality"] == pytest.approx(0.0, abs=1e-6)
    assert end["kl"] == pytest.approx(result["target_kl"], abs=0.15)


@pytest.mark.slow
@pytest.mark.long
def test_dpo_passes() -> None:
    method = replace(METHODS["dpo"], batch=256, rounds=600)
    result = certify(method, 6, BETA)
    assert result["curve"][-1]["optimality"] >= study.LEAST_OPTIMALITY


# -- five mutations of PPO, each of which must fail where the plain code above passes --------------


def wrong_kl_sign(patch: Patch) -> None:
    """A reward for leaving the reference."""
    plain = rollout.token_rewards
    patch.setattr(
        recording,
        "token_rewards",
        lambda scores, old, mask, beta, kind: plain(scores, old, mask, -beta, kind),
    )


def collated(patch: Patch, change: Callable[[TokenBatch], Tensor]) -> None:
    """Let every batch have another mask."""
    plain = TokenBatch.collate

    def collate(*arguments: Any) -> TokenBatch:
        batch = plain(*arguments)
        return replace(batch, mask=change(batch))

    patch.setattr(TokenBatch, "collate", collate)


def mask_off_by_one(patch: Patch) -> None:
    """Each completion's first token is left out, and one behind its end is in."""

    def shifted(batch: TokenBatch) -> Tensor:
        mask = batch.mask.roll(1, dims=1)
        mask[:, 0] = False
        return mask

    collated(patch, shifted)


def missing_eos(patch: Patch) -> None:
    """A mask found by token id: pad is EOS, so no EOS is trained or scored."""
    collated(patch, lambda batch: batch.mask & (batch.completion_ids != EOS))


def statistics_per_rank(patch: Patch) -> None:
    """Rewards whitened by each of two ranks for itself, rows dealt to them by length.

    A short completion's reward is then divided by another number than a long one's, which shows
    where rewards are far from 0. Two cases show nothing here, and rightly: rows dealt by chance,
    whose statistics are right on average, and advantages, which at π* are 0 by whatever they are
    divided.
    """

    def whiten(values: Tensor, mask: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        whitened = torch.zeros_like(values)
        for rows in mask.sum(1).argsort(stable=True).chunk(2):
            variance = mean_and_variance(moments(values[rows], mask[rows]))[1]
            scaled = (values[rows] - mean) * torch.rsqrt(variance + 1e-8)
            whitened[rows] = torch.where(mask[rows], scaled, 0.0).to(values.dtype)
        return whitened

    patch.setattr(rollout, "masked_whiten", whiten)


def value_of_the_next_position(patch: Patch) -> None:
    """V(s_{t+1}) for V(s_t): it has seen the token that it is the baseline of."""
    plain = actor_critic.ValueHead.forward
    patch.setattr(
        actor_critic.ValueHead, "forward", lambda head, states: plain(head, states.roll(-1, 0))
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mutate", "setup"),
    [
        (wrong_kl_sign, PLAIN),
        (mask_off_by_one, PLAIN),
        (missing_eos, PLAIN),
        (statistics_per_rank, WHITENED),
        (value_of_the_next_position, PLAIN),
    ],
)
def test_a_broken_trainer_fails(
    mutate: Callable[[Patch], None],
    setup: tuple[dict[str, Any], float],
    monkeypatch: Patch,
) -> None:
    """Distances to π*, unbroken 0.02 and 0.03: 0.16 for the statistics, 0.25 to 0.5 for others."""
    mutate(monkeypatch)
    result = run(monkeypatch, *setup)
    assert not passes(result)
    assert result["curve"][-1]["distance"] > 2 * study.MOST_DISTANCE


# -- the command -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--methods", "sft"], "invalid choice: 'sft'"),
        (["--seeds", "-1"], "'-1' is not a whole number from 0"),
        (["--seeds", "x"], "'x' is not a whole number from 0"),
        (["--seeds", str(2**32)], "'4294967296' is not a whole number from 0"),
        (["--beta", "0"], "'0' is not a positive number"),
        (["--beta", "2", "--methods", "ppo", "kto"], "--methods kto: where it ends is known"),
        (["--output", __file__], "is a file; give a folder"),
        (["--output", f"{__file__}/x"], "cannot be written"),
    ],
)
def test_wrong_arguments_are_one_line(argv: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        main(argv)
    assert "\n" not in str(error.value)


def test_the_command_reuses_finished_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Patch
) -> None:
    monkeypatch.setattr("pipeline.certify.command.QUICK", 0.01)
    argv = ["--methods", "ppo", "grpo", "--seeds", "0", "1", "--quick", "--output", str(tmp_path)]
    main(argv)
    first = capsys.readouterr().out
    assert first.splitlines()[2].startswith("| PPO") and "0 of 2" in first
    assert (tmp_path / "methods.png").read_bytes().startswith(b"\x89PNG")
    runs = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert runs == ["grpo-0.json", "grpo-1.json", "ppo-0.json", "ppo-1.json"]
    (tmp_path / "runs" / "ppo-0.json").write_text("{")  # a broken one is run again
    trained = []
    plain = study.certify
    monkeypatch.setattr(study, "certify", lambda *a: trained.append((a[0].name, a[1])) or plain(*a))
    main(argv)
    assert trained == [("ppo", 0)]
    second = capsys.readouterr().out
    assert [line.split("|")[1:7] for line in second.splitlines()[:4]] == [
        line.split("|")[1:7] for line in first.splitlines()[:4]
    ]
    main([*argv[:-2], "--beta", "1.0", "--output", str(tmp_path)])  # another problem
    assert len(trained) == 5
    monkeypatch.setattr(study, "code", lambda: "changed")  # that code has not run
    main(argv)
    assert len(trained) == 9


# -- what a kept run stands for --------------------------------------------------------------------


@pytest.fixture
def checkout(root: Path, tmp_path: Path) -> Path:
    """A copy of this project's packages."""
    for package in sources.PACKAGES:
        if (root / package).is_dir():
            skipped = shutil.ignore_patterns("__pycache__")
            shutil.copytree(root / package, tmp_path / package, ignore=skipped)
    return tmp_path


USED = [
    *("pipeline/lm/decoding.py", "pipeline/lm/generation.py", "pipeline/lm/scoring.py"),
    *("pipeline/lm/hardware.py", "pipeline/ppo/trainer.py", "pipeline/ppo/config.py"),
    *("pipeline/bounds.py", "pipeline/stages/trl_compat.py", "pipeline/stages/preferences.py"),
    *("pipeline/certify/optima.py", "pipeline/certify/switches.py", "pipeline/ppo/__init__.py"),
    *("classic_rl/losses.py", "classic_rl/advantages.py", "classic_rl/envs/tokens.py"),
]


@pytest.mark.parametrize("path", USED)
def test_a_change_of_used_code_makes_kept_runs_old(checkout: Path, path: str) -> None:
    before = sources.digest(checkout)
    with (checkout / path).open("a", encoding="utf-8") as stream:
        stream.write("# changed\n")
    assert sources.digest(checkout) != before


@pytest.mark.parametrize(
    "path", ["pipeline/report/page.py", "pipeline/certify/figures.py", "classic_rl/dqn.py"]
)
def test_a_change_of_other_code_does_not(checkout: Path, path: str) -> None:
    before = sources.digest(checkout)
    with (checkout / path).open("a", encoding="utf-8") as stream:
        stream.write("# changed\n")
    assert sources.digest(checkout) == before


LOADED = """
import sys
import pipeline.certify.study, pipeline.certify.switches
print(*(name for name in sys.modules if name.partition(".")[0] in {packages}))
"""


def test_no_imported_module_is_missed(root: Path) -> None:
    """What Python itself loads for a certificate, against the reading of the sources."""
    code = LOADED.format(packages=sources.PACKAGES)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.splitlines()[-1].split())  # above it, what libraries print
    assert "pipeline.lm.decoding" in loaded
    assert loaded <= set(sources.closure(sources.ENTRIES, root))
    assert study.code() == sources.digest(root)
