"""A compared method is one record: the comparison and the report show it without another edit."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.markers import MarkerStyle
from test_compare import Models, checkpoints, evaluation, experiment

from pipeline.compare import methods
from pipeline.compare.methods import Method
from pipeline.report import figures, page
from pipeline.stages import compare

PROBE = Method("probe", "Probe", "P", "#7a1fa2", "#d9a0f0", stage="probing")


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> Models:
    return Models(monkeypatch)


def test_a_new_method_is_one_record(
    tmp_path: Path,
    models: Models,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(methods, "METHODS", (*methods.METHODS, PROBE))
    monkeypatch.setattr(
        compare,
        "evaluate_policy",
        lambda policy, *args, **kwargs: evaluation(
            name := Path(policy).parent.name,
            kwargs["samples_per_prompt"],
            float(name != "sft"),
            0.5,
        ),
    )
    exp = checkpoints(experiment(tmp_path), "sft", "ppo", "dpo", "probing")
    compare.run(exp)
    assert "\nProbe  " in capsys.readouterr().out
    results = json.loads((tmp_path / "compare" / "results.json").read_text())
    numbers = results["methods"]["probe"]
    assert set(numbers) == set(results["methods"]["ppo"]) and numbers["kl"] > 0
    sample = json.loads((tmp_path / "compare" / "samples.jsonl").read_text().split("\n")[0])
    assert sample["completions"]["probe"].startswith("probing text 0")

    page.run(exp)
    html = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert "--probe: #7a1fa2;" in html and "--probe: #d9a0f0;" in html
    table = html[html.index("<h2>All numbers</h2>") : html.index("<h2>The picture</h2>")]
    assert re.search(r'background: var\(--probe\)"></span>Probe</th><td>', table)
    assert "#7a1fa2" not in "".join(re.findall(r"<svg.*?</svg>", html, flags=re.S))
    assert "<li>Probe: the judge calls" in html and "Ship Probe" not in html
    text = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    # Among all numbers, at KL efficiency, and under every prompt.
    assert text.count("\n| Probe |") == 2 + page.SAMPLES
    for drawn in (figures.reward_kl(results, {}, []), figures.proxy_gold(results, [])):
        assert drawn is not None
        assert has_mark(drawn, PROBE)
        assert not has_mark(drawn, replace(PROBE, marker="X"))


def has_mark(drawn: Figure, method: Method) -> bool:
    """True when a point with the method's marker and colour is in the picture."""
    style = MarkerStyle(method.marker)
    outline = style.get_path().transformed(style.get_transform()).vertices
    return any(
        to_rgba(method.colour) in map(tuple, np.asarray(points.get_facecolor()))
        and any(np.array_equal(path.vertices, outline) for path in points.get_paths())
        for points in drawn.axes[0].collections
    )
