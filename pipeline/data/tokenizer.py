"""The policy's tokenizer alone: what the data is measured and shown with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from common.words import first_line
from pipeline.config import ModelSection
from pipeline.data import embedded
from pipeline.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_tokenizer(section: ModelSection) -> PreTrainedTokenizerBase:
    """The tokenizer of the model that SFT starts from.

    Raises:
        UserError: There is none.
    """
    name = section.model_name_or_path
    if name == "toy":
        from pipeline.data.toy import toy_tokenizer  # imports torch

        return toy_tokenizer()
    from transformers import AutoTokenizer

    source = str(embedded.base_model()) if name.startswith("embedded:") else name
    arguments = {"revision": section.model_revision} if section.model_revision else {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source, trust_remote_code=section.trust_remote_code, **arguments
        )
    # Missing, gated, offline, damaged or asking for a package: a dozen unrelated types.
    except Exception as error:
        raise UserError(
            f"model.model_name_or_path: {name!r} has no tokenizer that can be loaded "
            f"({first_line(error)})"
        ) from error
    if tokenizer.eos_token is None:
        raise UserError(
            f"model.model_name_or_path: the tokenizer of {name!r} has no EOS token, so no "
            "completion can end"
        )
    return tokenizer
