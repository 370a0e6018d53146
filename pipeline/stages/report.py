"""The report, and its place among the trackers."""

from __future__ import annotations

from pipeline.config import Experiment
from pipeline.report import page

# Of the report's files, those that a tracker keeps.
LOGGED = ("index.html", "report.md", "results.json", "results.csv", "reward_kl.png")


def run(experiment: Experiment) -> None:
    """Write the report and log it: its verdict, its files, and what they were made from.

    Raises:
        UserError: see `pipeline.report.page.run`.
    """
    found = page.run(experiment)
    if experiment.tracking.report_to:
        from pipeline.stages import tracking  # brings the trainers' library, which takes seconds

        folder = experiment.stage_dir("report")
        files = [folder / name for name in LOGGED if (folder / name).is_file()]
        tracking.log_report(experiment, files, [found.headline, *found.cautions, *found.reasons])
