"""Stage 2: the reward model and the judge, for `python` and `accelerate launch` from a checkout."""

from __future__ import annotations

import sys
from pathlib import Path

# A script's own folder comes first on the path; put the checkout there instead.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from pipeline.cli import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(["reward", *sys.argv[1:]]))
