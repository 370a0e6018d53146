"""What the classifier trained here is made of: the configured encoder, or adapters over SFT."""

from __future__ import annotations

from pathlib import Path

from peft import PeftModel
from transformers import (
    AutoTokenizer,
    BertForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from pipeline.config import OVER_SFT, Experiment
from pipeline.data import embedded
from pipeline.data.toy import toy_encoder, toy_tokenizer
from pipeline.errors import UserError
from pipeline.lm.hardware import compute_dtype
from pipeline.lm.models import lora_config
from reward_models.adapters import new_adapter_classifier
from reward_models.training import head_options, new_classifier

EMBEDDED_ENCODER = "embedded:all-minilm-l6-v2"


def sft_model(experiment: Experiment) -> Path:
    """The folder of the SFT model, which the adapters of ``reward.encoder: sft`` are over."""
    return (experiment.stage_dir("sft") / "model").absolute()


def _over_sft(
    experiment: Experiment, seed: int, outputs: int
) -> tuple[PeftModel, PreTrainedTokenizerBase]:
    """Adapters and a fresh head over the SFT model, and the SFT model's tokenizer."""
    section, folder = experiment.model, sft_model(experiment)
    if not (folder / "config.json").is_file():
        raise UserError(
            f"reward.encoder: {OVER_SFT} needs the SFT model, and {folder} is not there; run "
            "`rlhf sft` with this config first"
        )
    lora = lora_config(section, "SEQ_CLS")
    try:
        model = new_adapter_classifier(folder, lora, compute_dtype(section), seed, outputs)
    except ValueError as error:  # no such class in transformers, or no such modules for PEFT
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"reward.encoder: the SFT model cannot become a classifier with model.lora_* ({reason})"
            f"; mend model.lora_target_modules, or set {EMBEDDED_ENCODER!r} or another encoder"
        ) from error
    return model, AutoTokenizer.from_pretrained(folder)


def new_encoder(
    experiment: Experiment, seed: int, outputs: int = 2
) -> tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerBase]:
    """The configured encoder with a fresh head of so many outputs, and its tokenizer.

    Raises:
        UserError: there is no such encoder, or none that can become a classifier.
    """
    name = experiment.reward.encoder
    if name == OVER_SFT:
        return _padded(*_over_sft(experiment, seed, outputs))
    if name == "toy":
        encoder, tokenizer = toy_encoder(seed), toy_tokenizer()
        for key, value in head_options(outputs).items():
            setattr(encoder.config, key, value)
        model = BertForSequenceClassification(encoder.config)
        model.bert.load_state_dict(encoder.state_dict())
        return model, tokenizer
    source = str(embedded.encoder()) if name == EMBEDDED_ENCODER else name
    try:
        model = new_classifier(source, seed, outputs)
        tokenizer = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError, KeyError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"reward.encoder: no encoder can be loaded from {name!r} ({reason}); give a Hugging "
            f"Face folder, a hub id or {EMBEDDED_ENCODER!r}"
        ) from error
    return _padded(model, tokenizer)


def _padded(
    model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase
) -> tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerBase]:
    """Both, with a token to pad with that the model knows of."""
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id
    return model, tokenizer
