"""Whether checkpoints can be pushed to the Hugging Face hub, asked before hours of work."""

from __future__ import annotations

from pipeline.errors import UserError


def check_account(key: str) -> None:
    """UserError unless the hub knows us; ``key`` is the setting that asks for it."""
    reason = _trouble()
    if reason is not None:
        raise UserError(f"{key}: {reason}; mend that, or set {key}=false")


def _trouble() -> str | None:
    """Why nothing can be pushed; None when the hub answers who we are."""
    import huggingface_hub
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set, so nothing can be pushed"
    if huggingface_hub.get_token() is None:
        return "there is no account: set HF_TOKEN, or run `hf auth login`"
    try:
        huggingface_hub.whoami()
    except Exception as error:  # whatever the client makes of a refusal or of no network
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return f"the hub cannot be used ({reason})"
    return None
