"""Reward models behind one small interface: ``reward(prompts, completions, **columns)``.

* `sentiment`: a sequence-classification checkpoint: its scalar, or its good labels' log-odds
* `labels`: which labels are good; `reading`: how prompt and completion become one input
* `training`: such a classifier from labels, shares or means; `calibration`: its temperature
* `pairwise`: a scalar head trained on preference pairs (Bradley–Terry), on trl.RewardTrainer
* `rules`: length, repetition, ends with EOS, banned and wanted words, VADER's lexicon
* `combined`: several as one: weighted sum, mean, minimum, mean less k standard deviations
* `loading`: from a name in a config to a function
* `calling`: any function, called in time, again where that may help, with its mistakes in one line
* `arguments`: what each of its parameters gets; `returned`: what it may give back; `waiting`:
  answers in time, or that come later
"""

from __future__ import annotations

from reward_models.calling import RewardCall, checked, may_pass
from reward_models.interface import ChatPrompt, RewardError, RewardFunction, Scores
from reward_models.loading import load_reward

__all__ = [
    "ChatPrompt",
    "RewardCall",
    "RewardError",
    "RewardFunction",
    "Scores",
    "checked",
    "load_reward",
    "may_pass",
]
