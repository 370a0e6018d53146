"""A reward service that dies while PPO runs, from the command line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults.conftest import Run
from tests.service import Reply, Service

ROLLOUTS = 4


def letters(number: int, body: dict[str, Any]) -> Reply:
    return Reply({"scores": [0.2 * text.count("o") for text in body["completions"]]})


def scored_by(run: Run, service: Service) -> Run:
    """``run`` with the service for its reward, which is measured."""
    shutil.rmtree(run.folder / "reward")
    run.words += [f"reward.source={service.url}", "reward.retries=1", "reward.concurrency=2"]
    words = ["reward", *run.command()[1:]]
    assert run.nursery.wait(run.nursery.start(run.log, "rlhf", *words)) == 0, run.text()
    return run


@pytest.mark.slow
def test_a_dead_service_is_one_line_and_the_run_goes_on_when_it_is_back(
    make_run: Callable[..., Run], tmp_path: Path
) -> None:
    with Service(letters) as service:
        undisturbed = scored_by(make_run("undisturbed", ROLLOUTS), service)
        code, text = undisturbed.finish()
        assert code == 0, text
        run = scored_by(make_run("run", ROLLOUTS), service)
        saved = run.checkpoints / "checkpoint-8" / "complete.json"

        def dies(number: int, body: dict[str, Any]) -> Reply:
            if not saved.exists():
                return letters(number, body)
            service.close()
            return Reply(drop=True)

        service.answer = dies
        code, text = run.finish()
    assert code == 2, text
    assert "Traceback" not in text
    (error,) = [line for line in text.splitlines() if line.startswith("error: ")]
    kept = run.checkpoints / "failed-rollout-8.json"
    assert f"reward.source: {service.url}: failed 2 times, at last with ConnectionError" in error
    assert str(kept) in error
    assert len(json.loads(kept.read_text(encoding="utf-8"))["completions"]) == 32
    assert run.steps() == [4, 8]
    with Service(letters, port=service.port):
        code, text = run.finish()
    assert code == 0, text
    assert run.weights() == undisturbed.weights()
