"""The whole pipeline on models that it was not made on: a GPT-2 made here, and Gemma 3.

Gemma 3 is not fetched: its terms of use are its own (https://ai.google.dev/gemma/terms). Its test
runs where the variable RLHF_GEMMA names a folder with it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from pipeline import cli
from pipeline.data.toy import toy_texts
from tests.checkout import ROOT

TINY = str(ROOT / "configs" / "tiny.yaml")
GEMMA = os.environ.get("RLHF_GEMMA", "")


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As GPT-2 comes: learned positions, EOS is BOS, no pad token, byte pairs, no template."""
    folder = tmp_path_factory.mktemp("gpt2")
    tokens = Tokenizer(models.BPE())
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokens.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(  # type: ignore[call-arg]
        vocab_size=400,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokens.train_from_iterator([text.text for text in toy_texts(300, seed=0)], trainer)
    end = "<|endoftext|>"
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokens, eos_token=end, bos_token=end)
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"n_positions": 64, "n_embd": 48, "n_layer": 3, "n_head": 4}
    ends: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 0}
    GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **sizes, **ends)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def run(model: Path, out: Path, *settings: str) -> None:
    words = [f"model.model_name_or_path={model}", f"output_dir={out}", *settings]
    assert cli.main(["run", "--config", TINY, *words]) == 0
    first = json.loads((out / "ppo" / "metrics.jsonl").read_text().splitlines()[0])
    assert first["objective/kl_exact"] == 0
    results = json.loads((out / "compare" / "results.json").read_text())
    assert results["methods"]["sft"]["kl"] == 0
    rows = [json.loads(line) for line in (out / "compare" / "samples.jsonl").open()]
    assert all(len(set(row["completions"].values())) > 1 for row in rows)
    assert (out / "report" / "index.html").is_file()


MODES = {
    "all": ("model.dtype=bfloat16",),
    "upper": ("model.dtype=bfloat16", "model.trainable_layers=1"),
    "lora": ("model.dtype=bfloat16", "model.use_peft=true", "model.lora_r=4"),
}


@pytest.mark.parametrize(
    "mode", ["upper", *(pytest.param(mode, marks=pytest.mark.long) for mode in ("all", "lora"))]
)
def test_gpt2_in_bfloat16(gpt2: Path, mode: str, tmp_path: Path) -> None:
    run(gpt2, tmp_path, *MODES[mode], "sft.bf16=true", "dpo.bf16=true")


@pytest.mark.slow
@pytest.mark.skipif(not GEMMA, reason="RLHF_GEMMA names no folder with a Gemma 3 model")
def test_gemma3_with_upper_layers(tmp_path: Path) -> None:
    small = ("sft.per_device_train_batch_size=4", "data.demonstrations=16", "sft.max_length=64")
    fewer = ("ppo.total_episodes=32", "ppo.per_device_train_batch_size=8", "pairs.max_pairs=8")
    run(Path(GEMMA), tmp_path, "model.trainable_layers=7", *small, *fewer)
