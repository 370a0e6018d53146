"""The numbers of a policy that people see: which, in what order, and under which headings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.compare.wording import interval, number, percent, signed

Group = Literal["quality", "KL", "text", "preferences", "cost"]
GROUPS: tuple[Group, ...] = ("quality", "KL", "text", "preferences", "cost")


_SIGNS = {"at most": "≤\u00a0", "at least": "≥\u00a0", "unclear": "?\u00a0"}


def _one_digit(value: Any) -> str:
    return number(value, 1)


def _whole(value: Any) -> str:
    """A count or seconds, with thin spaces between thousands."""
    return "–" if value is None else f"{value:,.0f}".replace(",", "\u202f")


@dataclass(frozen=True)
class Column:
    """One number of each policy.

    Attributes:
        key: its name in results.json. heading: its name in a table.
        help: what it is, and its unit.
        group: what it is about.
        main: in every table; else only where all are shown.
        write: a value as text; None is – there.
        interval: key of its 95 % interval, where it has one.
        bound: key of the words that say which bound the number is, where it may be one.
        part: the part of the reward that it is about: then key and interval are that part's.
    """

    key: str
    heading: str
    help: str
    group: Group = "quality"
    main: bool = True
    write: Callable[[Any], str] = number
    interval: str | None = None
    bound: str | None = None
    part: str | None = None

    def of(self, row: Mapping[str, Any], key: str | None = None) -> Any:
        """Return the number itself from a policy's metrics (or what is at ``key`` beside it)."""
        if self.part is not None:
            row = (row.get("parts") or {}).get(self.part) or {}
        return row.get(key or self.key)

    def value(self, row: Mapping[str, Any]) -> str:
        """Return the number in a policy's metrics as text; – where there is none."""
        sign = _SIGNS.get(self.of(row, self.bound), "") if self.bound else ""
        return sign + self.write(self.of(row))

    def range(self, row: Mapping[str, Any]) -> str:
        """Return its interval as text; empty where there is none, or where it is a point."""
        ends = self.of(row, self.interval) if self.interval else None
        if not ends or not ends[0] < ends[1]:
            return ""
        if self.write is percent:
            return interval(ends)
        return f"[{self.write(ends[0])} to {self.write(ends[1])}]"


def _more(key: str, heading: str, help: str, group: Group = "quality", **options: Any) -> Column:
    return Column(key, heading, help, group, main=False, **options)


COLUMNS = (
    Column(
        "gold_positive", "judge positive", "share of completions the judge calls positive",
        write=percent,
    ),
    Column("gold", "judge", "the judge's mean mark (logits when it is a classifier)"),
    _more(
        "gold_gain", "judge gain", "the judge's mean mark less SFT's, on the same prompts",
        write=signed, interval="gold_gain_ci",
    ),
    Column(
        "win_rate_gold", "wins by judge", "share of pairs with SFT's answers that the judge gives"
        " to the policy; a tie is half", write=percent, interval="win_rate_gold_ci",
    ),
    Column("reward", "reward", "mean of the reward that was optimised, in its own unit"),
    _more(
        "reward_gain", "reward gain", "the mean reward less SFT's, on the same prompts",
        write=signed, interval="reward_gain_ci",
    ),
    _more(
        "win_rate_reward", "wins by reward", "share of pairs with SFT's answers of which the"
        " policy's has the higher reward", write=percent, interval="win_rate_reward_ci",
    ),
    _more(
        "length_controlled_reward", "reward at SFT's length", "what the reward would be if answers"
        " were as long as SFT's, by a regression within prompts",
        interval="length_controlled_reward_ci",
    ),
    _more(
        "length_controlled_gold", "judge at SFT's length", "the same of the judge's mark",
        interval="length_controlled_gold_ci",
    ),
    Column("objective", "objective", "reward − β·KL, what every method here is to maximise"),
    _more(
        "objective_gain", "objective gain", "the objective less SFT's", write=signed,
        interval="objective_gain_ci",
    ),
    Column(
        "optimality", "optimality", "share of the possible gain in the objective, and its 95\u00a0%"
        " interval over prompts; ≤ where the optimum is not trusted", write=percent,
        interval="optimality_ci", bound="optimality_bound",
    ),
    Column("kl", "KL", "distance from the SFT model, nats a completion", "KL"),
    _more("kl_sampled", "KL, sampled", "the same from sampled log-ratios: noisier, a check", "KL"),
    Column("reverse_kl", "reverse KL", "KL(SFT‖policy), nats a completion of SFT's", "KL"),
    _more(
        "kl_efficiency", "KL efficiency", "the least KL that this reward costs, over the KL paid",
        "KL", write=percent,
    ),
    _more(
        "kl_efficiency_at_least", "KL efficiency, at least", "a floor of it, where the frontier is"
        " not trusted up to this reward", "KL", write=percent,
    ),
    Column(
        "perplexity", "perplexity", "on held-out human texts; lower remembers more", "text",
        write=_one_digit,
    ),
    Column(
        "fluency", "fluency", "perplexity of the answers by the fluency model; lower is more"
        " ordinary text", "text", write=_one_digit,
    ),
    _more("distinct_1", "distinct-1", "different words over all words", "text"),
    Column(
        "distinct_2", "distinct-2", "different word pairs over all pairs; low repeats", "text"
    ),
    Column(
        "self_bleu", "self-BLEU", "likeness of a prompt's answers to one another; 1 is the same",
        "text",
    ),
    Column("length", "length", "tokens a completion", "text", write=_one_digit),
    Column(
        "ended", "ended", "share of completions that stop by themselves", "text", write=percent
    ),
    _more(
        "implicit_accuracy", "pairs ranked right", "share of held-out pairs whose chosen answer has"
        " the higher implicit reward", "preferences", write=percent,
    ),
    _more(
        "implicit_margin", "implicit margin", "implicit reward of the chosen answer less that of"
        " the rejected one", "preferences",
    ),
    _more(
        "chosen_logp_change", "chosen log-probability", "its change by training, nats an answer;"
        " below 0 it fell", "preferences", write=signed,
    ),
    _more(
        "rejected_logp_change", "rejected log-probability", "the same of the rejected answer",
        "preferences", write=signed,
    ),
    Column(
        "train_reward_queries", "reward queries", "completions scored for training", "cost",
        write=_whole,
    ),
    _more(
        "train_completions", "completions", "sampled for training", "cost", write=_whole
    ),
    _more("train_tokens", "tokens", "of these completions", "cost", write=_whole),
    Column("train_seconds", "training, s", "seconds of its own stage", "cost", write=_whole),
    _more("train_memory_gib", "memory, GiB", "the most that its stage took", "cost"),
    _more(
        "answer_completions", "completions an answer", "sampled for each answer afterwards",
        "cost", write=_whole,
    ),
    _more(
        "answer_reward_queries", "queries an answer", "rewards asked for each answer afterwards",
        "cost", write=_whole,
    ),
)  # fmt: skip


def shown(rows: Iterable[Mapping[str, Any]], main: bool = True) -> list[Column]:
    """Return the columns that any of the policies' ``rows`` has a number for, group by group.

    Args:
        main: only those of every table; else all, with two of each part of the reward.
    """
    rows = list(rows)
    names = dict.fromkeys(name for row in rows for name in row.get("parts") or {})
    wanted = [column for column in COLUMNS if column.main or not main]
    if not main:
        wanted += [column for name in names for column in _of_part(name)]
    there = [c for c in wanted if any(c.of(row) is not None for row in rows)]
    return sorted(there, key=lambda column: GROUPS.index(column.group))


def _of_part(name: str) -> list[Column]:
    return [
        _more("mean", name, f"mean score of {name}, a part of the reward", part=name),
        _more(
            "win_rate", f"wins by {name}", f"share of pairs with SFT's answers, by {name}",
            write=percent, interval="win_rate_ci", part=name,
        ),
    ]  # fmt: skip
