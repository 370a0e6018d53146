"""The toy task: sentences, tokenizer and models are what the other tests take them for."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoTokenizer

from pipeline.data.toy import toy_encoder, toy_language_model, toy_texts, toy_tokenizer


@pytest.fixture(autouse=True)
def one_thread():
    """Learning curves depend on the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_texts_are_deterministic_distinct_and_rated():
    texts = toy_texts(500, seed=3)
    assert texts == toy_texts(500, seed=3)
    assert texts != toy_texts(500, seed=4)
    assert len({text.text for text in texts}) == 500
    assert all(8 <= len(text.text.split()) <= 20 for text in texts)
    assert all(text.rating == sum(text.ratings) / len(text.ratings) for text in texts)
    assert all(-4 <= score <= 4 for text in texts for score in text.ratings)
    assert 0.4 < sum(text.rating > 0 for text in texts) / 500 < 0.6


def test_prompts_carry_no_sentiment():
    """The mean rating given the first four words is near the overall mean, for every word."""
    texts = toy_texts(3000, seed=0)
    for word in {word for text in texts for word in text.text.split()[:4]}:
        rated = [text.rating for text in texts if word in text.text.split()[:4]]
        assert abs(sum(rated) / len(rated)) < 0.75, word


def test_tokenizer_is_exact_and_knows_every_word():
    tokenizer = toy_tokenizer()
    for text in toy_texts(300, seed=1):
        ids = tokenizer(text.text)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert len(ids) == len(text.text.split())
        assert tokenizer.decode(ids) == text.text
        assert f"{tokenizer.decode(ids[:4])}{tokenizer.decode(ids[4:])}" == text.text


def test_pad_is_eos():
    tokenizer = toy_tokenizer()
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 0
    assert tokenizer.bos_token is None
    assert None not in (tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.unk_token_id)
    model = toy_language_model(0)
    assert model.config.pad_token_id == model.generation_config.eos_token_id == 0


def test_chat_template():
    tokenizer = toy_tokenizer()
    messages = [{"role": "user", "content": "the film"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "<|user|>the film<|assistant|>"
    assert tokenizer.unk_token_id not in tokenizer(str(text))["input_ids"]
    answered = [*messages, {"role": "assistant", "content": "is dull"}]
    text = tokenizer.apply_chat_template(answered, tokenize=False)
    assert text == "<|user|>the film<|assistant|>is dull<eos>"


def test_tokenizer_and_model_survive_saving(tmp_path):
    tokenizer, model = toy_tokenizer(), toy_language_model(0)
    tokenizer.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = toy_texts(1, seed=0)[0].text
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert loaded.pad_token_id == loaded.eos_token_id == 0
    again = type(model).from_pretrained(tmp_path)
    ids = torch.tensor([loaded(text)["input_ids"]])
    assert torch.equal(again(ids).logits, model(ids).logits)
    assert again.lm_head.weight is again.model.embed_tokens.weight


def test_models_depend_on_their_seed_only():
    before = torch.get_rng_state()
    one, same, other = toy_language_model(1), toy_language_model(1), toy_language_model(2)
    weight = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(one.state_dict()[weight], same.state_dict()[weight])
    assert not torch.equal(one.state_dict()[weight], other.state_dict()[weight])
    assert torch.equal(
        toy_encoder(1).embeddings.word_embeddings.weight,
        toy_encoder(1).embeddings.word_embeddings.weight,
    )
    assert torch.equal(before, torch.get_rng_state())


def test_a_tiny_classifier_learns_the_sentiment_in_seconds():
    """Held-out accuracy on clear texts. Seeds 0 to 4 gave 0.975 to 0.995."""
    tokenizer, encoder = toy_tokenizer(), toy_encoder(0)
    texts = [text for text in toy_texts(1200, seed=0) if abs(text.rating) >= 0.5]
    train, test = texts[:-200], texts[-200:]
    torch.manual_seed(0)
    head = torch.nn.Linear(32, 1)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *head.parameters()], lr=1e-3)

    def logits(part):
        batch = tokenizer([text.text for text in part], padding=True, return_tensors="pt")
        return head(encoder(**batch).pooler_output)[:, 0]

    def positive(part):
        return torch.tensor([text.rating > 0 for text in part])

    for start in [start for _ in range(4) for start in range(0, len(train), 32)]:
        part = train[start : start + 32]
        loss = torch.nn.functional.binary_cross_entropy_with_logits(
            logits(part), positive(part).float()
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    encoder.eval()
    with torch.no_grad():
        accuracy = ((logits(test) > 0) == positive(test)).float().mean().item()
    assert accuracy > 0.9


def test_a_tiny_language_model_learns_the_grammar_in_seconds():
    """Nats a token, 4.9 untrained. Seeds 0 to 4 gave 1.42 to 1.47 after four epochs."""
    tokenizer, model = toy_tokenizer(), toy_language_model(0)
    texts = [text.text + str(tokenizer.eos_token) for text in toy_texts(1200, seed=0)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    def loss(part):
        batch = tokenizer(part, padding=True, return_tensors="pt")
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        return model(**batch, labels=labels).loss

    for start in [start for _ in range(4) for start in range(0, 1000, 32)]:
        optimizer.zero_grad()
        loss(texts[start : min(start + 32, 1000)]).backward()
        optimizer.step()
    with torch.no_grad():
        assert loss(texts[1000:]).item() < 1.7
