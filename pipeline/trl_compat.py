"""Everything taken from TRL that ``trl/__init__.py`` does not export or that we override.

Such parts change from release to release; ``tests/test_trl_compat.py`` pins what is relied on.
"""

from __future__ import annotations

from typing import Any

from datasets import Dataset
from trl import DPOTrainer


class TokenizedDPOTrainer(DPOTrainer):
    """A DPOTrainer that takes ``prompt_ids``, ``chosen_ids`` and ``rejected_ids`` as they are.

    TRL tokenises text and appends EOS to every completion. For pairs sampled from the policy both
    would change the problem: the tokens must be the sampled ones, and a completion that ran into
    the length limit has no EOS, or DPO's optimum would no longer be PPO's.
    """

    def _prepare_dataset(
        self, dataset: Any, processing_class: Any, args: Any, dataset_name: str
    ) -> Any:
        if isinstance(dataset, Dataset) and "prompt_ids" in dataset.column_names:
            return dataset
        return super()._prepare_dataset(dataset, processing_class, args, dataset_name)  # type: ignore[misc]
