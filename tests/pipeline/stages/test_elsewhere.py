"""`rlhf compare` on checkpoints from elsewhere, against a reference as it is, end to end."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from common.files import read_json
from pipeline.cli import main
from pipeline.data.toy import toy_tokenizer
from pipeline.lm.generation import sample
from pipeline.lm.models import load_checkpoint
from pipeline.lm.paths import completion_kl
from pipeline.stages import compare as stage
from tests.pipeline.compare.elsewhere import adapted_model, edit, lively, saved

CONFIG = """
sft: {skip: true}
data: {dataset_name: toy, demonstrations: 64, train_prompts: 16, eval_prompts: 6, heldout: 8}
generation: {max_new_tokens: 6}
compare: {samples_per_prompt: 2, reference_samples: 8, best_of_n: 4, bootstrap: 20}
tracking: {report_to: [], log_samples: 0}
"""

REWARD = """
def reward(prompts, completions):
    return [len(set(text)) / 5 for text in completions]
"""


class Work:
    """An experiment of one reference, a folder of checkpoints, and what was sampled."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.sampled = folder, []
        reference = saved(lively("llama", seed=0), folder / "reference")
        (folder / "letters.py").write_text(REWARD, encoding="utf-8")
        self.config = folder / "experiment.yaml"
        self.config.write_text(
            CONFIG + f"model: {{model_name_or_path: '{reference}', dtype: float32}}\n"
            f"output_dir: '{folder / 'run'}'\n"
            f"reward: {{source: '{folder / 'letters.py'}:reward', gold: 'rules:ended'}}\n",
            encoding="utf-8",
        )
        evaluate = stage.evaluate_policy

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.sampled.append(kwargs["label"].removeprefix("compare "))
            return evaluate(*args, **kwargs)

        monkeypatch.setattr(stage, "evaluate_policy", counted)
        monkeypatch.setattr("gc.collect", lambda: 0)  # a second of each of these runs

    def compare(self, *words: str) -> int:
        self.sampled.clear()
        return main(["compare", "--config", str(self.config), *words])

    def results(self) -> dict[str, Any]:
        return read_json(self.folder / "run" / "compare" / "results.json")

    def numbers(self, name: str) -> list[float]:
        """Of a policy alone: some others depend on which policies are compared."""
        row = self.results()["methods"][name]
        return [row[key] for key in ("reward", "gold", "kl", "objective", "perplexity", "length")]

    def policy(self, name: str, seed: int = 1, tokenizer: Any = None) -> str:
        folder = self.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        return f"--policy={name}={saved(lively('llama', seed), folder, tokenizer)}"


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Work:
    return Work(tmp_path, monkeypatch)


def test_checkpoints_are_compared_without_any_policy_of_this_experiment(work: Work) -> None:
    assert work.compare(work.policy("theirs"), work.policy("ours", 2)) == 0
    results = work.results()
    assert work.sampled == ["sft", "theirs", "ours"]
    assert list(results["methods"]) == ["sft", "theirs", "ours", "best_of_n"]
    kinds = [(p["name"], p["kind"], p["note"]) for p in results["policies"]]
    assert kinds[1:3] == [("theirs", "checkpoint", None), ("ours", "checkpoint", None)]
    for name in ("theirs", "ours"):
        row = results["methods"][name]
        assert row["kl"] > 0
        assert row["objective"] == pytest.approx(row["reward"] - row["kl"])
        assert row["optimality"] is not None
        assert row["perplexity"] > 0


def test_another_policy_is_measured_alone_and_a_changed_one_anew(work: Work) -> None:
    first = work.policy("theirs")
    assert work.compare(first) == 0
    before = work.numbers("theirs")
    assert work.compare(first) == 0
    assert work.sampled == []  # finished
    assert work.compare(first, work.policy("more", 2)) == 0
    assert work.sampled == ["more"]
    assert work.numbers("theirs") == before
    assert work.compare(work.policy("theirs", 3)) == 0
    assert work.sampled == ["theirs"]
    assert list(work.results()["methods"]) == ["sft", "theirs", "best_of_n"]
    assert work.numbers("theirs") != before
    assert work.compare(work.policy("theirs")) == 0  # as it was at first
    assert work.sampled == []
    assert work.numbers("theirs") == before


def test_an_adapter_over_another_base_is_measured_anew_with_the_base(work: Work) -> None:
    adapter = saved(adapted_model(work.folder), work.folder / "adapter", False)
    given = f"--policy=theirs={adapter}"
    assert work.compare(given) == 0
    before = work.numbers("theirs")
    saved(lively("llama", seed=5), work.folder / "base")
    assert work.compare(given) == 0
    assert work.sampled == ["theirs"]
    assert work.numbers("theirs") != before


def test_kl_is_that_of_the_checkpoint(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Any] = []
    measure = stage.evaluate_policy

    def remember(*args: Any, **kwargs: Any) -> Any:
        kept.append(measure(*args, **kwargs))
        return kept[-1]

    monkeypatch.setattr(stage, "evaluate_policy", remember)
    assert work.compare(work.policy("theirs")) == 0
    evaluation = kept[-1]
    theirs, tokenizer = load_checkpoint(work.folder / "theirs")
    reference, _ = load_checkpoint(work.folder / "reference")
    completions = sample(
        theirs, tokenizer, evaluation.prompts[::1], samples_per_prompt=2, max_new_tokens=6,
        batch_size=64, seed=0,
    )  # fmt: skip
    assert [c.text for c in completions] == evaluation.texts
    expected = completion_kl(theirs, reference, completions)
    assert evaluation.kl == pytest.approx(expected, rel=1e-5)


def test_another_tokenizer_has_everything_but_kl_and_perplexity(
    work: Work, capsys: pytest.CaptureFixture[str]
) -> None:
    other = toy_tokenizer()
    other.eos_token = "<unk>"
    folder = saved(lively("llama"), work.folder / "theirs", other)
    edit(folder / "generation_config.json", eos_token_id=other.eos_token_id)
    assert work.compare(f"--policy=theirs={folder}", work.policy("alike")) == 0
    results = work.results()
    row = results["methods"]["theirs"]
    missing = {key for key in results["methods"]["alike"] if row[key] is None}
    assert {"kl", "objective", "optimality", "optimality_ci", "perplexity"} <= missing
    assert not missing & {"reward", "gold", "length", "ended", "distinct_1", "samples"}
    [note] = [p["note"] for p in results["policies"] if p["name"] == "theirs"]
    assert row["note"] == note
    assert note.startswith("no KL: its completions end by '<unk>', the reference's by ")
    assert note.endswith("; no perplexity: its tokens of the held-out texts are others")
    assert f"compare: theirs: {note}" in capsys.readouterr().err
    details = read_json(work.folder / "run" / "compare" / "details.json")
    assert details["differences"] == []


def test_a_tokenizer_that_is_not_the_models_is_told(
    work: Work, capsys: pytest.CaptureFixture[str]
) -> None:
    model = lively("llama", 1)
    with torch.no_grad():
        model.lm_head.weight.mul_(20)  # sure of itself, and of nothing that is in the texts
    folder = saved(model, work.folder / "theirs")
    assert work.compare(f"--policy=theirs={folder}") == 0
    warning = f"warning: compare.policies.theirs: {folder}: finds human texts less likely than"
    assert warning in capsys.readouterr().err


def test_everything_is_refused_before_anything_is_sampled(
    work: Work, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = work.policy("good"), work.policy("bad")
    (work.folder / "bad" / "model.safetensors").unlink()
    assert work.compare(good, bad) == 2
    assert work.sampled == []
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: compare.policies.bad: {work.folder / 'bad'}: holds no weights")
    assert not (work.folder / "run" / "compare").exists()


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ("theirs", "'theirs' is not NAME=PATH"),
        ("=path", "'=path' is not NAME=PATH"),
        ("sft=path", "'sft' is the name of something else here"),
        ("PPO=path", "'PPO' is a policy of this experiment"),
        ("best_of_n=path", "'best_of_n' is the name of something else here"),
        ("a b=path", "a name is up to 64 letters"),
        ("a.b=path", "'a.b': such a name is for the file"),
        ("theirs=/no/folder", "compare.policies.theirs: /no/folder: there is no such folder"),
    ],
)
def test_a_wrong_name_or_path_is_told(
    work: Work, capsys: pytest.CaptureFixture[str], given: str, error: str
) -> None:
    assert work.compare("--policy", given) == 2
    assert error in capsys.readouterr().err.splitlines()[-1]


def test_other_commands_have_no_policies(work: Work, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sft", "--config", str(work.config), "--policy", "a=b"]) == 2
    assert "--policy: is for compare and run" in capsys.readouterr().err


def test_without_any_policy_there_is_nothing_to_compare(
    work: Work, capsys: pytest.CaptureFixture[str]
) -> None:
    assert work.compare() == 2
    assert "none of ppo, dpo is finished" in capsys.readouterr().err


def test_the_file_names_them_too(work: Work) -> None:
    work.policy("theirs")
    text = work.config.read_text(encoding="utf-8")
    named = json.dumps({"theirs": str(work.folder / "theirs")})
    text = text.replace("compare: {", f"compare: {{policies: {named}, ")
    work.config.write_text(text, encoding="utf-8")
    assert work.compare() == 0
    assert "theirs" in work.results()["methods"]
