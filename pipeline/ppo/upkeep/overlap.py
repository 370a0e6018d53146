"""The next rollout's completions, drawn while the rollout at hand is learned from.

Rollout k + 1 is drawn from the weights before update k, beside that update where an engine has
weights of its own elsewhere, and before it where a plain sampler draws from the policy itself: the
same completions either way (docs/overlap.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Thread
from typing import Any

from common.files import read_json, write_json
from pipeline.errors import UserError
from pipeline.ppo.config import PPOConfig
from pipeline.ppo.engines import Called, Drawn, Engine, Request
from pipeline.ppo.upkeep.sharing import RolloutSampler

FILE = "drawn-ahead-{:05d}.json"
"""In a checkpoint, one for each process: what is drawn and not learned from yet."""


def runs_beside(engine: Engine | None) -> bool:
    """Whether ``engine`` may draw while weights change, as it has its own; a sampler draws before.

    Raises:
        UserError: neither is so, and completions would be one update old for nothing.
    """
    if getattr(engine, "beside", False):
        return True
    if isinstance(engine, Called):
        return False
    what = "the trainer's own loop" if engine is None else type(engine).__name__
    raise UserError(
        f"ppo.overlap: {what} draws in this process from the weights that an update changes, so"
        " nothing can run beside it, and completions would be one update old for nothing; set it"
        " to false, or draw by a server (ppo.generation=vllm)"
    )


def told(drawn: Drawn) -> Drawn:
    """``drawn``, if its log-probabilities are there to correct it by.

    Raises:
        UserError: they are not.
    """
    if drawn.logps is None:
        raise UserError(
            "ppo.overlap: the sampler does not tell the log-probabilities of its tokens, and what"
            " is one update old cannot be corrected without; return Drawn(tokens, logps), or set"
            " it to false"
        )
    return drawn


def prompts_of(sampler: RolloutSampler, rollout: int, args: PPOConfig) -> list[int]:
    """The prompts of this process's part of ``rollout``, before the loader comes to them."""
    order = RolloutSampler(sampler.prompts, sampler.rollout, 1, sampler.seed)
    order.set_epoch(rollout // order.rollouts)
    start = rollout % order.rollouts * order.rollout + args.process_index * args.rollout_size
    return list(order)[start : start + args.rollout_size]


class Ahead:
    """What is drawn ahead of its rollout, if anything: at most one rollout of this process."""

    def __init__(self) -> None:
        self._empty()

    def _empty(self) -> None:
        self._thread: Thread | None = None
        self._rollout: int | None = None
        self._prompt_ids: list[tuple[int, ...]] = []
        self._drawn: Drawn | None = None
        self.error: BaseException | None = None
        """What ended the drawing, after :meth:`wait`."""

    def start(
        self, rollout: int, request: Request, draw: Callable[[Request], Drawn], beside: bool
    ) -> None:
        """Draw ``rollout``'s completions; in a thread, and go on at once, if ``beside``."""
        self._empty()
        self._rollout, self._prompt_ids = rollout, [tuple(ids) for ids in request.prompt_ids]

        def work() -> None:
            try:
                self._drawn = draw(request)
            except Exception as error:  # told when the update is done, and saved
                self.error = error

        if beside:  # a daemon, so that a run that is interrupted does not wait for it
            self._thread = Thread(target=work, name="rollout", daemon=True)
            self._thread.start()
        else:
            work()

    def wait(self) -> None:
        """Until it is drawn, or has failed."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def take(self, rollout: int, encoded: Sequence[tuple[int, ...]]) -> Drawn | None:
        """The completions of ``rollout``, and be empty; ``None`` if they were not drawn ahead.

        Raises:
            UserError: they are of other prompts. Whatever the drawing raised.
        """
        self.wait()
        if self.error is not None:
            raise self.error
        drawn = self._drawn if self._rollout == rollout else None
        if drawn is not None and self._prompt_ids != [tuple(ids) for ids in encoded]:
            raise UserError(
                "ppo.overlap: the completions that the checkpoint holds are of other prompts than"
                " those that come now; train on the data that the run began with"
            )
        self._empty()
        return drawn

    def end(self, step: int) -> None:
        """Tell why a run ended whose next rollout could not be drawn.

        Raises:
            UserError: so it was. Another error of the sampler's as it is.
        """
        error, self.error = self.error, None
        if isinstance(error, UserError):
            raise UserError(f"{error}; checkpoint-{step} is saved") from error
        if error is not None:
            raise error

    def failed_elsewhere(self, reason: str) -> None:
        """Another process could not draw its part, so this one's is of no use."""
        self._drawn = None
        self.error = self.error or UserError(reason)

    def save(self, folder: Path, process: int, processes: int) -> None:
        """Write what is drawn into a checkpoint; nothing where nothing is, or it failed."""
        self.wait()
        path = folder / FILE.format(process)
        if self._drawn is None:
            path.unlink(missing_ok=True)  # of an earlier run's checkpoint of this name
            return
        assert self._drawn.logps is not None
        columns = {"tokens": self._drawn.tokens, "logps": self._drawn.logps}
        rows = {name: [list(row) for row in column] for name, column in columns.items()}
        prompts = [list(ids) for ids in self._prompt_ids]
        of = {"rollout": self._rollout, "processes": processes}
        write_json(path, of | {"prompt_ids": prompts} | rows)

    def load(self, folder: Path, process: int, processes: int) -> None:
        """Read what :meth:`save` wrote, of however many processes that share it now.

        Raises:
            UserError: a part of it is not there.
        """
        self._empty()
        if not (folder / FILE.format(0)).is_file():
            return
        count = int(read_json(folder / FILE.format(0))["processes"])
        paths = [folder / FILE.format(number) for number in range(count)]
        if missing := [path.name for path in paths if not path.is_file()]:
            raise UserError(
                f"{folder}: {missing[0]} is not there, a part of the completions drawn ahead by"
                f" {count} processes; put it there, or remove all {FILE.format(0)[:11]}-* and they"
                " are drawn anew"
            )
        parts: list[dict[str, Any]] = [read_json(path) for path in paths]
        whole = {
            name: [row for part in parts for row in part[name]]
            for name in ("prompt_ids", "tokens", "logps")
        }
        rows = len(whole["tokens"]) // processes
        mine = {name: column[process * rows :][:rows] for name, column in whole.items()}
        self._rollout = parts[0]["rollout"]
        self._prompt_ids = [tuple(ids) for ids in mine["prompt_ids"]]
        self._drawn = Drawn(mine["tokens"], mine["logps"])
