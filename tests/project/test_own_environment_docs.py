"""The pages on environments of one's own, on installing and on applications: all they say is so."""

from __future__ import annotations

import importlib
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium as gym
import pytest

from classic_rl import cli
from classic_rl.deep.policy_file import POLICY_FILE, load_policy
from classic_rl.envs import environments
from classic_rl.errors import ProblemError
from tests.checkout import ROOT
from tests.hub import Hub, hub  # noqa: F401 (a fixture)

DOCS = ROOT / "docs"
OWN = (DOCS / "classic-rl" / "your-own-environment.md").read_text(encoding="utf-8")
INSTALL = (DOCS / "classic-rl" / "install.md").read_text(encoding="utf-8")
APPLICATIONS = (DOCS / "applications.md").read_text(encoding="utf-8")
MACHINE, KNOWN, WRAPPED, LOADED = re.findall(r"^```python\n(.*?)^```", OWN, re.M | re.S)


def lines(page: str) -> list[str]:
    """The commands of a page."""
    blocks = re.findall(r"^```bash\n(.*?)^```", page, re.M | re.S)
    return [line.partition("  #")[0].strip() for block in blocks for line in block.splitlines()]


def classic(page: str) -> list[str]:
    """What follows the program's name in its commands."""
    found = (re.fullmatch(r"(?:python -m classic_rl|classic-rl) (.+)", x) for x in lines(page))
    return [match[1] for match in found if match]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A folder with the page's two files, gone from Python afterwards."""
    (tmp_path / "machine.py").write_text(MACHINE, encoding="utf-8")
    (tmp_path / "known.py").write_text(KNOWN, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for module, env_id in (("machine", "Machine-v0"), ("known", "Known-v0")):
        sys.modules.pop(module, None)
        gym.registry.pop(env_id, None)


def run(line: str, steps: int = 600) -> int:
    """A command with few steps, or one episode, for time."""
    words = shlex.split(line)
    more = ["--steps", f"{steps}"] if words[0] in ("q-learning", "ppo", "dqn") else []
    more += ["--eval-episodes", "5", "--no-pictures"] if words[0] == "q-learning" else []
    more += ["--episodes", "1"] if words[0] in ("ppo", "dqn", "evaluate") else []
    return cli.main([*words, *more])


def test_the_commands_of_the_page_run(here: Path) -> None:
    """In the order in which they stand, in one folder."""
    commands = classic(OWN)
    assert len(commands) >= 10
    for line in commands:
        assert run(line) == 0, line
    folder = here / "runs" / "classic" / "ppo-machine-Machine-v0-seed0"
    assert load_policy(folder)[1] == "machine:Machine-v0"
    assert (folder / "README.md").is_file()
    # The other commands of the page name what these have written.
    others = [line for line in lines(OWN) if not line.startswith("python -m classic_rl")]
    assert [line.split()[0] for line in others] == ["tensorboard", "wandb", "hf"]
    [pattern] = [word for word in others[1].split() if word.startswith("runs/")]
    assert list(here.glob(pattern))
    assert list((here / "runs" / "classic").rglob("events.out.tfevents.*"))


def test_the_table_of_curves_is_what_is_logged(here: Path) -> None:
    table = dict(re.findall(r"^\| `(ppo|a2c|dqn|reinforce)` \| (.+) \|$", OWN, re.M))
    assert len(table) == 4
    for algorithm, cells in table.items():
        seen: set[str] = set()
        module = importlib.import_module(f"classic_rl.{algorithm}")
        config = environments_config(module)
        module.train(config, on_log=lambda _, metrics, seen=seen: seen.update(metrics))
        assert seen == {"episode_return", *re.findall(r"`(\w+)`", cells)}, algorithm


def environments_config(module: ModuleType) -> Any:
    """The settings of a short training in the page's environment."""
    [cls] = [v for k, v in vars(module).items() if k.endswith("Config") and k != "RunConfig"]
    more = {"learning_starts": 100} if module.__name__.endswith("dqn") else {}
    return cls(env_id="machine:Machine-v0", total_steps=300, **more)


@pytest.mark.parametrize(
    ("break_it", "row"),
    [
        (lambda s: s.replace("reward, False, False, {}", "reward, False, {}"), 0),
        (lambda s: s.replace("return self.state, {}\n", "return self.state\n"), 1),
        (lambda s: s.replace("self, *, seed=None, options=None", "self, seed=None"), 2),
    ],
)
def test_the_table_of_refusals(here: Path, break_it: Callable[[str], str], row: int) -> None:
    rows = re.findall(r"^\| `(.+?)` \| ", OWN.partition("## What is refused")[2], re.M)
    broken = break_it(MACHINE)
    assert broken != MACHINE
    (here / "machine.py").write_text(broken, encoding="utf-8")
    with pytest.raises(ProblemError, match=re.escape(rows[row])) as error:
        environments.make("machine:Machine-v0", {"wear": 0.1 + row / 10})
    assert str(error.value).startswith("machine:Machine-v0: ") and "\n" not in str(error.value)


def test_the_other_refusals(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for line, words in (
        ("ppo --env absent:Machine-v0", "there is no module"),
        ("ppo --env machine:Machin", "did you mean machine:Machine-v0?"),
        ("ppo --env known:from_function", "no such environment"),
        ("value-iteration --env machine:Machine-v0", "no exact model"),
        ("q-learning --env CartPole-v1", "tabular methods need Discrete"),
    ):
        assert cli.main(line.split()) == 2
        printed = capsys.readouterr().err
        assert words in printed and printed.count("\n") == 1, line


def test_an_old_environment_is_wrapped() -> None:
    class OldEnv:
        observation_space = gym.spaces.Discrete(3)
        action_space = gym.spaces.Discrete(2)

        def reset(self) -> int:
            self.at = 0
            return 0

        def step(self, action: int) -> tuple[int, float, bool, dict]:
            self.at += 1
            info = {"TimeLimit.truncated": True} if action == 0 and self.at == 2 else {}
            return self.at, 1.0, self.at == 2, info

    names: dict[str, Any] = {"gym": gym, "OldEnv": OldEnv}
    exec(compile(WRAPPED, "your-own-environment.md", "exec"), names)
    env = names["Wrapped"]()
    for action, ends in ((0, (False, True)), (1, (True, False))):
        assert env.reset(seed=0) == (0, {})
        assert env.step(action)[2:4] == (False, False)
        assert env.step(action)[2:4] == ends


def test_an_agent_goes_to_the_hub_and_comes_back(
    here: Path,
    hub: Hub,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    from huggingface_hub import HfApi, snapshot_download

    assert run("ppo --env machine:Machine-v0") == 0
    [words] = [shlex.split(line) for line in lines(OWN) if line.startswith("hf ")]
    assert words[:2] == ["hf", "upload"] and words[4] == "--exclude"
    api = HfApi(endpoint=hub.url, token="hf_me")
    api.create_repo(words[2])
    api.upload_folder(repo_id=words[2], folder_path=words[3], ignore_patterns=words[5:])
    folder = Path(snapshot_download(words[2]))
    names = {path.name for path in folder.iterdir()}
    assert {POLICY_FILE, "README.md", "config.yaml"} <= names and "wandb.json" not in names
    capsys.readouterr()
    exec(compile(LOADED, "your-own-environment.md", "exec"), {})
    assert float(capsys.readouterr().out) < 250  # 50 steps that earn 5 at most


def test_the_page_on_installing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for line in classic(INSTALL):
        assert run(line) == 0, line
    assert len(classic(INSTALL)) == 2
    import tomllib

    project = tomllib.loads((ROOT / "classic_rl" / "pyproject.toml").read_text())["project"]
    table = re.findall(r"^\| (`[a-z\d`, ]+`) \|", INSTALL, re.M)
    named = {name for cell in table for name in re.findall(r"`(\w+)`", cell)}
    assert named == set(project["optional-dependencies"])


def test_the_page_on_applications(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for line in classic(APPLICATIONS):
        short = re.sub(r"--seeds .*", "--seed 0", line)
        assert run(short) == 0, line
    assert len(re.findall(r"^## ", APPLICATIONS.partition("## Before")[0], re.M)) == 6
    for head in ("State", "Action", "Reward", "Dynamics", "Horizon", "Hard", "Source"):
        assert APPLICATIONS.count(f"\n| {head} |") == 6


def test_the_numbers_on_applications(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All but the learned ones, which need their full length."""
    monkeypatch.syspath_prepend(ROOT / "docs" / "make")
    script = importlib.import_module("applications")
    assert script.main(["--seeds", "0", "--steps", "4096"]) == 0
    printed = capsys.readouterr().out
    learned = ("PPO", "Q-learning")
    exact = [row for row in printed.splitlines() if not row.strip().startswith(learned)]
    numbers = re.findall(r" (\d+\.\d\d)$", "\n".join(exact), re.M)
    assert len(numbers) == 10 - 1
    for number in numbers:
        assert f" {number} |" in APPLICATIONS, number
