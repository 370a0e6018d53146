"""A language model as a judge of pairs (RLAIF): which of two answers is better, and how surely.

    P(first is better) = ½ · [P("A" | first as A, second as B) + P("B" | second as A, first as B)]

P is over the two letters alone, from the logits of the next token: soft labels, averaged over both
orders (Lee et al. 2023, "RLAIF", section 2.1). Judges favour a place whatever stands there (Zheng
et al. 2023, "Judging LLM-as-a-Judge", section 3.3); the average takes that out of the label, and
how large it was is told.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from jinja2 import TemplateError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from reward_models.interface import ChatPrompt, RewardError

QUESTION = """Two answers to the same request are given below. Which one is better? What counts is \
this: {criterion}

Request:
{prompt}

Answer A:
{first}

Answer B:
{second}

Which answer is better? Say only the letter, A or B."""
"""What the judge is asked. Without a chat template ``Better answer:`` stands behind it."""
_PLAIN_END = "\n\nBetter answer:"
LETTERS = ("A", "B")
_LONGEST = 2**20


@dataclass(frozen=True)
class Verdict:
    """What a judge says of one pair.

    Attributes:
        probability: That the first answer is better, both orders averaged.
        as_first, as_second: P(first is better) where it stood as A, and where it stood as B.
        letters: The share of the next token's probability that was on the two letters, averaged; a
            judge that wants to say something else has little there.
    """

    probability: float
    as_first: float
    as_second: float
    letters: float


@dataclass(frozen=True)
class Bias:
    """How much a judge looked at the place rather than at the answer.

    Attributes:
        first_place: Mean probability of the answer in place A, less ½: 0 for a fair judge, ½ for
            one that says A to everything.
        flipped: Share of pairs whose better answer was another one in the other order.
        letters: Mean share of the next token's probability on the two letters.
    """

    first_place: float
    flipped: float
    letters: float


class Judge:
    """Compares answers with a causal language model; no sampling, so the same answer every time."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        criterion: str,
        *,
        batch_size: int = 8,
        name: str = "the judge",
    ) -> None:
        """Look at the tokenizer; the model stays where it is, in evaluation mode.

        Args:
            criterion: What makes an answer better, in words.
            batch_size: Questions asked at once, of which a pair has two.
            name: What messages call it.

        Raises:
            RewardError: The criterion is empty, or the letters are no tokens of their own.
        """
        if not criterion.strip():
            raise RewardError(f"{name}: the criterion is empty; say what makes an answer better")
        self.model, self.tokenizer = model.eval(), tokenizer
        self.criterion, self.batch_size, self.name = criterion.strip(), batch_size, name
        self.limit = _limit(model, tokenizer)
        self._chat = bool(tokenizer.chat_template)
        self._letters = self._find_letters()
        # Logits of the last tokens alone: a vocabulary times all tokens would fill the memory.
        self._keeps = "logits_to_keep" in inspect.signature(model.forward).parameters

    def __call__(
        self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]
    ) -> list[Verdict]:
        """Compare ``first[i]`` with ``second[i]`` as answers to ``prompts[i]``.

        Raises:
            RewardError: A question is longer than the model reads; names its index.
        """
        questions: list[list[int]] = []
        for index, (prompt, one, other) in enumerate(zip(prompts, first, second, strict=True)):
            for pair in ((one, other), (other, one)):
                ids = self._ids(self._question(prompt, *pair))
                if len(ids) > self.limit:
                    raise RewardError(
                        f"{self.name}: pair {index} is a question of {len(ids)} tokens, and it "
                        f"reads {self.limit}; leave the pair out, or take another judge"
                    )
                questions.append(ids)
        answers = self._ask(questions)
        verdicts = []
        for (forward, mass), (backward, other_mass) in zip(
            answers[::2], answers[1::2], strict=True
        ):
            swapped = 1.0 - backward
            verdicts.append(
                Verdict(fmean((forward, swapped)), forward, swapped, fmean((mass, other_mass)))
            )
        return verdicts

    @torch.no_grad()
    def _ask(self, questions: list[list[int]]) -> list[tuple[float, float]]:
        """P(A) among the letters and the letters' share, of each question."""
        answers: list[tuple[float, float]] = [(0.0, 0.0)] * len(questions)
        order = sorted(range(len(questions)), key=lambda i: len(questions[i]))
        for start in range(0, len(order), self.batch_size):
            part = order[start : start + self.batch_size]
            logits = self._last_logits([questions[i] for i in part]).float()
            letters = logits[:, list(self._letters)]
            first = torch.sigmoid((letters[:, 0] - letters[:, 1]).double())
            share = (letters.logsumexp(1) - logits.logsumexp(1)).exp()
            for i, p, mass in zip(part, first.tolist(), share.tolist(), strict=True):
                if not math.isfinite(p):
                    raise RewardError(
                        f"{self.name}: its logits for pair {i // 2} are not finite; take another "
                        "judge, or another dtype"
                    )
                answers[i] = (p, mass)
        return answers

    def _last_logits(self, rows: list[list[int]]) -> torch.Tensor:
        """``(B, V)`` logits behind the last token of each row.

        Rows are padded on the right, where a causal model's real tokens do not see it.
        """
        lengths = torch.tensor([len(row) for row in rows])
        width = int(lengths.max())
        pad = self.tokenizer.pad_token_id
        fill = 0 if pad is None else pad
        ids = torch.tensor([row + [fill] * (width - len(row)) for row in rows])
        mask = (torch.arange(width)[None] < lengths[:, None]).long()
        last, place = torch.unique(lengths - 1, return_inverse=True)
        device = self.model.device
        more: dict[str, Any] = {"logits_to_keep": last.to(device)} if self._keeps else {}
        logits = self.model(
            input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False, **more
        ).logits
        return logits[torch.arange(len(rows)), place if self._keeps else lengths - 1]

    def _question(self, prompt: str, first: str, second: str) -> str:
        """The text that is asked, up to where the letter comes."""
        if isinstance(prompt, ChatPrompt) and prompt.messages:
            prompt = "\n".join(f"{m['role']}: {m['content']}" for m in prompt.messages)
        # One after another would fill in a brace of the texts'.
        parts = {"criterion": self.criterion, "prompt": prompt, "first": first, "second": second}
        question = QUESTION.format(**parts)
        if not self._chat:
            return question + _PLAIN_END
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    [{"role": "user", "content": question}],
                    add_generation_prompt=True,
                    tokenize=False,
                )
            )
        except (TemplateError, ValueError, TypeError, LookupError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise RewardError(
                f"{self.name}: its chat template does not take a question ({reason}); take another "
                "judge"
            ) from None

    def _ids(self, text: str) -> list[int]:
        # A chat template writes its special tokens itself.
        encoded: Any = self.tokenizer(text, add_special_tokens=not self._chat, verbose=False)
        ids = list(encoded["input_ids"])
        while ids and not self._chat and ids[-1] == self.tokenizer.eos_token_id:
            ids.pop()
        return ids

    def _find_letters(self) -> tuple[int, int]:
        """The tokens of A and B as they would follow a question."""
        question = self._question("a request", "one", "another")
        before = self._ids(question)
        for space in ("", " "):
            found = []
            for letter in LETTERS:
                ids = self._ids(question + space + letter)
                if len(ids) == len(before) + 1 and ids[:-1] == before:
                    found.append(ids[-1])
            unknown = self.tokenizer.unk_token_id
            if len(set(found)) == len(LETTERS) and unknown not in found:
                return found[0], found[1]
        raise RewardError(
            f"{self.name}: its tokenizer does not tell A from B as single tokens, so their "
            "probabilities cannot be compared; take another judge"
        )


def bias_of(verdicts: Sequence[Verdict]) -> Bias:
    """How much the place mattered in these verdicts."""
    # As A it got as_first; as B the other answer, in place A, got 1 − as_second.
    return Bias(
        first_place=fmean((v.as_first + 1.0 - v.as_second) / 2.0 for v in verdicts) - 0.5,
        flipped=fmean((v.as_first > 0.5) != (v.as_second > 0.5) for v in verdicts),
        letters=fmean(v.letters for v in verdicts),
    )


def _limit(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    config: Any = model.config.get_text_config()
    positions = getattr(config, "max_position_embeddings", None) or _LONGEST
    return int(min(positions, tokenizer.model_max_length, _LONGEST))
