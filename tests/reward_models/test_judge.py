"""A model as a judge: both orders, the place's share told and taken out, letters as tokens."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import PreTrainedTokenizerFast

from reward_models import RewardError
from reward_models.interface import ChatPrompt
from reward_models.judge import Judge, Verdict, bias_of

WORDS = ["<pad>", "<unk>", "A", "B", "good", "bad", "Answer", "A:", "B:", "<user>", "<bot>"]
CHAT = "{% for m in messages %}<user> {{ m['content'] }} {% endfor %}<bot>"


def tokenizer_of(words: list[str], chat: str | None = CHAT) -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", unk_token="<unk>")
    made.chat_template = chat
    return made


class Reader(nn.Module):
    """Says the letter of the answer with more good words, and leans towards A by ``lean``.

    It reads the tokens that its mask shows, like a causal model in the last of them.
    """

    def __init__(self, lean: float = 0.0, nan: bool = False) -> None:
        super().__init__()
        self.lean, self.nan = lean, nan
        self.config = SimpleNamespace(
            get_text_config=lambda: SimpleNamespace(max_position_embeddings=200)
        )
        self.device = torch.device("cpu")
        self.widths: list[tuple[int, int]] = []

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        use_cache: bool,
        logits_to_keep: torch.Tensor,
    ) -> Any:
        self.widths.append(tuple(input_ids.shape))  # type: ignore[arg-type]
        good, bad = WORDS.index("good"), WORDS.index("bad")
        starts = [WORDS.index("A:"), WORDS.index("B:")]
        logits = torch.zeros(*input_ids.shape, len(WORDS))
        for row, ids in enumerate(input_ids.tolist()):
            quality, now = [0.0, 0.0], None
            for place, token in enumerate(ids):
                now = starts.index(token) if token in starts else now
                if now is not None:
                    quality[now] += (token == good) - (token == bad)
                logits[row, place, WORDS.index("A")] = quality[0] + self.lean
                logits[row, place, WORDS.index("B")] = math.nan if self.nan else quality[1]
            assert attention_mask[row].sum() == sum(token != 0 for token in ids)
        return SimpleNamespace(logits=logits[:, logits_to_keep])


def judge(model: nn.Module | None = None, **settings: Any) -> Judge:
    words = settings.pop("words", WORDS)
    made = tokenizer_of(words, settings.pop("chat", CHAT))
    return Judge(model or Reader(), made, "good words", **settings)  # type: ignore[arg-type]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


PAIRS = (
    ["p", "p", "p p p p", "p"],
    ["good good", "bad", "good", "x"],
    ["bad", "good good good", "good", "x x x x x x"],
)


def test_the_better_answer_wins_by_its_probability_in_either_place() -> None:
    verdicts = judge()(*PAIRS)
    expected = [sigmoid(3), sigmoid(-4), 0.5, 0.5]
    assert [v.probability for v in verdicts] == pytest.approx(expected, abs=1e-6)
    for verdict in verdicts:
        assert verdict.as_first == pytest.approx(verdict.as_second, abs=1e-6)
    bias = bias_of(verdicts)
    assert bias.first_place == pytest.approx(0.0, abs=1e-6) and bias.flipped == 0.0
    assert 0 < bias.letters < 1


def test_a_lean_to_one_place_is_told_and_taken_out() -> None:
    verdicts = judge(Reader(lean=2.0))(*PAIRS)
    assert verdicts[0].as_first == pytest.approx(sigmoid(5), abs=1e-6)
    assert verdicts[0].as_second == pytest.approx(sigmoid(1), abs=1e-6)
    assert verdicts[2].probability == pytest.approx(0.5, abs=1e-6)  # alike, so no favour is left
    swapped = judge(Reader(lean=2.0))(PAIRS[0], PAIRS[2], PAIRS[1])
    for one, other in zip(verdicts, swapped, strict=True):
        assert one.probability == pytest.approx(1 - other.probability, abs=1e-6)
    bias = bias_of(verdicts)
    assert bias.first_place > 0.2 and bias.flipped == 0.5  # the two that are alike
    every = bias_of(judge(Reader(lean=50.0))(*PAIRS))
    assert every.first_place == pytest.approx(0.5) and every.flipped == 1.0


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_batches_change_nothing(batch_size: int) -> None:
    model = Reader(lean=0.3)
    assert judge(model, batch_size=batch_size)(*PAIRS) == judge(Reader(lean=0.3))(*PAIRS)
    assert max(rows for rows, _ in model.widths) <= batch_size


def test_letters_that_are_no_tokens_are_refused() -> None:
    for words in ([*WORDS[:2], *WORDS[4:]], [w for w in WORDS if w != "B"]):
        with pytest.raises(RewardError, match="does not tell A from B as single tokens"):
            judge(words=words)


def test_without_a_chat_template() -> None:
    asked = judge(chat=None)
    assert asked._question("p", "a", "b").endswith("A or B.\n\nBetter answer:")
    assert asked(*PAIRS)[0].probability > 0.9


def test_what_is_asked() -> None:
    prompt = ChatPrompt("as text", [{"role": "user", "content": "hi {first}"}])
    question = judge()._question(prompt, "{second}", "{prompt}")
    assert "user: hi {first}\n" in question and "as text" not in question
    assert question.index("Answer A:\n{second}") < question.index("Answer B:\n{prompt}")
    assert "good words" in question


def test_mistakes_name_the_pair() -> None:
    with pytest.raises(RewardError, match="pair 1 is a question of .* it reads 200"):
        judge()(["p", "p"], ["a", "a " * 300], ["b", "b"])
    with pytest.raises(RewardError, match="logits for pair 0 are not finite"):
        judge(Reader(nan=True))(["p"], ["a"], ["b"])
    with pytest.raises(RewardError, match="the criterion is empty"):
        Judge(Reader(), tokenizer_of(WORDS), " ")  # type: ignore[arg-type]
    assert bias_of([Verdict(0.5, 0.5, 0.5, 1.0)]).flipped == 0.0
