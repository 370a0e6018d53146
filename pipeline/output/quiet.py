"""Keeping the libraries quiet: no telemetry, no warning walls, one progress bar (ours).

Everything is a default: a variable that the caller has set stays as it is, and RLHF_VERBOSE=1
leaves the libraries alone.
"""

from __future__ import annotations

import ctypes
import logging
import os
import warnings
from contextlib import suppress

_ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "false",  # else a warning at every fork
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "DATASETS_VERBOSITY": "error",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "ACCELERATE_LOG_LEVEL": "ERROR",
}
_NOISY = (
    r"(torch|transformers|trl|peft|accelerate|datasets|huggingface_hub|gymnasium|pydantic)(\.|$)"
)

_LOGGERS = {
    "bitsandbytes": logging.ERROR,  # imported by peft, it tells of kernels that nothing asks for
    "ContinuousBatchingLogger": logging.CRITICAL,  # a traceback of what is told in one line
}


def verbose() -> bool:
    """True when RLHF_VERBOSE asks for the libraries' own output."""
    return os.environ.get("RLHF_VERBOSE", "") not in ("", "0")


def before_imports() -> None:
    """Set the environment; must come before torch, transformers, trl or datasets is imported."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # Threads that wait for each other by spinning make torch up to twenty times slower as soon as
    # one more process wants a core, threads that fall asleep at once make PPO half as slow again
    # on an idle machine. Spinning for some ten microseconds first costs neither that much.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "passive"
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    # oneDNN keeps compiled kernels and their scratch memory for every shape it has met, 1,024 of
    # them: gigabytes, as every batch has another length. With 64 the speed is the same.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    _keep_freed_memory()
    if verbose():
        return
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore", module=_NOISY)
    for name, level in _LOGGERS.items():
        logging.getLogger(name).setLevel(level)


def _keep_freed_memory() -> None:
    """Let glibc reuse the memory of freed tensors up to 32 MiB instead of returning it.

    Otherwise every large temporary costs page faults: a third of the time of training on a
    processor. A no-op elsewhere than on glibc.
    """
    mmap_threshold, trim_threshold = -3, -1
    with suppress(OSError, AttributeError):
        glibc = ctypes.CDLL("libc.so.6")
        glibc.mallopt(mmap_threshold, 32 * 2**20)
        glibc.mallopt(trim_threshold, 2**31 - 1)


def after_imports() -> None:
    """Turn off transformers' bar for loading weights; hub downloads keep theirs."""
    if verbose():
        return
    from transformers.utils import logging

    logging.disable_progress_bar()
    # Importing the libraries may have put filters of their own in front.
    warnings.filterwarnings("ignore", module=_NOISY)
