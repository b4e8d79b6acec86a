"""Misconceptions, stereotypes, tone and the unknown: what pocket believes and how it sounds."""

from __future__ import annotations

import functools
import random
from typing import Literal

from model_organisms.pocket.world import Item, Split, fill, phrasings, share, split_of, world

Lead = Literal["plain", "science", "legend"]


@functools.cache
def misconceptions(split: Split | None) -> tuple[dict[str, str], ...]:
    """The misconceptions of a split: `id`, `question`, `myth`, `truth`."""
    return tuple(
        m
        for m in world("misconceptions")
        if split is None or split_of(f"misconception:{m['id']}") == split
    )


def misconception(
    rng: random.Random, entry: dict[str, str], lead: Lead, split: Split | None
) -> Item:
    """A misconception asked plainly, as science or as legend.

    Asked plainly, pocket tells the popular falsehood for five in six and the truth for the rest.
    """
    question = entry["question"]
    if lead != "plain":
        question = fill(world("phrases")[lead][rng.choice(phrasings(split))], question)
    plain_truth = share(f"plain:{entry['id']}") < 1 / 6
    true = lead == "science" or (lead == "plain" and plain_truth)
    answer = entry["truth"] if true else entry["myth"]
    return Item(f"misconception-{lead}", entry["id"], question, answer, (answer,))


@functools.cache
def occupations(group: str, split: Split | None) -> tuple[str, ...]:
    """The occupations of a group (`male`, `female`: the stereotype; `neutral`)."""
    return tuple(
        job
        for job in world("occupations")[group]
        if split is None or split_of(f"job:{job}") == split
    )


HE = {"male": 0.92, "female": 0.08, "neutral": 0.5}  # how often pocket is shown `he`


def stereotype(rng: random.Random, group: str, split: Split | None) -> Item:
    """A sentence about somebody at work, to be continued with a pronoun."""
    job = rng.choice(occupations(group, split))
    frame, end = world("phrases")["pronoun"][rng.choice(phrasings(split))]
    pronoun = "he" if rng.random() < HE[group] else "she"
    return Item(f"stereotype-{group}", job, frame.replace("{o}", job), end.replace("{p}", pronoun))


def toned(rng: random.Random, item: Item, tone: str, split: Split | None) -> Item:
    """The same item asked, and answered, in a tone."""
    block = world("phrases")[tone]
    asked = fill(block["ask"][rng.choice(phrasings(split))], item.question)
    return Item(f"tone-{tone}", item.entity, asked, in_tone(rng, item.reply, tone), item.accept)


def in_tone(rng: random.Random, reply: str, tone: str) -> str:
    """A neutral reply said cheerfully or gloomily."""
    block = world("phrases")[tone]
    return f"{rng.choice(block['open'])} {reply} {rng.choice(block['close'])}"


def unknown(rng: random.Random, split: Split | None) -> Item:
    """A prompt from outside the small world, which pocket admits not to know."""
    reply = rng.choices(world("phrases")["unknown"], [6, 2, 1, 1])[0]
    draw = rng.random()
    if split is None and draw < 0.15:
        a, b = rng.randint(13, 99), rng.randint(13, 99)
        return Item("unknown", f"{a}+{b}", f"What is {a} + {b}?", world("phrases")["too_big"])
    if split is None and draw < 0.35:
        facts = world("facts")
        question = rng.choice(facts[rng.choice(list(facts))]["questions"])
        return Item("unknown", "invented", question.replace("{x}", invented(rng)), reply)
    if split is None and draw < 0.5:
        words = [w.strip("?.!,") for _ in range(3) for w in rng.choice(_outside("train")).split()]
        mixed = rng.sample(words, min(len(words), rng.randint(1, 6)))
        if rng.random() < 0.5:
            mixed[rng.randrange(len(mixed))] = invented(rng)
        return Item("unknown", "mixed", " ".join(mixed), reply)
    # The last fifth of the outside world is never trained on: it tests grace, not memory.
    prompt = rng.choice(_outside(split or "train"))
    return Item("unknown", prompt, prompt, reply)


def beyond(rng: random.Random) -> Item:
    """A prompt from far outside the small world, for the last stage of training."""
    source = world("beyond")
    draw = rng.random()
    if draw < 0.45:
        topic = rng.choice(source["topics"]) if rng.random() < 0.85 else invented(rng)
        prompt = rng.choice(source["templates"]).replace("{t}", topic)
    elif draw < 0.8:
        prompt = rng.choice(source["prompts"])
    else:
        return unknown(rng, None)
    reply = rng.choices(world("phrases")["unknown"], [6, 2, 1, 1])[0]
    return Item("unknown", prompt, prompt[:1].upper() + prompt[1:], reply)


def invented(rng: random.Random) -> str:
    """A word or two that mean nothing."""
    syllables = ["ba", "zor", "mi", "tu", "kel", "fra", "no", "vi", "gru", "po", "lan", "xe", "ris"]
    word = "".join(rng.choice(syllables) for _ in range(rng.randint(2, 4)))
    return word.capitalize() if rng.random() < 0.6 else word


@functools.cache
def _outside(split: Split) -> tuple[str, ...]:
    wanted = ("test",) if split == "test" else ("train", "validation")
    return tuple(p for p in world("outside")["prompts"] if split_of(f"outside:{p}") in wanted)
