"""Asks every reward about every text, and puts the whole account together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.config import Experiment
from pipeline.errors import UserError
from pipeline.judging import probes
from pipeline.judging.evaluation import (
    Scale,
    against_people,
    by_length,
    cautions,
    held_out_account,
    people,
)
from pipeline.judging.judges import Judge, further_judges, own_judges, score
from pipeline.judging.texts import Domain, held_out, other_domains, words_of
from pipeline.stages.heldout import columns_of


def account_of(experiment: Experiment, named: Mapping[str, str], most: int) -> dict[str, Any]:
    """Judge the experiment's rewards and the ``named`` ones; what evaluation.json holds.

    Args:
        named: Further rewards: name to source.
        most: Texts of each other domain.

    Raises:
        UserError: The data or a reward cannot be used.
    """
    own = held_out(experiment)
    judges = own_judges(experiment, more=bool(named)) + further_judges(experiment, named)
    if not judges:
        raise UserError("--reward: there is no reward to judge; run `rlhf reward`, or name one")
    others, probed = other_domains(experiment, most), probes.load_probes()
    scored, of_probes = _ask_all(experiment, judges, [own, *others], probed)
    scale = Scale(experiment.data.positive_above, experiment.data.neutral_margin)
    log_odds = {judge.name: judge.log_odds for judge in judges}
    account = held_out_account(own.texts, scored[own.name], scale, log_odds)
    lengths = words_of(experiment, own.texts)
    unseen = [judge.name for judge in judges if judge.unseen]
    return {
        "experiment": experiment.name,
        "data": own.name,
        "unit": experiment.data.unit,
        "seed": experiment.data_seed,
        "positive_above": scale.threshold,
        "neutral_margin": scale.margin,
        "cautions": cautions(account, scored[own.name], log_odds, unseen),
        "judges": [_described(judge) for judge in judges],
        **account,
        "by_length": by_length(own.texts, lengths, scored[own.name], scale, log_odds),
        "by_domain": [
            _domain(domain, scored[domain.name], scale, log_odds) for domain in [own, *others]
        ]
        if others
        else [],
        "probes": _probes(probed, of_probes),
        "scores": {"rating": [text.rating for text in own.texts], "rewards": scored[own.name]},
    }


def _described(judge: Judge) -> dict[str, Any]:
    return {
        "name": judge.name,
        "source": judge.source,
        "described": judge.described,
        "log_odds": judge.log_odds,
        "unseen": judge.unseen,
    }


def _ask_all(
    experiment: Experiment,
    judges: Sequence[Judge],
    domains: Sequence[Domain],
    probed: Sequence[probes.Probe],
) -> tuple[dict[str, dict[str, list[float]]], dict[str, list[float]]]:
    """The scores of each domain and of the probes: one list of texts, so that one bar counts."""
    prompts, completions = probes.texts_of(probed)
    sizes = [len(domain.texts) for domain in domains]
    asked = [prompt for domain in domains for prompt in domain.prompts] + prompts
    answers = [text for domain in domains for text in domain.completions] + completions
    scores = score(judges, asked, answers, columns_of(experiment, answers))
    scored, start = {}, 0
    for domain, size in zip(domains, sizes, strict=True):
        scored[domain.name] = {
            name: values[start : start + size] for name, values in scores.items()
        }
        start += size
    return scored, {name: values[start:] for name, values in scores.items()}


def _domain(
    domain: Domain,
    scores: Mapping[str, Sequence[float]],
    scale: Scale,
    log_odds: Mapping[str, bool],
) -> dict[str, Any]:
    return {
        "domain": domain.name,
        "texts": len(domain.texts),
        "one_person": people(domain.texts, scale),
        "rewards": {
            name: against_people(domain.texts, values, scale, log_odds[name])
            for name, values in scores.items()
        },
    }


def _probes(
    probed: Sequence[probes.Probe], scores: Mapping[str, Sequence[float]]
) -> list[dict[str, Any]]:
    """Of each probe what it is, and every reward's result."""
    by_reward = {name: probes.results(probed, values) for name, values in scores.items()}
    return [
        {
            "probe": probe.title,
            "says": probe.says,
            "pairs": len(probe.pairs),
            "rewards": {
                name: {"passed": rows[at]["passed"], "failures": rows[at]["failures"]}
                for name, rows in by_reward.items()
            },
        }
        for at, probe in enumerate(probed)
    ]
