"""From a name in a config to a reward function."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from reward_models.calling import RewardCall, checked, to_stderr
from reward_models.interface import RULES, RewardError, is_url, without_secrets

if TYPE_CHECKING:  # a package that only names rewards need not load it
    import torch

    from reward_models.reading import Format

_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_FORMS = "a model folder, a hub id, file.py:function, module:function or rules:name or http://…"

Kind = Literal["checkpoint", "function", "rules", "service"]
_NAMES = {"checkpoint": "checkpoint", "function": "function", "rules": "rule", "service": "service"}
READS: dict[str, tuple[str, ...]] = {
    "checkpoint": ("max_length", "format", "positive_labels", "label_weights"),
    "function": ("format",),
    "rules": ("arguments",),
    "service": ("arguments",),
}
"""The options of `load_reward` that mean something for one kind of source alone."""


def kind_of(spec: str) -> Kind:
    """What ``spec`` names, by its form alone."""
    source, colon, name = spec.rpartition(":")
    if is_url(spec):
        return "service"
    if spec.startswith(RULES):
        return "rules"
    if colon and source.endswith(".py"):
        return "function"
    return "function" if _MODULE.fullmatch(source) and name.isidentifier() else "checkpoint"


def load_reward(
    spec: str,
    *,
    base: Path | None = None,
    max_length: int | None = None,
    batch_size: int = 64,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    base_model: Path | None = None,
    share_with: torch.nn.Module | None = None,
    positive_labels: Sequence[str] | None = None,
    label_weights: Mapping[str, float] | None = None,
    format: Format | None = None,
    arguments: Mapping[str, Any] | None = None,
    warn: Callable[[str], None] = to_stderr,
) -> RewardCall:
    """Return the reward that ``spec`` names, as `checked` makes it.

    Args:
        spec: A folder or hub id of a sequence-classification checkpoint, ``file.py:function``,
            ``module:function``, ``rules:name`` or the URL of a service. Functions take
            ``(prompts, completions, **columns)``, see `bound`; rules are those of `rules`; a
            service is a `HttpReward`.
        base: The folder that a relative path starts from, and where modules are looked for too;
            None is the current one.
        max_length: The longest text in tokens; None is what the checkpoint can take.
        batch_size: Texts scored at once.
        dtype: ``torch.bfloat16`` for autocast (checkpoints only).
        device: Where a checkpoint computes; None is the processor.
        base_model: What a folder of adapters belongs to; None is what it says itself.
        share_with: A model whose frozen weights a checkpoint uses where its own equal them.
        positive_labels: A checkpoint's good labels, where their names do not tell.
        label_weights: A number for each of its labels instead, see `SequenceClassifier`.
        format: How a checkpoint reads prompt and completion; None is `usual_format`. A function
            gets lists of messages with ``chat``, texts with ``text``; None: as it is annotated.
        arguments: A rule's; or a service's, see `http_reward`.
        warn: Takes a line for each call that is made again, and about texts that are cut.

    Raises:
        RewardError: There is no such model, file, module or function, or it is not a reward.
    """
    base = base or Path.cwd()
    kind = kind_of(spec)
    given = {"positive_labels": positive_labels, "label_weights": label_weights}
    given |= {"format": format, "arguments": arguments}
    for option, value in given.items():
        if value is not None and option not in READS[kind]:
            raise RewardError(
                f"reward {without_secrets(spec)}: is a {_NAMES[kind]}, for which {option} means "
                "nothing; remove it"
            )
    if kind == "service":
        from reward_models.http import http_reward, known

        return http_reward(
            spec, **{"batch_size": batch_size, "warn": warn} | known(spec, arguments or {})
        )
    if kind == "rules":
        from reward_models.rules import rule

        return replace(checked(rule(spec, arguments or {}), spec), warn=warn)
    if kind == "function":
        source, _, name = spec.rpartition(":")
        is_file = source.endswith(".py")
        module = (
            _import_file(spec, base / Path(source).expanduser())
            if is_file
            else _import_module(spec, source, base)
        )
        function = _function(module, name, spec)
        if format == "pair":
            raise RewardError(
                f"reward {spec}: is a function, for which format: pair means nothing; remove it"
            )
        messages = None if format is None else format == "chat"
        call = checked(function, spec, messages=messages)
        return replace(call, batch_size=batch_size, warn=warn)
    if spec.endswith(".py"):
        raise RewardError(f"reward {spec}: names no function; write {spec}:function")
    from reward_models.sentiment import load_classifier

    options: dict[str, Any] = {"max_length": max_length, "batch_size": batch_size}
    options |= {"base_model": base_model, "share_with": share_with, "warn": warn}
    options |= {"positive_labels": positive_labels, "label_weights": label_weights}
    options |= {"format": format}
    folder = _model_folder(spec, base)
    classifier = load_classifier(
        folder or spec, dtype=dtype, device=device, name=f"reward {spec}", **options
    )
    return replace(checked(classifier, spec), warn=warn)


def _model_folder(spec: str, base: Path) -> Path | None:
    """The local folder that ``spec`` names; None for a hub id."""
    path = base / Path(spec).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise RewardError(
                f"reward {spec}: no model folder (config.json is missing); give {_FORMS}"
            )
        return path
    if path.exists():
        raise RewardError(f"reward {spec}: is a file, not a model; give {_FORMS}")
    # A hub id is `name` or `owner/name`: anything else can only be a path.
    if spec.startswith((".", "/", "~")) or spec.count("/") > 1 or "\\" in spec:
        raise RewardError(f"reward {spec}: there is no such folder; give {_FORMS}")
    return None


def _import_file(spec: str, path: Path) -> ModuleType:
    """Run a Python file as a module; its neighbours can be imported from it."""
    path = path.resolve()
    if not path.is_file():
        raise RewardError(f"reward {spec}: there is no file {path}; check the path")
    # A name of its own, so that reward.py here and a module `reward` elsewhere stay two.
    name = f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    _search_in(path.parent)
    source = importlib.util.spec_from_file_location(name, path)
    assert source is not None and source.loader is not None  # a .py file has both
    module = importlib.util.module_from_spec(source)
    sys.modules[name] = module  # dataclasses and pickling look their module up
    try:
        source.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise _import_failed(spec, error) from error
    return module


def _import_module(spec: str, name: str, base: Path) -> ModuleType:
    _search_in(base)
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise _import_failed(spec, error) from error


def _search_in(folder: Path) -> None:
    """Let modules in ``folder`` be imported, after all others so that they can shadow none."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _import_failed(spec: str, error: Exception) -> RewardError:
    first = (str(error).strip() or "no message").splitlines()[0]
    return RewardError(
        f"reward {spec}: cannot be imported ({type(error).__name__}: {first}); mend the file, or "
        f"name {_FORMS}"
    )


def _function(module: ModuleType, name: str, spec: str) -> Any:
    if hasattr(module, name):
        return getattr(module, name)
    functions = [key for key, value in vars(module).items() if callable(value) and key[0] != "_"]
    near = difflib.get_close_matches(name, functions, n=1)
    hint = f"; did you mean {near[0]}?" if near else "; check the name after the colon"
    raise RewardError(f"reward {spec}: there is no function {name!r}{hint}")
