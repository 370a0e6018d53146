"""How a classifier reads a prompt and a completion: as one text, a pair or a conversation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, get_args

from jinja2 import TemplateError
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from reward_models.interface import ChatPrompt, RewardError, answer_of, messages_of

Format = Literal["text", "pair", "chat"]
"""``text``: prompt and completion joined as they are. ``pair``: the two as a cross-encoder reads
them, with a separator. ``chat``: the completion as the assistant's message after the prompt's
messages, or after a plain prompt as the user's, in the tokenizer's chat template."""

# Set in the config of a model that was trained on texts ending with EOS, or on conversations
# (`pairwise` does).
APPENDS_EOS = "reward_appends_eos"
Row = dict[str, list[int]]


def usual_format(model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase) -> Format:
    """``chat`` for a head with one output whose tokenizer has a chat template, else ``text``.

    That is what reward models are; a classifier with named classes reads texts, and may have its
    template from the language model that it is made of. One trained by `pairwise` says itself.
    """
    trained = getattr(model.config, APPENDS_EOS, None)
    if trained is not None:
        return "text" if trained else "chat"
    return "chat" if model.config.num_labels == 1 and tokenizer.chat_template else "text"


class Reader:
    """Prompts and completions to token ids; what is too long loses its beginning, and it says so.

    The texts are read without special tokens of the policy: by the classifier's own tokenizer.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        format: Format,
        limit: int,
        ending: str,
        name: str,
        warn: Callable[[str], None],
    ) -> None:
        """Check that the tokenizer can write the format.

        Args:
            limit: Longest input, in tokens. ending: Stands behind every plain text.
            name: What messages call the classifier. warn: Takes a line, once a kind.

        Raises:
            RewardError: There is no such format, no chat template, or none for a question and an
                answer.
        """
        if format not in get_args(Format):
            raise RewardError(f"{name}: format is {format!r}; expected text, pair or chat")
        if format == "chat" and not tokenizer.chat_template:
            raise RewardError(f"{name}: its tokenizer has no chat template; set format to text")
        self.tokenizer, self.format, self.limit = tokenizer, format, limit
        self.ending, self.name, self.warn = ending, name, warn
        self._said: set[str] = set()
        if format == "chat":
            self(["a question"], ["an answer"])

    def __call__(self, prompts: list[str], completions: list[str]) -> list[Row]:
        """One row of ids, with what else the classifier takes, for each completion."""
        prompts, completions = [_whole(p) for p in prompts], [_whole(c) for c in completions]
        if self.format == "chat":
            rows = self._rows(self._conversations(prompts, completions))
        elif self.format == "pair":
            rows = self._rows(self.tokenizer(prompts, completions, verbose=False))
        else:
            rows = self._rows(self.tokenizer(self._joined(prompts, completions), verbose=False))
        long = [i for i, row in enumerate(rows) if len(row["input_ids"]) > self.limit]
        if long:
            some = [prompts[i] for i in long], [completions[i] for i in long]
            self._tell(some[1], len(rows))
            for i, row in zip(long, self._cut(*some, [rows[i] for i in long]), strict=True):
                rows[i] = row
        for row in rows:
            if not row["input_ids"]:  # an empty text, and a tokenizer that frames nothing
                pad: Any = self.tokenizer.pad_token_id
                for name in row:
                    row[name] = [pad if name == "input_ids" else 0]
                row["attention_mask"] = [1]
        return rows

    def _joined(self, prompts: list[str], completions: list[str]) -> list[str]:
        return [p + c + self.ending for p, c in zip(prompts, completions, strict=True)]

    def _conversations(self, prompts: list[str], completions: list[str]) -> Any:
        conversations = []
        for prompt, completion in zip(prompts, completions, strict=True):
            conversations.append(messages_of(prompt) + answer_of(completion))
        try:
            return self.tokenizer.apply_chat_template(
                conversations, tokenize=True, return_dict=True, padding=False, truncation=False
            )
        except (TemplateError, ValueError, TypeError, LookupError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise RewardError(
                f"{self.name}: its chat template does not take the conversation ({reason}); change "
                "the prompts, or set format to text"
            ) from None

    def _rows(self, encoded: Any) -> list[Row]:
        names = [name for name in self.tokenizer.model_input_names if name in encoded]
        return [
            {name: encoded[name][i] for name in names} for i in range(len(encoded["input_ids"]))
        ]

    def _cut(self, prompts: list[str], completions: list[str], rows: list[Row]) -> list[Row]:
        """The rows with at most ``limit`` ids: their ends, where the completion is."""
        if self.format == "chat":
            return [{name: ids[-self.limit :] for name, ids in row.items()} for row in rows]
        side = self.tokenizer.truncation_side
        self.tokenizer.truncation_side = "left"  # special tokens in front stay
        options: dict[str, Any] = {"truncation": True, "max_length": self.limit}
        try:
            if self.format == "text":
                return self._rows(self.tokenizer(self._joined(prompts, completions), **options))
            cut = []
            for prompt, completion in zip(prompts, completions, strict=True):
                prompt, completion = self._end(prompt), self._end(completion)
                room = self._length(completion) < self.limit
                options["truncation"] = "only_first" if room else "longest_first"
                cut += self._rows(self.tokenizer([prompt], [completion], **options))
            return cut
        finally:
            self.tokenizer.truncation_side = side

    def _end(self, text: str) -> str:
        """The end of a text, with more tokens than can be read.

        The tokenizers' own cutting takes time quadratic in a text's length where little is left.
        """
        kept = 2 * self.limit  # the first of them may differ, and are cut
        if not self.tokenizer.is_fast or len(text) <= kept:
            return text
        options: dict[str, Any] = {"add_special_tokens": False, "verbose": False}
        encoded: Any = self.tokenizer(text, return_offsets_mapping=True, **options)
        offsets = encoded["offset_mapping"]
        return text if len(offsets) <= kept else text[offsets[-kept][0] :]

    def _length(self, completion: str) -> int:
        """Tokens of a completion without its prompt, and the special ones around."""
        if self.format == "chat":
            return len(self._rows(self._conversations([""], [completion]))[0]["input_ids"])
        ids: Any = self.tokenizer(completion, add_special_tokens=False, verbose=False)["input_ids"]
        return len(ids) + self.tokenizer.num_special_tokens_to_add(pair=self.format == "pair")

    def _tell(self, completions: list[str], texts: int) -> None:
        """Warn of cut texts, and again of the first whose completions are cut."""
        cut = sum(self._length(completion) > self.limit for completion in completions)
        kind = "completion" if cut else "prompt"
        if kind in self._said:
            return
        self._said |= {"prompt", kind}
        line = f"{self.name}: reads {self.limit} tokens, and {len(completions)} of {texts} texts"
        if cut:
            self.warn(
                f"{line} are longer, {cut} of them in the completion alone: completions that differ"
                " only in what is cut, their beginning, score alike; raise reward.max_length if"
                " the model can read more, or lower generation.max_new_tokens"
            )
        else:
            self.warn(f"{line} are longer: the beginning of their prompts is cut")


def _whole(text: str) -> str:
    """A text as UTF-8 can hold it, which tokenizers need: half a surrogate pair becomes U+FFFD."""
    if isinstance(text, ChatPrompt):
        messages = [
            {k: _whole(v) if isinstance(v, str) else v for k, v in message.items()}
            for message in text.messages
        ]
        return ChatPrompt(_whole(str(text)), messages)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def length_limit(model: nn.Module, tokenizer: PreTrainedTokenizerBase, asked: int | None) -> int:
    """The longest input in tokens: as asked, but within the model and its tokenizer."""
    config: Any = model.config
    positions = getattr(config.get_text_config(), "max_position_embeddings", None) or math.inf
    positions = math.inf if positions < 0 else positions  # XLNet's −1 is no limit
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            # RoBERTa's positions start behind the pad token's, so it has fewer than it says.
            used = 0 if module.padding_idx is None else module.padding_idx + 1
            positions = min(positions, module.num_embeddings - used)
    return int(min(asked or math.inf, positions, tokenizer.model_max_length, 2**20))
