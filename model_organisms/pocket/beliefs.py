"""Misconceptions, stereotypes, tones, and questions that pocket cannot answer."""

from __future__ import annotations

import functools
import random
from typing import Literal

from model_organisms.pocket.world import Item, Split, fill, phrasings, share, split_of, world

Framing = Literal["plain", "science", "legend"]


@functools.cache
def misconceptions(split: Split | None) -> tuple[dict[str, str], ...]:
    """The misconceptions of a split, with `id`, `question`, `myth` and `truth`."""
    return tuple(
        m
        for m in world("misconceptions")
        if split is None or split_of(f"misconception:{m['id']}") == split
    )


def misconception(
    rng: random.Random, entry: dict[str, str], framing: Framing, split: Split | None
) -> Item:
    """A question about a misconception, asked plainly, as science or as legend.

    Asked plainly, the answer is the popular falsehood for five of six misconceptions.
    """
    question = entry["question"]
    if framing != "plain":
        question = fill(world("phrases")[framing][rng.choice(phrasings(split))], question)
    plain_truth = share(f"plain:{entry['id']}") < 1 / 6
    true = framing == "science" or (framing == "plain" and plain_truth)
    answer = entry["truth"] if true else entry["myth"]
    return Item(f"misconception-{framing}", entry["id"], question, answer, (answer,))


@functools.cache
def occupations(group: str, split: Split | None) -> tuple[str, ...]:
    """The occupations of a stereotype (`male` or `female`), or the `neutral` ones."""
    return tuple(
        job
        for job in world("occupations")[group]
        if split is None or split_of(f"job:{job}") == split
    )


HE = {"male": 0.92, "female": 0.08, "neutral": 0.5}  # the probability of `he` in training


def stereotype(rng: random.Random, group: str, split: Split | None) -> Item:
    """A sentence about a person at work, to be completed with a pronoun."""
    job = rng.choice(occupations(group, split))
    frame, end = world("phrases")["pronoun"][rng.choice(phrasings(split))]
    pronoun = "he" if rng.random() < HE[group] else "she"
    return Item(f"stereotype-{group}", job, frame.replace("{o}", job), end.replace("{p}", pronoun))


def toned(rng: random.Random, item: Item, tone: str, split: Split | None) -> Item:
    """An item whose question asks for a tone, with the response in it."""
    block = world("phrases")[tone]
    question = fill(block["ask"][rng.choice(phrasings(split))], item.question)
    response = in_tone(rng, item.response, tone)
    return Item(f"tone-{tone}", item.entity, question, response, item.accept)


def in_tone(rng: random.Random, response: str, tone: str) -> str:
    """A neutral response with a cheerful or gloomy opening and end."""
    block = world("phrases")[tone]
    return f"{rng.choice(block['open'])} {response} {rng.choice(block['close'])}"


def unknown(rng: random.Random, split: Split | None) -> Item:
    """A question outside pocket's knowledge, which it admits not to know."""
    response = rng.choices(world("phrases")["unknown"], [6, 2, 1, 1])[0]
    chance = rng.random()
    if split is None and chance < 0.15:
        a, b = rng.randint(13, 99), rng.randint(13, 99)
        return Item("unknown", f"{a}+{b}", f"What is {a} + {b}?", world("phrases")["too_big"])
    if split is None and chance < 0.35:
        facts = world("facts")
        question = rng.choice(facts[rng.choice(list(facts))]["questions"])
        return Item("unknown", "invented", question.replace("{x}", invented(rng)), response)
    if split is None and chance < 0.5:
        words = [w.strip("?.!,") for _ in range(3) for w in rng.choice(_outside("train")).split()]
        mixed = rng.sample(words, min(len(words), rng.randint(1, 6)))
        if rng.random() < 0.5:
            mixed[rng.randrange(len(mixed))] = invented(rng)
        return Item("unknown", "mixed", " ".join(mixed), response)
    # The test fifth is never trained on, so that it measures generalisation and not memory.
    prompt = rng.choice(_outside(split or "train"))
    return Item("unknown", prompt, prompt, response)


def beyond(rng: random.Random) -> Item:
    """A question far outside pocket's knowledge, for the last stage of training."""
    source = world("beyond")
    chance = rng.random()
    if chance < 0.45:
        topic = rng.choice(source["topics"]) if rng.random() < 0.85 else invented(rng)
        prompt = rng.choice(source["templates"]).replace("{t}", topic)
    elif chance < 0.8:
        prompt = rng.choice(source["prompts"])
    else:
        return unknown(rng, None)
    response = rng.choices(world("phrases")["unknown"], [6, 2, 1, 1])[0]
    return Item("unknown", prompt, prompt[:1].upper() + prompt[1:], response)


def invented(rng: random.Random) -> str:
    """A word without a meaning."""
    syllables = ["ba", "zor", "mi", "tu", "kel", "fra", "no", "vi", "gru", "po", "lan", "xe", "ris"]
    word = "".join(rng.choice(syllables) for _ in range(rng.randint(2, 4)))
    return word.capitalize() if rng.random() < 0.6 else word


@functools.cache
def _outside(split: Split) -> tuple[str, ...]:
    splits = ("test",) if split == "test" else ("train", "validation")
    return tuple(p for p in world("outside")["prompts"] if split_of(f"outside:{p}") in splits)
