"""The tokens that TRL's trainers make of a prompt and its answer."""

from __future__ import annotations

import os.path
from typing import Any

from transformers import PreTrainedTokenizerBase

from pipeline.data.records import Prompt


def learnt_tokens(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, answer: Prompt
) -> tuple[int, list[int]]:
    """The tokens of both, and how many of them are the prompt's.

    A text ends with EOS; a conversation as the chat template ends it. The answer begins where the
    tokens of the prompt alone and those of both part, which need not be after the prompt.
    """
    if isinstance(prompt, str):
        text = prompt + str(answer)
        eos = str(tokenizer.eos_token)
        whole: Any = tokenizer(text if text.endswith(eos) else text + eos)["input_ids"]
        start: Any = tokenizer(prompt)["input_ids"] if prompt else []
    else:
        written: dict[str, Any] = {"tokenize": True, "return_dict": True}
        both: Any = tokenizer.apply_chat_template([*prompt, *answer], **written)  # type: ignore
        alone: Any = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, **written)
        whole, start = both["input_ids"], alone["input_ids"]
    return len(os.path.commonprefix([list(start), list(whole)])), list(whole)
