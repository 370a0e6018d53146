"""DPO's losses and labels: which there are, and what of them goes together."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

REBEL = "rebel"
"""Regression on the difference of rewards, which TRL has not: (βΔ − (r₁ − r₂))², Δ the difference
of the log-ratios (Gao et al. 2024, arXiv 2404.16767, eq. 5 with η = 1/β)."""
ONCE_EACH = (["sigmoid"], [REBEL])
"""Losses whose trainer is this project's, which runs each completion of a batch once."""
TRL_LOSSES = (
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot",
    "aot_unpaired", "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
)  # fmt: skip
# Settings that only TRL's own step goes by, and what they are when they ask for nothing.
PLAIN: dict[str, Any] = {
    "label_smoothing": 0,
    "ld_alpha": None,
    "use_weighting": False,
    "f_divergence_type": "reverse_kl",
    "sync_ref_model": False,
    "router_aux_loss_coef": None,
    "activation_offloading": False,
    "neftune_noise_alpha": None,
    "torch_compile": False,
}


_BY_DIVERGENCE = {
    "sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft",
}  # fmt: skip
"""The losses that TRL has in other divergences than the reverse KL."""


class _Pairs(Protocol):
    @property
    def labels(self) -> str: ...

    @property
    def hard_labels(self) -> bool | None: ...


def loss_names(arguments: Mapping[str, Any]) -> list[str]:
    """``loss_type`` of DPO's section, TRL's default where it is not given."""
    given = arguments.get("loss_type") or ["sigmoid"]
    return [given] if isinstance(given, str) else list(given)


def loss_problems(
    arguments: Mapping[str, Any], pairs: _Pairs, own_pairs: bool
) -> Iterator[tuple[str, str]]:
    """Pairs of a key and what is wrong there, of DPO's losses and the pairs' labels.

    Args:
        arguments: DPO's section as given. own_pairs: whether the pairs are the user's.
    """
    names, known = loss_names(arguments), [*TRL_LOSSES, REBEL]
    for name in names:
        if isinstance(name, str) and name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            expected = f"expected some of {', '.join(known)}, found {name!r}{hint}"
            yield "dpo.loss_type", expected
    yield from _trl_problems(arguments, names)
    former = {True: "hard", False: "sampled"}.get(pairs.hard_labels, pairs.labels)  # type: ignore
    if former != pairs.labels:
        yield "pairs.hard_labels", f"an older key; pairs.labels says {pairs.labels}: remove it"
    rebel, soft = REBEL in names, pairs.labels == "soft" and not own_pairs
    if rebel and len(names) > 1:
        yield "dpo.loss_type", "rebel cannot be combined with other losses; set one of them"
    if rebel and own_pairs:
        yield (
            "dpo.loss_type",
            "rebel needs the rewards of both completions, which data.preferences_name has not",
        )
    if soft and names not in ONCE_EACH:
        yield (
            "pairs.labels",
            f"soft does not go with dpo.loss_type {', '.join(names)}; set sampled, or the loss to "
            "sigmoid",
        )
    for key, off in PLAIN.items():
        if (rebel or soft) and arguments.get(key, off) != off:
            which = "dpo.loss_type=rebel" if rebel else "pairs.labels=soft"
            mend = "remove it" if rebel else "remove it, or set pairs.labels=sampled"
            yield f"dpo.{key}", f"does not go with {which}; {mend}"


def _trl_problems(arguments: Mapping[str, Any], names: list[str]) -> Iterator[tuple[str, str]]:
    """What TRL's trainer would refuse, hours later, of settings that have the right types."""
    weights, names = arguments.get("loss_weights"), [n for n in names if isinstance(n, str)]
    weights = [weights] if isinstance(weights, int | float) else weights
    if isinstance(weights, list) and len(weights) != len(names):
        yield (
            "dpo.loss_weights",
            f"there are {len(weights)} for {len(names)} losses; give each of dpo.loss_type one",
        )
    if "exo_pair" in names and not arguments.get("label_smoothing"):
        yield (
            "dpo.loss_type",
            "exo_pair needs dpo.label_smoothing above 0, as its labels are logarithms; set 0.001",
        )
    divergence = str(arguments.get("f_divergence_type") or "reverse_kl")
    without = sorted(set(names) & set(TRL_LOSSES) - _BY_DIVERGENCE)
    if divergence != "reverse_kl" and without:
        yield (
            "dpo.f_divergence_type",
            f"{divergence} does not go with dpo.loss_type {', '.join(without)}; remove it",
        )
    if arguments.get("use_weighting") and {"aot", "aot_unpaired"} & set(names):
        yield "dpo.use_weighting", "does not go with dpo.loss_type aot, which sorts the pairs"
