"""The built site in a browser, from its files: nothing scrolls sideways, and the search finds."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.checkout import ROOT

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
pytestmark = [
    pytest.mark.long,  # half a minute to build, which `make site` does in every change
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium or google-chrome is installed"),
]
PROBE = """<!doctype html><pre id="probe"></pre>
<iframe id="frame" style="width:%dpx;height:800px;border:0"></iframe><script>
const frame = document.getElementById("frame"), found = {};
const opened = (page) => new Promise((done) => {
  frame.onload = () => setTimeout(done, 50); frame.src = page; });
(async () => {
  for (const page of %s) {
    await opened(page);
    const seen = frame.contentDocument.scrollingElement;
    found[page] = [seen.scrollWidth, seen.clientWidth];  // the second without a scroll bar
  }
  document.getElementById("probe").textContent = JSON.stringify(found);
})();
</script>"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make site` does."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "--quiet", "--fail-on-warning", "-b", "html"]
    done = subprocess.run(
        [*command, "docs", str(folder)], cwd=ROOT, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr
    return folder


def opened(address: str, profile: Path) -> str:
    """The page's DOM after its scripts ran, without a network."""
    assert CHROMIUM is not None
    done = subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
            "--disable-dev-shm-usage", "--host-resolver-rules=MAP * ~NOTFOUND",
            "--allow-file-access-from-files", "--virtual-time-budget=120000",
            f"--user-data-dir={profile}", "--dump-dom", address,
        ],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("width", [1280, 390])
def test_no_page_scrolls_sideways(site: Path, tmp_path: Path, width: int) -> None:
    pages = sorted(path.relative_to(site).as_posix() for path in site.rglob("*.html"))
    assert "index.html" in pages and any(page.startswith("lessons/") for page in pages)
    probe = site / "probe.html"
    probe.write_text(PROBE % (width, json.dumps(pages)), encoding="utf-8")
    dom = opened(probe.as_uri(), tmp_path)
    probe.unlink()
    found = re.search(r'<pre id="probe">(.+?)</pre>', dom, re.S)
    assert found, "not every page loaded"
    widths = json.loads(html.unescape(found[1]))
    assert set(widths) == set(pages)
    assert {page: pair for page, pair in widths.items() if pair[0] > pair[1]} == {}
    assert all(seen <= width for _, seen in widths.values())


@pytest.mark.parametrize(
    "words, page",
    [("optimality", "frontier"), ("FrozenLake", "classic-rl/tabular"), ("EOS", "cut-off")],
)
def test_the_search_finds(site: Path, tmp_path: Path, words: str, page: str) -> None:
    dom = opened(f"{(site / 'search.html').as_uri()}?q={words}", tmp_path)
    results = re.findall(r'<li class="kind[^"]*"><a href="([^"?#]+)', dom)
    assert f"{page}.html" in results
