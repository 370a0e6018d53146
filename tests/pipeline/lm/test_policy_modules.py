"""What is trained of the trainable layers: modules by the ends of their names, or adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from pipeline.config import Experiment, ModelSection
from pipeline.data import toy
from pipeline.errors import UserError
from pipeline.lm.models import base_of, decoder_layers, load_base, make_trainable, prepare
from pipeline.lm.trunk import lowest_trained_layer
from pipeline.stages.training import load_trainable_sft
from tests.pipeline.families.tiny import tiny_model

LLAMA = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def trained(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


def toy_model() -> nn.Module:
    return prepare(toy.toy_language_model(0), toy.toy_tokenizer())


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["v_proj", "o_proj"], ["self_attn.v_proj.weight", "self_attn.o_proj.weight"]),
        (["self_attn.v_proj"], ["self_attn.v_proj.weight"]),
        (["mlp", "up_proj"], [f"mlp.{n}_proj.weight" for n in ("gate", "up", "down")]),
    ],
)
def test_only_the_modules_named_are_trained_and_float32(
    names: list[str], expected: list[str]
) -> None:
    model = toy_model().to(torch.bfloat16)
    make_trainable(model, ModelSection(trainable_layers=2), modules=names)  # type: ignore[arg-type]
    assert trained(model) == {f"model.layers.{n}.{part}" for n in (2, 3) for part in expected}
    for parameter in model.parameters():
        assert parameter.dtype == (torch.float32 if parameter.requires_grad else torch.bfloat16)
    assert lowest_trained_layer(model) == 2  # type: ignore[arg-type]


def test_without_a_number_of_layers_it_is_all_of_them() -> None:
    model = toy_model()
    make_trainable(model, ModelSection(), modules=["o_proj"])  # type: ignore[arg-type]
    assert trained(model) == {f"model.layers.{n}.self_attn.o_proj.weight" for n in range(4)}


def test_a_bias_is_its_modules() -> None:
    model = tiny_model("gpt2")
    make_trainable(model, ModelSection(trainable_layers=1), modules=["attn.c_proj"])
    last = f"transformer.h.{model.config.n_layer - 1}.attn.c_proj"
    assert trained(model) == {f"{last}.weight", f"{last}.bias"}


@pytest.mark.parametrize("name", ["v_prj", "proj", "act_fn", "layers.3.self_attn.v_proj"])
def test_a_name_that_is_no_modules_is_refused_before_sft(name: str) -> None:
    section = ModelSection(
        model_name_or_path="toy", trainable_layers=1, policy_modules=["v_proj", name]
    )
    with pytest.raises(UserError) as error:
        load_base(section)
    assert str(error.value) == (
        f"model.policy_modules: no module of the trainable layers is called {name!r}; expected "
        "some of q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj, input_layernorm, "
        "post_attention_layernorm, or null for all"
    )


def test_ppo_and_dpo_train_them_and_sft_the_whole_layers(tmp_path: Path) -> None:
    section = ModelSection(model_name_or_path="toy", trainable_layers=1, policy_modules=["v_proj"])
    experiment = Experiment(output_dir=tmp_path, model=section)
    model, tokenizer = load_base(section)
    for part in (model, tokenizer):
        part.save_pretrained(experiment.stage_dir("sft") / "model")
    policy, _ = load_trainable_sft(experiment)
    assert trained(policy) == {"model.layers.3.self_attn.v_proj.weight"}
    assert "model.norm.weight" in trained(make_trainable(model, section))
    assert "model.layers.3.mlp.up_proj.weight" in trained(model)


@pytest.mark.parametrize(
    ("kind", "targets", "expected"),
    [
        (
            "llama",
            "all-linear",
            [f"{part}_proj" for part in ["q", "k", "v", "o", "gate", "up", "down"]],
        ),
        ("llama", ["v_proj", "mlp.up_proj"], ["v_proj", "up_proj"]),
        ("gpt2", "all-linear", ["c_attn", "attn.c_proj", "c_fc", "mlp.c_proj"]),
    ],
)
def test_adapters_keep_to_the_upper_layers(
    kind: str, targets: Any, expected: list[str], tmp_path: Path
) -> None:
    section = ModelSection(use_peft=True, trainable_layers=1, lora_r=2, lora_target_modules=targets)
    model = make_trainable(tiny_model(kind), section)
    base = base_of(model)
    last = len(decoder_layers(base)) - 1
    assert lowest_trained_layer(base) == last > 0
    names = {name.partition(".lora_")[0] for name in trained(model)}
    assert all(f".{last}." in name for name in names) and len(names) == len(expected)
    assert {end for end in expected for name in names if name.endswith(end)} == set(expected)
    whole = make_trainable(tiny_model(kind), section.model_copy(update={"trainable_layers": None}))
    assert len(trained(whole)) == (last + 1) * len(trained(model))
    # Adapters that are saved come back on the same layers.
    cast(Any, model).save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(tiny_model(kind), tmp_path, is_trainable=True)
    assert trained(again) == trained(model)


def test_adapters_on_modules_or_layers_that_are_not_there_are_refused() -> None:
    section = ModelSection(use_peft=True, trainable_layers=1, lora_target_modules=["embed_tokens"])
    with pytest.raises(UserError) as error:
        make_trainable(tiny_model("llama"), section)
    assert str(error.value).startswith("model.lora_target_modules: the upper 1 layers of LlamaFor")
    with pytest.raises(UserError, match="model.trainable_layers: 99 is above the model's"):
        make_trainable(tiny_model("llama"), ModelSection(use_peft=True, trainable_layers=99))


def test_adapters_compute_the_same_without_pefts_copies() -> None:
    model = toy_model().to(torch.bfloat16)
    section = ModelSection(model_name_or_path="toy", use_peft=True, lora_r=4)
    adapted = cast(PeftModel, make_trainable(cast(Any, model), section))
    layers = [m for m in adapted.modules() if isinstance(m, BaseTunerLayer)]
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    ids = torch.arange(24).reshape(2, 12) + 5
    made = []
    for cast_input in (False, True):
        for layer in layers:
            assert cast_input or not layer.cast_input_dtype_enabled
            layer.cast_input_dtype_enabled = cast_input  # type: ignore[assignment]
        adapted.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            logits = adapted(input_ids=ids).logits
        logits.float().logsumexp(-1).sum().backward()
        made.append([logits, *(p.grad for p in adapted.parameters() if p.grad is not None)])
    assert len(made[0]) > 10 and len(layers) > 4
    assert all(torch.equal(a, b) for a, b in zip(*made, strict=True))
