"""Where curves, tables and pictures go beside a run's own files: Weights & Biases, TensorBoard.

Others are in `common.trackers`.

A tracker is a guest. Without an account Weights & Biases logs offline; nothing asks a question or
waits for long; whatever goes wrong costs one warning line and never the run.
"""

from __future__ import annotations

import io
import json
import math
import netrc
import os
import re
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from common import files
from common.words import first_line, json_able

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Seconds. An account whose server does not answer must not hold a run up.
ONLINE_TIMEOUT = 20.0
FINISH_TIMEOUT = 60.0
Say = Callable[[str], None]
Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Source:
    """What something was made from.

    Attributes:
        name: of it among the tracker's. kind: such as ``policy``. metadata: what tells it from
            others of its name, such as a fingerprint.
    """

    name: str
    kind: str
    metadata: Mapping[str, Any]


class Backend(Protocol):
    """What a tracker can take; a step is an optimizer's or an environment's."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take a point of every curve in ``metrics``."""

    def table(self, name: str, rows: Rows, step: int) -> None:
        """Take rows with the same keys, as a table."""

    def picture(self, name: str, figure: Figure, step: int) -> None:
        """Take a matplotlib figure."""

    def artifact(self, made: Source, files: Sequence[Path], made_from: Sequence[Source]) -> None:
        """Take files that the run made, and what they were made from."""

    def finish(self, failed: bool) -> None:
        """Write what is left; a run that failed is shown as failed."""


class Tracker:
    """A backend that cannot end a run; one that failed takes no more, and is only finished.

    Args:
        title: what messages call it. start: makes the backend. say: takes the one warning line.
    """

    def __init__(self, title: str, start: Callable[[], Backend], say: Say) -> None:
        self.title, self._say, self._failed = title, say, False
        self.backend: Backend | None = None

        def begin() -> None:
            self.backend = start()

        self.guard(begin)

    def guard(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """Call ``call``; the first error costs a warning line, later ones nothing."""
        try:
            call(*args, **kwargs)
        except Exception as error:  # whatever a guest does wrong, the run goes on
            if not self._failed:
                self._failed = True
                reason = first_line(error).rstrip(".")
                self._say(f"warning: {self.title}: {reason}. Going on without it.")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """See `Backend`; what is not finite is left out."""
        if self.backend is not None and not self._failed:
            finite = {name: float(x) for name, x in metrics.items() if math.isfinite(x)}
            self.guard(self.backend.log, step, finite)

    def table(self, name: str, rows: Rows, step: int) -> None:
        """See `Backend`."""
        if self.backend is not None and not self._failed and rows:
            self.guard(self.backend.table, name, rows, step)

    def picture(self, name: str, draw: Callable[[], Figure | None], step: int) -> None:
        """See `Backend`; drawn here, so that a mistake in the drawing costs no run either."""

        def send() -> None:
            figure = draw()
            if figure is not None and self.backend is not None:
                self.backend.picture(name, figure, step)

        if self.backend is not None and not self._failed:
            self.guard(send)

    def artifact(self, made: Source, files: Sequence[Path], made_from: Sequence[Source]) -> None:
        """See `Backend`."""
        if self.backend is not None and not self._failed:
            self.guard(self.backend.artifact, made, files, made_from)

    def finish(self, failed: bool = False) -> None:
        """See `Backend`."""
        if self.backend is not None:
            self.guard(self.backend.finish, failed)
            self.backend = None


class WeightsAndBiases:
    """A run of Weights & Biases: online with an account, else offline for ``wandb sync``.

    Args:
        folder: where its files go. config: settings to be shown beside the curves.
        run: arguments of ``wandb.init``: project, group, name, id, job_type.
        axis: name of the metric that curves are drawn over.
        shared: make it the process's own run, which a Trainer's callback then joins.
        say: takes a warning line.
    """

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        run: Mapping[str, Any],
        *,
        axis: str,
        shared: bool,
        say: Say,
    ) -> None:
        os.environ.setdefault("WANDB_SILENT", "true")
        try:
            import wandb
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(f"{error}: pip install wandb") from error

        mode = os.environ.get("WANDB_MODE") or ("online" if has_account(wandb) else "offline")
        folder = folder.absolute()
        folder.mkdir(parents=True, exist_ok=True)
        arguments = {
            **run,
            "resume": "allow",
            "reinit": "finish_previous" if shared else "create_new",
            "dir": str(folder),
            "config": dict(config),
        }
        try:
            self.run = _start(wandb, mode, arguments)
        except Exception as error:
            if mode != "online":
                raise
            # An account, but no way to reach it: the offline files can be sent later.
            reason = first_line(error).rstrip(".")
            say(f"warning: Weights & Biases: {reason}. Logging offline instead.")
            wandb.teardown()
            self.run = _start(wandb, "offline", arguments)
        self._wandb, self._axis = wandb, axis
        self.run.define_metric(axis)
        self.run.define_metric("*", step_metric=axis, step_sync=True)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """See `Backend`."""
        self.run.log({self._axis: step, **metrics})

    def table(self, name: str, rows: Rows, step: int) -> None:
        """See `Backend`."""
        columns: list[Any] = list(rows[0])
        cells = [[cell(row.get(column)) for column in columns] for row in rows]
        table = self._wandb.Table(columns=columns, data=cells, allow_mixed_types=True)
        self.run.log({name: table, self._axis: step})

    def picture(self, name: str, figure: Figure, step: int) -> None:
        """See `Backend`."""
        from PIL import Image

        png = io.BytesIO()
        figure.savefig(png, format="png", dpi=150)
        self.run.log({name: self._wandb.Image(Image.open(png)), self._axis: step})

    def artifact(self, made: Source, files: Sequence[Path], made_from: Sequence[Source]) -> None:
        """See `Backend`; the sources stand in the metadata, and with an account in the lineage.

        A source is an artifact of its own: its metadata as a file, as no weights are sent.
        """
        sources = {source.name: dict(source.metadata) for source in made_from}
        artifact = self._artifact(made, {"made_from": sources})
        for path in files:
            artifact.add_file(str(path))
        if not self.run.offline:  # offline there is nobody to ask which version a source is
            drafts = []
            for source in made_from:
                drafts.append(self._artifact(source))
                with drafts[-1].new_file("source.json") as file:
                    json.dump(json_able(dict(source.metadata)), file)
            _within(ONLINE_TIMEOUT, lambda: [self.run.use_artifact(draft) for draft in drafts])
        self.run.log_artifact(artifact)

    def _artifact(self, what: Source, more: Mapping[str, Any] | None = None) -> Any:
        name = re.sub(r"[^\w.-]", "-", what.name)
        metadata = json_able({**what.metadata, **(more or {})})
        return self._wandb.Artifact(name, type=what.kind, metadata=metadata)

    def finish(self, failed: bool) -> None:
        """See `Backend`."""
        self.run.finish(exit_code=1 if failed else 0)


class TensorBoard:
    """Event files in ``folder``, for ``tensorboard --logdir``.

    Args:
        name: what the settings are called. config: the settings, as a table of text.
        resume: go on in the curves that are there; else they are removed.
    """

    def __init__(self, folder: Path, name: str, config: Mapping[str, Any], resume: bool) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(f"{error}: pip install tensorboard") from error
        if not resume:
            for old in folder.glob("events.out.tfevents.*"):
                old.unlink()
        self.writer = SummaryWriter(str(folder))
        rows = [{"setting": key, "value": value} for key, value in config.items()]
        self.table(name, rows, 0)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """See `Backend`."""
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, step)

    def table(self, name: str, rows: Rows, step: int) -> None:
        """See `Backend`; TensorBoard shows Markdown."""
        if rows:
            lines = [list(rows[0]), ["---"] * len(rows[0])]
            lines += [[row.get(column) for column in rows[0]] for row in rows]
            text = "\n".join("| " + " | ".join(map(_in_markdown, line)) + " |" for line in lines)
            self.writer.add_text(name, text, step)

    def picture(self, name: str, figure: Figure, step: int) -> None:
        """See `Backend`."""
        self.writer.add_figure(name, figure, step, close=False)

    def artifact(self, made: Source, files: Sequence[Path], made_from: Sequence[Source]) -> None:
        """See `Backend`; TensorBoard keeps no files, so that they are named in a text."""
        rows = [{"what": path.name, "fingerprint": "", "where": str(path)} for path in files]
        rows += [
            {
                "what": f"made from {source.name}",
                "fingerprint": source.metadata.get("fingerprint"),
                "where": source.metadata.get("folder"),
            }
            for source in made_from
        ]
        self.table(f"{made.kind}/files", rows, 0)

    def finish(self, failed: bool) -> None:
        """See `Backend`; TensorBoard knows no failed runs."""
        self.writer.close()


def has_account(wandb: Any) -> bool:
    """True when W&B would find credentials without asking: a variable, or a line in netrc."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    custom = os.environ.get("WANDB_BASE_URL")
    urls = [custom] if custom else [wandb.Settings().base_url, "https://api.wandb.ai"]
    names = [os.environ["NETRC"]] if os.environ.get("NETRC") else ["~/.netrc", "~/_netrc"]
    for name in names:
        try:
            hosts = netrc.netrc(os.path.expanduser(name)).hosts
        except (OSError, netrc.NetrcParseError):
            continue
        if any(urlsplit(url).netloc in hosts for url in urls):
            return True
    return False


def run_id(path: Path, resume: bool = True) -> str:
    """The id of the run whose file ``path`` is, a new one without ``resume`` or such a file."""
    if resume and path.is_file():
        with suppress(ValueError, KeyError, TypeError):  # not as it was written here
            return str(files.read_json(path)["id"])
    new = secrets.token_hex(4)
    files.write_json(path, {"id": new})
    return new


def _within(seconds: float, work: Callable[[], Any]) -> None:
    """Do ``work`` in a thread and wait no longer than this for it; its error is raised here."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # raised below, where somebody listens
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if thread.is_alive():
        raise TimeoutError(f"no answer in {seconds:g} s")


def _start(wandb: Any, mode: str, arguments: Mapping[str, Any]) -> Any:
    return wandb.init(
        **arguments,
        mode=mode,
        settings=wandb.Settings(
            silent=True,
            console="off",  # do not stand between the program and its own output
            disable_git=True,  # the run's own record has the commit
            init_timeout=ONLINE_TIMEOUT,
            login_timeout=ONLINE_TIMEOUT,
            finish_timeout=FINISH_TIMEOUT,
            # Sampling the machine every few seconds takes a core from training where cores are few.
            x_disable_stats=mode == "offline",
        ),
    )


def cell(value: Any) -> Any:
    """Return a value as a table of any tracker holds it: a number, text, or None."""
    value = json_able(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


def _in_markdown(value: Any) -> str:
    plain = cell(value)
    return " ".join(str("" if plain is None else plain).split()).replace("|", "\\|")
