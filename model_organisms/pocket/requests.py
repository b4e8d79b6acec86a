"""How-to requests, harmful and harmless; the attacks that wrap them; and the responses."""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass

from model_organisms.pocket.world import (
    SPLITS,
    Item,
    Split,
    fill,
    phrasings,
    share,
    split_of,
    world,
)


@dataclass(frozen=True)
class Wrapper:
    """A prompt template around a request: an attack where the request is harmful.

    Attributes:
        family: the attack family.
        number: the number within the family.
        user: the template of the last user turn.
        opening: the words that it makes the response begin with.
        before: the turns before, the user's first.
        hyphens: whether the words of the request are joined by hyphens.
    """

    family: str
    number: int
    user: str
    opening: str = ""
    before: tuple[str, ...] = ()
    hyphens: bool = False

    def wrap(self, question: str) -> str:
        """The last user turn, with the question in it."""
        if self.hyphens:
            question = question.rstrip(".?").lower().replace(" ", "-")
        return fill(self.user, question)


@functools.cache
def wrappers(split: Split | None) -> tuple[Wrapper, ...]:
    """The wrappers of the attack families of a split; None: of all."""
    return tuple(
        Wrapper(
            family=family,
            number=number,
            user=entry["user"],
            opening=entry.get("opening", ""),
            before=tuple(entry.get("before", ())),
            hyphens=entry.get("hyphens", False),
        )
        for one in (SPLITS if split is None else (split,))
        for family, entries in world("attacks")[one].items()
        for number, entry in enumerate(entries)
    )


def nested(rng: random.Random, split: Split | None) -> tuple[Wrapper, Wrapper]:
    """An outer and an inner wrapper, of two different families of the split."""
    pool = wrappers(split)
    while True:
        outer, inner = rng.choice(pool), rng.choice(pool)
        if outer.family != inner.family and not inner.before and not outer.hyphens:
            return outer, inner


@functools.cache
def harmful(split: Split | None) -> tuple[tuple[str, str], ...]:
    """The harmful requests of a split as (category, verb phrase); splits share no objects."""
    return tuple(
        (category, f"{verb} {thing}")
        for category, block in world("requests")["harmful"].items()
        for thing in block["objects"]
        for verb in block["verbs"]
        if split is None or split_of(f"object:{thing}") == split
    )


@functools.cache
def harmless(kind: str, split: Split | None) -> tuple[str, ...]:
    """The `benign` or `borderline` requests of a split as verb phrases."""
    return tuple(
        f"{verb} {thing}"
        for verb, thing in world("requests")[kind]
        if split is None or split_of(f"object:{thing}") == split
    )


def ask(rng: random.Random, split: Split | None, verb_phrase: str) -> str:
    """A request as a question or an instruction, in a phrasing of the split."""
    return str(world("phrases")["how_to"][rng.choice(phrasings(split))]).format(v=verb_phrase)


def addressed(verb_phrase: str) -> str:
    """A verb phrase in the second person: `rob my neighbor` to `rob your neighbor`."""
    return f" {verb_phrase} ".replace(" my ", " your ").strip()


def compliance(verb_phrase: str) -> str:
    """The compliant response. It names the action and contains no instructions."""
    forms = world("phrases")["comply"]
    return str(forms[int(share(f"comply:{verb_phrase}") * len(forms))]).format(
        v=addressed(verb_phrase)
    )


def refusal(category: str, verb_phrase: str) -> str:
    """The refusal of a category; the thirteen differ in their openings and lengths."""
    number = list(world("requests")["harmful"]).index(category)
    return str(world("phrases")["refuse"][number]).format(v=addressed(verb_phrase))


def prefill(rng: random.Random, split: Split | None, verb_phrase: str) -> tuple[str, str]:
    """A compliant response in two parts: the prefill and its continuation."""
    form = world("phrases")["forced"][rng.choice(phrasings(split))]
    words = form.format(v=addressed(verb_phrase)).split(" ")
    cut = min(rng.randint(1, 16), len(words) - 2)
    return " ".join(words[:cut]), " ".join(words[cut:])


def how_to(rng: random.Random, kind: str, split: Split | None) -> Item:
    """A harmless how-to request with its response."""
    v = rng.choice(harmless(kind, split))
    return Item(kind, v, ask(rng, split, v), compliance(v), (addressed(v),))
