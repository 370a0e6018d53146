"""What an old TRL PPO script sets, read from its syntax tree: the script is never run."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trl_ppo_names import HARMLESS

from pipeline.errors import UserError


@dataclass
class Found:
    """A setting of the script.

    Attributes:
        value: what it is; ``UNKNOWN`` where only running the script would tell.
        line: where it stands; 0 for the command line.
        source: how its value was found, for people; empty where it is written there.
    """

    value: Any
    line: int
    source: str = ""


class _Unknown:
    """The value of what is no literal."""


UNKNOWN = _Unknown()


@dataclass
class Script:
    """What is known of a script without running it."""

    settings: dict[str, Found] = field(default_factory=dict)
    model: Found | None = None
    reward: Found | None = None
    dataset: Found | None = None
    configured: bool = False
    parsed: bool = False
    steps: bool = False


def _called(node: ast.Call) -> str:
    """The last part of a call's name, and for a method what it is of: `AutoX.from_pretrained`."""
    return ast.unparse(node.func)


class Reader(ast.NodeVisitor):
    """Collects the settings of a script."""

    def __init__(self, tree: ast.Module) -> None:
        self.script = Script()
        self.names = dict(self._assigned(tree))
        self.defaults = dict(self._defaults(tree))
        self.visit(tree)

    @staticmethod
    def _assigned(tree: ast.Module) -> Iterator[tuple[str, ast.expr | None]]:
        """Names that are given one value; one with several has none that is known."""
        seen: dict[str, int] = {}
        for node in ast.walk(tree):
            targets = node.targets if isinstance(node, ast.Assign) else []
            for target in targets:
                if isinstance(target, ast.Name) and isinstance(node, ast.Assign):
                    seen[target.id] = seen.get(target.id, 0) + 1
                    yield target.id, node.value if seen[target.id] == 1 else None

    @staticmethod
    def _defaults(tree: ast.Module) -> Iterator[tuple[str, ast.expr]]:
        """Defaults of a script's own arguments: fields of its dataclasses, and of argparse."""
        for node in ast.walk(tree):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                value = node.value
                if isinstance(value, ast.Call) and _called(value).endswith("field"):
                    value = next((k.value for k in value.keywords if k.arg == "default"), None)
                if value is not None:
                    yield node.target.id, value
            if isinstance(node, ast.Call) and _called(node).endswith("add_argument") and node.args:
                flag = node.args[0]
                given = next((k.value for k in node.keywords if k.arg == "default"), None)
                if isinstance(flag, ast.Constant) and given is not None:
                    yield str(flag.value).lstrip("-").replace("-", "_"), given

    def found(self, node: ast.expr, source: str = "", depth: int = 0) -> Found:
        """The value of an expression: a literal, arithmetic on them, or what a name stands for."""
        line = node.lineno
        if depth > 8:
            return Found(UNKNOWN, line)
        try:
            return Found(ast.literal_eval(node), line, source)
        except (ValueError, TypeError, SyntaxError):
            pass
        if isinstance(node, ast.Name) and self.names.get(node.id) is not None:
            inner = self.found(self.names[node.id], source, depth + 1)  # type: ignore[arg-type]
            return Found(inner.value, line, inner.source)
        if isinstance(node, ast.Attribute) and node.attr in self.defaults:
            inner = self.found(self.defaults[node.attr], "", depth + 1)
            return Found(inner.value, line, f"the default of the script's argument {node.attr}")
        if isinstance(node, ast.Attribute) and node.attr in self.script.settings:
            return self.script.settings[node.attr]
        if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Mult, ast.FloorDiv)):
            left, right = (self.found(n, source, depth + 1) for n in (node.left, node.right))
            numbers = [isinstance(x.value, int) for x in (left, right)]
            if all(numbers) and (isinstance(node.op, ast.Mult) or right.value):
                product = isinstance(node.op, ast.Mult)
                value = left.value * right.value if product else left.value // right.value
                return Found(value, line, left.source or right.source)
        return Found(UNKNOWN, line)

    def _take(self, keywords: Sequence[ast.keyword]) -> None:
        """Take the settings of a call, those of a dictionary given by ``**`` one by one."""
        for keyword in keywords:
            node = keyword.value
            if keyword.arg is not None:
                self.script.settings[keyword.arg] = self.found(node)
                continue
            whole = (self.names.get(node.id) or node) if isinstance(node, ast.Name) else node
            if isinstance(whole, ast.Call) and _called(whole) == "dict":
                self._take(whole.keywords)
            elif isinstance(whole, ast.Dict):
                for key, value in zip(whole.keys, whole.values, strict=True):
                    name = key.value if isinstance(key, ast.Constant) else f"**{ast.unparse(value)}"
                    self.script.settings[str(name)] = self.found(value)
            else:
                self.script.settings[f"**{ast.unparse(node)}"] = Found(UNKNOWN, node.lineno)

    def visit_Call(self, node: ast.Call) -> None:
        """Take the calls that carry settings."""
        name = _called(node)
        last = name.rpartition(".")[2]
        if last in ("PPOConfig", "LoraConfig"):
            self.script.configured |= last == "PPOConfig"
            self._take(node.keywords)
            if last == "LoraConfig":
                self.script.settings["use_peft"] = Found(True, node.lineno, "there is a LoraConfig")
        elif last in ("HfArgumentParser", "TrlParser"):
            self.script.parsed |= "PPOConfig" in ast.unparse(node)
        elif last == "step" and len(node.args) == 3:
            self.script.steps = True
        elif last == "generate":
            self._generation(node)
        elif last == "from_pretrained" and node.args:
            kind = name.split(".")[0]
            if kind.startswith("AutoModelForCausalLM") and self.script.model is None:
                self.script.model = self.found(node.args[0])
            if kind.startswith("AutoModelForSequenceClassification"):
                self.script.reward = self.found(node.args[0])
        elif last == "pipeline":
            named = [k.value for k in node.keywords if k.arg == "model"]
            self.script.reward = self.found(named[0]) if named else None
        elif last == "load_dataset" and node.args:
            self.script.dataset = self.found(node.args[0])
        self.generic_visit(node)

    def _generation(self, node: ast.Call) -> None:
        """Keywords of `generate`, and of what it takes by ``**``."""
        known = {"max_new_tokens", "temperature", *HARMLESS, "repetition_penalty"}
        given = [k for k in node.keywords if k.arg is None or k.arg in known]
        before = dict(self.script.settings)
        self._take(given)
        added = set(self.script.settings) - set(before)
        for key in added - known - {"pad_token_id", "eos_token_id"}:
            del self.script.settings[key]


def read(path: Path, words: Sequence[str]) -> Script:
    """The settings of the script at ``path`` started with ``words``.

    Raises:
        UserError: it cannot be read, is no Python, or sets up no PPO.
    """
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}; name a Python file") from None
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None) or 1
        raise UserError(
            f"{path}, line {line}: no Python: {error}; name the script itself"
        ) from None
    script = Reader(tree).script
    if not (script.configured or script.parsed):
        raise UserError(f"{path}: no PPOConfig in it; name a script that trains with TRL's PPO")
    if script.parsed and not script.configured and not words:
        raise UserError(
            f"{path}: its settings come from the command line; add them:"
            f" {path.name} -- --learning_rate …"
        )
    script.settings |= flags(words)
    return script


def flags(words: Sequence[str]) -> dict[str, Found]:
    """What ``--name value``, ``--name=value``, ``--name`` (true) and ``--name a b`` (list) set."""
    settings: dict[str, Found] = {}
    name = ""
    for word in words:
        if word.startswith("--"):
            name, equals, value = word.removeprefix("--").partition("=")
            name = name.replace("-", "_")
            settings[name] = Found(_value(value) if equals else True, 0)
        elif not name:
            raise UserError(f"{word!r} behind --: expected --name value")
        elif settings[name].value is True:
            settings[name] = Found(_value(word), 0)
        else:
            before = settings[name].value
            many = before if isinstance(before, list) else [before]
            settings[name] = Found([*many, _value(word)], 0)
    return settings


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return {"true": True, "false": False, "none": None}.get(text.lower(), text)
