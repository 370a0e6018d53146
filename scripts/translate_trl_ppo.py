"""Translate the settings of an old TRL PPO script into an experiment file of this pipeline.

    python scripts/translate_trl_ppo.py old_ppo.py > experiment.yaml
    python scripts/translate_trl_ppo.py ppo_tldr.py -- --learning_rate 3e-6 --num_ppo_epochs 1

The script is read (`ast`), never run. What stands behind ``--`` is what it was started with. Each
setting is one line of comment in the YAML: under which key it is now, in which unit, or why it has
no counterpart. Both kinds of `PPOConfig` are known: TRL 0.12 to 1.12 (`trainer.train()`) and TRL up
to 0.11 (`trainer.step(queries, responses, rewards)`). Names as in TRL's `ppo_config.py` of 0.11 and
of `trl.experimental.ppo`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from trl_ppo_names import (
    HARMLESS,
    IN_ROLLOUTS,
    NEW_DEFAULTS,
    NEW_ONLY,
    NO_COUNTERPART,
    OLD_DEFAULTS,
    OLD_ONLY,
    RENAMED,
    REWARD_SHAPING,
)
from trl_ppo_reader import UNKNOWN, Found, Script, read

from common.parser import Parser
from pipeline.config import load_experiment
from pipeline.config.arguments import ArgumentProblem, check_arguments
from pipeline.config.former import today
from pipeline.config.stages import find_stage
from pipeline.errors import UserError


class Translation:
    """The experiment's tree, and a line for each setting of the script."""

    def __init__(self, script: Script, path: Path) -> None:
        self.given, self.path = dict(script.settings), path
        self.lines: list[tuple[str, str]] = []
        self.tree: dict[str, Any] = {"name": path.stem, "policies": {"ppo": None}}
        self.tree["sft"] = {"skip": True}
        self.old = self._kind(script)
        defaults = OLD_DEFAULTS if self.old else NEW_DEFAULTS
        for key, value in defaults.items():
            self.given.setdefault(key, Found(value, 0, "TRL's default"))
        if self.old and self._value("adap_kl_ctrl") is False:
            for key in ("target", "horizon"):
                if self.given[key].source == "TRL's default":
                    del self.given[key]
                else:
                    self.say(key, "left out: the script's β is fixed", self.given[key])
        self._rollout()
        self._kl()
        for key in list(self.given):
            self._one(key)
        if self.old:
            self._of_the_loop()
        for key, found in (
            ("model.model_name_or_path", script.model),
            ("reward.source", script.reward),
            ("data.prompts_name", script.dataset),
        ):
            section, _, name = key.partition(".")
            if name not in self.tree.get(section, {}):
                self._from_code(key, found)

    def _of_the_loop(self) -> None:
        """What scripts of the old trainer decide in their own loop, where it is not found."""
        if "max_new_tokens" not in self.tree.get("generation", {}):
            self.lines.append(("generation.max_new_tokens", "not found in the script: set it"))
        if "total_episodes" not in self.tree["ppo"]:
            self.lines.append(("ppo.total_episodes", "the script's loop is not read: set it"))
        if "max_grad_norm" not in self.tree["ppo"]:
            self.lines.append(("max_grad_norm", "unset, TRL clipped nothing; here it is 1"))

    def _kind(self, script: Script) -> bool:
        """True for TRL up to 0.11."""
        names = set(script.settings)
        old, new = sorted(names & OLD_ONLY), sorted(names & (NEW_ONLY - {"temperature"}))
        if old and new:
            raise UserError(
                f"{self.path}: {old[0]} is of TRL up to 0.11 and {new[0]} of 0.12 and later;"
                " leave one kind out"
            )
        return bool(old) or (script.steps and not new)

    def _value(self, key: str) -> Any:
        return self.given[key].value if key in self.given else None

    def put(self, key: str, value: Any) -> None:
        """Set a dotted key of the tree."""
        section, dot, name = key.rpartition(".")
        (self.tree.setdefault(section, {}) if dot else self.tree)[name] = value

    def say(self, keys: str, remark: str, found: Found | None = None) -> None:
        """A line about a setting; it is done with."""
        for key in keys.split():
            self.given.pop(key, None)
        value = "" if found is None or found.value is UNKNOWN else f"={found.value!r}"
        source = f" ({found.source})" if found and found.source else ""
        self.lines.append((f"{keys.replace(' ', ', ')}{value}{source}", remark))

    def _numbers(self, *keys: str) -> list[int] | None:
        """Whole numbers above 0, or None where one is not known."""
        values = [self._value(key) for key in keys]
        if any(value is UNKNOWN for value in values):
            return None
        for key, value in zip(keys, values, strict=True):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UserError(
                    f"{self._at(key)}: {key}: expected a whole number above 0, found {value!r}"
                )
        return values

    def _at(self, key: str) -> str:
        line = self.given[key].line
        return f"{self.path}, line {line}" if line else str(self.path)

    def _rollout(self) -> None:
        """A rollout and its minibatches: TRL divides the one, here the other is given."""
        if self.old:
            keys = ("batch_size", "mini_batch_size", "gradient_accumulation_steps")
        else:
            keys = (
                "per_device_train_batch_size",
                "gradient_accumulation_steps",
                "num_mini_batches",
            )
        numbers = self._numbers(*keys)
        if numbers is None:
            self.say(" ".join(keys), "not known without running the script: set them by hand")
            return
        if self.old:
            rollout, rows, accumulation = numbers
            step = rows * accumulation
        else:
            rows, accumulation, parts = numbers
            rollout = rows * accumulation
            step = rollout // parts if rollout % parts == 0 else rollout + 1
        if rollout % step:
            raise UserError(
                f"{self.path}: {', '.join(keys)}: {rollout} completions cannot be divided into"
                " equal minibatches; TRL refuses it too"
            )
        rows = max(n for n in range(1, min(rows, step) + 1) if step % n == 0)
        self.put("ppo.per_device_train_batch_size", rows)
        self.put("ppo.gradient_accumulation_steps", step // rows)
        self.put("ppo.num_mini_batches", rollout // step)
        shown = " ".join(map(str, numbers))
        parts = rollout // step
        remark = f"({shown}) a rollout of {rollout} in {parts} minibatches of {step}, a process"
        if not self.old and accumulation > 1 and parts > 1:
            remark += "; TRL made fewer optimizer steps (docs/coming-from-trl.md)"
        self.say(" ".join(keys), remark)

    def _kl(self) -> None:
        """What is of the KL and has another form here."""
        penalty = self.given.get("kl_penalty")
        names = {"kl": "k1", "mse": "k2", "full": "exact"}
        if penalty is not None and penalty.value in names:
            self.put("ppo.kl_estimator", names[penalty.value])
            warned = ", which has another optimum in the reward" if penalty.value == "mse" else ""
            self.say(
                "kl_penalty", f"renamed: ppo.kl_estimator: {names[penalty.value]}{warned}", penalty
            )
        elif penalty is not None:
            self.say("kl_penalty", "no counterpart: set ppo.kl_estimator", penalty)
        adaptive = self.given.get("adap_kl_ctrl")
        if adaptive is not None:
            fixed = adaptive.value is False
            remark = (
                "ppo.kl_target unset: β is fixed" if fixed else "ppo.kl_target is set: β is steered"
            )
            self.say("adap_kl_ctrl", remark, adaptive)
        for key, ours, unit in (
            ("target", "ppo.kl_target", "nats a completion"),
            ("horizon", "ppo.kl_horizon", "episodes"),
        ):
            found = self.given.get(key)
            if found is not None and found.value is not UNKNOWN and found.value is not None:
                self.put(ours, int(found.value) if key == "horizon" else found.value)
                self.say(
                    key,
                    f"renamed: {ours}, in {unit}",
                    found,
                )
        stop, limit = self.given.get("early_stopping"), self.given.get("target_kl")
        if self.old and stop is not None and stop.value is True:
            limit = limit or Found(1.0, 0, "TRL's default")
            if isinstance(limit.value, (int, float)):
                self.put("ppo.target_kl", 1.5 * limit.value)
                self.say(
                    "early_stopping target_kl", "ppo.target_kl: TRL stopped at 1.5 times it", limit
                )
        elif self.old:
            for key in {"early_stopping", "target_kl"} & set(self.given):
                self.say(key, "left out: nothing was stopped early", self.given[key])

    def _one(self, key: str) -> None:
        """Translate one setting that has a value of its own."""
        found = self.given.get(key)
        if found is None:
            return
        value = found.value
        reason = NO_COUNTERPART.get(key)
        if key == "max_grad_norm" and self.old:
            reason = None
        if key.startswith(REWARD_SHAPING):
            reason = "rules as parts of the reward, or ppo.missing_eos_penalty"
        if value in HARMLESS.get(key, ()):
            self.say(key, "what is done here anyway", found)
        elif reason is not None:
            self.say(key, f"no counterpart: {reason}", found)
        elif value is UNKNOWN:
            ours = RENAMED.get(key) or today("ppo", key) or f"ppo.{key}"
            ours = "by hand what is in it" if key.startswith("**") else ours
            self.say(key, f"not known without running the script: set {ours}", found)
        elif key in ("log_with", "report_to"):
            trackers = [value] if isinstance(value, str) else list(value or [])
            self.put("tracking.report_to", [t for t in trackers if t not in ("none", "all")])
            self.say(key, "renamed: tracking.report_to", found)
        elif key in ("torch_dtype", "dtype"):
            if value in ("float32", "bfloat16", "float16"):
                self.put("model.dtype", value)
            self.say(key, "renamed: model.dtype (left out: as the device computes)", found)
        elif key in IN_ROLLOUTS and not self.old and isinstance(value, int) and value >= 1:
            self._steps(key, found)
        elif key in RENAMED:
            if value is not None:
                self.put(RENAMED[key], value)
            self.say(key, f"renamed: {RENAMED[key]}", found)
        else:
            self._same(key, found)

    def _steps(self, key: str, found: Found) -> None:
        """A number of rollouts as one of optimizer steps."""
        epochs = self._value("num_ppo_epochs") or self.tree["ppo"].get("num_ppo_epochs") or 4
        parts = self.tree["ppo"].get("num_mini_batches")
        if not isinstance(epochs, int) or parts is None:
            self.say(key, f"counted in rollouts by TRL: set ppo.{key}, in optimizer steps", found)
            return
        self.put(f"ppo.{key}", found.value * epochs * parts)
        self.say(
            key,
            f"ppo.{key} in optimizer steps: rollouts × {epochs} epochs × {parts} minibatches",
            found,
        )

    def _same(self, key: str, found: Found) -> None:
        """A setting that PPO's section may have under its own name."""
        try:
            check_arguments(find_stage("ppo"), {key: found.value}, {}, {})
        except ArgumentProblem as problem:
            if "the pipeline sets this" in problem.problem or "unknown key" in problem.problem:
                other = today("ppo", key)
                why = f"set {other}" if other else problem.problem.partition(";")[-1].strip()
                if "unknown key" in problem.problem and not other:
                    why = "not a setting of TRL's PPO that is known here"
                self.say(key, f"no counterpart: {why}", found)
                return
            raise UserError(f"{self._at(key)}: {key}: {problem.problem}") from None
        self.put(f"ppo.{key}", found.value)
        self.say(key, f"as it is: ppo.{key}", found)

    def _from_code(self, key: str, found: Found | None) -> None:
        """What a script says by a call: its model, reward or data."""
        if found is None:
            self.lines.append((key, "nothing found in the script: set it"))
        elif isinstance(found.value, str):
            self.put(key, found.value)
            self.lines.append((f"{found.value!r}, line {found.line}", f"read as {key}: check it"))
        else:
            self.lines.append(
                (f"line {found.line}", f"not known without running the script: set {key}")
            )

    def text(self) -> str:
        """The experiment file, with a line for each setting above it."""
        release = "up to 0.11" if self.old else "0.12 to 1.12"
        head = [f"# From {self.path.name}, settings of TRL {release}."]
        head += [f"#   {' '.join(name.split())}: {remark}" for name, remark in self.lines]
        head += [
            "# sft.skip: the script's model is taken for the fine-tuned one, which is π_ref.",
            "# data.dataset_name: not set, perplexity is measured on its default.",
        ]
        return (
            "\n".join(head) + "\n" + yaml.safe_dump(self.tree, sort_keys=False, allow_unicode=True)
        )


def translate(path: Path, words: Sequence[str] = ()) -> str:
    """The experiment file of a script.

    Raises:
        UserError: the script is not read, or a value is out of its bounds here.
    """
    text = Translation(read(path, words), path).text()
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "experiment.yaml"
        made.write_text(text, encoding="utf-8")
        try:
            load_experiment(made)
        except UserError as error:
            raise UserError(str(error).replace(str(made), f"{path}, translated")) from None
    return text


def main(argv: Sequence[str] | None = None) -> int:
    """Print the experiment file; 2 for a mistake, which is one line."""
    words = list(sys.argv[1:] if argv is None else argv)
    cut = words.index("--") if "--" in words else len(words)
    parser = Parser(
        raises=UserError,
        prog="translate_trl_ppo.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("script", type=Path, help="a Python file; its flags stand behind --")
    try:
        print(translate(parser.parse_args(words[:cut]).script, words[cut + 1 :]), end="")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
