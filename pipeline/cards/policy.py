"""The text of a policy's model card: YAML that the hub reads, and paragraphs that people read."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from pipeline.cards.facts import Facts
from pipeline.cards.known import UNKNOWN
from pipeline.compare import columns
from pipeline.compare.wording import beta_text, interval, share
from pipeline.config.content import CARD_MARK
from pipeline.output.policies import ADAPTER, MODEL

# Of the columns of the comparison, those of a card.
_SHOWN = ("gold", "gold_positive", "win_rate_gold", "reward", "objective", "optimality", "kl")
_SHOWN += ("length", "ended")
# What the hub's model index holds of a policy.
_INDEXED = {
    "optimality": "optimality: share of the possible gain in reward − β·KL",
    "objective": "objective: reward − β·KL",
    "reward": "mean reward that was optimised",
    "gold": "mean mark of the gold judge, which was not optimised",
    "kl": "KL from the SFT model, nats a completion",
}
_PAPERS = {
    "ppo": "arXiv:1707.06347, with the KL penalty of arXiv:1909.08593",
    "dpo": "arXiv:2305.18290",
    "kto": "arXiv:2402.01306",
    "rloo": "arXiv:2402.14740",
    "grpo": "arXiv:2402.03300",
    "orpo": "arXiv:2403.07691",
    "cpo": "arXiv:2401.08417",
    "simpo": "arXiv:2405.14734",
}
_LIMITS = """\
- What was optimised is a reward model's opinion, with its mistakes and its raters' taste: neither \
truth nor safety nor usefulness.
- The numbers hold for prompts of the same kind, for completions of the same length, at \
temperature 1. Elsewhere they mean nothing until they are measured.
- Nothing was done about what the base model knows, repeats or invents; its limits are this \
model's too."""


def card(facts: Facts, form: str) -> str:
    """The card of a policy's folder.

    Args:
        form: which folder it is for: ``model`` or ``adapter``.
    """
    head = _metadata(facts, form).to_yaml()
    return f"---\n{head}\n---\n\n" + "\n\n".join(_body(facts, form)) + f"\n\n{CARD_MARK}\n"


def _metadata(facts: Facts, form: str) -> Any:
    from huggingface_hub import EvalResult, ModelCardData

    named = [d for d in (facts.data, facts.prompts, facts.pairs) if d is not None]
    on_hub = sorted({d.hub_id for d in named if d.hub_id})
    licences = {d.license for d in (facts.base, *named)}
    known = None not in licences
    data_name = f"prompts of {facts.data.words}, held out"
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=facts.data.hub_id or "held-out",
            dataset_name=data_name,
            dataset_split="held out",
            metric_type=key,
            metric_name=name,
            metric_value=facts.own[key],
        )
        for key, name in _INDEXED.items()
        if facts.own.get(key) is not None
    ]
    tags = ["rlhf", facts.method or "sft"] + (["lora"] if form == ADAPTER else [])
    return ModelCardData(
        license=facts.base.license if known else None,
        library_name="peft" if form == ADAPTER else "transformers",
        pipeline_tag="text-generation",
        tags=tags,
        # An adapter's base is the SFT model, which a push names.
        base_model=facts.base.hub_id if form == MODEL else None,
        datasets=on_hub or None,
        model_name=facts.name if results else None,
        eval_results=results or None,
    )


def _body(facts: Facts, form: str) -> Iterator[str]:
    """The card's paragraphs."""
    yield f"# {facts.name}"
    yield _summary(facts)
    yield "## How good it is"
    yield from _quality(facts)
    if facts.samples:
        yield "## Samples"
        yield from _samples(facts)
    yield "## How it was made"
    yield _made(facts)
    yield "## How to load it"
    yield _loading(form)
    yield "## Licences"
    yield _licences(facts)
    yield "## What it must not be used for"
    yield _LIMITS
    if facts.settings:
        yield "## How to make it again"
        yield _again(facts)


def _summary(facts: Facts) -> str:
    base = facts.base.words[:1].upper() + facts.base.words[1:]
    tuned = "" if facts.as_it_is else ", fine-tuned on demonstrations"
    if not facts.method:
        data = ", as it is" if facts.as_it_is else f"{tuned} ({facts.data.words})"
        return (
            f"{base}{data}. It is the reference of an RLHF experiment: what its policies start"
            " from and are measured against."
        )
    paper = f" ({_PAPERS[facts.method]})" if facts.method in _PAPERS else ""
    then = ", trained by" if facts.as_it_is else f"{tuned} and then trained by"
    made = f"{base}{then} {facts.title}{paper}"
    if facts.beta is None:
        return f"{made}, which has no KL penalty."
    return f"{made} towards reward − β·KL, with β = {beta_text(facts.beta)} a nat."


def _quality(facts: Facts) -> Iterator[str]:
    """The comparison's table, and what its best numbers mean."""
    if not facts.rows:
        yield "It was not measured yet: `rlhf compare` with the config below does it."
        return
    own, beta = facts.own, beta_text(facts.results["beta"])
    if facts.method and own.get("optimality") is not None:
        ci = interval(own.get("optimality_ci"))
        yield (
            f"**Optimality {share(own)}** {ci}".rstrip() + ": so much of the gain in "
            f"reward − β·KL that any policy could make over the SFT model at β = {beta} "
            "(95 % interval over prompts); below 0 it is worse than that model."
        )
    wanted = [c for c in columns.shown(facts.rows.values()) if c.key in _SHOWN]
    names = {"best_of_n": "best-of-n"}
    lines = ["| | " + " | ".join(names.get(n, n) for n in facts.rows) + " |"]
    lines.append("| --- |" + " ---: |" * len(facts.rows))
    for column in wanted:
        values = [f"{column.value(row)} {column.range(row)}".strip() for row in facts.rows.values()]
        lines.append(f"| {column.heading}: {column.help} | " + " | ".join(values) + " |")
    yield "\n".join(lines)
    yield (
        f"{facts.results['prompts']} held-out prompts, "
        f"{facts.results['samples_per_prompt']} completions each, at temperature 1."
        + (" The judge is the reward itself here." if facts.judge_is_proxy else "")
    )


def _samples(facts: Facts) -> Iterator[str]:
    yield "The first held-out prompts, not chosen."
    for prompt, reference, own in facts.samples:
        rows = [f"prompt: {prompt}"]
        rows += [f"SFT:    {reference}", f"this:   {own}"] if facts.method else [f"this:   {own}"]
        yield fenced("\n".join(rows))


def fenced(text: str, language: str = "text") -> str:
    """``text`` in a code block whose fence no run of backticks within it ends."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def _made(facts: Facts) -> str:
    rows = {
        "base": facts.base.words,
        "texts and ratings" if facts.as_it_is else "demonstrations": facts.data.words,
        "prompts": facts.prompts and facts.prompts.words,
        "preference pairs": facts.pairs and facts.pairs.words,
        "reward": facts.reward,
        "gold judge": facts.gold,
        "method": facts.method and facts.title,
        "β, a nat of KL": None if facts.beta is None else beta_text(facts.beta),
        "trained": facts.trained,
        "seed": str(facts.seed),
        "rewards asked for": facts.cost.get("reward_queries"),
        "completions sampled": facts.cost.get("completions"),
    }
    rows = {name: str(value or "").replace("|", "\\|") for name, value in rows.items()}
    table = [f"| {name} | {value} |" for name, value in rows.items() if value]
    return "\n".join(["| | |", "| --- | --- |", *table])


def _loading(form: str) -> str:
    place = "path/to/this/folder"
    if form == ADAPTER:
        code = (
            "from peft import AutoPeftModelForCausalLM\nfrom transformers import AutoTokenizer\n\n"
            f'model = AutoPeftModelForCausalLM.from_pretrained("{place}")\n'
        )
        note = (
            "\n\nThese are LoRA adapters; the model that they belong to is named in"
            " `adapter_config.json`, and must be there."
        )
    else:
        code = (
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            f'model = AutoModelForCausalLM.from_pretrained("{place}")\n'
        )
        note = f"\n\nOr served: `transformers serve {place}`, `vllm serve {place}`."
    code += (
        f'tokenizer = AutoTokenizer.from_pretrained("{place}")\n'
        'inputs = tokenizer("the film about love", return_tensors="pt")\n'
        "print(tokenizer.decode(model.generate(**inputs, max_new_tokens=32)[0]))"
    )
    return fenced(code, "python") + note


def _licences(facts: Facts) -> str:
    rows = {"the base model": facts.base, "the data": facts.data}
    rows |= {"the prompts": facts.prompts, "the preference pairs": facts.pairs}
    lines = [f"- {what}: {of.licence}" for what, of in rows.items() if of is not None]
    unknown = any(line.endswith(UNKNOWN) for line in lines)
    note = (
        "\n\nWhat is unknown here was found in no card; look it up before you pass this model on."
        if unknown
        else ""
    )
    return "\n".join(lines) + note


def _again(facts: Facts) -> str:
    name = facts.stage
    words = (
        f"With these settings in `experiment.yaml`, `rlhf {name} --config experiment.yaml` trains "
        "it, and `rlhf run --config experiment.yaml` measures it too. Names of local files and "
        "services are shown without their place."
    )
    versions = ", ".join(f"{k} {v}" for k, v in facts.versions.items() if v)
    commit = f", commit {facts.commit[:12]}" if facts.commit else ""
    return f"{words}\n\n{fenced(facts.settings, 'yaml')}\n\nMade with {versions}{commit}."
