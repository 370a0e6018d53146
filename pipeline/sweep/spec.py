"""From the experiment's file to the trials of its section `sweep`."""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from pipeline.config import Experiment, SweepSection
from pipeline.config.choices import left_out
from pipeline.config.experiment import Complain, check_tree, read_tree
from pipeline.config.policies import aims_at_beta, own_key, reads_beta, written_out
from pipeline.config.stages import SHARED
from pipeline.errors import UserError
from pipeline.provenance import fingerprint, stage_inputs
from pipeline.sweep.jobs import Job
from pipeline.sweep.trials import Trial, shown

Tree = dict[str, Any]
TRIALS = "trials"
# Sections and keys that say which trial it is, and not what it does.
_FIXED = ("sweep", "policies", "name", "output_dir", "shared", "tracking", "overoptimise")


@dataclass(frozen=True)
class Made:
    """The folder of stages that trials share: its config file, and what that says."""

    tree: Tree
    experiment: Experiment


@dataclass(frozen=True)
class Sweep:
    """All that a sweep consists of.

    Attributes:
        experiment: what the file says.
        trials: in the order they run in.
        shared: the folders of stages that trials share; none where the file names one itself.
        left_out: policies that are not trained at some β, and why.
    """

    experiment: Experiment
    trials: Sequence[Trial]
    shared: Mapping[Path, Made]
    left_out: Sequence[str]

    @property
    def folder(self) -> Path:
        """The sweep's own."""
        return self.experiment.output_dir

    @property
    def section(self) -> SweepSection:
        """Its settings."""
        return self.experiment.sweep

    @property
    def betas(self) -> list[float]:
        """Its β."""
        return list(self.section.betas or [self.experiment.beta])

    def jobs(self) -> list[Job]:
        """The shared stages, then the trials."""
        first = [Job(f.name, f, f / "config.yaml", SHARED) for f in self.shared]
        needed = {folder: (folder.name,) for folder in self.shared}
        return [*first, *(trial.job(needed.get(trial.shared, ())) for trial in self.trials)]


def read(path: Path, overrides: Sequence[str]) -> Sweep:
    """Read and check a sweep.

    Raises:
        UserError: the file is no experiment's, names a policy or a key that is not there, or makes
            a trial that is no experiment.
    """
    tree, complain = read_tree(path, overrides)
    return _Reader(tree, check_tree(tree, complain), complain).read()


class _Reader:
    """Makes the trials of one file."""

    def __init__(self, tree: Tree, experiment: Experiment, complain: Complain) -> None:
        self.tree, self.experiment, self.complain = tree, experiment, complain
        self.section = experiment.sweep
        self.betas = tuple(self.section.betas or [experiment.beta])
        self.names = self.section.policies or list(experiment.policies)
        self.shared: dict[Path, Made] = {}
        self.out: dict[str, None] = {}

    def read(self) -> Sweep:
        """See the function of this name."""
        self._check_names()
        self._check_over()
        trials = list(self._trials())
        names = [trial.name for trial in trials]
        for name in names:
            if names.count(name) > 1:
                raise self.complain("sweep", f"two of its trials would be named {name}; drop one")
        for trial in trials if len(trials) > 1 else ():
            given = trial.experiment.of(trial.policy).trainer_args(trial.method)
            if given.get("push_to_hub") and given.get("hub_model_id"):
                own = self.experiment.policies[trial.policy]
                key = own_key(trial.policy, own, f"{trial.method}.hub_model_id")
                raise self.complain(key, "would be that of every trial; leave it out")
        return Sweep(self.experiment, trials, self.shared, list(self.out))

    def _check_names(self) -> None:
        known = list(self.experiment.policies)
        for name in self.names:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
                problem = f"{name!r} is none of the policies; {hint}"
                raise self.complain("sweep.policies", problem)

    def _check_over(self) -> None:
        for key in self.section.over:
            place = f"sweep.over.{key}"
            if key in ("beta", "seed"):
                raise self.complain(place, f"set sweep.{key}s instead")
            if key.partition(".")[0] in _FIXED:
                raise self.complain(place, "cannot be another one from trial to trial")
            section, _, rest = key.partition(".")
            if isinstance(getattr(self.experiment, section, None), BaseModel) != bool(rest):
                raise self.complain(place, "is no setting; name one of a section: dpo.max_steps")
            readers = [name for name in self.names if key in self._axes(name)]
            if not readers:
                policies = ", ".join(self.names)
                raise self.complain(place, f"none of the policies reads it ({policies})")

    # -- what reads what -------------------------------------------------------------------------

    def _axes(self, name: str) -> list[str]:
        """The further axes that a policy's training reads, or what it is built on."""
        return [key for key in self.section.over if self._reads(name, key)]

    def _shares(self, key: str) -> bool:
        """Whether the shared stages read a further axis."""
        return any(self._reads(stage, key) for stage in SHARED)

    def _reads(self, stage: str, key: str) -> bool:
        """Whether a stage's output is another one where ``key`` is."""
        prints = {self._print(stage, {key: value}) for value in self.section.over[key]}
        return len(prints | {self._print(stage, {})}) > 1

    def _aims_at_beta(self, name: str, over: Mapping[str, Any]) -> bool:
        """Whether a policy is another one at each β; else one trial counts for all of them."""
        view = self._checked(self._tree(name, 1.0, 0, over), over).of(name)
        method = self.experiment.methods()[name]
        return aims_at_beta(method, view.trainer_args(method))

    def _print(self, stage: str, over: Mapping[str, Any]) -> str:
        policy = stage if stage in self.names else self.names[0]
        # At β = 0 some methods are no stages.
        tree = self._tree(policy, self.betas[0] or 1.0, 0, over)
        return fingerprint(stage_inputs(self._checked(tree, over))[stage])

    def _checked(self, tree: Tree, over: Mapping[str, Any]) -> Experiment:
        """The experiment of a trial's tree; a mistake in a further axis is said to be there."""

        def complain(key: str, problem: str) -> UserError:
            axis = next((a for a in over if key == a or key.startswith(f"{a}.")), None)
            return self.complain(f"sweep.over.{axis}" if axis else key, problem)

        return check_tree(tree, complain)

    # -- trees -----------------------------------------------------------------------------------

    def _tree(self, policy: str, beta: float, seed: int, over: Mapping[str, Any]) -> Tree:
        """The config of a trial, without its folders."""
        tree = copy.deepcopy(self.tree)
        for key in ("sweep", "shared"):
            tree.pop(key, None)
        own = dict(written_out(tree["policies"])[policy])
        method = self.experiment.methods()[policy]
        own.pop("seed", None)
        if reads_beta(method):  # else it is a setting of another meaning
            own.pop("beta", None)
        for key, value in over.items():
            _put(tree, own, method, key, value)
        tree |= {"policies": {policy: own or None}, "beta": beta, "seed": seed}
        # All trials are compared on the same prompts.
        tree["data"] = {**(tree.get("data") or {}), "seed": self.experiment.data_seed}
        if (tree.get("compare") or {}).get("policies"):
            tree["compare"].pop("policies")  # measured by `rlhf compare`, not by every trial
        return tree

    def _trials(self) -> Iterator[Trial]:
        further = {name: list(self._combinations(self._axes(name))) for name in self.names}
        aims = {
            (name, i): self._aims_at_beta(name, over)
            for name in self.names
            for i, over in enumerate(further[name])
        }
        # The one β of those that aim at none: at 0 some methods are left out.
        single = next((beta for beta in self.betas if beta > 0), self.betas[0])
        for seed in self.section.seeds:
            for beta in self.betas:
                for name in self.names:
                    for i, over in enumerate(further[name]):
                        if beta != single and not aims[name, i]:
                            continue
                        betas = (beta,) if aims[name, i] else self.betas
                        trial = self._trial(name, beta, betas, seed, over)
                        if trial is not None:
                            yield trial

    def _combinations(self, axes: Sequence[str]) -> Iterator[Tree]:
        for values in product(*(self.section.over[key] for key in axes)):
            yield dict(zip(axes, values, strict=True))

    def _trial(
        self, policy: str, beta: float, betas: tuple[float, ...], seed: int, over: Tree
    ) -> Trial | None:
        tree = self._tree(policy, beta, seed, over)
        why = left_out(self._checked(tree, over)).get(policy) if beta == 0 else None
        if why:
            self.out[f"{policy} at β = 0: {why}"] = None
            return None
        name = f"{policy}-b{beta:g}-s{seed}"
        name += "".join(f"-{key.rpartition('.')[2]}{_safe(value)}" for key, value in over.items())
        folder = self.experiment.output_dir / TRIALS / name
        shared = self._shared_folder(seed, over)
        tree |= {
            "name": f"{self.experiment.name}-{name}",
            "output_dir": str(folder),
            "shared": str(shared),
        }
        return Trial(
            name=name,
            folder=folder,
            policy=policy,
            method=self.experiment.methods()[policy],
            beta=beta,
            betas=betas,
            seed=seed,
            over=over,
            shared=shared,
            pool=(self._shared_name(over), *self._measure(over)),
            tree=tree,
            experiment=self._checked(tree, over),
        )

    def _measure(self, over: Tree) -> list[str]:
        """The further axes that decide a comparison's samples."""
        parts = ("data", "generation", "compare")
        return [f"{k}={shown(v)}" for k, v in over.items() if k.partition(".")[0] in parts]

    def _shared_name(self, over: Tree) -> str:
        """What the shared stages of trials are called that differ in the seed alone."""
        if self.experiment.shared is not None:
            return self.experiment.shared.name
        mine = [(key, value) for key, value in over.items() if self._shares(key)]
        return "shared" + "".join(f"-{key.rpartition('.')[2]}{_safe(value)}" for key, value in mine)

    def _shared_folder(self, seed: int, over: Tree) -> Path:
        """The folder of a trial's SFT model and rewards; its config is kept."""
        if self.experiment.shared is not None:
            return self.experiment.shared
        mine = {key: value for key, value in over.items() if self._shares(key)}
        own = self.experiment.seed if self.section.share else seed
        name = self._shared_name(over) + ("" if self.section.share else f"-s{seed}")
        folder = self.experiment.output_dir / name
        if folder not in self.shared:
            tree = self._tree(self.names[0], self.betas[0] or 1.0, own, mine)
            tree |= {"name": f"{self.experiment.name}-{name}", "output_dir": str(folder)}
            self.shared[folder] = Made(tree, self._checked(tree, mine))
        return folder


def _put(tree: Tree, own: Tree, method: str, key: str, value: Any) -> None:
    """Set a further axis: in the policy's own settings where it has that key, else in the file."""
    section, _, rest = key.partition(".")
    if section == method and rest.partition(".")[0] in own:
        _set(own, rest, value)
    elif section == "pairs" and "pairs" in own:
        _set(own, key, value)
    else:
        _set(tree, key, value)


def _set(tree: Tree, key: str, value: Any) -> None:
    *places, last = key.split(".")
    for part in places:
        if not isinstance(tree.get(part), dict):  # a value there is told when the tree is checked
            tree[part] = {}
        tree = tree[part]
    tree[last] = value


def _safe(value: Any) -> str:
    """A value as a part of a folder's name."""
    return re.sub(r"[^A-Za-z0-9._+-]+", "_", shown(value)).strip("_")
