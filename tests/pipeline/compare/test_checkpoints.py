"""Checkpoints from elsewhere: each is measured as what its owner has, or refused in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertLMHeadModel,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from pipeline.compare.alike import beyond_reference, other_tokens, same_encoding
from pipeline.compare.checked import check_loaded
from pipeline.compare.checkpoints import load_policy
from pipeline.data.toy import toy_tokenizer
from pipeline.errors import UserError
from pipeline.lm.generation import Completion, sample
from pipeline.lm.models import base_of, prepare
from pipeline.lm.paths import completion_kl
from tests.pipeline.compare.elsewhere import COMPARED, adapted_model, edit, lively, saved

PROMPTS = ["the film", "this movie about war and the", "a", "the drama about love"]
TEXTS = ["the film is great", "this movie is a mess"]
NEW = 8
PLACE = "compare.policies.theirs"


def taken(source: Any) -> tuple[Any, Any]:
    """What the comparison does with a checkpoint before it samples."""
    model, tokenizer = load_policy(str(source), PLACE, torch.float32)
    check_loaded(model, tokenizer, f"{PLACE}: {source}", PROMPTS, TEXTS, NEW)
    return model, tokenizer


@pytest.fixture(scope="module")
def reference() -> Any:
    return prepare(lively("llama", seed=0), toy_tokenizer())


@torch.no_grad()
def by_hand(policy: nn.Module, reference: nn.Module, completion: Completion) -> float:
    """KL along one path from the whole models' logits, over the ids that both have."""
    tokens = torch.tensor([[*completion.prompt_ids, *completion.completion_ids]])
    start = len(completion.prompt_ids) - 1
    ours, theirs = (m(input_ids=tokens).logits[0, start:-1].double() for m in (policy, reference))
    p = ours[:, : theirs.shape[-1]].log_softmax(-1)
    return float((p.exp() * (p - theirs.log_softmax(-1))).sum())


@pytest.mark.parametrize("name", COMPARED)
def test_a_checkpoint_is_measured_as_its_owner_has_it(
    name: str, tmp_path: Path, reference: Any
) -> None:
    folder, owners = COMPARED[name](tmp_path)
    model, tokenizer = taken(folder)
    assert not model.training
    assert not isinstance(model, PeftModel)
    assert other_tokens(model, tokenizer, reference, toy_tokenizer(), PROMPTS) is None
    completions = sample(model, tokenizer, PROMPTS, max_new_tokens=NEW, batch_size=4, seed=0)
    measured = completion_kl(model, reference, completions)
    expected = [by_hand(owners, reference, c) for c in completions]
    assert min(expected) > 0.1
    assert measured == pytest.approx(expected, rel=2e-4)


def test_ids_that_the_reference_has_not_are_told(tmp_path: Path, reference: Any) -> None:
    model, tokenizer = taken(COMPARED["resized vocabulary"](tmp_path)[0])
    completions = sample(model, tokenizer, PROMPTS, max_new_tokens=NEW, batch_size=4, seed=0)
    reason, told = beyond_reference(model, reference, completions)
    assert reason is None
    assert told == (
        "its vocabulary has 16 ids more than the reference's; none was drawn, they have less than"
        " 0.01% of a token's probability, and KL is over the common ids"
    )


def test_their_share_is_the_mean_probability_of_a_token(tmp_path: Path, reference: Any) -> None:
    folder, owners = COMPARED["resized vocabulary"](tmp_path)
    model, tokenizer = taken(folder)
    size = base_of(reference).config.vocab_size
    with torch.no_grad():
        for each in (model, owners):
            each.lm_head.bias[size:] = -6.0  # type: ignore[union-attr]
    completions = [
        c
        for c in sample(model, tokenizer, PROMPTS, max_new_tokens=NEW, batch_size=4, seed=0)
        if max(c.completion_ids) < size
    ]
    shares: list[float] = []
    for c in completions:
        tokens = torch.tensor([[*c.prompt_ids, *c.completion_ids]])
        logits = owners(input_ids=tokens).logits[0, len(c.prompt_ids) - 1 : -1]
        shares += logits.softmax(-1)[:, size:].sum(-1).tolist()
    _, told = beyond_reference(model, reference, completions)
    assert f"they have {sum(shares) / len(shares):.2%} of" in str(told)
    assert completion_kl(model, reference, completions) == pytest.approx(
        [by_hand(owners, reference, c) for c in completions], rel=2e-4
    )


def test_a_drawn_id_that_the_reference_has_not_makes_kl_infinite(reference: Any) -> None:
    policy = lively("llama")
    size = policy.config.vocab_size
    policy.resize_token_embeddings(size + 16)
    completions = [
        Completion("", (5, 6), (7, size + 3), "", False),
        Completion("", (5,), (7,), "", False),
    ]
    reason, _ = beyond_reference(policy, reference, completions)
    assert reason == (
        f"1 of its 2 completions hold tokens that the reference has not (ids from {size} up to"
        f" {size + 15}), so KL is infinite"
    )


def test_a_reference_with_more_ids_loses_nothing(reference: Any) -> None:
    """π never draws those, and q's probabilities are over all of its own."""
    policy = lively("llama")
    wider = lively("llama", seed=0)
    wider.resize_token_embeddings(wider.config.vocab_size + 16)
    prepare(policy, toy_tokenizer())
    completions = sample(policy, toy_tokenizer(), PROMPTS, max_new_tokens=NEW, batch_size=4, seed=0)
    assert beyond_reference(policy, wider, completions) == (None, None)
    for c, measured in zip(completions, completion_kl(policy, wider, completions), strict=True):
        tokens = torch.tensor([[*c.prompt_ids, *c.completion_ids]])
        start = len(c.prompt_ids) - 1
        with torch.no_grad():
            p, q = (
                m(input_ids=tokens).logits[0, start:-1].log_softmax(-1) for m in (policy, wider)
            )
        by_hand = float((p.exp() * (p - q[:, : p.shape[-1]])).sum())
        assert measured == pytest.approx(by_hand, rel=2e-4)


# --- Other tokenizers -----------------------------------------------------------------------------


def renumbered() -> PreTrainedTokenizerFast:
    """The toy's words under other numbers, EOS and all special tokens as before."""
    content = json.loads(toy_tokenizer().backend_tokenizer.to_str())
    vocabulary = content["model"]["vocab"]
    words = [word for word, index in vocabulary.items() if index >= 10]
    content["model"]["vocab"] |= dict(
        zip(words, [vocabulary[word] for word in reversed(words)], strict=True)
    )
    made = toy_tokenizer()
    made._tokenizer = Tokenizer.from_str(json.dumps(content))
    return made


def test_another_vocabulary_has_no_kl(tmp_path: Path, reference: Any) -> None:
    model, tokenizer = taken(saved(lively("llama"), tmp_path / "other", renumbered()))
    reason = other_tokens(model, tokenizer, reference, toy_tokenizer(), PROMPTS)
    assert reason is not None
    assert reason.startswith("its tokenizer is another than the reference's (")
    assert not same_encoding(tokenizer, TEXTS, toy_tokenizer(), TEXTS)


def test_another_reading_of_the_prompts_has_no_kl(reference: Any) -> None:
    other: Any = toy_tokenizer()
    other.chat_template = "{{ messages[0]['content'] }} is"
    chat: Any = [[{"role": "user", "content": "the film"}]]
    reason = other_tokens(lively("llama"), other, reference, toy_tokenizer(), ["the film", *chat])
    assert reason is not None
    assert "reads evaluation prompt 1 as other tokens" in reason


def test_another_end_has_no_kl(tmp_path: Path, reference: Any) -> None:
    folder = saved(lively("llama"), tmp_path / "ends")
    edit(folder / "generation_config.json", eos_token_id=[0, 12])
    model, tokenizer = taken(folder)
    reason = other_tokens(model, tokenizer, reference, toy_tokenizer(), PROMPTS)
    assert reason is not None
    assert reason.startswith("its completions end by '<eos>', ")
    assert "(eos_token_id in generation_config.json)" in reason


def test_added_tokens_alone_are_no_other_tokenizer(reference: Any) -> None:
    added = toy_tokenizer()
    added.add_tokens(["<new>"])
    assert other_tokens(reference, added, reference, toy_tokenizer(), PROMPTS) is None
    assert same_encoding(added, TEXTS, toy_tokenizer(), TEXTS)


# --- The hub --------------------------------------------------------------------------------------


def test_a_hub_id_and_a_revision_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the cache, as without a network; an adapter's base too."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))

    def publish(repository: str, ref: str, commit: str) -> Path:
        folder = tmp_path / f"models--some--{repository}"
        (folder / "refs").mkdir(parents=True, exist_ok=True)
        (folder / "refs" / ref).write_text(commit, encoding="utf-8")
        return folder / "snapshots" / commit

    models = {ref: lively("llama", seed) for seed, ref in enumerate(("main", "v2"))}
    for ref, model in models.items():
        saved(model, publish("model", ref, ref[-1] * 40))
    adapted = saved(adapted_model(tmp_path), publish("adapter", "main", "c" * 40), False)
    edit(adapted / "adapter_config.json", base_model_name_or_path="some/model", revision="v2")
    torch.save({}, saved(lively("llama"), publish("pickle", "main", "d" * 40)) / "model.bin")
    (tmp_path / "models--some--pickle" / "snapshots" / ("d" * 40) / "model.safetensors").unlink()
    for source, ref in (("some/model", "main"), ("some/model@v2", "v2"), ("some/adapter", "v2")):
        head = taken(source)[0].lm_head
        head = getattr(head, "base_layer", head)
        assert torch.equal(head.weight, models[ref].lm_head.weight)  # type: ignore[union-attr]
    with pytest.raises(UserError, match="some/pickle: holds no weights as safetensors; save it"):
        taken("some/pickle")
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set: unset it to ask the hub"):
        taken("some/model@v3")


# --- Refused --------------------------------------------------------------------------------------


def weights(folder: Path, change: Callable[[dict[str, Any]], Any], name: str = "model") -> Path:
    """Change the tensors of a safetensors file."""
    file = folder / f"{name}.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    return folder


def llama(root: Path, **arguments: Any) -> Path:
    return saved(lively("llama"), root / "theirs", **arguments)


def lora(root: Path, **settings: Any) -> Path:
    return saved(adapted_model(root, **settings), root / "theirs", False)


def pickled(root: Path) -> Path:
    folder = llama(root)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


def pickled_adapter(root: Path) -> Path:
    folder = lora(root)
    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()
    return folder


def quantised(root: Path) -> Path:
    folder = llama(root)
    edit(folder / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    return folder


def quantised_base(root: Path) -> Path:
    folder = lora(root)
    edit(root / "base" / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    return folder


def shard_gone(root: Path) -> Path:
    folder = llama(root, max_shard_size="60KB")
    sorted(folder.glob("*.safetensors"))[1].unlink()
    return folder


def cut_short(root: Path) -> Path:
    file = llama(root) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:20_000])
    return file.parent


def base_gone(root: Path) -> Path:
    folder = lora(root)
    shutil.rmtree(root / "base")
    return folder


def base_of_the_hub(root: Path) -> Path:
    folder = lora(root)
    edit(folder / "adapter_config.json", base_model_name_or_path="someone/unknown")
    return folder


def base_adapted(root: Path) -> Path:
    folder = lora(root)
    shutil.copytree(folder, root / "second")
    edit(root / "second" / "adapter_config.json", base_model_name_or_path=str(folder))
    return root / "second"


def base_resized(root: Path) -> Path:
    folder = lora(root, modules_to_save=["lm_head"])
    base = lively("llama", seed=2)
    base.resize_token_embeddings(base.config.vocab_size + 16)
    saved(base, root / "base")
    return folder


def prompt_tuning(root: Path) -> Path:
    base = saved(lively("llama"), root / "base")
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    return saved(model, root / "theirs", False)


def classifier(root: Path) -> Path:
    torch.manual_seed(0)
    config = lively("llama").config
    config.tie_word_embeddings = True
    return saved(LlamaForSequenceClassification(config), root / "theirs")


def encoder(root: Path) -> Path:
    config = BertConfig(
        vocab_size=144, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=32, max_position_embeddings=64,
    )  # fmt: skip
    return saved(BertLMHeadModel(config), root / "theirs")


def translator(root: Path) -> Path:
    config = T5Config(vocab_size=144, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    return saved(T5ForConditionalGeneration(config), root / "theirs")


def larger_tokenizer(root: Path) -> Path:
    tokenizer = toy_tokenizer()
    tokenizer.add_tokens([f"<extra {n}>" for n in range(200)])
    tokenizer.add_tokens(["film", " film"])
    return saved(lively("llama"), root / "theirs", tokenizer)


def unreadable() -> PreTrainedTokenizerFast:
    """A tokenizer that drops every word, as one that is loaded as another class may do."""
    content = json.loads(toy_tokenizer().backend_tokenizer.to_str())
    content["normalizer"] = {"type": "Replace", "pattern": {"Regex": "."}, "content": ""}
    made = toy_tokenizer()
    made._tokenizer = Tokenizer.from_str(json.dumps(content))
    return made


def two_in_one(root: Path) -> Path:
    folder = lora(root)
    return saved(lively("llama"), folder)


def run_folder(root: Path) -> Path:
    saved(lively("llama"), root / "theirs" / "model")
    return root / "theirs"


def for_classes(root: Path) -> Path:
    folder = lora(root)
    edit(folder / "adapter_config.json", task_type="SEQ_CLS")
    return folder


def with_key(tensors: dict[str, Any], key: str) -> None:
    tensors[key] = torch.zeros(1, 32)


def damaged(root: Path) -> Path:
    return weights(llama(root), lambda t: t["lm_head.weight"].fill_(float("nan")))


REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a pickle": (pickled, r"are a pickle \(pytorch_model.bin\).*save it again as safetensors"),
    "a pickled adapter": (pickled_adapter, r"are a pickle \(adapter_model.bin\)"),
    "no head": (
        lambda root: weights(llama(root), lambda t: t.pop("lm_head.weight")),
        r"lm_head.weight is not in its files, so LlamaForCausalLM would compute with random",
    ),
    "a value head": (
        lambda root: weights(llama(root), lambda t: with_key(t, "v_head.summary.weight")),
        r"holds v_head.summary.weight, for which LlamaForCausalLM has no place",
    ),
    "a classifier": (classifier, r"holds score.weight, for which"),
    "another shape": (
        lambda root: weights(
            llama(root), lambda t: with_key(t, "model.layers.0.mlp.up_proj.weight")
        ),
        r"up_proj.weight is of shape \(1, 32\), but its config.json makes it \(48, 32\)",
    ),
    "a lost shard": (shard_gone, "cannot be loaded: No such file"),
    "a cut file": (cut_short, "cannot be loaded: Error while deserializing header"),
    "NaN": (damaged, "NaN or infinite logits"),
    "quantised": (quantised, r"quantised \(gptq\) and cannot be loaded on this machine"),
    "an encoder": (encoder, "its tokens see those after them"),
    "a translator": (translator, "cannot be loaded: Unrecognized configuration class"),
    "no tokenizer": (lambda root: llama(root, tokenizer=False), "holds no tokenizer"),
    "a tokenizer of other letters": (
        lambda root: saved(lively("llama"), root / "theirs", unreadable()),
        "its tokenizer makes no text tokens of evaluation prompt 0",
    ),
    "a larger tokenizer": (larger_tokenizer, r"but the model has 144 embeddings"),
    "a run's folder": (run_folder, r"holds neither config.json nor .*; give .*theirs/model"),
    "a file": (lambda root: llama(root) / "model.safetensors", "is a file; give the folder"),
    "no folder": (lambda root: root / "none", "there is no such folder"),
    "no hub": (lambda root: "someone/unknown", "cannot be loaded: "),
    "two in one": (two_in_one, "holds a whole model and an adapter"),
    "a lost base": (base_gone, r"its base '.*base' \(base_model_name_or_path.*no such folder"),
    "a base of the hub": (base_of_the_hub, r"its base 'someone/unknown' .*cannot be loaded"),
    "an adapted base": (base_adapted, r"is an adapter itself; merge that"),
    "a quantised base": (quantised_base, r"its base '.*base': its weights are quantised \(gptq\)"),
    "a resized base": (base_resized, r"does not fit its base '.*size mismatch"),
    "prompt tuning": (prompt_tuning, r"type PROMPT_TUNING computes outside of the model's layers"),
    "for classes": (for_classes, "is an adapter for SEQ_CLS"),
    "an adapter in part": (
        lambda root: weights(lora(root), lambda t: t.pop(min(t)), "adapter_model"),
        r"lora_A.*weight is not in adapter_model.safetensors",
    ),
    "an adapter of more layers": (
        lambda root: weights(
            lora(root),
            lambda t: with_key(t, "base_model.model.model.layers.9.mlp.up_proj.lora_A.weight"),
            "adapter_model",
        ),
        r"holds .*layers.9.*, for which its base",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_measured_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    make, reason = REFUSED[name]
    source = make(tmp_path)
    with pytest.raises(UserError, match=reason) as caught:
        taken(source)
    message = str(caught.value)
    assert message.startswith(f"{PLACE}: {source}: ")
    assert "\n" not in message
