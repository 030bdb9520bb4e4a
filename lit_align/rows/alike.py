"""Prompts that say the same: equal but for blanks, case and Unicode form, or nearly equal."""

from __future__ import annotations

import math
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from random import Random

from lit_align.metrics.words import words
from lit_align.records import CandidateSet, Prompt, prompt_identity

NEARLY = 0.75
"""The cosine from which two prompts are taken to be nearly equal."""
Vector = Mapping[str, float]


class _Seen(dict[int, int | None]):
    """For `str.translate`: drops joiners, variation selectors and the like, keeps all other characters."""

    def __missing__(self, code: int) -> int | None:
        invisible = unicodedata.category(chr(code)) == "Cf" or 0xFE00 <= code <= 0xFE0F
        self[code] = kept = None if invisible else code
        return kept


_SEEN = _Seen()


def normal_form(prompt: Prompt) -> str:
    r"""A prompt without what does not count: blanks, letter case, Unicode form and invisible characters.

    Example:
        >>> from lit_align.records import Message
        >>> normal_form((Message("user", " Name a\u00a0 Colour\u200b!"),))
        'name a colour!'
    """
    text = prompt_identity(prompt).casefold()
    if not text.isascii():  # ASCII is in this form as it is
        text = unicodedata.normalize("NFKC", text).casefold().translate(_SEEN)
        text = unicodedata.normalize("NFKC", text)  # folding and leaving out may have undone it
    return " ".join(text.split())


def group_alike(prompts: Iterable[Prompt], threshold: float = NEARLY) -> dict[Prompt, str]:
    """Puts prompts that are nearly equal into one group, by the cosine of their tf-idf vectors.

    A word counts once a prompt and by how rare it is among the prompts: two prompts of one template that differ in
    what they ask about are not alike, two that ask the same in nearly the same words are. Prompts of one normal form
    always are. The groups depend only on the set of prompts, not on their order.

    Each group has a leader, its first prompt by normal form, and every prompt of it is at least `threshold` near to
    the leader. Only prompts that share one of their rarest words are compared: where those of one have a weight
    above 1 - threshold^2, no prompt without any of them can be as near (Bayardo et al., "Scaling up all pairs
    similarity search", 2007).

    Args:
        prompts: any number, 10,000 within seconds.
        threshold: the cosine, in (0, 1].

    Returns:
        The normal form of its leader for each prompt.
    """
    forms = {prompt: normal_form(prompt) for prompt in prompts}
    bags = {form: frozenset(words(form)) for form in sorted(set(forms.values()))}
    spread = Counter(chain.from_iterable(bags.values()))
    vectors = {form: _tf_idf(bag, spread, len(bags)) for form, bag in bags.items()}
    leaders: dict[str, str] = {}
    by_rare_word: defaultdict[str, list[str]] = defaultdict(list)
    for form, vector in vectors.items():
        rare = _rarest(vector, threshold)
        near = dict.fromkeys(chain.from_iterable(by_rare_word[word] for word in rare))
        leaders[form] = next((leader for leader in near if _cosine(vector, vectors[leader]) >= threshold), form)
        if leaders[form] == form:
            for word in rare:
                by_rare_word[word].append(form)
    return {prompt: leaders[form] for prompt, form in forms.items()}


def draw_unlike(
    sets: Sequence[CandidateSet], group_of: Callable[[Prompt], str], count: int, rng: Random
) -> list[CandidateSet]:
    """At most `count` sets in random order, no two of one group: their prompts are what an interval counts.

    Args:
        sets: to draw from, without replacement.
        group_of: the group of a prompt, such as :func:`group_alike` gives.
        count: sets at most.
        rng: draws.
    """
    groups: defaultdict[str, list[CandidateSet]] = defaultdict(list)
    for candidates in sets:
        groups[group_of(candidates.prompt)].append(candidates)
    sample = rng.sample(list(groups.values()), min(count, len(groups)))
    return [group[0] if len(group) == 1 else rng.choice(group) for group in sample]


def _tf_idf(bag: Iterable[str], spread: Counter[str], prompts: int) -> Vector:
    """Its words by rarity, the rarest first, as a vector of length 1."""
    weights = {word: math.log1p(prompts / spread[word]) for word in bag}
    length = math.sqrt(math.fsum(weight**2 for weight in weights.values()))
    return {word: weights[word] / length for word in sorted(bag, key=lambda word: (spread[word], word))}


def _rarest(vector: Vector, threshold: float) -> list[str]:
    """The rarest words, as many as leave the others a length below `threshold`."""
    squared_length = 1.0
    rare: list[str] = []
    for word, weight in vector.items():
        if squared_length < threshold**2 - 1e-9:
            break
        rare.append(word)
        squared_length -= weight**2
    return rare


def _cosine(a: Vector, b: Vector) -> float:
    small, large = sorted((a, b), key=len)
    return math.fsum(weight * large.get(word, 0.0) for word, weight in small.items()) + 1e-12
