"""`rlhf sweep`: policies × β × seeds, resumed where it was stopped."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from common.parser import Parser
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.sweep.schedule import Runner
    from pipeline.sweep.spec import Sweep


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        raises=UserError,
        prog="rlhf sweep",
        description="Train and measure every policy at every β from every seed of the config's"
        " section `sweep`. SFT and the rewards are made once and shared; each trial is an ordinary"
        " experiment in <output_dir>/trials/<name>, with its config.yaml and log.txt. A trial that"
        " fails stops nothing; the same command repeats only what is not finished.",
        epilog="The numbers are <output_dir>/sweep.json and sweep.csv, the page is"
        " <output_dir>/report/index.html; all are kept up to date while the sweep runs.",
    )
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="a YAML file")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings that replace the file's"
    )
    parser.add_argument("--jobs", type=int, metavar="N", help="processes side by side: sweep.jobs")
    parser.add_argument("--runner", choices=("local", "ray"), help="where trials run: sweep.runner")
    parser.add_argument("--list", action="store_true", help="list the trials and how they stand")
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="remove and redo what another config made: trials and shared stages",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is not finished, write the numbers and the page; 1 where a trial failed.

    Raises:
        UserError: the config is no sweep, another process works on it, or a folder in it was made
            with another config.
    """
    arguments = _parser().parse_intermixed_args(argv)
    overrides = list(arguments.overrides)
    overrides += [] if arguments.jobs is None else [f"sweep.jobs={arguments.jobs}"]
    overrides += [] if arguments.runner is None else [f"sweep.runner={arguments.runner}"]
    from pipeline import runner
    from pipeline.sweep import spec
    from pipeline.sweep.status import Status

    sweep = spec.read(arguments.config, overrides)
    if arguments.list:
        Status(sweep).tell()
        return 0
    with runner.lock(sweep.folder):
        return _run(sweep, arguments.overwrite)


def _run(sweep: Sweep, overwrite: bool) -> int:
    from pipeline.output.console import say
    from pipeline.sweep import schedule
    from pipeline.sweep.status import Status
    from pipeline.sweep.table import Board

    status = Status(sweep)
    for folder in status.made_otherwise(overwrite):
        say(f"sweep: removing {folder}")
        shutil.rmtree(folder)
    jobs, done = sweep.jobs(), status.done()
    for line in sweep.left_out:
        say(f"sweep: {line}")
    say(f"sweep: {len(jobs)} jobs, {len(done)} of them finished before; {sweep.folder}")
    status.write_configs()
    status.write(done)
    if len(done) < len(jobs):
        runner = runner_of(sweep)
        with Board(jobs, done, status.facts) as board:
            watcher = status.watched_by(board)
            failed = schedule.work_off(jobs, done, runner, watcher, lambda: status.write(done))
    else:
        failed = set[str]()
    page = status.write(done, page_too=True)
    say(f"sweep: {page}")
    if failed:
        names = ", ".join(job.name for job in jobs if job.name in failed)
        say(f"sweep: {len(failed)} of {len(jobs)} failed: {names}; run the same command to retry")
    return 1 if failed else 0


def runner_of(sweep: Sweep) -> Runner:
    """What runs the trials."""
    from pipeline.sweep import local

    section = sweep.section
    if section.runner == "local":
        return local.Local(section.jobs, local.environment(section.threads, section.jobs))
    from pipeline.sweep.cluster import Cluster

    threads = section.threads or max(1, int(section.ray.num_cpus))
    return Cluster(section.ray, local.environment(threads, 1))
