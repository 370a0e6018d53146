"""More trackers: trackio, MLflow and SwanLab, each where it needs neither account nor network.

They are backends of `common.tracking.Tracker`, so none of them can end a run. What they keep
without an account: trackio a database that ``trackio show`` reads, MLflow one that ``mlflow ui``
reads, SwanLab files for ``swanlab sync``.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import files
from common.tracking import Rows, Source, cell
from common.words import flatten, json_able

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@contextmanager
def _silently() -> Iterator[None]:
    """Keep a library's greetings off the terminal."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        yield


def _named(text: str) -> str:
    """A name as every tracker takes it."""
    return re.sub(r"[^0-9A-Za-z_\-./ ]", "_", text)


def _png(figure: Figure) -> Any:
    """A figure as a picture of its own."""
    from PIL import Image

    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=150)
    return Image.open(png)


def _sources(made_from: Sequence[Source]) -> dict[str, Any]:
    return {source.name: json_able(dict(source.metadata)) for source in made_from}


class Trackio:
    """A run of trackio: a local database, which ``trackio show`` shows; no account.

    A Space or a server of one's own is used where trackio's variables name one.

    Args:
        project: its project. name: of the run; the same name goes on in the same run. group: what
            runs are shown together. config: settings.
    """

    def __init__(self, project: str, name: str, group: str, config: Mapping[str, Any]) -> None:
        import trackio  # type: ignore[import-not-found]

        self._trackio = trackio
        with _silently():
            self.run = trackio.init(
                project=project,
                name=name,
                group=group,
                config=json_able(dict(config)),
                resume="allow",
                embed=False,
                auto_log_cpu=False,  # a thread of its own, where cores may be few
            )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """See `common.tracking.Backend`."""
        self.run.log(dict(metrics), step=step)

    def table(self, name: str, rows: Rows, step: int) -> None:
        """See `common.tracking.Backend`."""
        columns = list(rows[0])
        plain: Any = [{key: cell(row.get(key)) for key in columns} for row in rows]
        self.run.log({name: self._trackio.Table(data=plain)}, step=step)

    def picture(self, name: str, figure: Figure, step: int) -> None:
        """See `common.tracking.Backend`."""
        self.run.log({name: self._trackio.Image(_png(figure))}, step=step)

    def artifact(self, made: Source, files: Sequence[Path], made_from: Sequence[Source]) -> None:
        """See `common.tracking.Backend`."""
        metadata = {**json_able(dict(made.metadata)), "made_from": _sources(made_from)}
        name = re.sub(r"[^\w.-]", "-", made.name)
        artifact = self._trackio.Artifact(name, type=made.kind, metadata=metadata)
        for path in files:
            artifact.add_file(str(path))
        with _silently():
            self.run.log_artifact(artifact)

    def finish(self, failed: bool) -> None:
        """See `common.tracking.Backend`; trackio knows no failed runs."""
        if failed:
            self.run.log({"failed": 1})
        with _silently():
            self._trackio.finish()


class MLflow:
    """A run of MLflow: in a database beside the outputs unless MLFLOW_TRACKING_URI names another.

    Args:
        folder: where the database and the files go. project: MLflow's experiment. name: of the
            run. group: a tag. config: settings; MLflow keeps those that a run began with.
        keep: a file that holds the run's id, so that a resumed stage goes on in the same run.
    """

    _ours: str | None = None
    """The database that was last chosen here."""

    def __init__(
        self, folder: Path, project: str, name: str, group: str, config: dict[str, Any], keep: Path
    ) -> None:
        # Read when MLflow is imported or used: no usage is sent anywhere, no bar is drawn.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("DO_NOT_TRACK", "true")
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        import mlflow  # type: ignore[import-not-found]

        self._mlflow = mlflow
        asked = os.environ.get("MLFLOW_TRACKING_URI")
        own = asked is None or asked == MLflow._ours  # MLflow writes what is set into the variable
        with _silently():
            if own:
                folder.mkdir(parents=True, exist_ok=True)
                MLflow._ours = f"sqlite:///{folder.absolute() / 'mlflow.db'}"
                mlflow.set_tracking_uri(MLflow._ours)
            place = (folder.absolute() / "files").as_uri() if own else None
            if mlflow.get_experiment_by_name(project) is None:
                mlflow.create_experiment(project, artifact_location=place)
            mlflow.set_experiment(project)
            mlflow.end_run()
            before = self._before(keep)
            self.run = mlflow.start_run(run_id=before, run_name=name, tags={"group": group})
        if before is None:
            files.write_json(keep, {"id": self.run.info.run_id})
            mlflow.log_dict(json_able(config), "settings.json")
            values = {_named(key): str(value) for key, value in flatten(config).items()}
            most = mlflow.utils.validation.MAX_PARAM_VAL_LENGTH
            mlflow.log_params({key: value[:most] for key, value in values.items()})

    def _before(self, keep: Path) -> str | None:
        """The id of the run that is gone on with; None where there is none."""
        with suppress(Exception):  # no such file, not as written here, or a run of another server
            known = str(files.read_json(keep)["id"])
            self._mlflow.get_run(known)
            return known
        return None

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """See `common.tracking.Backend`."""
        self._mlflow.log_metrics({_named(key): x for key, x in metrics.items()}, step=step)

    def table(self, name: str, rows: Rows, step: int) -> None:
        """See `common.tracking.Backend`; the rows of all steps are one table, with their step."""
        columns = {"step": [step] * len(rows)}
        columns |= {key: [cell(row.get(key)) for row in rows] for key in rows[0]}
        self._mlflow.log_table(columns, f"{_named(name)}.json")

    def picture(self, name: str, figure: Figure, step: int) -> None:
        """See `common.tracking.Backend`."""
        self._mlflow.log_figure(figure, f"{_named(name)}-{step}.png")

    def artifact(self, made: Source, files: Sequence[Path], made_from: Sequence[Source]) -> None:
        """See `common.tracking.Backend`."""
        for path in files:
            self._mlflow.log_artifact(str(path), artifact_path=made.kind)
        told = {**json_able(dict(made.metadata)), "made_from": _sources(made_from)}
        self._mlflow.log_dict(told, f"{made.kind}/made-from.json")

    def finish(self, failed: bool) -> None:
        """See `common.tracking.Backend`."""
        with _silently():
            self._mlflow.end_run("FAILED" if failed else "FINISHED")


class SwanLab:
    """A run of SwanLab: online with an account, else offline for ``swanlab sync``.

    Args:
        folder: where its files go. project, name, group: of the run. config: settings.
        run: its id; a resumed stage goes on under it.
    """

    def __init__(
        self, folder: Path, project: str, name: str, group: str, config: dict[str, Any], run: str
    ) -> None:
        import swanlab  # type: ignore[import-not-found]

        self._swanlab = swanlab
        account = swanlab.Settings().api_key is not None
        mode: Any = os.environ.get("SWANLAB_MODE") or ("online" if account else "offline")
        folder.mkdir(parents=True, exist_ok=True)
        with _silently():
            if swanlab.has_run():
                swanlab.finish()
            self.run = swanlab.init(
                mode=mode,
                log_dir=str(folder.absolute()),
                project=project,
                name=name,
                group=group,
                id=run,
                resume="allow",
                config=json_able(config),
            )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """See `common.tracking.Backend`."""
        self._swanlab.log(dict(metrics), step=step)

    def table(self, name: str, rows: Rows, step: int) -> None:
        """See `common.tracking.Backend`."""
        columns = list(rows[0])
        cells = [
            ["" if (x := cell(row.get(key))) is None else x for key in columns] for row in rows
        ]
        table = self._swanlab.echarts.Table()
        table.add(columns, cells)
        self._swanlab.log({name: table}, step=step)

    def picture(self, name: str, figure: Figure, step: int) -> None:
        """See `common.tracking.Backend`."""
        self._swanlab.log({name: self._swanlab.Image(_png(figure))}, step=step)

    def artifact(self, made: Source, files: Sequence[Path], made_from: Sequence[Source]) -> None:
        """See `common.tracking.Backend`; what they are and were made from is a table."""
        for path in files:
            self._swanlab.save(str(path.absolute()), base_path=path.absolute().parent, policy="now")
        rows = [{"what": path.name, "fingerprint": "", "where": str(path)} for path in files]
        rows += [
            {
                "what": f"made from {source.name}",
                "fingerprint": str(source.metadata.get("fingerprint") or ""),
                "where": str(source.metadata.get("folder") or ""),
            }
            for source in made_from
        ]
        self.table(f"{made.kind}/files", rows, 0)

    def finish(self, failed: bool) -> None:
        """See `common.tracking.Backend`."""
        with _silently():
            if failed:
                self._swanlab.finish(state="crashed", error="the stage failed")
            else:
                self._swanlab.finish()
