"""Everything taken from TRL that ``trl/__init__.py`` does not export or that we override.

Such parts change from release to release; ``test_trl_compat.py`` pins what is relied on.
"""

from __future__ import annotations

from typing import Any

import trl.trainer.utils as trl_utils
from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl import DPOTrainer, KTOTrainer
from trl.chat_template_utils import get_training_chat_template

# Vocabulary entries per tile of TRL's fused LM head: 32,768 suits a GPU. On a processor a tile
# must fit the cache; this halves the time of an SFT step and changes no result.
_PROCESSOR_TILE = 1024


def fit_tiles_to(device_type: str) -> None:
    """Choose the tile of TRL's fused LM head for the device that will train."""
    if device_type == "cpu":
        trl_utils._CHUNKED_LOGPROB_CHUNK_SIZE = _PROCESSOR_TILE


def marks_answers(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether TRL can tell the assistant's tokens, by the template or by one that TRL has for it.

    Without, ``assistant_only_loss`` ends in its trainer's ValueError.
    """
    try:
        get_training_chat_template(tokenizer)
    except ValueError:
        return False
    return True


class _TokensAsTheyAre:
    """Makes a TRL trainer take a dataset with the column ``prompt_ids`` as it is.

    TRL tokenises text and appends EOS to every completion. For completions sampled from the policy
    both would change the problem: the tokens must be the sampled ones, and a completion that ran
    into the length limit has no EOS, or DPO's optimum would no longer be PPO's.
    """

    def _prepare_dataset(
        self, dataset: Any, processing_class: Any, args: Any, dataset_name: str
    ) -> Any:
        if isinstance(dataset, Dataset) and "prompt_ids" in dataset.column_names:
            return dataset
        return super()._prepare_dataset(dataset, processing_class, args, dataset_name)  # type: ignore[misc]


class TokenizedDPOTrainer(_TokensAsTheyAre, DPOTrainer):
    """A DPOTrainer that takes ``prompt_ids``, ``chosen_ids`` and ``rejected_ids``.

    The reference's log-probabilities may come with them (``ref_chosen_logps``,
    ``ref_rejected_logps``, with ``precompute_ref_log_probs``): TRL then needs no reference.
    """

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        if "ref_chosen_logps" in dataset.column_names:
            return dataset
        return super()._precompute_ref_logps(dataset, name, batch_size)


class TokenizedKTOTrainer(_TokensAsTheyAre, KTOTrainer):
    """A KTOTrainer that takes ``prompt_ids``, ``completion_ids``, ``KL_completion_ids`` (another
    row's completion, for the reference point) and ``label``."""
