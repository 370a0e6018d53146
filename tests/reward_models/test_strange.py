"""Ten thousand strange texts through every kind of reward: finite scores, never a crash."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from pipeline.data.toy import toy_encoder, toy_tokenizer
from reward_models import ChatPrompt, RewardError, checked
from reward_models.combined import Part, combined
from reward_models.reading import APPENDS_EOS
from reward_models.rules import contains, length, repetition
from reward_models.sentiment import SequenceClassifier

COUNT, LONG = 10_000, 100_000
_PIECES = (
    "the film is good ",
    "ленивый 猫 कखग مرحبا שלום ไทย 한국어 ",
    "😀👩‍👩‍👧‍👦🏳️‍🌈🇩🇪",
    "".join(map(chr, range(32))) + "\x7f\x80\x9f",
    "\ud800 \udfff \ud83d",
    "\x00",
    "\u202e\u200b\ufeff\u2028\u0301\u0301\uffff\U0010ffff",
    "<s></s>[CLS][SEP][MASK]<eos><|im_end|>{{ x }}{% raw %}",
    "a\u0300" * 3 + "ﬁ½Ⅷ",
    "aaaaaaaaaa",
)


def strange_texts(seed: int = 0) -> list[str]:
    """Empty ones, each piece alone and long, and thousands of short mixtures."""
    rng = random.Random(seed)
    texts = ["", " ", "\n\n", *_PIECES]
    texts += [(piece * LONG)[:LONG] for piece in _PIECES]
    while len(texts) < COUNT:
        letters = "".join(rng.choices(_PIECES, k=rng.randint(1, 3)))
        texts.append("".join(rng.choices(letters, k=rng.randint(0, 12))))
    return texts


TEXTS = strange_texts()
PROMPTS = [*(TEXTS[1:] + TEXTS[:1])]
PROMPTS[:2] = [ChatPrompt("\ud800", [{"role": "user", "content": "\ud800\x00"}]), "\udfff"]


def word_pieces() -> PreTrainedTokenizerFast:
    """As MiniLM's: lower case, accents and control characters away, [CLS] and [SEP] around."""
    letters = [chr(code) for code in range(33, 127)]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *(f"##{c}" for c in letters)]
    vocabulary = {word: number for number, word in enumerate(words)}
    made: Any = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))  # type: ignore[call-arg]
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names: dict[str, Any] = {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
    }
    return PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=512, **names)


def byte_pairs() -> PreTrainedTokenizerFast:
    """As a language model's: every byte has a token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate([*alphabet, "<eos>"])}
    made: Any = Tokenizer(models.BPE(vocabulary, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eos>")
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    return tokenizer


def encoder(labels: int, tokenizer: PreTrainedTokenizerFast, **options: Any) -> SequenceClassifier:
    torch.manual_seed(0)
    size: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = BertConfig(vocab_size=len(tokenizer), num_attention_heads=2, **size)
    config.num_labels = labels
    if labels == 2:
        config.id2label, config.label2id = {0: "neg", 1: "pos"}, {"neg": 0, "pos": 1}
    model = BertForSequenceClassification(config)
    options = {"max_length": 128, "batch_size": 256, "warn": lambda line: None} | options
    return SequenceClassifier(model, tokenizer, **options)


def decoder(appends_eos: bool | None) -> SequenceClassifier:
    torch.manual_seed(0)
    tokenizer = byte_pairs()
    size: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = LlamaConfig(vocab_size=len(tokenizer), num_attention_heads=2, **size)
    config.num_labels = 1
    if appends_eos is not None:  # as `train_pairwise` leaves it
        setattr(config, APPENDS_EOS, appends_eos)
    model = LlamaForSequenceClassification(config)
    return SequenceClassifier(
        model, tokenizer, max_length=128, batch_size=256, warn=lambda line: None
    )


def toy_classifier() -> SequenceClassifier:
    torch.manual_seed(0)
    config = toy_encoder(0).config
    config.num_labels = 1
    return SequenceClassifier(
        BertForSequenceClassification(config),
        toy_tokenizer(),
        max_length=128,
        format="text",
        batch_size=256,
        warn=lambda line: None,
    )


async def later(completions: list[str]) -> list[float]:
    return [float(len(text)) for text in completions]


def parts(*functions: Callable[..., Any]) -> list[Part]:
    return [Part(str(number), checked(function)) for number, function in enumerate(functions)]


KINDS: dict[str, Callable[[], Callable[..., Any]]] = {
    "toy classifier": toy_classifier,
    "classifier of word pieces": lambda: encoder(2, word_pieces()),
    "classifier of pairs": lambda: encoder(1, word_pieces(), format="pair"),
    "decoder in its chat template": lambda: decoder(None),
    "pairwise head": lambda: decoder(True),
    "function": lambda: lambda prompts, completions: [len(text) for text in completions],
    "async function": lambda: later,
    "length window": lambda: length(2, 5),
    "contains": lambda: contains(["film"]),
    "matches": lambda: contains(patterns=[r"\bfilm\b"]),
    "repetition": lambda: repetition(2),
    "ensemble": lambda: combined(parts(later, length(1, 9)), "pessimistic"),
    "weighted sum": lambda: combined(parts(later, repetition(1))),
}
"""A kind's name to what makes one; another kind is another line."""


@pytest.mark.parametrize("kind", KINDS)
def test_strange_texts_get_finite_scores(kind: str) -> None:
    scores = checked(KINDS[kind]())(PROMPTS, TEXTS)
    assert len(scores) == COUNT and all(math.isfinite(score) for score in scores)


def test_half_a_pair_reads_as_what_cannot_be_read_and_a_whole_one_as_itself() -> None:
    reward = checked(decoder(True))
    texts = ["a \ud83d b", "a \ufffd b", "a \ud83d\ude00 b", "a 😀 b"]
    lone, marked, pair, whole = reward([""] * 4, texts)
    assert lone == marked and pair == whole and lone != pair


def test_a_function_that_cannot_take_a_text_names_it() -> None:
    with pytest.raises(
        RewardError, match=r"raised UnicodeEncodeError.* on completion \d+ "
    ) as error:
        checked(lambda completions: [len(c.encode()) for c in completions])(PROMPTS, TEXTS)
    assert "\n" not in str(error.value)
    assert str(error.value).encode()
