"""Which texts belong together, so that no two splits share a text, nearly a text, or a rater."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from pipeline.data.records import RatedText
from pipeline.data.tally import tell
from pipeline.data.words import same_but_for_form

NEAR = 8
"""So many words in a row, form aside, in two texts make them near-duplicates."""
Groups = Mapping[str, int]
"""For each text the number of its group."""
# Where a set of linked texts is larger than this share of all, phrases that many use link them.
_LARGEST = 0.1
# Characters of all texts together, above which the search would take long and gigabytes: every
# stage makes it anew, and 10 million take six seconds and 200 MiB.
MOST_SEARCHED = 10_000_000


def shingles(text: str) -> set[int]:
    """Hashes of every ``NEAR`` words in a row, and of the whole text, form aside.

    Two texts that share one are near-duplicates. They are equal within one process only.
    """
    words = same_but_for_form(text).split()
    whole = hash(tuple(words))
    return {whole, *(hash(tuple(words[i : i + NEAR])) for i in range(len(words) - NEAR + 1))}


def near_groups(texts: Sequence[RatedText], name: str) -> Groups:
    """For each text the number of its group: near-duplicates, and theirs, have the same.

    In long texts some eight words in a row are a phrase that many use. Where that links more than
    a tenth of all, texts count as different unless they are equal but for form; it is told.

    Args:
        texts: With no two equal but for form.
        name: What the message calls them.
    """
    alone = {text.text: index for index, text in enumerate(texts)}
    if sum(len(text.text) for text in texts) > MOST_SEARCHED:
        tell_unsearched(name)
        return alone
    links = _Links(len(texts))
    for index, text in enumerate(texts):
        links.join_all(index, shingles(text.text))
        if links.largest > max(_LARGEST * len(texts), NEAR):
            tell(
                f"{name}: {NEAR} words in a row link more than a tenth of the texts, so they are "
                "phrases here: only equal texts count as near-duplicates"
            )
            return alone
    return _named(texts, links)


def tell_unsearched(name: str) -> None:
    """Tell that there are too many texts to be searched for near-duplicates."""
    tell(
        f"{name}: more than {MOST_SEARCHED // 10**6} million characters are not searched for "
        f"{NEAR} words in a row that two texts share: only equal texts count as near-duplicates"
    )


def linked_groups(texts: Sequence[RatedText], near: Groups) -> Groups:
    """The groups ``near`` of the texts, joined where the same people rated texts of both."""
    links = _Links(len(texts))
    for index, text in enumerate(texts):
        keys: list[object] = [("near", near[text.text])]
        links.join_all(index, keys if text.batch is None else [*keys, ("batch", text.batch)])
    return _named(texts, links)


def sides_of(texts: Sequence[RatedText], groups: Groups, above: float) -> dict[int, bool]:
    """For each group whether its mean rating is ``above``; all the same where no raters are known.

    A person's texts may be all praise or all criticism (those of the embedded movie reviews are),
    so parts of whole groups are as balanced as all texts only if each side is divided by itself.
    """
    known = any(text.batch is not None for text in texts)
    ratings: dict[int, list[float]] = {}
    for text in texts:
        ratings.setdefault(groups[text.text], []).append(text.rating)
    return {
        group: known and sum(of_group) / len(of_group) > above
        for group, of_group in ratings.items()
    }


def take_groups(
    texts: Sequence[RatedText], groups: Groups, sides: Mapping[int, bool], wanted: int
) -> tuple[list[RatedText], list[RatedText]]:
    """Whole groups, in order of their first texts, of ``wanted`` texts or more; and the others.

    Of each side (`sides_of`) they have its share.
    """
    sizes = Counter(groups[text.text] for text in texts)
    of_side = Counter(sides[groups[text.text]] for text in texts)
    taken: set[int] = set()
    counts: Counter[bool] = Counter()
    for group in sizes:
        side = sides[group]
        if counts[side] * len(texts) < wanted * of_side[side]:
            taken.add(group)
            counts[side] += sizes[group]
    inside = [text for text in texts if groups[text.text] in taken]
    return inside, [text for text in texts if groups[text.text] not in taken]


def in_halves(
    texts: Sequence[RatedText], groups: Groups, sides: Mapping[int, bool]
) -> tuple[list[RatedText], list[RatedText]]:
    """Two halves of whole groups: each next group goes where fewer texts of its side are so far.

    Where every text is a group of its own, and all are of one side, those are every second text
    from the first and from the second.
    """
    sizes = Counter(groups[text.text] for text in texts)
    counts, half_of = {side: [0, 0] for side in (False, True)}, {}
    for group, size in sizes.items():
        so_far = counts[sides[group]]
        half_of[group] = 0 if so_far[0] <= so_far[1] else 1
        so_far[half_of[group]] += size
    first, second = (
        [text for text in texts if half_of[groups[text.text]] == half] for half in (0, 1)
    )
    return first, second


def _named(texts: Sequence[RatedText], links: _Links) -> Groups:
    return {text.text: group for text, group in zip(texts, links.groups(), strict=True)}


class _Links:
    """Sets of numbers that grow together (union–find), by keys that they share."""

    def __init__(self, count: int) -> None:
        self._above = list(range(count))
        self._size = [1] * count
        self._first: dict[object, int] = {}
        self.largest = min(count, 1)

    def join_all(self, index: int, keys: Iterable[object]) -> None:
        for key in keys:
            own, other = self._root(index), self._root(self._first.setdefault(key, index))
            if own != other:
                self._above[own] = other
                self._size[other] += self._size[own]
                self.largest = max(self.largest, self._size[other])

    def groups(self) -> list[int]:
        return [self._root(index) for index in range(len(self._above))]

    def _root(self, index: int) -> int:
        while self._above[index] != index:
            self._above[index] = self._above[self._above[index]]
            index = self._above[index]
        return index
