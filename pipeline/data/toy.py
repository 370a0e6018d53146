"""A task small enough for tests: template sentences, their tokenizer, and random tiny models.

Nothing here is downloaded. The sentences are film remarks whose opening says nothing about
sentiment and whose later words carry it, so that a prompt of four words leaves the completion's
sentiment to the policy, as with real reviews. The tokenizer has ``pad == eos`` on purpose: code
that finds the end of a completion by token id fails on it at once.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from pipeline.data.records import RatedText

_THINGS = ("film", "movie", "story", "comedy", "drama", "sequel", "thriller", "documentary")
_PARTS = ("cast", "plot", "music", "script", "ending", "dialogue", "camera", "pacing")
_SUBJECTS = (
    *("love", "war", "school", "money", "family", "music", "crime", "friendship"),
    *("football", "robots", "ghosts", "lawyers", "sailors", "cooking", "jazz", "winter"),
)
_OPENINGS = tuple(f"{word} {{thing}} about {{subject}}" for word in ("the", "this", "a"))
_LINKS = ("and", "while", "with", "where")
_ADVERBS = ("very", "quite", "truly", "often", "rather", "simply")
# Word -> what a rater gives a remark that uses it, before noise; the scale is −4 to +4.
_SENTIMENT = {
    "brilliant": 3.5,
    "wonderful": 3.0,
    "moving": 2.5,
    "funny": 2.0,
    "charming": 2.0,
    "clever": 2.0,
    "warm": 1.5,
    "pleasant": 1.5,
    "dull": -1.5,
    "clumsy": -1.5,
    "boring": -2.0,
    "silly": -2.0,
    "messy": -2.0,
    "lifeless": -2.5,
    "terrible": -3.0,
    "awful": -3.5,
}
_GOOD = tuple(word for word, score in _SENTIMENT.items() if score > 0)
_BAD = tuple(word for word, score in _SENTIMENT.items() if score < 0)
_SPECIAL = ("<eos>", "<unk>", "<cls>", "<sep>", "<|system|>", "<|user|>", "<|assistant|>")
_EOS_ID = 0
_RATERS = 10

# Every message behind its role's token; an assistant's message ends with EOS.
_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def toy_texts(count: int, seed: int) -> list[RatedText]:
    """Return ``count`` different rated sentences of 11 to 20 words.

    Nine in ten sentences take a side, and nine in ten of their sentiment words agree with it; the
    rest mix. A rating is the mean score of the sentence's sentiment words as seen by ten noisy
    raters, on the scale −4 to +4.

    Args:
        count: How many sentences; no two are equal.
        seed: Same seed, same sentences.
    """
    rng = random.Random(seed)
    texts: dict[str, RatedText] = {}
    while len(texts) < count:
        text, score = _sentence(rng)
        if text in texts:
            continue
        ratings = tuple(
            float(max(-4, min(4, round(score + rng.gauss(0.0, 1.0))))) for _ in range(_RATERS)
        )
        texts[text] = RatedText(text, sum(ratings) / _RATERS, ratings)
    return list(texts.values())


def in_batches(texts: list[RatedText], size: int = 30) -> list[RatedText]:
    """The texts with each ``size`` in a row rated by the same ten people, for comparisons.

    A toy's raters differ in their noise alone, so this leaks nothing where it is left out.
    """
    return [replace(text, batch=index // size) for index, text in enumerate(texts)]


def _sentence(rng: random.Random) -> tuple[str, float]:
    """Draw one sentence and the mean score of its sentiment words."""
    agreement = rng.choices((0.9, 0.5), weights=(9, 1))[0]
    side, other = (_GOOD, _BAD) if rng.random() < 0.5 else (_BAD, _GOOD)

    def sentiment() -> str:
        word = rng.choice(side if rng.random() < agreement else other)
        scores.append(_SENTIMENT[word])
        return word

    scores: list[float] = []
    opening = rng.choice(_OPENINGS).format(thing=rng.choice(_THINGS), subject=rng.choice(_SUBJECTS))
    words = [*opening.split(), "is", rng.choice(_ADVERBS), sentiment()]
    for _ in range(rng.randint(1, 3)):
        if len(words) > 15:
            break  # the next clause may have five words
        link = rng.choice(_LINKS)
        part = rng.choice(_PARTS)
        if link == "with":
            words += ["with", "a", sentiment(), part]
        else:
            words += [link, "the", part, "is", sentiment()]
    return " ".join(words), sum(scores) / len(scores)


def _tokens() -> list[str]:
    """Special tokens (EOS first), then each word of the grammar without and with its space."""
    openings = (word for opening in _OPENINGS for word in opening.split() if "{" not in word)
    groups: tuple[Iterable[str], ...] = (
        *(openings, _THINGS, _PARTS, _SUBJECTS, _LINKS, _ADVERBS, _SENTIMENT),
        ("is", "the", "a"),
    )
    words = list(dict.fromkeys(word for group in groups for word in group))
    return [*_SPECIAL, *words, *(f"▁{word}" for word in words)]


def toy_tokenizer() -> PreTrainedTokenizerFast:
    """Return a word-level tokenizer over the toy grammar's vocabulary.

    Like a byte-level BPE it keeps the space in front of a word inside the word's token, so that
    decoding is exact and ``decode(prompt) + decode(completion) == decode(prompt + completion)``.
    ``pad == eos``; there is no BOS, and nothing is added around a text.
    """
    vocabulary = {token: index for index, token in enumerate(_tokens())}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")  # type: ignore
    backend.decoder = decoders.Metaspace(prepend_scheme="never")  # type: ignore
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<eos>",
        pad_token="<eos>",
        unk_token="<unk>",
        cls_token="<cls>",
        sep_token="<sep>",
        additional_special_tokens=list(_SPECIAL[4:]),
        clean_up_tokenization_spaces=False,
        model_max_length=128,
    )
    tokenizer.chat_template = _CHAT_TEMPLATE
    return tokenizer


def toy_language_model(seed: int) -> LlamaForCausalLM:
    """Return a random Llama with 4 layers of width 32 over the toy vocabulary, in float32.

    Input and output embeddings are tied, as in SmolLM2. The caller's random state is untouched.
    """
    config = LlamaConfig(
        vocab_size=len(_tokens()),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        bos_token_id=None,
        eos_token_id=_EOS_ID,
        pad_token_id=_EOS_ID,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def toy_encoder(seed: int) -> BertModel:
    """Return a random BERT with 2 layers of width 32 for the toy tokenizer, in float32.

    The caller's random state is untouched.
    """
    config = BertConfig(
        vocab_size=len(_tokens()),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        pad_token_id=_EOS_ID,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return BertModel(config)
