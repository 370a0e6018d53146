"""The journal: some completions of each rollout, token by token, for ``rlhf inspect``.

One small JSON file a rollout, ``rollouts/step-00000032.json``, named after the optimizer step at
which the rollout was made. A long run does not fill the disk: beyond `LIMIT` files, or `MOST`
bytes, the journal is thinned out evenly, so the rollouts kept span the whole run.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from common.files import write_text
from pipeline.ppo.config import PPOConfig
from pipeline.ppo.rollout import Rollout

LIMIT = 400
"""Most files a journal has."""

MOST = 64 * 2**20
"""About the most bytes that they have: four completions of 4,096 tokens are a file of 1.2 MB."""

TOKEN_COLUMNS = (
    "logp", "ref_logp", "kl", "value", "advantage", "return", "reward", "entropy"
)  # fmt: skip
"""What is kept of each token: nats, nats, exact KL in nats, then reward units, entropy in nats;
the advantage is the one trained on, whitened if the run whitens."""

_BYTES = {character: byte for byte, character in bytes_to_unicode().items()}


class Journal:
    """Writes a rollout's first completions into ``folder``; only rank 0 may call it."""

    def __init__(self, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        """``folder`` is made when the first rollout is written."""
        self.folder = folder
        self._tokenizer = tokenizer

    def begin(self, step: int) -> None:
        """Remove the rollouts of an earlier run from ``step``, where this one goes on, upwards."""
        for later in steps(self.folder):
            if later >= step:
                path(self.folder, later).unlink()

    def write(
        self, step: int, rollout: Rollout, metrics: dict[str, float], args: PPOConfig
    ) -> None:
        """Keep the first ``args.log_completions`` completions of the rollout made at ``step``."""
        if args.log_completions == 0:
            return
        record = {
            "step": step,
            "metrics": {name: _rounded(value) for name, value in metrics.items()},
            "kl_estimator": args.kl_estimator,
            "whitened": args.whiten_advantages,
            "completions": self._completions(rollout, args.log_completions),
        }
        text = json.dumps(record, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        write_text(path(self.folder, step), text + "\n")
        fit = MOST // path(self.folder, step).stat().st_size
        self._thin(args.steps_per_rollout, max(2, min(LIMIT, fit)))

    def _thin(self, gap: int, limit: int) -> None:
        """Beyond ``limit`` files keep every second rollout (fourth, eighth, …) and the newest."""
        written = kept = steps(self.folder)
        while len(written) > limit and len(kept) > limit // 2:
            gap *= 2
            kept = [step for step in kept if step % gap == 0]
        for extra in set(written[:-1]) - set(kept):
            path(self.folder, extra).unlink()

    def _completions(self, rollout: Rollout, count: int) -> list[dict[str, Any]]:
        old = rollout.old
        columns: tuple[Tensor, ...] = (
            old.logps, old.ref_logps, old.exact_kl, old.values,
            rollout.advantages, rollout.returns, rollout.token_rewards, old.entropy,
        )  # fmt: skip
        rows = [column[:count].tolist() for column in columns]
        scores = rollout.scores[:count].tolist()
        records = []
        for i, completion in enumerate(rollout.completions[:count]):
            length = len(completion.completion_ids)
            tokens = zip(TOKEN_COLUMNS, (row[i][:length] for row in rows), strict=True)
            records.append(
                {
                    "prompt": completion.prompt,
                    "score": _rounded(scores[i]),
                    "ended": completion.ended,
                    "tokens": pieces(
                        self._tokenizer, completion.prompt_ids, completion.completion_ids
                    ),
                }
                | {name: [_rounded(value) for value in values] for name, values in tokens}
            )
        return records


def sample_rows(rollout: Rollout, args: PPOConfig) -> list[dict[str, Any]]:
    """The first ``args.log_completions`` completions as text, score and KL, for a sample log."""
    kl, scores = rollout.old.exact_kl.sum(1).tolist(), rollout.scores.tolist()
    return [
        {
            "prompt": completion.prompt,
            "completion": completion.text,
            "score": round(scores[i], 3),
            "kl": round(kl[i], 3),
        }
        for i, completion in enumerate(rollout.completions[: args.log_completions])
    ]


def path(folder: Path, step: int) -> Path:
    """The file of the rollout made at ``step``."""
    return folder / f"step-{step:08d}.json"


def steps(folder: Path) -> list[int]:
    """The steps of the rollouts in ``folder``, ascending."""
    names = [p.stem.removeprefix("step-") for p in folder.glob("step-*.json")]
    return sorted(int(name) for name in names if name.isdecimal())


def pieces(
    tokenizer: PreTrainedTokenizerBase, prompt_ids: tuple[int, ...], completion_ids: tuple[int, ...]
) -> list[str]:
    """Each completion token as the text it adds.

    A token is decoded behind the one before it, because some tokenizers drop the space in front
    of a text's first word. One that holds only a part of a character is given by its bytes, as in
    ``⟨E2 80⟩``.
    """

    def decode(ids: list[int]) -> str:
        return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))

    texts = []
    for before, token in zip((prompt_ids[-1], *completion_ids), completion_ids, strict=False):
        first, both = decode([before]), decode([before, token])
        piece = both[len(first) :] if both.startswith(first) else decode([token])
        texts.append(_bytes(tokenizer, token) or piece if "\ufffd" in piece else piece)
    return texts


def _bytes(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """The bytes of a byte-level token, ``⟨E2 80⟩``; empty where they are not to be known."""
    word = str(tokenizer.convert_ids_to_tokens(token))
    if word.startswith("<0x") and word.endswith(">"):
        return f"⟨{word[3:-1]}⟩"
    if all(character in _BYTES for character in word):
        return "⟨" + " ".join(f"{_BYTES[character]:02X}" for character in word) + "⟩"
    return ""


def _rounded(value: float) -> float | None:
    """Four significant digits (counts stay whole); None, as JSON has it, where not finite."""
    if not math.isfinite(value):
        return None
    return value if value.is_integer() else float(f"{value:.4g}")
