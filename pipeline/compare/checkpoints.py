"""Loading a policy that another program made: a folder, an adapter's folder, or a hub id.

transformers and PEFT only warn where weights are missing, left over or of another shape, and go on
with random ones. Here each of these is refused in one line. `pipeline.compare.checked` then holds
what is loaded against the plain model, before anything is sampled from it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants
from peft import PeftConfig, PeftModel, PeftModelForCausalLM
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.hub import cached_file
from transformers.utils.peft_utils import find_adapter_config_file

from common.words import first_line
from pipeline.data import embedded
from pipeline.errors import UserError
from pipeline.lm.hardware import autocast, best_device
from pipeline.lm.models import EMBEDDED_MODEL, prepare
from pipeline.lm.route import FAILS
from pipeline.lm.saving import adapter_base

LOADING = (*FAILS, ImportError, SafetensorError)  # what loading a broken model may raise
_ADAPTER, _ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_TOKENIZER = (
    "tokenizer_config.json",
    "tokenizer.json",
)  # save_pretrained writes the first at least
_AS_SAFETENSORS = "save it again as safetensors (model.save_pretrained of transformers does)"
# Whole against in parts: the same weights in the same shapes, so only a few roundings apart.
_SAME = {torch.float32: 1e-3, torch.bfloat16: 0.25}


class _Refused(Exception):
    """Why a checkpoint is not measured; the place is added outside."""


def load_policy(
    source: str, place: str, dtype: torch.dtype, trust_remote_code: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model and its own tokenizer, ready to be sampled and scored.

    Adapters stay beside the weights of their base, as PEFT computes them, so that no update is
    rounded away.

    Args:
        source: a folder, a hub id (``id@revision`` pins it) or the embedded model's name.
        place: what errors begin with, e.g. ``compare.policies.theirs``.
        dtype: of the weights: the reference's, or rounding would count as KL.
        trust_remote_code: run Python code that comes with the model.

    Returns:
        the model on the best device, without dropout, in evaluation mode; and the tokenizer.

    Raises:
        UserError: it is no such model, or some of its weights are missing, left over, of another
            shape or a pickle; or its tokenizer or its adapter's base is not there.
    """
    try:
        model, tokenizer = _load(source, dtype, trust_remote_code)
        prepare(model, tokenizer)
        if not getattr(model, "is_quantized", False):  # those are where they were loaded to
            model.to(best_device())  # type: ignore[arg-type]
    except _Refused as refusal:
        raise UserError(f"{place}: {source}: {refusal}") from refusal.__cause__
    except UserError as error:
        raise relabelled(error, f"{place}: {source}") from error
    except LOADING as error:
        raise UserError(f"{place}: {source}: cannot be loaded: {_reason(error)}") from error
    return model.eval(), tokenizer


def _reason(error: BaseException) -> str:
    """What a library says, and whether it was let ask the hub."""
    offline = "huggingface.co" in str(error) and constants.HF_HUB_OFFLINE
    return first_line(error) + (
        " HF_HUB_OFFLINE is set: unset it to ask the hub" if offline else ""
    )


def relabelled(error: UserError, place: str) -> UserError:
    """The same error, told of ``place`` instead of the experiment's own model."""
    return UserError(f"{place}: {str(error).removeprefix('model.model_name_or_path: ')}")


# --- Models ---------------------------------------------------------------------------------------


def _load(
    source: str, dtype: torch.dtype, trust: bool
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    name, revision = _located(source)
    if (folder := Path(name)).is_dir():
        _check_folder(folder)
    if find_adapter_config_file(name, revision=revision) is None:
        model = _load_whole(name, revision, dtype, trust)
        tokenizer = _load_tokenizer(name, revision, trust)
        if tokenizer is None:
            raise _Refused(
                "holds no tokenizer; save the one that it was trained with beside it"
                " (tokenizer.save_pretrained)"
            )
        return model, tokenizer
    model, base = _load_adapted(name, revision, dtype, trust)
    tokenizer = _load_tokenizer(name, revision, trust) or _load_tokenizer(*base, trust)
    if tokenizer is None:
        raise _Refused(f"neither it nor its base {base[0]!r} holds a tokenizer; save one beside it")
    return model, tokenizer


def _located(source: str) -> tuple[str, str | None]:
    """A local path or hub id, and the revision of the latter."""
    if source == EMBEDDED_MODEL:
        return str(embedded.base_model()), None
    path = Path(source).expanduser()
    if path.is_file():
        raise _Refused("is a file; give the folder that it is in")
    if path.is_dir():
        return str(path), None
    hub_id, _, revision = source.partition("@")
    if source.startswith((".", "/", "~")) or hub_id.count("/") > 1:
        raise _Refused("there is no such folder")
    return hub_id, revision or None


def _check_folder(folder: Path) -> None:
    """Refuse a folder that holds no model, two, or one as a pickle.

    Raises:
        _Refused: which of these, and what to do.
    """
    whole, adapter = (folder / "config.json").is_file(), (folder / _ADAPTER).is_file()
    names = {path.name for path in folder.iterdir() if path.is_file()}
    if not whole and not adapter:
        inside = sorted({*folder.glob("*/config.json"), *folder.glob(f"*/{_ADAPTER}")})[:3]
        hint = f"; give {' or '.join(str(file.parent) for file in inside)}" if inside else ""
        raise _Refused(f"holds neither config.json nor {_ADAPTER}{hint}")
    weights = {name for name in names if name.endswith(".safetensors")}
    if adapter and whole and weights - {_ADAPTER_WEIGHTS}:
        raise _Refused(
            "holds a whole model and an adapter; move one of them to a folder of its own"
        )
    wanted = _ADAPTER_WEIGHTS in weights if adapter else bool(weights)
    if wanted:
        return
    pickles = sorted(name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt")))
    pickles = [name for name in pickles if "model" in name]
    if pickles:
        raise _Refused(
            f"its weights are a pickle ({pickles[0]}), which may run any code as it is read;"
            f" {_AS_SAFETENSORS}"
        )
    raise _Refused(f"holds no weights as safetensors; {_AS_SAFETENSORS}")


def _load_whole(
    name: str, revision: str | None, dtype: torch.dtype, trust: bool
) -> PreTrainedModel:
    """A model with every weight from its files.

    Raises:
        _Refused: some are not, or it is quantised in a way that cannot be loaded here.
    """
    config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=trust)
    quantised = getattr(config, "quantization_config", None)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            name,
            revision=revision,
            dtype=dtype,
            trust_remote_code=trust,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # they are told below, with their names
            output_loading_info=True,
        )
    except LOADING as error:
        if quantised is None and "does not appear to have a file named" in str(error):
            raise _Refused(f"holds no weights as safetensors; {_AS_SAFETENSORS}") from error
        if quantised is None:
            raise
        settings = quantised if isinstance(quantised, dict) else vars(quantised)
        method = getattr(settings.get("quant_method"), "value", settings.get("quant_method"))
        raise _Refused(
            f"its weights are quantised ({method}) and cannot be loaded on this machine"
            f" ({first_line(error)}); install what that needs, or give the model unquantised"
        ) from error
    model, info = loaded
    kind = type(model).__name__
    if wrong := info["mismatched_keys"]:
        key, found, expected = sorted(wrong, key=str)[0]
        raise _Refused(
            f"{key} is of shape {tuple(found)}, but its config.json makes it {tuple(expected)}"
            f"{_more(wrong)}; give the config.json that belongs to the weights"
        )
    if missing := info["missing_keys"]:
        raise _Refused(
            f"{_first(missing)} is not in its files{_more(missing)}, so {kind} would compute with"
            " random numbers there; it is no whole causal language model"
        )
    if extra := info["unexpected_keys"]:
        raise _Refused(
            f"holds {_first(extra)}{_more(extra)}, for which {kind} has no place: another kind of"
            " model (a reward or value model?), or an adapter without its adapter_config.json"
        )
    return model


def _first(keys: Iterable[str]) -> str:
    return min(keys)


def _more(keys: Any) -> str:
    return f" (and {len(keys) - 1} more)" if len(keys) > 1 else ""


# --- Adapters -------------------------------------------------------------------------------------


def _load_adapted(
    name: str, revision: str | None, dtype: torch.dtype, trust: bool
) -> tuple[PreTrainedModel, tuple[str, str | None]]:
    """The base that an adapter names with the adapter's layers in it, and where that base is.

    Raises:
        _Refused: the base is not there, or the adapter does not fit it.
    """
    config = PeftConfig.from_pretrained(name, revision=revision)
    source = config.base_model_name_or_path
    if not source:
        raise _Refused(f"its {_ADAPTER} names no base_model_name_or_path; write it there")
    source = adapter_base(name, source)
    if config.task_type not in (None, "CAUSAL_LM"):
        raise _Refused(f"is an adapter for {config.task_type}, not for a causal language model")
    base_name, base_revision = _base(source, config.revision)
    try:
        weights = cached_file(name, _ADAPTER_WEIGHTS, revision=revision)
    except OSError as error:
        raise _Refused(f"holds no {_ADAPTER_WEIGHTS}; {_AS_SAFETENSORS}") from error
    try:
        base = _load_whole(base_name, base_revision, dtype, trust)
    except _Refused as refusal:
        raise _Refused(f"its base {source!r}: {refusal}") from refusal.__cause__
    except LOADING as error:
        raise _Refused(
            f"its base {source!r} (base_model_name_or_path in {_ADAPTER}) cannot be loaded"
            f" ({_reason(error)}); put it there, or correct the name"
        ) from error
    config.inference_mode = True
    try:
        adapted = PeftModelForCausalLM(base, config)
        mapping = getattr(base, "_checkpoint_conversion_mapping", {})
        read = adapted.load_adapter(str(Path(str(weights)).parent), "default", key_mapping=mapping)
    except LOADING as error:
        reason = " ".join(str(error).split())
        raise _Refused(
            f"does not fit its base {source!r} ({reason[:300]}); merge it into the base that it was"
            " trained on (merge_and_unload) and give that"
        ) from error
    _check_inside(adapted)
    if missing := read.missing_keys:
        raise _Refused(f"{_first(missing)} is not in {_ADAPTER_WEIGHTS}{_more(missing)}")
    if extra := read.unexpected_keys:
        raise _Refused(
            f"holds {_first(extra)}{_more(extra)}, for which its base {source!r} has no place"
        )
    return adapted.get_base_model(), (base_name, base_revision)  # type: ignore[return-value]


def _base(source: str, revision: str | None) -> tuple[str, str | None]:
    """Where the base is that an adapter names."""
    try:
        name, pinned = _located(source)
        if Path(name).is_dir():
            _check_folder(Path(name))
    except _Refused as refusal:
        raise _Refused(
            f"its base {source!r} (base_model_name_or_path in {_ADAPTER}): {refusal}; put it there,"
            " or correct the name"
        ) from None
    revision = revision or pinned
    if find_adapter_config_file(name, revision=revision) is not None:
        raise _Refused(
            f"its base {source!r} is an adapter itself; merge that into its own base first"
            " (merge_and_unload)"
        )
    return name, revision


@torch.no_grad()
def _check_inside(adapted: PeftModel) -> None:
    """Refuse an adapter that works outside of the base's layers, where sampling would miss it.

    Prompt and prefix tuning put tokens of their own in front; some adapters wake on certain tokens.
    """
    base: Any = adapted.get_base_model()
    tokens = torch.arange(1, 9, device=base.device)[None] % base.config.get_text_config().vocab_size
    adapted.eval()
    with autocast(adapted):
        inside = base(input_ids=tokens, use_cache=False).logits.float()
        whole = adapted(input_ids=tokens, use_cache=False).logits.float()
    limit = _SAME[torch.float32 if base.dtype == torch.float32 else torch.bfloat16]
    if whole.shape != inside.shape or float((whole - inside).abs().max()) > limit * inside.std():
        kind = adapted.peft_config["default"].peft_type
        raise _Refused(
            f"an adapter of type {getattr(kind, 'value', kind)} computes outside of the model's"
            " layers and is not supported; LoRA, DoRA, IA3 and others in layers are"
        )


# --- Tokenizers -----------------------------------------------------------------------------------


def _load_tokenizer(name: str, revision: str | None, trust: bool) -> PreTrainedTokenizerBase | None:
    """The tokenizer that is saved there; None where none is: transformers would make one up."""
    found = [
        cached_file(
            name,
            file,
            revision=revision,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            _raise_exceptions_for_gated_repo=False,
        )
        for file in _TOKENIZER
    ]
    if not any(found):
        return None
    try:
        return AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=trust)
    except Exception as error:  # damaged, or asking for a package: a dozen unrelated types
        raise _Refused(f"its tokenizer cannot be loaded ({first_line(error)})") from error
