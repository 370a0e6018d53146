"""A plan's sizes are those of the model that a stage would make, without making it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from pipeline.config import ModelSection
from pipeline.errors import UserError
from pipeline.lm.models import base_of, make_trainable
from pipeline.plan.activations import kept
from pipeline.plan.sizes import bits_of, policy_of, read_config
from tests.pipeline.plan.models import folder_of, llama

SECTIONS = [
    ModelSection(),
    ModelSection(trainable_layers=2),
    ModelSection(use_peft=True, lora_r=4),
    ModelSection(use_peft=True, lora_r=4, trainable_layers=2),
]


def bfloat16(config: Any) -> Any:
    """A model with weights."""
    model: Any = LlamaForCausalLM(config)
    return model.to(torch.bfloat16)


@pytest.mark.parametrize("section", SECTIONS, ids=["full", "upper", "lora", "upper-lora"])
@pytest.mark.parametrize("modules", [None, ["v_proj", "o_proj"]], ids=["all", "modules"])
def test_what_is_counted_is_what_the_stages_train(
    section: ModelSection, modules: list[str] | None
) -> None:
    if section.use_peft and modules:
        pytest.skip("adapters have modules of their own")
    dtype = torch.bfloat16
    model = make_trainable(bfloat16(llama()), section, modules=modules)
    trained = [p for p in model.parameters() if p.requires_grad]
    frozen = [p for p in model.parameters() if not p.requires_grad]
    policy = policy_of(llama(), section, dtype, modules)
    assert policy.trained == sum(p.numel() for p in trained)
    assert all(p.dtype == torch.float32 for p in trained)
    assert policy.frozen_bytes == sum(p.numel() * p.element_size() for p in frozen)
    assert policy.layers == 5 and policy.adapted == section.use_peft
    assert policy.upper == (section.trainable_layers or 5)
    assert policy.trains_head == (section == ModelSection() and modules is None)


def test_a_tokens_keys_and_values_are_the_caches() -> None:
    model = bfloat16(llama())
    cache: Any = model(input_ids=torch.zeros(2, 7, dtype=torch.long)).past_key_values
    size = sum(x.nbytes for layer in cache.layers for x in (layer.keys, layer.values))
    policy = policy_of(llama(), ModelSection(), torch.bfloat16)
    assert policy.kv_token * 2 * 7 == size


def _really_saved(section: ModelSection, rows: int, length: int, attention: str) -> float:
    """Bytes that a real pass over real weights saves, weights left out, copies of them too."""
    config = llama(attn_implementation=attention)
    model = make_trainable(bfloat16(config), section).train()
    own = {p.untyped_storage().data_ptr() for p in [*model.parameters(), *model.buffers()]}
    shapes = {tuple(sorted(p.shape)) for p in model.parameters() if p.dim() == 2}
    seen: dict[int, tuple[torch.Tensor, int]] = {}

    def pack(saved: torch.Tensor) -> torch.Tensor:
        place = saved.untyped_storage().data_ptr()
        if place not in own and tuple(sorted(saved.shape)) not in shapes:
            seen[place] = (saved, saved.untyped_storage().nbytes())
        return saved

    decoder: Any = base_of(model).get_decoder()
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved),
        torch.autocast("cpu", torch.bfloat16),
    ):
        decoder(input_ids=torch.ones(rows, length, dtype=torch.long), use_cache=False)
    return sum(size for _, size in seen.values())


@pytest.mark.parametrize("section", SECTIONS, ids=["full", "upper", "lora", "upper-lora"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_activations_are_what_a_real_pass_saves(section: ModelSection, attention: str) -> None:
    rows, length = 5, 37
    policy = policy_of(llama(), section, torch.bfloat16)
    found = kept(
        llama(), section, policy, rows, length, dtype=torch.bfloat16, attention=attention
    )  # fmt: skip
    real = _really_saved(section, rows, length, attention)
    assert found.measured
    # A fused kernel's output may have another layout in memory: its copy, and the kernel's own
    # sums, are then kept too, about one and a half outputs a layer whatever is trained.
    output = rows * length * llama().hidden_size * 2
    more = 0 if attention == "eager" else 1.6 * output * policy.upper
    assert found.activations == pytest.approx(real, rel=0.02, abs=more)
    assert found.casts == (0 if section.use_peft else 2 * policy.trained)


def test_code_that_looks_at_numbers_gets_the_published_formula(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from transformers.models.llama.modeling_llama import LlamaMLP

    def looks(self: Any, x: torch.Tensor) -> torch.Tensor:
        return x if float(x.detach().sum()) > 0 else -x

    monkeypatch.setattr(LlamaMLP, "forward", looks)
    config = llama(num_hidden_layers=6)
    policy = policy_of(config, ModelSection(), torch.float32)
    found = kept(config, ModelSection(), policy, 3, 11, dtype=torch.float32)
    assert not found.measured
    assert found.activations == 6 * 3 * 11 * 34 * 96


def test_the_configuration_alone_is_read(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "model")
    assert not list(folder.glob("*.safetensors"))
    config = read_config(ModelSection(model_name_or_path=str(folder)))
    assert policy_of(config, ModelSection(), torch.float32).parameters > 0
    with pytest.raises(UserError, match="model.model_name_or_path: the configuration of"):
        read_config(ModelSection(model_name_or_path=str(tmp_path / "nothing")))


@pytest.mark.parametrize(
    ("asked", "bits"),
    [
        (None, None),
        ("4bit", 4),
        ("8bit", 8),
        ({"load_in_8bit": True}, 8),
        ({"load_in_4bit": True}, 4),
    ],
)
def test_quantised_weights_count_by_their_bits(asked: Any, bits: int | None) -> None:
    section = ModelSection(use_peft=True)
    plain = policy_of(llama(), section, torch.bfloat16)
    section = ModelSection(use_peft=True, quantization=asked)
    assert bits_of(section) == bits
    policy = policy_of(llama(), section, torch.bfloat16)
    linear = sum(
        m.weight.numel() for m in LlamaForCausalLM(llama()).model.modules()
        if isinstance(m, torch.nn.Linear)
    )  # fmt: skip
    each = {None: 2, 4: 0.5 + 1 / 64 + 1 / 4096, 8: 1}[bits]
    assert policy.frozen_bytes == pytest.approx(plain.frozen_bytes - linear * (2 - each))
