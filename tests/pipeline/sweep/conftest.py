"""The sweep that the tests of whole sweeps look at."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.files import read_json
from pipeline import runner
from pipeline.sweep import command
from tests.nursery import Nursery
from tests.pipeline.sweep.forked import Forked
from tests.pipeline.sweep.told import LAST, SETTINGS, Told, kept


@pytest.fixture(scope="session")
def told(nursery: Nursery, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Told]:
    """A sweep whose last trial cannot work the first time, called three times."""
    folder = tmp_path_factory.mktemp("sweep") / "s"
    words = ["--config", str(tiny), f"output_dir={folder}", *SETTINGS]
    made = Told(folder, words, [], [], {}, "")

    def call() -> None:
        forked = Forked(nursery)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(command, "runner_of", lambda sweep: forked)
            made.codes.append(command.main(words))
        made.started.append(forked.started)

    with runner.lock(folder / "trials" / LAST):
        call()
    made.first = read_json(folder / "sweep.json")
    made.page = (folder / "report" / "index.html").read_text(encoding="utf-8")
    for path in kept(folder):  # a mark, by which a copy is told from a new measurement
        path.write_text(json.dumps(read_json(path) | {"nll": 12.5}), encoding="utf-8")
    call()
    call()
    yield made
