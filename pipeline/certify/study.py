"""Running the methods over the seeds, keeping every finished run, and the table of them."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from transformers import TrainerCallback

from common.files import read_json, write_json
from pipeline.certify.methods import EPOCHS, Method
from pipeline.certify.problem import Problem, distance
from pipeline.certify.sources import digest
from pipeline.errors import UserError
from pipeline.output.console import say
from pipeline.output.terminal import Meter

Result = dict[str, Any]

LEAST_OPTIMALITY = 0.97
MOST_DISTANCE = 0.05
_KEPT = {"method", "seed", "recipe", "code", "target_kl", "own_optimum", "seconds", "curve"}
POINTS = 25
"""Measurements along a run."""


def passes(result: Result) -> bool:
    """True when a run ended at π*: optimality at least 0.97, total variation at most 0.05."""
    final = result["curve"][-1]
    return final["optimality"] >= LEAST_OPTIMALITY and final["distance"] <= MOST_DISTANCE


class _Watch(TrainerCallback):
    """Measures the policy exactly, about `POINTS` times along a run, and then calls ``tell``."""

    def __init__(
        self,
        problem: Problem,
        own: np.ndarray | None,
        given: np.ndarray | None,
        tell: Callable[[float], None],
    ) -> None:
        self.problem, self.own, self.given, self.tell = problem, own, given, tell
        self.curve: list[dict[str, float]] = []

    def _measure(self, state: Any, model: Any) -> None:
        policy = getattr(model, "policy", model)  # PPO's actor-critic holds it
        point = asdict(self.problem.measure(policy, self.own, self.given))
        self.curve.append({"progress": state.global_step / state.max_steps} | point)
        self.tell(self.curve[-1]["progress"])

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._measure(state, kwargs["model"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        every = max(1, state.max_steps // POINTS)
        if state.global_step % every == 0 or state.global_step == state.max_steps:
            self._measure(state, kwargs["model"])


def certify(
    method: Method,
    seed: int,
    beta: float,
    effort: float = 1.0,
    tell: Callable[[float], None] = lambda progress: None,
) -> Result:
    """Train ``method`` on the problem of ``seed`` and measure it along the way.

    Args:
        beta: reward per nat of KL. effort: scales the number of training steps.
        tell: called with the progress, 0 to 1, at each measurement.

    Returns:
        a JSON object: ``curve``, a list of `problem.Measurement` by ``progress`` from 0 to 1;
        ``target_kl``, KL(π*‖π_ref) in nats; ``own_optimum``, what the method's would measure;
        ``seconds``.
    """
    problem = Problem(seed, beta)
    own = None if method.optimum is None else method.optimum(problem)
    given = None if method.given is None else method.given(problem)
    watch = _Watch(problem, own, given, tell)
    with tempfile.TemporaryDirectory() as folder:
        trainer = method.trainer(problem, Path(folder), effort)
        trainer.add_callback(watch)
        start = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - start
    aim = problem.optimal if own is None else own
    return {
        "method": method.name,
        "seed": seed,
        "recipe": recipe(method, beta, effort),
        "code": code(),
        "target_kl": problem.kl,
        "own_optimum": {
            "optimality": problem.optimality_of(aim),
            "distance": distance(aim, problem.optimal),
        },
        "seconds": seconds,
        "curve": watch.curve,
    }


def recipe(method: Method, beta: float, effort: float) -> dict[str, Any]:
    """All that a run is made from but its seed; a finished run is reused where it is the same."""
    names = ("batch", "rounds", "settings")
    made = {"beta": beta, "effort": effort, "epochs": EPOCHS}
    return json.loads(json.dumps(made | {name: getattr(method, name) for name in names}))


@cache
def code() -> str:
    """A digest of the code that trains and measures, and of its libraries' versions.

    Without it, a trainer that was broken since could show the certificate of the one before.
    """
    return digest(Path(__file__).resolve().parents[2])


def run_all(
    methods: Sequence[Method], seeds: Sequence[int], beta: float, effort: float, folder: Path
) -> list[Result]:
    """Certify each of ``methods`` on each of ``seeds``; finished runs in ``folder`` are read back.

    An interrupted call loses the run that it was in, and no other.

    Raises:
        UserError: ``folder`` cannot be written.
    """
    try:
        (folder / "runs").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"--output {folder}: cannot be written ({error.strerror}); give another folder"
        ) from None
    results: dict[tuple[str, int], Result] = {}
    for method in methods:
        for seed in seeds:
            kept = _finished(folder, method, seed, recipe(method, beta, effort))
            if kept is not None:
                results[method.name, seed] = kept
    wanted = [(method, seed) for method in methods for seed in seeds]
    todo = [(method, seed) for method, seed in wanted if (method.name, seed) not in results]
    if len(todo) < len(wanted):
        say(f"certify: {len(wanted) - len(todo)} finished runs found in {folder}")
    meter = Meter("certify", 100 * len(todo))
    try:
        for done, (method, seed) in enumerate(todo):

            def tell(progress: float, before: int = 100 * done) -> None:
                meter.update(before + round(100 * progress) - meter.done)

            result = certify(method, seed, beta, effort, tell)
            write_json(_path(folder, method, seed), result)
            final = result["curve"][-1]
            place = f"certify: {method.name}, seed {seed}"
            say(
                f"{place}: optimality {final['optimality']:.3f}, distance {final['distance']:.3f},"
                f" {result['seconds']:.0f} s"
            )
            results[method.name, seed] = result
    finally:
        meter.close()
    return [results[method.name, seed] for method, seed in wanted]


def _path(folder: Path, method: Method, seed: int) -> Path:
    return folder / "runs" / f"{method.name}-{seed}.json"


def _finished(folder: Path, method: Method, seed: int, expected: dict[str, Any]) -> Result | None:
    path = _path(folder, method, seed)
    if not path.is_file():
        return None
    try:
        result = read_json(path)
    except ValueError:
        return None
    if not isinstance(result, dict) or not result.keys() >= _KEPT:
        return None
    return result if result["recipe"] == expected and result["code"] == code() else None


HEADER = (
    "method",
    "optimality",
    "distance to π*",
    "KL, nats",
    "at π*",
    "own optimum's optimality",
    "distance to it",
    "s a run",
    "at π*?",
)


def table(methods: Sequence[Method], results: Sequence[Result]) -> str:
    """Median (least to greatest) over seeds of every method's last measurement, as Markdown."""
    rows: list[tuple[str, ...]] = [HEADER]
    for method in methods:
        mine = [result for result in results if result["method"] == method.name]
        last = [result["curve"][-1] for result in mine]
        own = ("–", "–")
        if method.optimum is not None:
            own = (
                _spread([result["own_optimum"]["optimality"] for result in mine]),
                _spread([point["own_distance"] for point in last]),
            )
        rows.append(
            (
                method.title,
                _spread([point["optimality"] for point in last]),
                _spread([point["distance"] for point in last]),
                _spread([point["kl"] for point in last], 2),
                _spread([result["target_kl"] for result in mine], 2),
                *own,
                f"{statistics.median(result['seconds'] for result in mine):.0f}",
                f"{sum(map(passes, mine))} of {len(mine)}",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADER))]
    lines = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)) + " |" for r in rows
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])


def _spread(values: Sequence[float], digits: int = 3) -> str:
    middle = f"{statistics.median(values):.{digits}f}"
    if len(values) == 1:
        return middle
    return f"{middle} ({min(values):.{digits}f} to {max(values):.{digits}f})"
