"""Write docs/models.md and the outcomes that the tests hold: which families of models run.

    python docs/make/models.py

Each causal language model of the installed transformers is built tiny and random, and PPO is begun
on it with all weights, upper layers and LoRA.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import tempfile
import warnings
from pathlib import Path

import transformers

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from transformers.models.auto.modeling_auto import (  # noqa: E402
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CLASSES,
)

from pipeline.errors import UserError  # noqa: E402
from tests.pipeline.families.promises import MODES, OUTCOMES, prepared, trainer_of  # noqa: E402
from tests.pipeline.families.tiny import UNREADABLE, families, tiny_model  # noqa: E402

# A part of the refusal, and what the page says.
REASONS = {
    "see those after them": "its tokens see those after them",
    "what it samples after padding": "left padding changes what it samples",
    "tokens after a text change": "needs a mask where it is scored",
    "no part of it gives": "its logits are not made of its last states",
    "no list of layers": "no list of decoder layers",
    "lora_target_modules": "PEFT cannot adapt all its linear layers",
    "fails on plain tokens": "does not run on plain tokens",
    "cannot be asked": "does not run on plain tokens",
}
PAGE = """\
# Models

A policy is any causal language model of transformers. No list decides: before any work
`pipeline/lm/check.py` holds the model at hand against itself on a few tokens. It must see nothing
of later tokens, sample after left padding what is scored without, and compute in training mode as
in evaluation. What fails is refused in one line. `pipeline/lm/route.py` finds the parts that make
its logits, scaling and soft-capping included. How it is loaded and computed (attention, few bits
under LoRA, float16, compilation): [model-settings.md](model-settings.md).

This page is written by `python docs/make/models.py` from tiny random models of every family that
transformers {version} builds without other packages; `tests/pipeline/families` holds each line:
log-probabilities equal the plain model's to 1e-5 in float32, KL 0 and ratio 1 at the first update
in float32 and bfloat16, a checkpoint comes back equal to the bit, a saved policy (adapters merged
in) is the trained one when read back.

## Run with all weights, upper layers (`model.trainable_layers`) and LoRA: {count}

{full}

## Run in part

| family | all weights | upper layers | LoRA |
| --- | --- | --- | --- |
{part}

## Refused

| family | class | why |
| --- | --- | --- |
{refused}

## Not to be used: transformers does not read back what it saved

{unreadable}

## Not tried

No tiny model of these could be built here (other packages, or a config of their own kind); the
check at start decides: {untried}.
"""


def outcome(kind: str, mode: str) -> str:
    """ "yes", or why PPO refuses the family."""
    quiet = io.StringIO()
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stderr(quiet),
        contextlib.redirect_stdout(quiet),
    ):
        for bf16 in (False, True):
            try:
                trainer_of(prepared(kind, mode, bf16), Path(folder), bf16)
            except UserError as error:
                return next(why for part, why in REASONS.items() if part in str(error))
    return "yes"


def main() -> None:
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    outcomes, untried = {}, []
    for kind in families():
        try:
            tiny_model(kind)
        except Exception:  # whatever a family asks for that is not here
            untried.append(kind)
            continue
        outcomes[kind] = {mode: outcome(kind, mode) for mode in MODES}
        print(kind, outcomes[kind], file=sys.stderr, flush=True)
    OUTCOMES.write_text(json.dumps(outcomes, indent=1) + "\n", encoding="utf-8")
    full = [kind for kind, modes in outcomes.items() if set(modes.values()) == {"yes"}]
    none = [kind for kind, modes in outcomes.items() if "yes" not in modes.values()]
    part = [kind for kind in outcomes if kind not in full and kind not in none]
    rows = (f"| {kind} | {' | '.join(outcomes[kind].values())} |" for kind in part)
    refused = (f"| {kind} | {CLASSES[kind]} | {outcomes[kind]['all']} |" for kind in none)
    page = PAGE.format(
        version=transformers.__version__,
        count=len(full),
        full=", ".join(full),
        part="\n".join(rows),
        refused="\n".join(refused),
        unreadable="\n".join(f"- {kind}: {why}" for kind, why in UNREADABLE.items()),
        untried=", ".join(untried),
    )
    (ROOT / "docs" / "models.md").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
