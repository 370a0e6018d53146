"""The section `sweep` of an experiment's file; a key's docstring stands under it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from pipeline.bounds import Count
from pipeline.config.base import Name, Section


class RaySection(Section):
    """What each trial asks of a Ray cluster."""

    address: Name | None = None
    """`auto` or `host:port` of an existing cluster; null is RAY_ADDRESS, else one is started here.
    """
    num_cpus: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1
    num_gpus: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0
    max_retries: Annotated[int, Field(ge=0)] = 3
    """Times that a trial is begun again elsewhere when its node is lost or has a full disk."""


class SweepSection(Section):
    """`rlhf sweep`: every policy at every β from every seed, each a trial in its own folder."""

    policies: Annotated[list[Name], Field(min_length=1)] | None = None
    """Names from `policies`; null is all of them."""
    betas: (
        Annotated[list[Annotated[float, Field(ge=0, allow_inf_nan=False)]], Field(min_length=1)]
        | None
    ) = None
    """In the place of `beta`, and of a policy's own; null is the experiment's."""
    seeds: Annotated[list[Annotated[int, Field(ge=0, lt=2**32)]], Field(min_length=1)] = [0, 1, 2]
    over: dict[Name, Annotated[list[Any], Field(min_length=1)]] = {}
    """Further axes, `{pairs.max_pairs: [512, 2048]}`: each counts for the policies that read it."""
    share: bool = True
    """All seeds have one SFT model and rewards; false: each its own."""
    keep: Literal["all", "models", "numbers"] = "models"
    """Of a finished trial: `all`, the policy's checkpoints too, from which it could train longer;
    its model; or what was measured alone."""
    jobs: Count = 1
    """Trials side by side on this machine."""
    threads: Count | None = None
    """Of each trial; null is the cores shared out among the jobs."""
    runner: Literal["local", "ray"] = "local"
    ray: RaySection = RaySection()
