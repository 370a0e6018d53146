"""How well a small model judges real film remarks, where people's verdict is clear.

    python benchmarks/rlaif_judge.py --output runs/judge

Pairs of snippets with mean ratings of at least 2 and at most −2 (of −4 … +4) are labelled by the
embedded model as a judge, with `rlhf label`, which prints how often it agrees with people, how much
the place of an answer mattered, and whether it wanted to say a letter at all. Both orders are
asked and averaged, so the order in the file does not matter.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

from common.files import write_text
from pipeline.cli import main as rlhf
from pipeline.data import embedded

JUDGE = "embedded:smollm2-135m-instruct"
PROMPT = "Write a remark about a film that you saw."
CRITERION = "the better answer is the one that likes the film more"
CLEAR = 2.0


def pairs(count: int, seed: int) -> list[dict[str, str]]:
    """``count`` pairs of a liked and a disliked film's snippet, each snippet once."""
    rng = random.Random(seed)
    texts = embedded.ratings("movie-reviews")
    good = rng.sample([t.text for t in texts if t.rating >= CLEAR], count)
    bad = rng.sample([t.text for t in texts if t.rating <= -CLEAR], count)
    return [
        {"prompt": PROMPT, "chosen": one, "rejected": other}
        for one, other in zip(good, bad, strict=True)
    ]


def main() -> None:
    """Make the pairs and have them labelled."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pairs", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--judge", default=JUDGE)
    parser.add_argument("--output", type=Path, default=Path("runs/judge"))
    given = parser.parse_args()
    lines = [json.dumps(pair) + "\n" for pair in pairs(given.pairs, given.seed)]
    file = given.output / f"pairs-{given.pairs}-{given.seed}.jsonl"
    write_text(file, "".join(lines))
    labelled = file.with_name(f"labelled-{file.name}")
    labelled.unlink(missing_ok=True)
    words = ["--pairs", str(file), "--judge", given.judge, "--criterion", CRITERION]
    raise SystemExit(rlhf(["label", *words, "--output", str(labelled)]))


if __name__ == "__main__":
    main()
