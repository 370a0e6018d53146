"""Curves for Weights & Biases or TensorBoard, beside the run's own files.

A tracker is a guest: without an account Weights & Biases logs offline, nothing asks a question, and
whatever goes wrong costs one warning line and never the run.
"""

from __future__ import annotations

import math
import netrc
import os
import secrets
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

from classic_rl.results import write_bytes

TrackerName = Literal["wandb", "tensorboard"]
# Seconds. An account whose server does not answer must not hold a run up.
ONLINE_TIMEOUT = 20.0
FINISH_TIMEOUT = 60.0


class Backend(Protocol):
    """Where curves go."""

    def log(self, steps: int, metrics: Mapping[str, float]) -> None:
        """Take a point of every curve in ``metrics``, at ``steps`` environment steps."""

    def finish(self, complete: bool) -> None:
        """Write what is left; ``complete`` is False for a run that was interrupted."""


class Tracker:
    """One run's tracker.

    Args:
        name: ``"wandb"`` or ``"tensorboard"``. folder: the run's. group, run: how it is called.
        config: its settings, to be shown beside the curves.
        resume: go on in the curves of the same folder.
    """

    def __init__(
        self,
        name: TrackerName,
        folder: Path,
        *,
        group: str,
        run: str,
        config: Mapping[str, Any],
        resume: bool = False,
    ) -> None:
        self.title = {"wandb": "Weights & Biases", "tensorboard": "TensorBoard"}[name]
        self.backend: Backend | None = None
        backend = WeightsAndBiases if name == "wandb" else TensorBoard
        self._guarded(self._open, backend, folder, group, run, config, resume)

    def log(self, steps: int, metrics: Mapping[str, float]) -> None:
        """Log what is a finite number in ``metrics``. Never raises."""
        if self.backend is not None:
            finite = {name: float(x) for name, x in metrics.items() if math.isfinite(x)}
            self._guarded(self.backend.log, steps, finite)

    def finish(self, complete: bool = True) -> None:
        """End the run's curves. Never raises."""
        if self.backend is not None:
            self._guarded(self.backend.finish, complete)

    def _open(self, backend: Callable[..., Backend], *arguments: Any) -> None:
        self.backend = backend(*arguments)

    def _guarded(self, call: Callable[..., None], *arguments: Any) -> None:
        try:
            call(*arguments)
        except Exception as error:  # whatever a guest does wrong, the run goes on
            self.backend = None
            reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
            line = f"warning: {self.title}: {reason}. Going on without it."
            print(("\r\033[K" if sys.stderr.isatty() else "") + line, file=sys.stderr)


class WeightsAndBiases:
    """A run of Weights & Biases: online with an account, else offline for ``wandb sync``."""

    def __init__(
        self, folder: Path, group: str, run: str, config: Mapping[str, Any], resume: bool
    ) -> None:
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        mode = os.environ.get("WANDB_MODE") or ("online" if _has_account(wandb) else "offline")
        names = {
            "project": os.environ.get("WANDB_PROJECT", "classic-rl"),
            "group": group,
            "name": run,
            "id": _run_id(folder, resume),
        }
        try:
            self.run = _start(wandb, folder, mode, config, names)
        except Exception:
            if mode != "online":
                raise
            # An account, but no way to reach it: the offline files can be sent later.
            wandb.teardown()
            self.run = _start(wandb, folder, "offline", config, names)
        self.run.define_metric("environment_steps")
        self.run.define_metric("*", step_metric="environment_steps")

    def log(self, steps: int, metrics: Mapping[str, float]) -> None:
        """See `Backend`."""
        self.run.log({"environment_steps": steps, **metrics})

    def finish(self, complete: bool) -> None:
        """See `Backend`."""
        self.run.finish(exit_code=0 if complete else 1)


class TensorBoard:
    """Event files in ``tensorboard/`` of the run's folder, for ``tensorboard --logdir``."""

    def __init__(
        self, folder: Path, group: str, run: str, config: Mapping[str, Any], resume: bool
    ) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(f"{error}: pip install tensorboard") from error
        target = folder / "tensorboard"
        if not resume:  # the curves of a run that this one replaces
            for old in target.glob("events.out.tfevents.*"):
                old.unlink()
        self.writer = SummaryWriter(str(target))
        rows = "".join(f"| {name} | {value} |\n" for name, value in config.items())
        self.writer.add_text(f"{group}/{run}", "| setting | value |\n| --- | --- |\n" + rows)

    def log(self, steps: int, metrics: Mapping[str, float]) -> None:
        """See `Backend`."""
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, steps)

    def finish(self, complete: bool) -> None:
        """See `Backend`."""
        self.writer.close()


def _start(
    wandb: Any, folder: Path, mode: str, config: Mapping[str, Any], names: Mapping[str, str]
) -> Any:
    return wandb.init(
        **names,
        resume="allow",
        reinit="create_new",
        mode=mode,
        dir=str(folder.absolute()),
        config=dict(config),
        settings=wandb.Settings(
            silent=True,
            console="off",  # do not stand between the program and its own output
            init_timeout=ONLINE_TIMEOUT,
            login_timeout=ONLINE_TIMEOUT,
            finish_timeout=FINISH_TIMEOUT,
            # Sampling the machine takes a core from training where cores are few.
            x_disable_stats=mode == "offline",
        ),
    )


def _has_account(wandb: Any) -> bool:
    """Whether credentials would be found without asking: a variable, or a line in netrc."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or wandb.Settings().base_url).netloc
    for name in [os.environ["NETRC"]] if os.environ.get("NETRC") else ["~/.netrc", "~/_netrc"]:
        try:
            if host in netrc.netrc(os.path.expanduser(name)).hosts:
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False


def _run_id(folder: Path, resume: bool) -> str:
    """The id of the folder's run, so that a resumed one goes on in it."""
    path = folder / "wandb-id"
    if resume and path.is_file():
        return path.read_text(encoding="ascii").strip()
    run_id = secrets.token_hex(4)
    write_bytes(path, f"{run_id}\n".encode())
    return run_id
