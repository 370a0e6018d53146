"""The pictures of many policies: what is drawn where, and what is not."""

from __future__ import annotations

import copy
import itertools
import math
import re
from typing import Any

import numpy as np
import pytest
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from pipeline.report import figures, pictures, plotting
from pipeline.report.figures.reward import path
from tests.pipeline.report import many


def drawn(figure: Figure | None) -> Figure:
    assert figure is not None
    figure.draw_without_rendering()
    return figure


def names(figure: Figure) -> dict[str, Any]:
    """The boxes of the bold names in a picture."""
    texts = [t for axes in figure.axes for t in axes.findobj(Annotation) if t.get_text()]
    return {t.get_text(): t.get_window_extent() for t in texts if t.get_fontweight() == "bold"}


def gids(figure: Figure) -> set[str]:
    return {artist.get_gid() for artist in figure.findobj() if artist.get_gid()}  # pyright: ignore


def test_twelve_names_do_not_cover_each_other() -> None:
    results = many.results()
    for figure in (
        figures.reward_kl(results, many.details()),
        figures.proxy_gold(results, many.samples(4)),
        figures.cost(results),
    ):
        boxes = names(drawn(figure))
        assert len(boxes) >= 9
        frame = figure.bbox  # pyright: ignore[reportOptionalMemberAccess]
        for (a, first), (b, second) in itertools.combinations(boxes.items(), 2):
            if figure is not None and len(figure.axes) == 1:
                assert not first.overlaps(second), (a, b)
        assert all(frame.x0 <= b.x0 and b.x1 <= frame.x1 for b in boxes.values())


def test_the_frontier_is_drawn_as_far_as_it_is_trusted() -> None:
    results = many.results()
    axes = drawn(figures.reward_kl(results, many.details())).axes[0]
    lines = {line.get_label(): np.asarray(line.get_xydata()) for line in axes.lines}
    trusted = [row for row in results["frontier"] if row["trusted"]]
    assert len(trusted) == len(results["frontier"]) - 1
    curve = lines["optimal frontier"]
    assert curve[0].tolist() == [0.0, 1.0], "it begins at the reference"
    assert curve[-1].tolist() == [3.1, 5.35] and len(curve) == len(trusted) + 1
    assert lines["second estimate"][-1][1] == pytest.approx(5.35 - 0.3 / 2.1)
    texts = {text.get_text() for text in axes.texts}
    assert "not known beyond" in texts
    stars = [c for c in axes.collections if c.get_label() == "optimum at β = 0.5"]
    assert stars[0].get_offsets().tolist() == [[1.75, 5.0]]  # pyright: ignore


def test_no_star_where_the_optimum_is_not_trusted_and_no_curve_where_nothing_is() -> None:
    results = many.results()
    for row in results["frontier"]:
        row["trusted"] = row["beta"] > 0.5
    axes = drawn(figures.reward_kl(results, many.details())).axes[0]
    labels = {artist.get_label() for artist in [*axes.lines, *axes.collections]}
    assert "optimal frontier" in labels and "optimum at β = 0.5" not in labels
    for row in results["frontier"]:
        row["trusted"] = False
    axes = drawn(figures.reward_kl(results, many.details())).axes[0]
    assert "optimal frontier" not in {line.get_label() for line in axes.lines}


def floored(trusted_from: float) -> dict[str, Any]:
    """A comparison whose frontier is trusted from a β up, with a floor."""
    results = many.results()
    for row in results["frontier"]:
        row["trusted"] = row["beta"] >= trusted_from
        row |= {"floor_kl": 0.9 * row["kl"], "floor_reward": row["reward"] - 0.2}
    return results


@pytest.mark.parametrize("trusted_from", [1.0, math.inf])
def test_where_it_is_not_trusted_the_frontier_is_dotted_at_its_floor(trusted_from: float) -> None:
    axes = drawn(figures.reward_kl(floored(trusted_from), many.details())).axes[0]
    lines = {str(line.get_label()): line for line in axes.lines}
    dots = lines["at least this (too few samples to say more)"]
    ends = np.asarray(dots.get_xydata()).tolist()
    assert ends[0] == ([1.0, 4.65] if trusted_from == 1.0 else [0.0, 1.0])
    assert [pytest.approx(0.9 * 1.75), pytest.approx(4.8)] in ends
    assert all(b[0] > a[0] and b[1] > a[1] for a, b in itertools.pairwise(ends))
    assert "not known beyond" not in {text.get_text() for text in axes.texts}
    assert ("optimal frontier" in lines) == (trusted_from == 1.0)
    assert "equal objective" not in lines, "which line touches it is not known"
    words = "optimum at β = 0.5: worth this or more"
    [star] = [c for c in axes.collections if c.get_label() == words]
    assert star.get_offsets().tolist() == [[pytest.approx(1.575), pytest.approx(4.8)]]  # pyright: ignore
    assert len(star.get_facecolor()) == 0, "open"  # pyright: ignore
    # Nothing above the dots is shaded as out of reach.
    bands = [c for c in axes.collections if isinstance(c, PolyCollection)]
    shaded = [float(np.max(path.vertices[:, 0])) for c in bands for path in c.get_paths()]  # pyright: ignore
    assert max(shaded, default=0.0) <= 1.0


def test_the_floor_of_several_comparisons_is_their_mean() -> None:
    first, second = floored(1.0), floored(1.0)
    for row in second["frontier"]:
        row["floor_reward"] += 1
    [row] = [r for r in figures.mean_frontier([first, second]) if r["beta"] == 0.5]
    assert (row["floor_kl"], row["floor_reward"]) == (pytest.approx(1.575), pytest.approx(5.3))
    del second["frontier"][4]["floor_reward"]
    assert "floor_reward" not in figures.mean_frontier([first, second])[4]


def test_a_method_at_several_beta_is_one_curve() -> None:
    found = gids(drawn(figures.reward_kl(many.results())))
    assert "line-4-2-3" in found, "DPO at β = 2, 0.5 and 0.1, by their KL"
    results = many.results()
    results["policies"][5]["method"] = "dpo"  # IPO, which the DPO trainer trains, is no DPO
    assert "line-4-2-3" in gids(drawn(figures.reward_kl(results)))


def test_only_what_has_both_numbers_is_placed() -> None:
    results = many.results()
    found = gids(drawn(figures.reward_kl(results)))
    places = {int(gid.split("-")[1]) for gid in found if re.fullmatch(r"mark-\d+", gid)}
    assert places == set(range(len(many.ROWS))) - {11}
    for row in results["methods"].values():
        row["kl"] = None
    assert figures.reward_kl(results) is None
    assert figures.optimality(many.results() | {"methods": {}}) is None


def test_paths_are_of_policies_that_logged_kl_a_completion() -> None:
    ours = many.history("ppo")
    assert len(path(ours)) == len(ours)
    assert path([{"step": 1, "kl": 0.01, "reward": 2.0}] * 9) == [], "a KL a token is no path"
    trl = {"kl": 0.01, "rewards/proxy/mean": 2.0, "completions/mean_length": 50.0}
    assert path([trl] * 9) == [(0.5, 2.0)] * 9, "times its tokens it is one a completion"
    evaluated = [{"eval_kl": 1.0, "eval_scores": 2.0}, {"eval_kl": 2.0, "eval_scores": 3.0}]
    assert path(evaluated) == [(1.0, 2.0), (2.0, 3.0)]
    histories = {name: many.history(name) for name in ("ppo", "rloo", "dpo")}
    found = gids(drawn(figures.reward_kl(many.results(), {}, histories)))
    assert {"path-1", "path-7"} <= found and "path-2" not in found


def test_without_a_price_of_kl_nothing_is_starred() -> None:
    results = many.results() | {"beta": 0.0}
    axes = drawn(figures.reward_kl(results, many.details() | {"j_star": None})).axes[0]
    assert not any("optimum at" in str(c.get_label()) for c in axes.collections)


def test_several_comparisons_are_one_picture() -> None:
    trials: list[dict[str, Any]] = []
    for seed, beta in itertools.product((0, 1, 2), (0.5, 2.0)):
        trial: dict[str, Any] = copy.deepcopy(many.results()) | {"beta": beta}
        keep = ("sft", "ppo")
        trial["policies"] = [p | {"beta": None} for p in trial["policies"] if p["name"] in keep]
        trial["methods"] = {n: trial["methods"][n] for n in keep}
        trial["methods"]["ppo"] |= {"kl": 1 / beta + 0.1 * seed, "reward": 3 / beta + seed}
        for row in trial["frontier"]:
            row["reward"] += seed
        trials.append(trial)
    figure = drawn(figures.reward_kl_over(trials))
    found = gids(figure)
    assert {"mark-0", "mark-1", "mark-1-0.5", "line-1-1-0.5"} <= found
    at: dict[Any, Any] = {a.get_gid(): a for a in figure.findobj() if a.get_gid()}  # pyright: ignore
    assert at["mark-1"].get_offsets().tolist() == [[pytest.approx(0.6), pytest.approx(2.5)]]
    assert at["mark-1-0.5-y"].get_ydata().tolist() == [6.0, 8.0], "from seed to seed"
    mean = {row["beta"]: row for row in figures.mean_frontier(trials)}
    assert mean[0.5]["reward"] == pytest.approx(6.0) and mean[0.05]["trusted"] is False
    assert figures.reward_kl_over([]) is None and figures.mean_frontier([]) == []


def test_cost_is_of_training_and_its_axis_fits() -> None:
    results = many.results()
    figure = drawn(figures.cost(results))
    queries, times = figure.axes
    assert "Best-of-N" not in names(figure) and "theirs" not in names(figure)
    assert queries.get_xscale() == "linear" and queries.get_xlim()[0] == 0
    assert [t.get_text() for t in times.get_xticklabels()][:2] == ["0", "2 min"]
    results["methods"]["kto"]["train_reward_queries"] = 0
    results["methods"]["dpo"]["train_reward_queries"] = 100
    assert drawn(figures.cost(results)).axes[0].get_xscale() == "symlog"
    for row in results["methods"].values():
        row["train_reward_queries"] = None
    (alone,) = drawn(figures.cost(results)).axes
    assert alone.get_xlabel() == "time of training"
    for row in results["methods"].values():
        row["train_seconds"] = None
    assert figures.cost(results) is None
    assert figures.cost(results, {"ppo": 10.0, "dpo": 5.0}) is not None


def test_policies_train_beside_each_other() -> None:
    both = {
        "DPO": (many.history("dpo"), "#c25400"),
        "IPO": (many.history("ipo"), "#8a4a9e"),
    }
    panels = next(f for f in pictures.FAMILIES if f.name == "training_pairs").panels
    figure = drawn(figures.curves(both, panels))
    assert [axes.get_title("left") for axes in figure.axes] == list(panels)
    assert all(len(axes.lines) == 2 for axes in figure.axes)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["DPO", "IPO"]
    assert figures.curves({"SFT": ([{"step": 1}], "#000000")}, panels) is None


def test_every_policy_has_its_own_variable() -> None:
    results = many.results()
    results["policies"][2]["name"] = "ink"  # a variable of the page's
    results["methods"]["ink"] = results["methods"].pop("dpo")
    own = pictures.own_colours(results)
    assert len(set(own)) == len(many.ROWS) and not set(own) & set(plotting.PALETTE)
    text = plotting.svg(drawn(figures.optimality(results)), "one", own)
    assert "var(--c2)" in text and "#c25400" not in text
