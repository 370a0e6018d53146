"""The checkpoints of ``compare.policies``, as the comparison takes them."""

from __future__ import annotations

import gc
import hashlib
import math
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.compare.checked import check_loaded
from pipeline.compare.checkpoints import load_policy
from pipeline.config import Experiment
from pipeline.config.content import checkpoint_hash
from pipeline.data.splits import ExperimentData
from pipeline.errors import UserError
from pipeline.lm.hardware import policy_dtype
from pipeline.lm.scoring import text_nll
from pipeline.output import quiet
from pipeline.output.console import say
from pipeline.stages.heldout import whole_texts

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_DIGITS = 12
_TRIED = 16  # held-out texts


def measured_file(experiment: Experiment, name: str) -> Path:
    """Where what is measured of a checkpoint is kept: by its content, or by its hub id.

    A folder that holds something else now is measured anew; what was measured of others stays.
    """
    source = experiment.compare.policies[name]
    content = checkpoint_hash(source) or hashlib.sha256(source.encode()).hexdigest()
    folder = experiment.stage_dir("compare") / "measured"
    return folder / f"{name}.{content[:_DIGITS]}.json"


def load(experiment: Experiment, name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A checkpoint and its tokenizer.

    Raises:
        UserError: it cannot be measured; the message begins with its key.
    """
    source, key = experiment.compare.policies[name], _key(name)
    model = experiment.model
    return load_policy(source, key, policy_dtype(model), model.trust_remote_code)


def check(experiment: Experiment, data: ExperimentData) -> None:
    """Load each that is to be measured once, before any work, and hold it against its plain model.

    Raises:
        UserError: one cannot be measured.
    """
    quiet.after_imports()
    talks = [item for item in data.heldout if not isinstance(item, str)]
    talks = [item for item in talks if not isinstance(item.prompt, str)]
    for name, source in experiment.compare.policies.items():
        if measured_file(experiment, name).is_file():
            continue
        say(f"compare: trying {name}")
        policy, tokenizer = load(experiment, name)
        place = f"{_key(name)}: {source}"
        if talks and tokenizer.chat_template is None:
            raise UserError(
                f"{place}: its tokenizer has no chat template, and the texts are conversations;"
                " save the template with it"
            )
        texts = whole_texts(data.heldout, tokenizer)
        new_tokens = experiment.generation.max_new_tokens
        check_loaded(policy, tokenizer, place, data.eval_prompts, texts, new_tokens)
        _warn_of_chance(policy, tokenizer, place, texts[:_TRIED])
        del policy
        gc.collect()


def _warn_of_chance(
    policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, place: str, texts: list[str]
) -> None:
    """Say so where tokens drawn at random would be likelier than the texts."""
    nll, tokens = text_nll(policy, tokenizer, texts) if texts else (0.0, 0)
    size = policy.config.get_text_config().vocab_size
    if tokens and not nll / tokens < math.log(size):
        say(
            f"warning: {place}: finds human texts less likely than tokens drawn at random"
            f" ({nll / tokens:.1f} nats a token, log {size} = {math.log(size):.1f}): is the"
            " tokenizer beside it the one it was trained with?"
        )


def _key(name: str) -> str:
    return f"compare.policies.{name}"
