"""The terminal while a run works: progress with time left, and lines of key numbers.

Everything goes to stderr, so that what a command prints as its result can be piped.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from transformers import TrainerCallback

from common.progress import Bar, on_terminal
from common.words import json_able, stopwatch
from pipeline.output.console import is_main_process, say

T = TypeVar("T")

# Seconds between two plain progress lines where the terminal cannot redraw one.
PLAIN_INTERVAL = 15.0

# The numbers worth a glance, in the order they are printed: metric name → short name.
KEY_NUMBERS = {
    "objective/scores": "score",
    "objective/kl_exact": "kl",
    "objective/rlhf_reward": "rlhf_reward",
    "objective/entropy": "entropy",
    "policy/clipfrac_avg": "clipfrac",
    "policy/approxkl_avg": "approxkl",
    "loss/value_avg": "value_loss",
    "val/explained_variance": "explained_var",
    "loss": "loss",
    "eval_scores": "eval_score",
    "eval_kl": "eval_kl",
    "eval_gold": "eval_gold",
    "eval_loss": "eval_loss",
    "eval_accuracy": "eval_acc",
    "mean_token_accuracy": "token_acc",
    "rewards/accuracies": "pair_acc",
    "rewards/margins": "margin",
    "learning_rate": "lr",
}


class Meter:
    """Progress with time left on stderr: one redrawn line on a terminal, else a plain line every
    `PLAIN_INTERVAL` seconds. ``total`` None means unknown; ``done`` steps were made before."""

    def __init__(self, label: str, total: int | None, done: int = 0, leave: bool = True) -> None:
        """See the class."""
        self.label, self.total, self.done, self.leave = label, total, done, leave
        self._first = done
        self._start = self._shown = time.monotonic()
        self._bar = Bar(label, total, done) if on_terminal() else None

    def update(self, steps: int, show: bool = True) -> None:
        """Count ``steps`` more; ``show`` False leaves the plain line to a `line` that follows."""
        self.done += steps
        if self._bar is not None:
            count = f"{self.done}/{self.total}" if self.total else str(self.done)
            self._bar.update(self.done, count)
        elif show and time.monotonic() - self._shown >= PLAIN_INTERVAL:
            self.line("")

    def line(self, text: str) -> None:
        """Print ``text`` with the place the run is at."""
        self._shown = time.monotonic()
        say(f"{self.label} {self.where()}" + (f" · {text}" if text else ""))

    def where(self) -> str:
        """Return e.g. ``12/48, 3:10 left``."""
        if not self.total:
            return str(self.done)
        made = self.done - self._first
        left = self.total - self.done
        if made <= 0 or left <= 0:
            return f"{self.done}/{self.total}"
        seconds = (time.monotonic() - self._start) / made * left
        return f"{self.done}/{self.total}, {stopwatch(seconds)} left"

    def close(self) -> None:
        """End the bar; on a plain terminal a step that took long says how long."""
        if self._bar is not None:
            self._bar.close(self.leave)
        elif self.leave and time.monotonic() - self._start >= PLAIN_INTERVAL:
            say(f"{self.label} {self.done} done in {stopwatch(time.monotonic() - self._start)}")


def progress(iterable: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
    """Yield from ``iterable`` and show progress with time left on stderr.

    ``total`` defaults to ``len(iterable)`` where it has one. Silent on other ranks.
    """
    if not is_main_process():
        yield from iterable
        return
    if total is None and hasattr(iterable, "__len__"):
        total = len(iterable)  # pyright: ignore[reportArgumentType]
    meter = Meter(label, total)
    try:
        for item in iterable:
            yield item
            meter.update(1)
    finally:
        meter.close()


def printable(cell: Any) -> str:
    """Return one line for a cell: generated text may hold newlines and terminal control codes."""
    text = f"{cell:.3g}" if isinstance(cell, float) else str(cell)
    return "".join(c if c.isprintable() else " " for c in text)


class Terminal(TrainerCallback):
    """A bar over the optimizer steps with the time left, and a line of key numbers a log event."""

    def __init__(self, label: str) -> None:
        """``label`` opens every line."""
        self.label = label
        self.steps: Meter | None = None
        self.evaluation: Meter | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Open the bar, at the step a resumed run goes on from."""
        if state.is_world_process_zero:
            self.steps = Meter(self.label, state.max_steps, done=state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the bar."""
        if self.steps is not None:
            self.steps.update(state.global_step - self.steps.done)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Print the key numbers among ``logs``."""
        if not state.is_world_process_zero or not logs:
            return
        text = key_numbers(logs)
        if not text:
            return
        if self.steps is None:  # evaluate() without train()
            say(f"{self.label} · {text}")
        else:
            self.steps.update(state.global_step - self.steps.done, show=False)
            self.steps.line(text)

    def on_prediction_step(
        self, args: Any, state: Any, control: Any, eval_dataloader: Any = None, **kwargs: Any
    ) -> None:
        """Move the evaluation's bar."""
        if not state.is_world_process_zero:
            return
        if self.evaluation is None:
            total = len(eval_dataloader) if hasattr(eval_dataloader, "__len__") else None
            self.evaluation = Meter(f"{self.label} evaluation", total, leave=False)
        self.evaluation.update(1)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the evaluation's bar."""
        if self.evaluation is not None:
            self.evaluation.close()
            self.evaluation = None

    def on_predict(
        self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any
    ) -> None:
        """Close the bar of a prediction run."""
        self.on_evaluate(args, state, control)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the bar."""
        if self.steps is not None:
            self.steps.close()
            self.steps = None


def key_numbers(logs: dict[str, Any]) -> str:
    """Return ``logs``' key numbers as one line, e.g. ``score 1.84  kl 0.72``; may be empty."""
    parts = []
    for name, short in KEY_NUMBERS.items():
        value = json_able(logs[name]) if name in logs else None
        if isinstance(value, int | float):
            parts.append(f"{short} {value:.3g}")
        elif name in logs:
            parts.append(f"{short} {logs[name]}")
    # The learning rate alone says nothing about how a run goes.
    return "  ".join(parts) if len(parts) > 1 or "learning_rate" not in logs else ""
