"""How soon a large data set's first step comes, and in how much memory.

    OMP_NUM_THREADS=1 python benchmarks/large_data.py --rows 1000000 --gigabytes 1
    OMP_NUM_THREADS=1 python benchmarks/large_data.py --rows 1000000 --gigabytes 10 --only pairs

Writes a file of each kind into a temporary folder, one after another, and starts the stage that
learns from it, with the toy model: `sft` on demonstrations, `reward` on rated texts, `ppo` on
prompts, `dpo` on preference pairs. A start is timed from the beginning of the process until its
first step is done: once when nothing is remembered of the file, and once more. Memory is what the
process has of its own at most; pages of files that the system may drop are not counted. The size is
that of the file; `rated` texts and `prompts` are a tenth of it, as such rows are short.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TINY = ROOT / "configs" / "tiny.yaml"
WORDS = (
    "the",
    "a",
    "film",
    "story",
    "actor",
    "good",
    "bad",
    "long",
    "dull",
    "plot",
    "scene",
    "music",
)
# What each kind is read by, and the settings that have it read and learnt.
STAGES = {"demonstrations": "sft", "rated": "reward", "prompts": "ppo", "pairs": "dpo"}
RULE = "def score(prompts, completions):\n    return [float(len(c)) for c in completions]\n"


def text(rng: random.Random, characters: int) -> str:
    """Words up to so many characters."""
    return " ".join(rng.choices(WORDS, k=max(1, characters // 5)))


def rows(kind: str, count: int, characters: int) -> Iterator[dict[str, Any]]:
    """Rows of a kind, of so many characters each; every one is another."""
    rng = random.Random(0)
    long = text(rng, 4 * characters)  # slices of it are made faster than texts of their own

    def cut(share: float) -> str:
        begin = rng.randrange(3 * characters)
        return long[begin : begin + max(8, int(share * characters))]

    for number in range(count):
        if kind == "rated":
            yield {"text": f"review {number} says {cut(1)}", "label": number % 2}
        elif kind == "prompts":
            yield {"prompt": f"question {number}?", "solution": cut(1)}
        elif kind == "demonstrations":
            yield {"prompt": f"question {number}?", "completion": f" {cut(1)}"}
        else:
            answers = {"chosen": f" yes {cut(0.5)}", "rejected": f" no {cut(0.5)}"}
            yield {"prompt": f"question {number}?", **answers}


def write(path: Path, kind: str, count: int, size: float) -> None:
    """A file of ``count`` rows and about ``size`` bytes."""
    characters = max(20, int(size / count) - 60)
    with path.open("w", encoding="utf-8") as stream:
        for row in rows(kind, count, characters):
            stream.write(json.dumps(row) + "\n")


def settings(kind: str, path: Path, folder: Path, count: int) -> list[str]:
    """Overrides of the tiny config that have a stage learn from a file, all of it."""
    made = [f"output_dir={folder / kind}", "generation.max_new_tokens=8"]
    if kind == "demonstrations":
        learnt = min(count - 2000, int(count * 0.9))
        made += [f"data.dataset_name={path}", f"data.demonstrations={learnt}"]
        made += [f"reward.source={folder / 'rule.py'}:score", "sft.max_length=128"]
    elif kind == "rated":
        made += [f"data.dataset_name={path}", "data.positive_above=0.5", "data.max_words=100000"]
        made += ["reward.max_length=128"]
    elif kind == "prompts":
        asked = min(count - 200, int(count * 0.9))
        made += [f"data.prompts_name={path}", f"data.train_prompts={asked}"]
        made += [f"reward.source={folder / 'rule.py'}:score", "ppo.total_episodes=128"]
    else:
        made += [f"data.preferences_name={path}", "dpo.max_length=128"]
    return made


def start(kind: str, own: list[str], environment: dict[str, str]) -> tuple[float, float, float]:
    """Seconds until a stage's first step, of them a processor's, and the most gigabytes of memory.

    Where other programs run beside it, the processor's seconds are what would be waited for alone.
    """
    stage = STAGES[kind]
    command = [sys.executable, __file__, "--until-first-step", stage, "--config", str(TINY), *own]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    told = [line for line in done.stdout.splitlines() if line.startswith("first step ")]
    if not told:
        raise SystemExit(f"{kind}: no first step:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    seconds, processor, memory = told[-1].split()[2:]
    return float(seconds), float(processor), int(memory) / 1e9


def until_first_step(words: list[str]) -> None:
    """Run the command until a trainer has made a step, print when that was, and end."""
    begin = time.time() - time.process_time()
    peak = [0]
    threading.Thread(target=_watch, args=(peak,), daemon=True).start()
    from transformers import Trainer

    plain: Callable[..., Any] = Trainer.training_step

    def step(self: Trainer, *given: Any, **named: Any) -> Any:
        loss = plain(self, *given, **named)
        used = time.process_time()
        print(f"first step {time.time() - begin:.1f} {used:.1f} {peak[0]}", flush=True)
        os._exit(0)
        return loss

    Trainer.training_step = step  # type: ignore[method-assign]
    from pipeline.cli import main as command

    command(words)


def _watch(peak: list[int]) -> None:
    while True:
        status = Path("/proc/self/status").read_text()
        own = next(line for line in status.splitlines() if line.startswith("RssAnon"))
        peak[0] = max(peak[0], int(own.split()[1]) * 1024)
        time.sleep(0.05)


def measure(kind: str, folder: Path, count: int, size: float) -> None:
    """Write a file, make what its stage needs, start it twice and print how that went."""
    path = folder / f"{kind}.jsonl"
    begin = time.time()
    write(path, kind, count, size)
    wrote, there = time.time() - begin, path.stat().st_size
    environment = os.environ | {"RLHF_CACHE": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
    own = settings(kind, path, folder, count)
    rlhf = [sys.executable, "-m", "pipeline"]
    if kind in ("prompts", "pairs"):  # of what they start from; read by this stage before, too
        begun = subprocess.run(
            [*rlhf, "sft", "--config", str(TINY), *own], env=environment, capture_output=True
        )
        if begun.returncode:
            raise SystemExit(begun.stderr.decode()[-4000:])
        shutil.rmtree(folder / "cache", ignore_errors=True)
    time.sleep(max(0.0, 3 - (time.time() - path.stat().st_mtime)))  # younger, it is not remembered
    about = f"{kind:15} {count:>9,} rows {there / 1e9:6.2f} GB (written in {wrote:.0f} s)"
    for time_of in ("first", "again"):
        seconds, processor, memory = start(kind, own, environment)
        print(
            f"{about}  {STAGES[kind]:6} {time_of} step after {seconds:5.1f} s, "
            f"of the processor {processor:5.1f} s; memory {memory:.2f} GB",
            flush=True,
        )
    path.unlink()
    shutil.rmtree(folder / kind, ignore_errors=True)
    shutil.rmtree(folder / "cache", ignore_errors=True)


def main() -> None:
    if sys.argv[1:2] == ["--until-first-step"]:
        return until_first_step(sys.argv[2:])
    parser = argparse.ArgumentParser(description="How soon a large data set's first step comes.")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--only", choices=STAGES, action="append")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="large-data-") as name:
        folder = Path(name)
        (folder / "rule.py").write_text(RULE)
        for kind in given.only or STAGES:
            share = 0.1 if kind in ("rated", "prompts") else 1.0
            measure(kind, folder, given.rows, given.gigabytes * 1e9 * share)


if __name__ == "__main__":
    main()
