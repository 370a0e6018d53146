"""Fluency: how likely a model that was trained on none of this finds the policies' answers.

A low perplexity is ordinary text in that model's eyes, which repetition is as well: read it beside
self-BLEU and distinct-n.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from common.words import first_line
from pipeline.config import Experiment
from pipeline.errors import UserError
from pipeline.lm.generation import Completion
from pipeline.lm.hardware import best_device
from pipeline.lm.models import EMBEDDED_MODEL, base_of, load_base
from pipeline.lm.paths import completion_nll
from pipeline.lm.positions import tokens_taken

SAMPLES = 2
"""Of each prompt so many samples are judged: it is to be a small part of the comparison."""

# What the config says of the model that SFT starts from, and of no other.
_OTHER = {"model_revision": None, "policy_modules": None, "init_kwargs": None}


@dataclass(frozen=True)
class Judge:
    """A language model, with the tokenizer that it reads by."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    def nll(
        self, completions: Sequence[Completion], label: str | None = None
    ) -> tuple[list[float], list[int]]:
        """−log p(text | prompt) of each completion in nats, and the tokens that it is over.

        Prompts and texts are tokenized by themselves, as a sampled answer is; the end of an answer
        is not counted. A first token that nothing comes before, and what the model has no
        positions for, are left out.
        """
        asked = [self._tokens(c.prompt, special=True) for c in completions]
        texts = [self._tokens(c.text, special=False) for c in completions]
        whole = [before + text for before, text in zip(asked, texts, strict=True)]
        limit = tokens_taken(base_of(self.model), max(map(len, whole), default=0))
        rows = []
        for before, tokens in zip(asked, whole, strict=True):
            start, tokens = max(len(before), 1), tokens[:limit]
            rows.append(Completion("", tokens[:start], tokens[start:], "", True))
        nll = completion_nll(self.model, rows, label=label)
        return nll, [len(row.completion_ids) for row in rows]

    def _tokens(self, text: str, special: bool) -> tuple[int, ...]:
        ids = list(self.tokenizer(text, add_special_tokens=special)["input_ids"])  # type: ignore
        while special and ids and ids[-1] == self.tokenizer.eos_token_id:
            ids.pop()
        return tuple(ids)


def named(experiment: Experiment) -> str | None:
    """The model that `compare.fluency_model` names; None where nothing judges.

    ``base`` is what SFT started from: a relative of every policy, but trained on none of what they
    were. Where SFT was left out it would be π_ref itself, so there is none.
    """
    name = experiment.compare.fluency_model
    if name != "base":
        return name
    return None if experiment.sft.skip else experiment.model.model_name_or_path


def check(experiment: Experiment) -> None:
    """See, before any work, that a model named in the config is there.

    Raises:
        UserError: it is not, or is no model.
    """
    name = experiment.compare.fluency_model
    if name in (None, "base", "toy", EMBEDDED_MODEL):
        return
    try:
        AutoConfig.from_pretrained(name, trust_remote_code=experiment.model.trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"compare.fluency_model: {name!r} is no model here or on the hub"
            f" ({first_line(error)}); give a folder, a hub id, base or null"
        ) from error


def judge(experiment: Experiment) -> Judge | None:
    """Load the model that :func:`named` names.

    Raises:
        UserError: it cannot be loaded.
    """
    section, name = experiment.model, named(experiment)
    if name is None:
        return None
    if experiment.compare.fluency_model != "base":
        section = section.model_copy(update=_OTHER | {"model_name_or_path": name})
    try:
        model, tokenizer = load_base(section, experiment.seed)
    except UserError as error:
        raise UserError(f"compare.fluency_model: {str(error).partition(': ')[2]}") from error
    return Judge(model.eval().to(best_device()), tokenizer)  # type: ignore[arg-type]
