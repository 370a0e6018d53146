"""What the page's script reads: the policies' numbers, and the answers to look through.

Both stand in the page as JSON inside ``<script type="application/json">``. The template's filter
``tojson`` writes ``<``, ``>``, ``&`` and ``'`` as escapes, so that no text in it can end the
element or open a comment, and the page's Content-Security-Policy runs the page's own script only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.compare.methods import shown
from pipeline.compare.wording import interval, number, share
from pipeline.report.outputs import Outputs
from pipeline.report.plotting import variables

LIMIT = 10_000  # answers on the page; all others are in compare/samples_all.jsonl
KINDS = {
    "improved": "most improved",
    "degraded": "most degraded",
    "disagreement": "policies disagree",
    "suspected_hacking": "suspected hacking",
}
"""Of examples.json, and what they are called."""

_DIGITS = 3


def points(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return each policy's name, colour and numbers in words, in the order of the SVG's ids."""
    policies = shown(results)
    names = variables(policies)
    found = []
    for method in policies:
        row = results["methods"][method.name]
        facts = [("reward", number(row.get("reward"))), ("judge", number(row.get("gold")))]
        if row.get("kl") is None:
            facts.append(("KL", "not known"))
        else:
            most = "at most " if method.kind == "choice" else ""
            facts.append(("KL", f"{most}{number(row['kl'])} nats"))
        if row.get("optimality") is not None and method.kind != "reference":
            ends = interval(row.get("optimality_ci"))
            facts.append(("optimality", f"{share(row)} {ends}".rstrip()))
        if row.get("train_reward_queries") is not None and method.kind == "trained":
            facts.append(("rewards asked for", f"{row['train_reward_queries']:,}"))
        found.append({"title": method.title, "colour": names[method.name], "facts": facts})
    return found


def explorer(outputs: Outputs) -> dict[str, Any] | None:
    """Return the answers and the examples for the page's list; None where there are none.

    Rows are arrays, which takes half the room: an answer is ``[prompt, policy, text, reward, gold,
    KL]`` with the places of its prompt and policy in ``prompts`` and ``policies``; an example is
    ``[prompt, kind, policy or −1, [answer's text, …]]`` with the numbers per policy beside it.
    """
    policies = shown(outputs.results)
    places = {method.name: place for place, method in enumerate(policies)}
    prompts: dict[str, int] = {}

    def prompt(value: Any) -> int:
        return prompts.setdefault(prompt_text(value), len(prompts))

    answers = [
        [
            prompt(row.get("prompt", "")),
            places[row["policy"]],
            _clean(row.get("text")),
            *(_short(row.get(key)) for key in ("reward", "gold", "kl")),
        ]
        for row in _answers(outputs)[:LIMIT]
        if row.get("policy") in places
    ]
    examples = [
        [
            prompt(row.get("prompt", "")),
            row["kind"],
            places.get(row.get("policy") or "", -1),
            [
                [
                    places[name],
                    _clean(text),
                    *(_short((row.get(key) or {}).get(name)) for key in ("rewards", "gold", "kl")),
                ]
                for name, text in (row.get("completions") or {}).items()
                if name in places
            ],
        ]
        for row in outputs.examples
        if row.get("kind") in KINDS
    ]
    if not answers and not examples:
        return None
    names = variables(policies)
    return {
        "policies": [[method.title, names[method.name]] for method in policies],
        "prompts": list(prompts),
        "answers": answers,
        "examples": examples,
        "kinds": [[kind, KINDS[kind]] for kind in KINDS if kind in {row[1] for row in examples}],
        "reference": next((places[m.name] for m in policies if m.kind == "reference"), -1),
        "judged": not outputs.details.get("judge_is_proxy"),
    }


def _answers(outputs: Outputs) -> Sequence[Mapping[str, Any]]:
    """An answer a row: samples_all.jsonl's, else those of samples.jsonl."""
    if outputs.answers:
        return outputs.answers
    return [
        {
            "prompt": row.get("prompt", ""),
            "policy": name,
            "text": text,
            "reward": (row.get("rewards") or {}).get(name),
            "gold": (row.get("gold") or {}).get(name),
            "kl": (row.get("kl") or {}).get(name),
        }
        for row in outputs.samples
        for name, text in (row.get("completions") or {}).items()
    ]


def prompt_text(prompt: Any) -> str:
    """Return a prompt as people read it; of messages a line each."""
    if isinstance(prompt, list):
        prompt = "\n".join(f"{m.get('role')}: {m.get('content')}" for m in prompt)
    return _clean(prompt)


def _clean(text: Any) -> str:
    """``text`` as UTF-8 can hold it: half a surrogate pair, which JSON may name, cannot be."""
    return str("" if text is None else text).strip().encode("utf-8", "replace").decode("utf-8")


def _short(value: Any) -> float | None:
    return None if value is None else round(float(value), _DIGITS)
