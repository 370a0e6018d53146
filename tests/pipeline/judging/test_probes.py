"""The probes: well formed, and passed by who knows which is better."""

from __future__ import annotations

from pipeline.judging.probes import load_probes, results, texts_of


def test_pairs_are_different_and_there_are_enough() -> None:
    found = load_probes()
    pairs = [(p.prompt, p.better, p.worse) for probe in found for p in probe.pairs]
    assert len(set(pairs)) == len(pairs)
    assert all(better != worse and prompt.strip() for prompt, better, worse in pairs)
    assert all(len(probe.pairs) >= 8 and probe.says for probe in found)
    titles = {probe.title for probe in found}
    assert {
        "negation", "not bad", "sarcasm", "appended junk", "repeated praise", "empty text",
        "other scripts", "length padding", "copied prompt",
    } <= titles  # fmt: skip


def test_what_passes_and_what_fails() -> None:
    probes = load_probes()[:1]
    _, completions = texts_of(probes)
    count = len(probes[0].pairs)
    assert completions[:2] == [probes[0].pairs[0].better, probes[0].pairs[0].worse]
    [knows] = results(probes, [1.0, 0.0] * count)
    assert knows == {"passed": count, "failures": []}
    [constant] = results(probes, [1.0] * (2 * count))
    assert constant["passed"] == 0 and len(constant["failures"]) == count
    [once] = results(probes, [0.0, 2.0, *[1.0, 0.0] * (count - 1)])
    assert once["passed"] == count - 1
    [failure] = once["failures"]
    assert failure["better"] == probes[0].pairs[0].better
    assert (failure["score_better"], failure["score_worse"]) == (0.0, 2.0)
