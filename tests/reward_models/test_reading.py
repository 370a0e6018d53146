"""How a checkpoint is asked: its format, its template, its length, its padding."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BertForSequenceClassification,
    BertForTokenClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    LlamaForTokenClassification,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
    XLNetConfig,
    XLNetForSequenceClassification,
)

from pipeline.data.toy import toy_encoder, toy_language_model, toy_tokenizer
from pipeline.lm.generation import encode_prompt, prompt_text
from reward_models import RewardError, load_reward
from reward_models.interface import ChatPrompt
from reward_models.reading import length_limit
from reward_models.sentiment import SequenceClassifier

MESSAGES = [
    {"role": "system", "content": "the film"},
    {"role": "user", "content": "a movie about war"},
]


def llama(labels: int = 1, **settings: Any) -> LlamaForSequenceClassification:
    torch.manual_seed(0)
    given: dict[str, Any] = {"num_labels": labels}
    config = LlamaConfig(
        vocab_size=len(toy_tokenizer()),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        **(settings | given),
    )
    return LlamaForSequenceClassification(config).eval()


def bert(labels: int = 1) -> BertForSequenceClassification:
    torch.manual_seed(0)
    config = toy_encoder(0).config
    config.num_labels = labels
    return BertForSequenceClassification(config).eval()


def plain(model: PreTrainedModel, ids: list[int]) -> float:
    """What the model itself says of one text, unpadded."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids))).logits
    return logits[0, -1].item() if model.config.num_labels == 1 else logits[0].tolist()


# --- Formats --------------------------------------------------------------------------------------


def test_a_reward_with_a_chat_template_is_asked_with_it() -> None:
    tokenizer, model = toy_tokenizer(), llama()
    reward = SequenceClassifier(model, tokenizer)
    assert reward.format == "chat" and reward.describe().startswith("reads a chat")

    def expected(conversation: list[dict[str, str]]) -> float:
        text: Any = tokenizer.apply_chat_template(conversation, tokenize=False)
        return plain(model, tokenizer(text, add_special_tokens=False)["input_ids"])

    answer = {"role": "assistant", "content": " is dull"}
    text, chat = "the film about love", ChatPrompt("as the policy writes it", MESSAGES)
    right = [
        expected([{"role": "user", "content": text}, answer]),
        expected([*MESSAGES, answer]),
    ]
    assert reward([text, chat], [" is dull"] * 2) == pytest.approx(right, abs=1e-5)
    assert abs(right[0] - right[1]) > 1e-4
    joined = SequenceClassifier(model, tokenizer, format="text")([text], [" is dull"])
    assert joined == pytest.approx([plain(model, tokenizer(text + " is dull")["input_ids"])])
    assert abs(joined[0] - right[0]) > 1e-4


def test_classes_read_text_though_their_tokenizer_has_a_template() -> None:
    named = llama(2, id2label={0: "negative", 1: "positive"})
    assert SequenceClassifier(named, toy_tokenizer()).format == "text"
    assert SequenceClassifier(named, toy_tokenizer(), format="chat").format == "chat"
    bare = toy_tokenizer()
    bare.chat_template = None
    assert SequenceClassifier(llama(), bare).format == "text"
    with pytest.raises(RewardError, match="no chat template; set format to text"):
        SequenceClassifier(llama(), bare, format="chat")
    with pytest.raises(RewardError, match="expected text, pair or chat"):
        SequenceClassifier(llama(), bare, format="dialogue")  # type: ignore[arg-type]


def test_a_pair_is_read_as_two_segments() -> None:
    tokenizer, model = toy_tokenizer(), bert()
    encoded = tokenizer("a movie about war", "is dull", return_tensors="pt")
    with torch.no_grad():
        right = model(**encoded).logits[0].tolist()
    asked = SequenceClassifier(model, tokenizer, format="pair")
    assert asked(["a movie about war"], ["is dull"]) == pytest.approx(right, abs=1e-6)


def test_a_template_that_refuses_is_one_line() -> None:
    tokenizer = toy_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}{{ m.content }}{% endfor %}"
    )
    reward = SequenceClassifier(llama(), tokenizer)
    with pytest.raises(RewardError, match="does not take the conversation .System role") as error:
        reward([ChatPrompt("", MESSAGES)], [" is dull"])
    assert "\n" not in str(error.value)
    tokenizer.chat_template = "{{ raise_exception('never') }}"
    with pytest.raises(RewardError, match="never"):  # before any text of a run
        SequenceClassifier(llama(), tokenizer)


def test_a_conversation_keeps_its_messages_on_its_way_to_the_reward() -> None:
    tokenizer = toy_tokenizer()
    prompt = prompt_text(tokenizer, MESSAGES, encode_prompt(tokenizer, MESSAGES))
    for one in (prompt, copy.deepcopy(prompt), pickle.loads(pickle.dumps(prompt))):
        assert isinstance(one, ChatPrompt) and one.messages == MESSAGES and one == prompt
    assert type(prompt_text(tokenizer, "the film", (1,))) is str


# --- Length ---------------------------------------------------------------------------------------


def test_the_length_is_the_models_own_and_long_completions_differ() -> None:
    reward = SequenceClassifier(bert(), toy_tokenizer())
    assert reward.max_length == 128
    filler = " the film about love is very wonderful and dull" * 10  # 90 words
    one, other = reward(["a movie", "a movie"], [" is awful" + filler, " is charming" + filler])
    assert abs(one - other) > 1e-6


@pytest.mark.parametrize("form", ["text", "pair", "chat"])
def test_what_is_cut_is_said_once_a_kind(form: Any) -> None:
    said: list[str] = []
    model = llama() if form == "chat" else bert()
    reward = SequenceClassifier(
        model, toy_tokenizer(), max_length=24, format=form, warn=said.append, name="mine"
    )
    reward(["a movie"], [" is dull"])
    assert not said
    long = " the film about love is very dull" * 6
    scores = reward(["a movie" + long, "this story" + long], [" is dull", " is wonderful"])
    assert abs(scores[0] - scores[1]) > 1e-6  # the completion stays
    reward(["a movie" + long], [" is dull"])
    assert said == ["mine: reads 24 tokens, and 2 of 2 texts are longer: the beginning of their "
                    "prompts is cut"]  # fmt: skip
    reward(["a movie", "a movie"], [long, " is dull"])
    reward(["a movie"], [long])
    assert len(said) == 2 and "1 of 2 texts are longer, 1 of them in the completion" in said[1]
    assert "reward.max_length" in said[1]


def test_positions_that_begin_behind_padding_are_not_counted() -> None:
    config = RobertaConfig(
        vocab_size=len(toy_tokenizer()),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=40,
        pad_token_id=1,
    )
    config.num_labels = 1
    model = RobertaForSequenceClassification(config)
    assert length_limit(model, toy_tokenizer(), None) == 38
    tokenizer = toy_tokenizer()
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    reward = SequenceClassifier(model, tokenizer, format="text", warn=lambda line: None)
    assert len(reward(["the film " * 60], [" is dull"])) == 1


# --- Padding --------------------------------------------------------------------------------------


def test_a_decoder_that_names_no_pad_token_reads_its_end_of_text() -> None:
    """EOS as padding would be taken for padding where a text ends with it."""
    tokenizer = toy_tokenizer()
    tokenizer.pad_token = None
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    model = llama(pad_token_id=None)
    texts = ["the film", "a movie about war and love"]
    right = []
    for text in texts:
        ids = tokenizer(text + "<eos> is dull<eos>", add_special_tokens=False)["input_ids"]
        assert ids[-1] == tokenizer.eos_token_id
        right.append(plain(model, ids))
    reward = SequenceClassifier(model, tokenizer)
    assert reward(texts, [" is dull"] * 2) == pytest.approx(right, abs=1e-5)


def test_a_model_that_padding_disturbs_is_asked_without() -> None:
    """XLNet reads a text's last position, which padding on the right would be."""
    torch.manual_seed(0)
    config = XLNetConfig(
        vocab_size=len(toy_tokenizer()), d_model=32, n_layer=1, n_head=4, d_inner=64
    )
    config.num_labels = 1
    model = XLNetForSequenceClassification(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(20)  # scores that differ
    tokenizer = toy_tokenizer()
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    texts = ["the film", "a movie about war and love", "this story", "the film about love is"]
    right = [plain(model, tokenizer(text + " is dull")["input_ids"]) for text in texts]
    reward = SequenceClassifier(model, tokenizer, format="text")
    assert reward(texts, [" is dull"] * 4) == pytest.approx(right, abs=1e-4)
    assert len({round(value, 2) for value in right}) == 4
    assert not reward._pads


# --- Other heads ----------------------------------------------------------------------------------


def save(model: PreTrainedModel, folder: Path) -> str:
    model.save_pretrained(folder)
    toy_tokenizer().save_pretrained(folder)
    return str(folder)


def test_a_head_for_another_task_is_one_line(tmp_path: Path) -> None:
    """A token classifier's weights fit a sequence classifier's head to the last name."""
    config = llama(2).config
    wrong = [LlamaForTokenClassification(config), BertForTokenClassification(toy_encoder(0).config)]
    for number, model in enumerate(wrong):
        with pytest.raises(RewardError, match="TokenClassification, not trained to score") as error:
            load_reward(save(model, tmp_path / str(number)))
        assert "\n" not in str(error.value)


def test_a_language_model_is_none_unless_it_has_a_head_to_score_with(tmp_path: Path) -> None:
    with pytest.raises(RewardError, match="no weights for score.weight"):
        load_reward(save(toy_language_model(0), tmp_path / "policy"))
    folder = tmp_path / "reward"
    model = llama()
    save(model, folder)
    config = folder / "config.json"
    config.write_text(config.read_text().replace("ForSequenceClassification", "ForCausalLM"))
    texts = ["the film"], [" is dull"]
    right = SequenceClassifier(model, toy_tokenizer())(*texts)
    assert load_reward(str(folder))(*texts) == pytest.approx(right)


def test_code_of_its_own_is_not_passed_over(tmp_path: Path) -> None:
    model = llama()
    model.config.auto_map = {"AutoModelForSequenceClassification": "modeling.Gated"}
    with pytest.raises(RewardError, match="scores by Python code of its own"):
        load_reward(save(model, tmp_path))


def test_settings_of_a_checkpoint_are_refused_for_a_function(tmp_path: Path) -> None:
    (tmp_path / "mine_settings.py").write_text("def f(completions):\n    return []\n")
    wrong: list[dict[str, Any]] = [{"format": "pair"}, {"positive_labels": ["good"]}]
    for options in wrong:
        with pytest.raises(RewardError, match="is a function, for which"):
            load_reward("mine_settings.py:f", base=tmp_path, **options)


def test_the_format_of_a_function_is_texts_or_messages(tmp_path: Path) -> None:
    (tmp_path / "mine_format.py").write_text(
        "def f(completions):\n    return [float(isinstance(c, list)) for c in completions]\n"
    )
    for format, given in ((None, 0.0), ("text", 0.0), ("chat", 1.0)):
        reward = load_reward("mine_format.py:f", base=tmp_path, format=format)  # type: ignore[arg-type]
        assert reward(["a question"], ["an answer"]) == [given]
