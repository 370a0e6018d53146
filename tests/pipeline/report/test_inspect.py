"""`rlhf inspect`: which rollout it finds, what it shows, and that text on the page stays text."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from pipeline import cli
from pipeline.errors import UserError
from pipeline.ppo.upkeep import journal
from pipeline.report import inspection
from pipeline.report.inspection import QUANTITIES, choose, find_rollouts, page, visible

SCRIPT = "<script>document.title = 'broken into'</script>"
EVIL = (
    SCRIPT, '"><img src=x onerror="alert(1)">', "' onmouseover='alert(1)", "</style></textarea>",
    "<!--", "]]>", "{{ 7 * 7 }}", "&amp;", "javascript:alert(1)",
)  # fmt: skip


def record(step: int, tokens: tuple[str, ...] = (" a", " b", "<eos>"), prompt: str = "Once") -> Any:
    """What the trainer writes of a rollout, with one completion."""
    count = len(tokens)
    columns = {name: [0.25 * (i + 1) for i in range(count)] for name in journal.TOKEN_COLUMNS}
    columns |= {
        "logp": [-1.0 - i for i in range(count)],
        "ref_logp": [-1.5 - i for i in range(count)],
        "advantage": [(-1.0) ** i for i in range(count)],
    }
    completion = {"prompt": prompt, "score": 1.5, "ended": True, "tokens": list(tokens)}
    return {
        "step": step,
        "metrics": {"objective/scores": 1.25, "objective/kl_exact": 0.5, "episode": step * 4 + 16},
        "kl_estimator": "k1",
        "whitened": True,
        "completions": [completion | columns],
    }


def write(run: Path, *steps: int, **arguments: Any) -> Path:
    """A run whose PPO stage recorded rollouts at ``steps``; returns their folder."""
    folder = run / "ppo" / "rollouts"
    folder.mkdir(parents=True, exist_ok=True)
    for step in steps:
        text = json.dumps(record(step, **arguments))
        journal.path(folder, step).write_text(text, encoding="utf-8")
    return folder


class Reader(HTMLParser):
    """Collects what a browser would act on, and the text of every token box."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.boxes: list[str] = []
        self._open = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        kind = dict(attrs).get("class")
        if kind == "t":
            self.boxes.append("")
        if kind in ("t", "tip", "given"):
            self._open = kind

    def handle_data(self, data: str) -> None:
        if self._open == "t":
            self.boxes[-1] += data


def test_text_of_a_model_is_shown_and_never_markup(tmp_path: Path) -> None:
    folder = write(tmp_path, 0, tokens=EVIL, prompt="".join(EVIL))
    html = page(folder, 0)
    read = Reader(html)
    assert read.boxes == list(EVIL)
    assert not {"script", "img", "iframe", "object", "link", "base", "textarea"} & set(read.tags)
    names = [name for name, _ in read.attributes]
    assert not [name for name in names if name.startswith("on") or name in ("src", "href")]
    assert read.tags.count("style") == 1
    policy = dict(read.attributes)["content"] or ""
    assert "default-src 'none'" in html and "script-src" not in policy
    assert not re.search(r"url\(|@import|https?://", html)
    # The report's samples set g and s, which the shared style sheet uses.
    used = set(re.findall(r"var\(--([\w-]+)\)", html)) - {"g", "s"}
    assert used <= set(re.findall(r"--([\w-]+):", html)), "a colour that is not defined is black"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb", "a⏎b"),
        ("\t", "⇥"),
        ("", "∅"),
        ("   ", "␣␣␣"),
        (" the", " the"),
        ("\u200b", "U+200B"),
        ("a\u202eb", "aU+202Eb"),
        ("\ufeff", "U+FEFF"),
        ("\x00\x1b", "U+0000U+001B"),
        ("\u2028", "U+2028"),
        ("\u3000", "U+3000"),
        ("\u00a0", "⍽"),
        ("\u0301", "◌\u0301"),
        ("⟨E2 80⟩", "⟨E2 80⟩"),
        ("\ufffd", "\ufffd"),
        ("\ud83d", "U+D83D"),
        ("é😀中", "é😀中"),
        ("<b>&\"'", "&lt;b&gt;&amp;&#34;&#39;"),
    ],
)
def test_what_cannot_be_seen_is_written_out(text: str, shown: str) -> None:
    assert re.sub(r"</?i[^>]*>", "", str(visible(text))) == shown


def test_signs_are_told_from_the_same_characters_in_a_text() -> None:
    assert visible("\n") != visible("⏎")
    assert visible("") != visible("∅")


def test_half_a_character_can_be_written(tmp_path: Path) -> None:
    folder = write(tmp_path, 0, tokens=("\ud83d", "\ufffd", "⟨F0 9F⟩"))
    inspection.main([str(tmp_path), "--output", str(tmp_path / "p.html"), "--open", "no"])
    assert "U+D83D" in (tmp_path / "p.html").read_text(encoding="utf-8")
    assert journal.steps(folder) == [0]


def test_numbers_of_a_token_are_on_its_box_and_in_the_table(tmp_path: Path) -> None:
    html = page(write(tmp_path, 8), 8)
    table = html[html.index('<table class="tokens">') :]
    cells = re.findall(r"<td>([^<]*)</td>", table)[: len(QUANTITIES)]
    expected = {
        "advantage": "1.000", "reward": "0.250", "value": "0.250", "return": "0.250",
        "logp": "−1.000", "ref_logp": "−1.500", "change": "0.500", "kl": "0.2500",
        "entropy": "0.250",
    }  # fmt: skip
    assert cells == [expected[quantity.key] for quantity in QUANTITIES]
    for quantity, value in zip(QUANTITIES, cells, strict=True):
        assert f"<i>{quantity.label}</i> {value}</span>" in html
    styles = re.findall(r'class="t" tabindex="0" style="([^"]*)"', html)
    assert [re.findall(r"--q0:(-?[\d.]+)", style) for style in styles] == [["1"], ["-1"], ["1"]]
    assert "score <b>+1.50</b>" in html and "KL <b>1.500</b> nats" in html
    assert "return <b>+1.50</b>" in html and "ended by itself" in html


def test_colours_are_capped_and_an_unmoved_policy_has_none() -> None:
    assert inspection._strength(5.0, 2.0) == 1.0
    assert inspection._strength(-1.0, 2.0) == -0.5
    assert inspection._strength(None, 2.0) == inspection._strength(0.0, 0.0) == 0.0
    limits = inspection._limits([inspection._columns(record(0)["completions"][0])])
    assert limits["value"] == limits["kl"] == 0.75
    assert limits["logp"] == 3.5  # the reference's, on the same scale


def test_metrics_of_the_update_are_joined_by_the_episodes_drawn(tmp_path: Path) -> None:
    folder = write(tmp_path, 0, 4)
    rows = [
        {"step": 4, "episode": 16.0, "policy/clipfrac_avg": 0.125},
        {"step": 8, "episode": 32.0, "policy/clipfrac_avg": 0.375},
    ]
    (tmp_path / "ppo" / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    html = page(folder, 4)
    assert "38\u00a0%" in html and "logged at step 8" in html
    (tmp_path / "ppo" / "metrics.jsonl").unlink()
    assert "logged at step" not in page(folder, 4)  # the rollout's own are in its record
    assert "+1.25" in page(folder, 4)


def test_the_nearest_rollout_at_or_before_the_step(tmp_path: Path) -> None:
    folder = write(tmp_path, 0, 4, 8)
    assert [choose(folder, step) for step in (None, 0, 3, 4, 7, 8)] == [8, 0, 0, 4, 4, 8]
    assert "Step 7 was asked for" in page(folder, 4, asked=7)
    assert "was asked for" not in page(folder, 4, asked=4)
    (tmp_path / "ppo" / "metrics.jsonl").write_text('{"step": 12}\n')
    assert choose(folder, 12) == 8  # the update's last step
    for step in (13, -1):
        with pytest.raises(UserError, match=r"out of range.*3 rollouts.*0 to 8$"):
            choose(folder, step)


def test_every_folder_that_may_be_meant(tmp_path: Path) -> None:
    folder = write(tmp_path, 0)
    (tmp_path / "ppo" / "checkpoints").mkdir()
    for meant in (tmp_path, folder.parent, folder, folder.parent / "checkpoints"):
        assert find_rollouts(meant) == folder
    own = tmp_path / "own"  # a PPOTrainer's output_dir
    shutil.copytree(folder, own / "rollouts")
    assert find_rollouts(own) == own / "rollouts"


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(tmp_path / "run", 0, 4)
    journal.path(folder, 4).write_text('{"step": 4, "completions": [{"tokens": ["a"]}]}')
    (tmp_path / "empty").mkdir()
    for words, said in (
        (["nowhere"], "no such run"),
        (["empty"], "no rollouts recorded"),
        (["run", "--step", "99"], "out of range"),
        (["run"], "no record of a rollout"),
        (["run", "--step", "0", "--output", "empty"], "cannot be written"),
        (["run", "--step", "x"], "rlhf inspect --help"),
        ([], "rlhf inspect --help"),
    ):
        arguments = [str(tmp_path / w) if w in ("nowhere", "empty", "run") else w for w in words]
        assert cli.main(["inspect", *arguments]) == 2
        error = capsys.readouterr().err.strip()
        assert said in error and "\n" not in error, error
    journal.path(folder, 4).write_text('{"step": 4, "comp')
    with pytest.raises(UserError, match="step-00000004.json"):
        page(folder, 4)


def test_a_real_run_can_be_inspected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.pipeline.ppo.test_trainer import make_trainer

    make_trainer(tmp_path, total_episodes=32)[0].train()
    capsys.readouterr()
    assert cli.main(["inspect", str(tmp_path), "--step", "2"]) == 0
    written = Path(capsys.readouterr().out.strip())
    assert written == tmp_path / "inspect-step-0.html"
    html = written.read_text(encoding="utf-8")
    kept = json.loads(journal.path(tmp_path / "rollouts", 0).read_text())["completions"]
    assert len(Reader(html).boxes) == sum(len(c["tokens"]) for c in kept)
    assert html.count("<article") == len(kept) == 4


def test_a_browser_runs_no_script(tmp_path: Path) -> None:
    chromium = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("no chromium here")
    html = page(write(tmp_path, 0, tokens=(SCRIPT, *EVIL), prompt=SCRIPT), 0)
    (tmp_path / "page.html").write_text(html, encoding="utf-8")
    (tmp_path / "control.html").write_text(f"<title>fine</title>{SCRIPT}", encoding="utf-8")

    def title(name: str) -> str:
        command = [
            chromium, "--headless", "--no-sandbox", "--disable-gpu",
            f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", f"file://{tmp_path / name}",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        found = re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)
        assert found is not None
        return found[1]

    assert title("control.html") == "broken into"  # where a script runs, this test sees it
    assert title("page.html").endswith("PPO rollout at step 0")
