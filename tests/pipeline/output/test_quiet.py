"""What the libraries say of themselves is not heard."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.slow
def test_bitsandbytes_which_peft_imports_says_nothing_of_kernels_that_are_missing() -> None:
    pytest.importorskip("bitsandbytes", reason="the extra `quantization`")
    code = """
from pipeline.output import quiet
quiet.before_imports()
import bitsandbytes
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout + done.stderr == ""
