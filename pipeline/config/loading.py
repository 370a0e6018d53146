"""What the model section may not ask of ``from_pretrained``, or not without another key."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.config.sections import ModelSection

# Arguments of from_pretrained that the section has keys for.
_OWN = {
    "dtype": "model.dtype",
    "torch_dtype": "model.dtype",
    "revision": "model.model_revision",
    "attn_implementation": "model.attn_implementation",
    "quantization_config": "model.quantization",
    "load_in_4bit": "model.quantization",
    "load_in_8bit": "model.quantization",
    "trust_remote_code": "model.trust_remote_code",
}
_PLACING = (
    "device_map",
    "max_memory",
    "offload_folder",
    "offload_buffers",
    "tp_plan",
    "tp_size",
    "device_mesh",
    "distributed_config",
)
_SECRET = ("token", "use_auth_token")
_REST = ("config", "state_dict", "output_loading_info", "generation_config")


def model_problems(model: ModelSection) -> Iterator[tuple[str, str]]:
    """Pairs of a dotted key and why its value does not go with the others."""
    for key in model.init_kwargs or {}:
        place = f"model.init_kwargs.{key}"
        if key in _OWN:
            yield place, f"has a key of its own: set {_OWN[key]}"
        if key in _PLACING:
            yield place, "would place the model where the trainers do not look; leave it out"
        if key in _SECRET:
            yield place, "would be written to disk; set the environment variable HF_TOKEN"
        if key in _REST:
            yield place, "would load another model than is named; leave it out"
    if model.quantization is not None and not model.use_peft:
        yield (
            "model.quantization",
            "needs adapters over the quantised weights, which are not trained themselves;"
            " set model.use_peft=true",
        )
