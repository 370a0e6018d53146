"""A trained policy as a file: saved, loaded, and its tensors for the checkpoints of a run."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch

from classic_rl.deep.policies import ActorCritic, Policy, QNetwork
from classic_rl.envs import environments
from classic_rl.errors import ProblemError
from classic_rl.results import write_bytes

KINDS: dict[str, type[Policy]] = {cls.kind: cls for cls in (ActorCritic, QNetwork)}
POLICY_FILE = "policy.safetensors"


def save_policy(
    policy: Policy, path: str | Path, env_id: str, env_kwargs: Mapping[str, Any] | None = None
) -> Path:
    """Write one safetensors file: the weights, and in its header what rebuilds the policy."""
    about = {
        "kind": policy.kind,
        "settings": policy.settings,
        "env_id": env_id,
        "env_kwargs": dict(env_kwargs or {}),
    }
    tensors = {name: tensor.contiguous() for name, tensor in policy_tensors(policy).items()}
    return write_bytes(path, safetensors.torch.save(tensors, {"policy": json.dumps(about)}))


def load_policy(path: str | Path) -> tuple[Policy, str, dict[str, Any]]:
    """Read what `save_policy` wrote, from the file or the folder it is in.

    A file names its environment, and `module:Id` is imported to make it: that is code, found where
    Python finds modules and in the present folder. Unless it is imported already, a line on
    stderr says so.

    Returns:
        the policy, the id of the environment it was trained on, and that one's arguments.

    Raises:
        ProblemError: for a missing or foreign file, or weights of another shape.
    """
    path = Path(path)
    path = path / POLICY_FILE if path.is_dir() else path
    if not path.is_file():
        raise ProblemError(f"{path}: no such file; train with --out {path.parent} first")
    try:
        with safetensors.safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {}).get("policy", "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        raise ProblemError(f"{path}: not a readable safetensors file ({error})") from error
    if not isinstance(about, dict) or about.get("kind") not in KINDS:
        raise ProblemError(f"{path}: holds weights, but not those of a policy of classic_rl")
    module = about["env_id"].rpartition(":")[0]
    if module and module not in sys.modules:
        print(f"note: {path} asks for {about['env_id']}: importing {module}", file=sys.stderr)
    env = environments.make_for_networks(about["env_id"], about["env_kwargs"])
    policy = KINDS[about["kind"]](env.observation_space, env.action_space, **about["settings"])
    env.close()
    restore_policy(policy, tensors, str(path))
    return policy, about["env_id"], about["env_kwargs"]


def policy_tensors(policy: Policy) -> dict[str, torch.Tensor]:
    """The weights, and the observation statistics where the policy keeps them."""
    tensors = dict(policy.state_dict())
    if isinstance(policy, ActorCritic) and policy.scaler is not None:
        for name, array in policy.scaler.moments.state().items():
            tensors[f"scaler.{name}"] = torch.from_numpy(np.array(array))
    return tensors


def restore_policy(policy: Policy, tensors: Mapping[str, torch.Tensor], origin: str) -> None:
    """Undo `policy_tensors`, in place, so that flat views and optimisers stay valid.

    Raises:
        ProblemError: naming ``origin`` and the first tensor that does not fit.
    """
    ours = policy_tensors(policy)
    for name in sorted(ours.keys() | tensors.keys()):
        shapes = [tuple(group[name].shape) if name in group else None for group in (ours, tensors)]
        if shapes[0] != shapes[1]:
            raise ProblemError(
                f"{origin}: {name} has shape {shapes[1]}, the policy needs {shapes[0]}; "
                "it is a checkpoint of other settings"
            )
    with torch.no_grad():
        for name, tensor in policy.state_dict().items():
            tensor.copy_(tensors[name])
    if isinstance(policy, ActorCritic) and policy.scaler is not None:
        moments = policy.scaler.moments
        moments.restore({name: tensors[f"scaler.{name}"].numpy() for name in moments.state()})
