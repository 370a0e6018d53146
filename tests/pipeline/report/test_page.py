"""The report: what it says for which numbers, and that text in it stays text."""

from __future__ import annotations

import copy
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipeline.compare import methods, wording
from pipeline.config.stages import stages_with
from pipeline.errors import UserError
from pipeline.report import figures, page, pictures, plotting

EVIL = '<script>alert(1)</script> | a | "b" & *c* `d`\n# e \x1b[2J'

STAGES = ("sft", "reward", "ppo", "dpo", "compare")
DRAWN = {
    "reward_kl", "optimality", "cost", "proxy_gold", "gold_kl", "calibration", "optimum",
    "training_rollouts", "training_pairs", "training_texts",
}  # fmt: skip
RESULTS: dict[str, Any] = {
    "beta": 1.0,
    "methods": {
        "sft": {
            "reward": 0.98, "gold": 0.91, "gold_positive": 0.58, "kl": 0.0, "objective": 0.98,
            "optimality": 0.0, "optimality_ci": [0.0, 0.0], "perplexity": 74.2, "distinct_1": 0.41,
            "distinct_2": 0.86, "length": 18.6, "ended": 0.21,
        },
        "ppo": {
            "reward": 4.02, "gold": 3.1, "gold_positive": 0.9, "kl": 1.05, "objective": 2.97,
            "optimality": 0.76, "optimality_ci": [0.7, 0.82], "kl_efficiency": 0.62,
            "perplexity": 78.0, "distinct_1": 0.37, "distinct_2": 0.8,
            "length": 18.2, "ended": 0.24,
        },
        "dpo": {
            "reward": 3.05, "gold": 2.6, "gold_positive": 0.82, "kl": 0.74, "objective": 2.31,
            "optimality": 0.51, "optimality_ci": [0.44, 0.58], "kl_efficiency": 0.37,
            "perplexity": 76.1, "distinct_1": 0.39, "distinct_2": 0.83,
            "length": 18.9, "ended": 0.2,
        },
        "best_of_n": {
            "reward": 4.1, "gold": 3.35, "gold_positive": 0.94, "kl": 1.2, "objective": 2.9,
            "optimality": 0.73, "optimality_ci": [0.68, 0.78], "kl_efficiency": None,
            "perplexity": None, "distinct_1": 0.4, "distinct_2": 0.85,
            "length": 18.4, "ended": 0.22,
        },
    },
    "frontier": [
        {"beta": b, "kl": k, "reward": r, "ess": e, "trusted": True}
        for b, k, r, e in (
            (0.1, 3.1, 5.35, 2.1), (0.2, 2.6, 5.28, 2.9), (0.35, 2.1, 5.12, 4.2),
            (0.5, 1.75, 5.0, 6.0), (0.7, 1.4, 4.85, 9.1), (1.0, 1.0, 4.65, 15.0),
            (1.5, 0.66, 4.1, 24.0), (2.0, 0.45, 3.7, 33.0), (3.0, 0.26, 3.0, 44.0),
            (5.0, 0.12, 2.2, 55.0), (10.0, 0.035, 1.55, 62.0),
        )
    ],
    "prompts": 64,
    "samples_per_prompt": 8,
}  # fmt: skip
TEXTS = {
    "sft": " , but the plot never quite decides what it wants to be and",
    "ppo": " a warm , funny and beautifully acted film that stays with you .",
    "dpo": " an engaging and thoughtful story with a strong central performance",
    "best_of_n": " one of the most charming and surprising comedies of the year .",
}


def write(path: Path, value: Any) -> None:
    """Write JSON, or JSON lines for a list."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = value if isinstance(value, list) else [value]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def histories(rng: np.random.Generator) -> dict[str, list[dict[str, Any]]]:
    """Training curves as the three trainers log them."""
    ppo = []
    for step in range(1, 49):
        t = 1 - math.exp(-step / 18)
        noise = rng.normal(size=5)
        ppo.append({
            "step": step, "epoch": step / 48, "time": 1.7e9 + step,
            "objective/scores": 0.3 + 3.6 * t + 0.25 * noise[0],
            "objective/kl_exact": max(0.0, 1.1 * t + 0.06 * noise[1]),
            "objective/entropy": 58 - 14 * t + noise[2],
            "policy/clipfrac_avg": max(0.0, 0.09 + 0.03 * noise[3]),
            "val/explained_variance": 0.75 * t + 0.04 * noise[4],
        })  # fmt: skip
        if step % 16 == 0:
            ppo.append({
                "step": step, "eval_scores": 3 * t, "eval_kl": 1.1 * t, "eval_gold": 2 * t,
                "eval_gold_se": 0.2,
            })  # fmt: skip
    sft = [{"step": s, "loss": 4.3 + math.exp(-s / 12)} for s in range(5, 76, 5)]
    dpo = [
        {"step": s, "loss": 0.69 - 0.1 * (1 - math.exp(-s / 20)) + 0.01 * rng.normal(),
         "rewards/accuracies": 0.5 + 0.2 * (1 - math.exp(-s / 20)),
         "rewards/margins": 0.6 * (1 - math.exp(-s / 20))}
        for s in range(4, 64, 4)
    ]  # fmt: skip
    return {"sft": sft, "ppo": ppo, "dpo": dpo}


def fill(folder: Path) -> None:
    """Write a whole experiment's outputs, with plausible made-up numbers."""
    rng = np.random.default_rng(0)
    write(folder / "compare" / "results.json", RESULTS)
    doubling = [(2, 2.1), (4, 2.7), (8, 3.1), (16, 3.4), (32, 3.55), (64, 3.62)]
    write(folder / "compare" / "details.json", {
        "optimum": [{"n": n, "j_star": j, "ess": n / 4} for n, j in doubling],
        "kl_cap": math.log(64), "best_of_n": 8, "judge_is_proxy": False,
        "objective_ref": 0.98, "j_star": 3.62, "j_star_ci": [3.4, 3.84],
        "ppo_minus_dpo": {"optimality": 0.25, "optimality_ci": [0.17, 0.33]},
    })  # fmt: skip
    bins = [(0.05, 0.07, 90), (0.24, 0.3, 22), (0.45, 0.5, 18), (0.66, 0.62, 25), (0.95, 0.92, 160)]
    marks = {
        "accuracy": 0.86, "correlation": 0.79, "ece": 0.021,
        "bins": [{"predicted": p, "positive": q, "texts": n} for p, q, n in bins],
    }  # fmt: skip
    gold = copy.deepcopy(marks) | {"accuracy": 0.85, "correlation": 0.78}
    gold["bins"] = [b | {"positive": 0.95 * b["positive"]} for b in marks["bins"]]
    person = {"accuracy": 0.91, "correlation": 0.74}
    agreement = {"proxy": marks, "gold": gold, "one_rater": person, "proxy_gold_correlation": 0.86}
    write(folder / "reward" / "metrics.json", agreement)
    means = {name: (m["reward"], m["gold"]) for name, m in RESULTS["methods"].items()}
    rows = []
    for i in range(64):
        drawn = {n: rng.normal(size=2) @ np.array([[1.8, 1.5], [0, 0.9]]) + means[n] for n in means}
        rows.append({
            "prompt": ["the film is", "a movie that , at", "this new comedy ,", "it 's a"][i % 4],
            "completions": TEXTS,
            "rewards": {n: float(v[0]) for n, v in drawn.items()},
            "gold": {n: float(v[1]) for n, v in drawn.items()},
        })  # fmt: skip
    write(folder / "compare" / "samples.jsonl", rows)
    for stage, history in histories(rng).items():
        write(folder / stage / "metrics.jsonl", history)
    for stage, seconds in zip(STAGES, (141.2, 96, 402.7, 188, 77), strict=True):
        write(folder / stage / "stage.json", {
            "stage": stage, "status": "finished", "seconds": seconds, "peak_memory_gib": 3.4,
            "seed": 0, "finished": "2026-01-02T03:04:05+00:00", "cores": 2, "accelerator": None,
            "platform": "Linux", "git": {"commit": "0123456789abcdef", "changed": False},
            "versions": {"python": "3.11.9", "torch": "2.13.0", "peft": None},
            "config": {
                "name": "quickstart", "beta": 1.0, "reward": {"source": "sentiment"},
                "model": {"model_name_or_path": "embedded:smollm2-135m-instruct"},
                "data": {"dataset_name": "embedded:movie-reviews"},
            },
        })  # fmt: skip


def experiment(folder: Path, name: str = "quickstart") -> Any:
    """The part of an experiment that the report reads."""
    return SimpleNamespace(
        name=name, output_dir=folder, stage_dir=lambda stage: folder / stage,
        stages=lambda: stages_with({"ppo": "ppo", "dpo": "dpo"}),
    )  # fmt: skip


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    fill(tmp_path)
    return tmp_path


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are made but not turned into SVG and PNG, which takes seconds."""
    monkeypatch.setattr(plotting, "svg", lambda figure, name, own: f'<svg id="{name}"></svg>')
    monkeypatch.setattr(plotting, "png", lambda figure: b"")


class Tags(HTMLParser):
    """Collects tags and what they point at, and checks that they close."""

    VOID = {"meta", "br", "link", "img"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.links: list[tuple[str, str, str]] = []
        self.ids: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        for key, value in attrs:
            if key in ("src", "href", "xlink:href", "srcset", "data", "action"):
                self.links.append((tag, key, value or ""))
            if key == "id":
                self.ids.append(value or "")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_everything_is_written_and_nothing_is_fetched(filled: Path) -> None:
    page.run(experiment(filled))
    folder = filled / "report"
    names = {path.name for path in folder.iterdir()}
    assert names == {"index.html", "report.md", "results.json"} | {f"{n}.png" for n in DRAWN}
    assert json.loads((folder / "results.json").read_text()) == RESULTS
    html = (folder / "index.html").read_text(encoding="utf-8")
    tags = Tags(html)
    assert tags.open == []
    assert len(tags.ids) == len(set(tags.ids)), "ids of inline pictures must not collide"
    assert not tags.names & {"link", "iframe", "object", "embed", "base", "form"}
    script = re.findall(r"<script>(.*?)</script>", html, re.S)
    assert script == [page.source("report.js")] and html.count("<script") == 3
    assert f"script-src '{page.script_hash(script[0])}'" in html and "default-src 'none'" in html
    for tag, key, value in tags.links:
        # Links may lead away when a reader follows them; nothing else may leave the file.
        assert tag == "a" or value.startswith("#"), (tag, key, value)
    assert "@import" not in html and not re.search(r"url\((?!#)", html)
    assert 'name="viewport"' in html and "prefers-color-scheme: dark" in html
    assert len(re.findall(r"<svg ", html)) == len(DRAWN)
    used = set(re.findall(r"var\(--([\w-]+)\)", html))
    assert used <= set(re.findall(r"--([\w-]+):", html)), "a colour that is not defined is black"
    assert (folder / "reward_kl.png").read_bytes().startswith(b"\x89PNG")
    assert len(html) < 1_500_000


def test_generated_text_stays_text(filled: Path, undrawn: None) -> None:
    path = filled / "compare" / "samples.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0]["prompt"] = EVIL
    rows[0]["completions"] = dict.fromkeys(TEXTS, EVIL + "\u2028</td></table>")
    rows[1]["prompt"] = [{"role": "user", "content": EVIL}]
    write(path, rows)
    stage = json.loads((filled / "compare" / "stage.json").read_text())
    stage["config"]["model"]["model_name_or_path"] = EVIL
    write(filled / "compare" / "stage.json", stage)
    page.run(experiment(filled, name=EVIL))
    html = (filled / "report" / "index.html").read_text(encoding="utf-8")
    assert html.count("<script") == html.count("</script>") == 3, "points, answers, the page's own"
    assert "&lt;script&gt;alert(1)" in html and "\\u003cscript\\u003ealert(1)" in html
    answers = re.search(r'id="answers">(.*?)</script>', html, re.S)
    assert answers and json.loads(answers.group(1))["answers"][0][2].startswith(EVIL.split("\n")[0])
    text = (filled / "report" / "report.md").read_text(encoding="utf-8")
    assert "<script" not in text and "</td>" not in text


def tables(text: str) -> list[list[str]]:
    """The tables of a Markdown text, as lists of rows."""
    found: list[list[str]] = []
    before = ""
    for line in text.split("\n"):
        if line.startswith("|"):
            if not before.startswith("|"):
                found.append([])
            found[-1].append(line)
        before = line
    return found


def test_markdown_tables_are_intact(filled: Path, undrawn: None) -> None:
    path = filled / "compare" / "samples.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0]["completions"] = dict.fromkeys(TEXTS, EVIL + "\\|\r\n\n| x |")
    write(path, rows)
    page.run(experiment(filled))
    text = (filled / "report" / "report.md").read_text(encoding="utf-8")
    found = tables(text)
    assert len(found) == 1 + page.SAMPLES + 4
    for table in found:
        widths = {len(re.findall(r"(?<!\\)(?:\\\\)*\|", row)) for row in table}
        assert len(widths) == 1 and re.fullmatch(r"[|:\-]+", table[1]), table
        assert len(table) >= 3
    assert len(found[0]) == 2 + 4
    for name in re.findall(r"!\[.*?\]\((.*?)\)", text):
        assert (filled / "report" / name).is_file()
    assert "\n\n\n\n" not in text


@pytest.mark.parametrize(
    "missing",
    ["compare/details.json", "compare/samples.jsonl", "reward/metrics.json", "ppo/metrics.jsonl",
     "sft/stage.json", "all"],
)  # fmt: skip
def test_what_is_missing_is_left_out(filled: Path, undrawn: None, missing: str) -> None:
    for path in sorted(filled.rglob("*.json*")):
        if missing in ("all", path.relative_to(filled).as_posix()) and path.name != "results.json":
            path.unlink()
    page.run(experiment(filled))
    html = (filled / "report" / "index.html").read_text(encoding="utf-8")
    assert Tags(html).open == []
    assert "None" not in re.sub(r"<svg.*?</svg>|<style.*?</style>", "", html, flags=re.S)
    text = (filled / "report" / "report.md").read_text(encoding="utf-8")
    assert "None" not in text
    assert ("Calibration" in text) == (missing not in ("reward/metrics.json", "all"))


def test_metrics_may_be_null_or_absent(filled: Path, undrawn: None) -> None:
    results = copy.deepcopy(RESULTS)
    for method in results["methods"].values():
        method["gold"] = None
        del method["gold_positive"], method["distinct_1"]
        method["optimality"] = method["optimality_ci"] = None
    results["frontier"] = []
    (filled / "compare" / "details.json").unlink()
    write(filled / "compare" / "results.json", results)
    page.run(experiment(filled))
    html = (filled / "report" / "index.html").read_text(encoding="utf-8")
    assert "has an objective of 2.97, but there is no interval to tell it from SFT" in html
    assert "distinct-2" in html and "distinct-1" not in html and "judge positive" not in html


def test_no_comparison_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"results\.json: not there; run the compare stage"):
        page.run(experiment(tmp_path))
    write(tmp_path / "compare" / "results.json", {"beta": 1})
    with pytest.raises(UserError, match="not a comparison's results"):
        page.run(experiment(tmp_path))
    (tmp_path / "compare" / "results.json").write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        page.run(experiment(tmp_path))
    write(tmp_path / "compare" / "results.json", RESULTS)
    (tmp_path / "compare" / "samples_all.jsonl").write_text('{"prompt": "p"}\n{"pro')
    with pytest.raises(UserError, match=r"samples_all\.jsonl: not JSON lines"):
        page.run(experiment(tmp_path))


def test_numbers_as_they_are_written() -> None:
    assert wording.number(-1.234) == "−1.23"
    assert wording.number(-0.001) == "0.00"
    assert wording.number(None) == "–"
    assert [wording.signed(v) for v in (1.0, 0.001, -1.0)] == ["+1.00", "0.00", "−1.00"]
    assert wording.percent(0.756) == "76\u00a0%"
    assert wording.interval([0.5, 0.61]) == "[50 to 61\u00a0%]"
    assert wording.interval(None) == ""
    assert wording.beta_text(0.05) == "0.05"


def test_kl_efficiency_gives_the_least_kl() -> None:
    rows = {row["method"].name: row for row in page.efficiency(RESULTS)}
    assert rows["ppo"]["least"] == pytest.approx(0.62 * 1.05)
    assert rows["best_of_n"]["least"] is None and rows["best_of_n"]["share"] is None


def test_pictures_take_the_pages_colours() -> None:
    figure = figures.reward_kl(RESULTS)
    assert figure is not None
    text = plotting.svg(figure, "one", pictures.own_colours(RESULTS))
    assert "var(--c1)" in text and methods.PPO.colour not in text
    assert not re.search(r'id="(?!one-)', text)


def test_pictures_and_pages_have_the_same_colours() -> None:
    style = (Path(page.__file__).parent / "templates" / "style.css").read_text(encoding="utf-8")
    light = style[: style.index("@media")]
    for variable, colour in plotting.PALETTE.items():
        assert f"--{variable}: {colour};" in light
        # Dark and light: a variable that is missing in one would be the browser's black.
        assert style.count(f"--{variable}: ") == 2


def test_methods_can_be_told_apart() -> None:
    for looks in ("name", "title", "marker", "colour", "dark"):
        assert len({getattr(m, looks) for m in methods.METHODS}) == len(methods.METHODS)
    colours = [*plotting.PALETTE.values(), *(m.colour for m in methods.METHODS)]
    assert len(set(colours)) == len(colours), "an SVG's colours become variables by their value"
    assert all(re.fullmatch("#[0-9a-f]{6}", colour) for colour in colours)
    assert [m for m in methods.METHODS if m.reference] == [methods.reference()]
