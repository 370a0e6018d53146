"""How well each reward that is trained here judges movie snippets, beside the people it stands for.

    OMP_NUM_THREADS=1 python benchmarks/reward_training.py --folder runs/reward-models

Five seeds, and with each its own split: 4,000 snippets of whole batches of raters to train on, and
a test that shares no rater and no near-duplicate with them. All start from MiniLM. A finished model
is not trained again; the table is of all that are there. Prints means and standard deviations over
the seeds, and 95 % intervals of the comparisons by resampling batches of raters.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from common.files import read_json
from pipeline.config import PAIRWISE, Experiment, load_experiment
from pipeline.data.comparisons import Comparison, Comparisons, of_raters
from pipeline.data.leakage import linked_groups, near_groups, sides_of, take_groups
from pipeline.data.records import RatedText
from pipeline.data.splits import ExperimentData, load_data
from pipeline.stages.reward_sources import folders_of, is_trained, proxy_reward
from pipeline.stages.reward_training import Job, train
from reward_models import measure
from reward_models.calibration import TEMPERATURE

CONFIG = Path(__file__).parents[1] / "configs" / "quickstart.yaml"
SNIPPETS, PAIRS_A_RATER, RESAMPLES = 4000, 30, 2000
KINDS = {
    "hard": ["reward.labels=hard", "reward.calibrate=true"],
    "soft": ["reward.labels=soft", "reward.calibrate=true"],
    "mean": ["reward.labels=mean", "reward.calibrate=true"],
    "pairwise": [
        "reward.source=pairwise",
        "reward.per_device_train_batch_size=256",
        "reward.center_rewards_coefficient=0.01",
    ],
}


def chosen(data: ExperimentData, decided: bool) -> ExperimentData:
    """The data with the proxy's half replaced by snippets of whole batches from both halves."""
    pool = [*data.half("proxy"), *data.half("gold")]
    groups = linked_groups(pool, near_groups(pool, "movie-reviews"))
    clear = {text.text for text in [*data.proxy, *data.gold]}
    usable = [text for text in pool if not decided or text.text in clear]
    sides = sides_of(usable, groups, 0.0)
    texts = take_groups(usable, groups, sides, SNIPPETS)[0][:SNIPPETS]
    return replace(
        data,
        proxy=[text for text in texts if text.text in clear],
        neutral={"proxy": [text for text in texts if text.text not in clear]},
    )


def run(experiment: Experiment, kind: str) -> dict[str, Any]:
    """Train one model where it is not there, and measure it."""
    data = chosen(load_data(experiment), kind == "hard")
    (folder,) = folders_of(experiment, "proxy")
    per_rater, seed = experiment.reward.comparisons_per_rater, experiment.data_seed
    test = of_raters(data.classifier_test, PAIRS_A_RATER, seed)
    note = folder.parent / "seconds.json"
    if not is_trained(folder):
        own = of_raters(data.half("proxy"), per_rater, seed) if kind == PAIRWISE else []
        begin = time.process_time(), time.perf_counter()
        train(Job(experiment, "proxy", folder), data, Comparisons(own, [], test[:2000]))
        taken = {"cpu": time.process_time() - begin[0], "wall": time.perf_counter() - begin[1]}
        note.write_text(json.dumps(taken))
    scores = _scores(experiment, data.classifier_test)
    temperature = read_json(folder / "config.json").get(TEMPERATURE)
    measured = against_people(experiment, data.classifier_test, scores, temperature)
    return measured | on_pairs(scores, test) | read_json(note)


def _scores(experiment: Experiment, texts: Sequence[RatedText]) -> dict[str, float]:
    reward, words = proxy_reward(experiment), [text.text for text in texts]
    return dict(zip(words, reward([""] * len(words), words), strict=True))


def against_people(
    experiment: Experiment,
    texts: Sequence[RatedText],
    scores: dict[str, float],
    temperature: float | None,
) -> dict[str, Any]:
    """Agreement with the mean of the raters on snippets with |mean| of data.neutral_margin."""
    far = experiment.data.neutral_margin
    clear = [text for text in texts if abs(text.rating) >= far]
    margins = np.array([scores[text.text] for text in clear])
    ratings = [text.rating for text in clear]
    positive = [rating > 0 for rating in ratings]
    result = {
        "texts": len(clear),
        "pearson": measure.correlation(margins.tolist(), ratings),
        "pearson_all": measure.correlation(
            [scores[text.text] for text in texts], [text.rating for text in texts]
        ),
        "auc": measure.auc(margins.tolist(), positive),
    }
    if temperature is not None:
        result["accuracy"] = measure.accuracy(margins.tolist(), positive)
        before = (margins * temperature).tolist()
        result["ece_before"] = measure.calibration(before, positive)["ece"]
        result["ece"] = measure.calibration(margins.tolist(), positive)["ece"]
        result["temperature"] = temperature
    return result


def on_pairs(scores: dict[str, float], test: list[Comparison]) -> dict[str, Any]:
    """Accuracy on held-out raters' comparisons, beside one other rater and the others' mean."""
    of_batch: dict[Any, list[tuple[float, float, float]]] = defaultdict(list)
    for comparison in test:
        assert comparison.texts is not None and comparison.rater is not None
        better, worse = (np.asarray(text.ratings) for text in comparison.texts)
        others = np.delete(better - worse, comparison.rater)
        said = scores[comparison.texts[0].text] - scores[comparison.texts[1].text]
        row = (_right(said), float(np.mean(_right(others))), _right(round(others.mean(), 9)))
        of_batch[comparison.group].append(row)
    sums = np.array([np.sum(rows, axis=0) for rows in of_batch.values()])
    counts = np.array([len(rows) for rows in of_batch.values()])
    draw = np.random.default_rng(0).integers(len(counts), size=(RESAMPLES, len(counts)))
    again = sums[draw].sum(1) / counts[draw].sum(1, keepdims=True)
    model, one, mean = sums.sum(0) / counts.sum()
    low, high = np.quantile(again, [0.025, 0.975], axis=0)
    gap = np.quantile(again[:, 0] - again[:, 1], [0.025, 0.975])
    return {
        "pairs": int(counts.sum()),
        "batches": len(counts),
        "pair_accuracy": float(model),
        "one_rater": float(one),
        "one_rater_interval": [float(low[1]), float(high[1])],
        "others_mean": float(mean),
        "less_than_one_rater": float(model - one),
        "less_interval": [float(gap[0]), float(gap[1])],
    }


def _right(difference: Any) -> Any:
    """1 where the difference has the right sign, ½ where there is none."""
    return (np.sign(difference) + 1) / 2


def table(results: list[dict[str, Any]]) -> None:
    """Mean ± standard deviation over the seeds, a line a kind."""
    names = ("accuracy", "pearson", "auc", "ece_before", "ece", "pair_accuracy", "one_rater")
    names += ("others_mean", "less_than_one_rater", "cpu")
    print("| | seeds | " + " | ".join(names) + " |\n" + "|---" * (len(names) + 2) + "|")
    for kind in KINDS:
        rows = [row for row in results if row["kind"] == kind]
        if not rows:
            continue
        cells = []
        for name in names:
            values = [row[name] for row in rows if row.get(name) is not None]
            shown = f"{np.mean(values):.3f} ± {np.std(values):.3f}" if values else "–"
            cells.append(f"{np.mean(values):.0f} s" if name == "cpu" else shown)
        print(f"| {kind} | {len(rows)} | " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/reward-models"))
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("overrides", nargs="*", help="of the config, for all: reward.seed=1")
    given = parser.parse_args()
    results = []
    for seed in given.seeds:
        for kind in given.kinds:
            place = f"output_dir={given.folder / f'{kind}-{seed}'}"
            own = [f"seed={seed}", place, "tracking.report_to=[]", *KINDS[kind]]
            experiment = load_experiment(CONFIG, [*own, *given.overrides])
            results.append({"kind": kind, "seed": seed} | run(experiment, kind))
            print(json.dumps(results[-1]), flush=True)
    table(results)


if __name__ == "__main__":
    main()
