"""How a sweep stands: what is finished, what failed, and the files that say so."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from common.files import read_json, write_text
from pipeline.compare import kept_reference
from pipeline.compare.methods import named, to_json
from pipeline.compare.wording import number, percent
from pipeline.config import Experiment
from pipeline.config.stages import SHARED
from pipeline.errors import UserError
from pipeline.output.metrics_file import read_metrics
from pipeline.planning import plan
from pipeline.sweep import page, results
from pipeline.sweep.jobs import Ended, Job
from pipeline.sweep.pooling import Pooling
from pipeline.sweep.results import Measured
from pipeline.sweep.schedule import Watcher
from pipeline.sweep.spec import Sweep
from pipeline.sweep.table import Board
from pipeline.sweep.trials import Trial


class Status:
    """Knows of every job whether it is finished, and keeps sweep.json, sweep.csv and the page."""

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep
        self.trials = {trial.name: trial for trial in sweep.trials}
        self.errors: dict[str, str] = {}
        self._read: dict[Trial, Measured] = {}
        compare = sweep.experiment.compare
        shared = sweep.section.share or sweep.experiment.shared is not None
        self._pooling = Pooling(
            compare.bootstrap,
            sweep.experiment.seed,
            compare.frontier_betas,
            shared,
            {row["name"]: row for row in to_json(named(sweep.experiment))},
        )
        self._done, self._otherwise = self._look()

    # -- what is there ---------------------------------------------------------------------------

    def _look(self) -> tuple[set[str], dict[Path, UserError]]:
        """The finished jobs, and the folders that were made with another config.

        Raises:
            UserError: the folder that the config itself names as shared cannot be built on.
        """
        done, otherwise = set[str](), dict[Path, UserError]()
        for folder, made in self.sweep.shared.items():
            _judge(folder, made.experiment, SHARED, done, otherwise)
        for trial in self.sweep.trials:
            if trial.shared not in self.sweep.shared:
                plan(trial.experiment, SHARED)
            elif trial.shared in otherwise and trial.folder.is_dir():
                otherwise[trial.folder] = otherwise[trial.shared]
            elif trial.shared.name not in done:
                continue
            if trial.folder.is_dir() and trial.folder not in otherwise:
                stages = (trial.policy, "compare")
                _judge(trial.folder, trial.experiment, stages, done, otherwise)
        return done, otherwise

    def made_otherwise(self, overwrite: bool) -> list[Path]:
        """The folders to remove, as another config made them.

        Raises:
            UserError: there are some, and ``overwrite`` does not say that they may be removed.
        """
        if self._otherwise and not overwrite:
            raise next(iter(self._otherwise.values()))
        return list(self._otherwise)

    def done(self) -> set[str]:
        """Names of the finished jobs."""
        return set(self._done)

    def tell(self) -> None:
        """Print every job and how it stands, a line each."""
        for job in self.sweep.jobs():
            state = "finished" if job.name in self._done else "to do"
            other = " (made with another config)" if job.folder in self._otherwise else ""
            print(f"{state:<9} {job.folder}{other}")

    def write_configs(self) -> None:
        """Write the config of every trial and of the shared stages, and make their folders."""
        trees = {trial.config: trial.tree for trial in self.sweep.trials}
        trees |= {f / "config.yaml": made.tree for f, made in self.sweep.shared.items()}
        for folder in self.sweep.shared:  # where trials keep what they would all sample alike
            (folder / kept_reference.FOLDER).mkdir(parents=True, exist_ok=True)
        for path, tree in trees.items():
            text = yaml.safe_dump(dict(tree), sort_keys=False, allow_unicode=True)
            if not path.is_file() or path.read_text(encoding="utf-8") != text:
                write_text(path, text)

    # -- while it runs ---------------------------------------------------------------------------

    def watched_by(self, board: Board) -> Watcher:
        """``board``, with the errors kept for the files."""
        return _Keeping(board, self.errors)

    def facts(self, job: Job) -> dict[str, Any]:
        """What the board shows of a job's folder."""
        trial = self.trials.get(job.name)
        stages = SHARED if trial is None else (trial.policy, "compare")
        records = [_read(job.folder / stage / "stage.json") for stage in stages]
        seconds = [record.get("seconds") or 0.0 for record in records]
        facts: dict[str, Any] = {"seconds": sum(seconds)}
        if trial is None:
            return facts
        facts["queries"] = _read(job.folder / trial.policy / "cost.json").get("reward_queries")
        if facts["queries"] is None:  # while it trains: what it has logged so far
            logged = read_metrics(trial.folder / trial.policy / "metrics.jsonl")
            counts = [row["episode"] for row in logged if "episode" in row]
            facts["queries"] = int(counts[-1]) if counts else None
        path = trial.folder / "compare" / "results.json"
        if path.is_file():
            facts["numbers"] = _numbers(read_json(path)["methods"].get(trial.policy, {}))
        return facts

    def write(self, done: set[str], page_too: bool = False) -> Path:
        """Write sweep.json, sweep.csv and, last of all, the page, whose path is returned."""
        for name, trial in self.trials.items():
            if name in done and trial not in self._read:
                self._read[trial] = results.read(trial)
                self._tidy(trial)
        content = self.content(done)
        results.write(self.sweep.folder, content)
        if page_too:
            return page.write(self.sweep.folder, content)
        return self.sweep.folder / "report" / "index.html"

    def _tidy(self, trial: Trial) -> None:
        """Remove what is not to be kept of a finished trial."""
        weights = ("checkpoints", "model", "adapter", "value_head")
        gone = {"all": (), "models": weights[:1], "numbers": weights}
        for name in gone[self.sweep.section.keep]:
            shutil.rmtree(trial.folder / trial.policy / name, ignore_errors=True)

    def content(self, done: set[str]) -> dict[str, Any]:
        """The content of sweep.json."""
        sweep = self.sweep
        found = {trial: self._read[trial] for trial in sweep.trials if trial in self._read}
        return {
            "name": sweep.experiment.name,
            "betas": sweep.betas,
            "seeds": list(sweep.section.seeds),
            "over": dict(sweep.section.over),
            "done": len(found),
            "trials": [
                {
                    "trial": trial.name,
                    "policy": trial.policy,
                    "method": trial.method,
                    "beta": trial.beta,
                    "seed": trial.seed,
                    "over": dict(trial.over),
                    "state": self._state(trial, done),
                    "error": self.errors.get(trial.name),
                }
                for trial in sweep.trials
            ],
            "rows": results.rows(found),
            "comparisons": self._pooling.comparisons(found),
        }

    def _state(self, trial: Trial, done: set[str]) -> str:
        if trial.name in done:
            return "done"
        return "failed" if trial.name in self.errors else "unfinished"


class _Keeping:
    """A watcher that passes everything on and keeps the errors."""

    def __init__(self, board: Board, errors: dict[str, str]) -> None:
        self.board, self.errors = board, errors
        self.started, self.refresh = board.started, board.refresh

    def finished(self, job: Job, ended: Ended) -> None:
        if ended.code != 0:
            self.errors[job.name] = ended.error
        self.board.finished(job, ended)

    def left_out(self, job: Job, because: str) -> None:
        self.errors[job.name] = f"it builds on {because}, which failed"
        self.board.left_out(job, because)


def _judge(
    folder: Path,
    experiment: Experiment,
    stages: tuple[str, ...],
    done: set[str],
    otherwise: dict[Path, UserError],
) -> None:
    """Put a folder into one of the two, or neither."""
    try:
        steps = {step.stage: step.action for step in plan(experiment, stages)}
    except UserError as error:
        if folder.is_dir():
            otherwise[folder] = error
        return
    if all(steps.get(stage) == "skip" for stage in stages):
        done.add(folder.name)


def _read(path: Path) -> Mapping[str, Any]:
    return read_json(path) if path.is_file() else {}


def _numbers(row: Mapping[str, Any]) -> str:
    """A finished trial in a few words."""
    words = [f"reward {number(row.get('reward'))}", f"KL {number(row.get('kl'))}"]
    if row.get("optimality") is not None:
        words.append(f"optimality {percent(row['optimality'])}")
    return ", ".join(words)
