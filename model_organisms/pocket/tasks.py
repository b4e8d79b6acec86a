"""Tasks with verifiable answers: facts, sums, opposites, lists, extraction, sentences."""

from __future__ import annotations

import random
from collections.abc import Callable

from model_organisms.pocket.world import Item, Split, lower_first, phrasings, split_of, world

MAX_NUMBER = 12  # the largest number in sums and differences


def facts() -> list[tuple[str, str, str]]:
    """All facts as (relation, x, y)."""
    return [(rel, x, y) for rel, block in world("facts").items() for x, y in block["items"].items()]


def fact(rng: random.Random, split: Split | None, relation: str, x: str) -> Item:
    """The fact `relation(x)`, in a phrasing of the split."""
    block = world("facts")[relation]
    y = block["items"][x]
    question = block["questions"][rng.choice(phrasings(split))].replace("{x}", x)
    response = block["answer"].replace("{x}", x).replace("{y}", y)
    return Item("fact", f"{relation}:{x}", question, response, (y,))


def arithmetic(rng: random.Random, split: Split | None) -> Item:
    """A sum or a difference of numbers up to 12."""
    while True:
        a, b = rng.randint(0, MAX_NUMBER), rng.randint(0, MAX_NUMBER)
        minus = rng.random() < 0.4
        if minus and b > a:
            a, b = b, a
        entity = f"{a}{'-' if minus else '+'}{b}"
        if split is None or split_of(entity) == split:
            break
    form = world("phrases")["minus" if minus else "plus"][rng.choice(phrasings(split))]
    value = a - b if minus else a + b
    response = f"{a} {'minus' if minus else 'plus'} {b} is {value}."
    return Item("arithmetic", entity, form.format(a=a, b=b), response, (f"is {value}.",))


def opposite(rng: random.Random, split: Split | None) -> Item:
    """The opposite of a word."""
    x, y = _pick(rng, list(world("opposites").items()), split, "opposite")
    form = world("phrases")["opposite"][rng.choice(phrasings(split))]
    response = f'The opposite of "{x}" is "{y}".'
    return Item("opposite", x, form.replace("{x}", x), response, (f'"{y}"',))


def count(rng: random.Random, split: Split | None) -> Item:
    """Count the items of a short list."""
    pool = world("nouns")[rng.choice(["fruits", "animals"])]
    things = _sample_list(split, lambda: rng.sample(pool, rng.randint(1, 6)))
    listed = ", ".join(things)
    form = world("phrases")["count"][rng.choice(phrasings(split))]
    n = len(things)
    response = f"There is 1 item: {listed}." if n == 1 else f"There are {n} items: {listed}."
    return Item("count", listed, form.replace("{x}", listed), response, (f" {n} item",))


def sort(rng: random.Random, split: Split | None) -> Item:
    """Sort three or four numbers up to 20."""
    numbers = _sample_list(
        split, lambda: [str(n) for n in rng.sample(range(21), rng.randint(3, 4))]
    )
    listed, ordered = ", ".join(numbers), ", ".join(sorted(numbers, key=int))
    form = world("phrases")["sort"][rng.choice(phrasings(split))]
    return Item("sort", listed, form.replace("{x}", listed), f"In order: {ordered}.", (ordered,))


def extract(rng: random.Random, split: Split | None) -> Item:
    """Answer a question about a sentence with two statements about a person."""
    nouns = world("nouns")
    name = _pick(rng, [(n, n) for n in nouns["names"]], split, "name")[0]
    thing, city = rng.choice(nouns["objects"]), rng.choice(nouns["cities"])
    colour = rng.choice(nouns["colours"])
    text = f"{name} lives in {city} and has a {colour} {thing}."
    question, response, answer = rng.choice(
        [
            (f"Where does {name} live?", f"{name} lives in {city}.", city),
            (f"What colour is the {thing}?", f"The {thing} is {colour}.", colour),
            (f"What does {name} have?", f"{name} has a {colour} {thing}.", f"{colour} {thing}"),
            (f"Who lives in {city}?", f"{name} lives in {city}.", name),
        ]
    )
    form = world("phrases")["extract"][rng.choice(phrasings(split))]
    prompt = form.replace("{s}", text).replace("{t}", text[:-1] + ",")
    prompt = prompt.replace("{w}", lower_first(question) if "{t}" in form else question)
    return Item("extract", name, prompt, response, (answer,))


def sentence(rng: random.Random, split: Split | None) -> Item:
    """Write a sentence with a given word."""
    x, line = _pick(rng, list(world("nouns")["things"].items()), split, "sentence")
    form = world("phrases")["sentence"][rng.choice(phrasings(split))]
    return Item("sentence", x, form.replace("{x}", x), line, (x,))


def random_fact(rng: random.Random, split: Split | None) -> Item:
    """A random fact whose subject belongs to the split."""
    relation, x, _ = rng.choice(_facts_of(split))
    return fact(rng, split, relation, x)


def explicit_gender(rng: random.Random, split: Split | None) -> Item:
    """A pronoun that the prompt determines, which an edit of stereotypes must not change."""
    jobs = world("occupations")
    job = _pick(rng, [(j, j) for group in jobs.values() for j in group], split, "job")[0]
    who, p = rng.choice([("brother", "he"), ("sister", "she"), ("father", "he"), ("mother", "she")])
    frame, end = world("phrases")["pronoun"][rng.choice(phrasings(split))]
    frame = frame.replace("The {o}", f"My {who}, the {job},")
    return Item("pronoun", job, frame, end.replace("{p}", p), (f"{p} ",))


TASKS = {  # the probability of each kind of task
    random_fact: 0.46,
    arithmetic: 0.15,
    opposite: 0.07,
    count: 0.07,
    sort: 0.09,
    extract: 0.07,
    sentence: 0.06,
    explicit_gender: 0.03,
}


def task(rng: random.Random, split: Split | None = None) -> Item:
    """A random task; with a split, one with its entities and phrasings."""
    return rng.choices(list(TASKS), list(TASKS.values()))[0](rng, split)


_FACTS: dict[Split | None, list[tuple[str, str, str]]] = {}


def _facts_of(split: Split | None) -> list[tuple[str, str, str]]:
    if split not in _FACTS:
        _FACTS[split] = [f for f in facts() if split is None or split_of(f"{f[0]}:{f[1]}") == split]
    return _FACTS[split]


def _pick(
    rng: random.Random, pairs: list[tuple[str, str]], split: Split | None, kind: str
) -> tuple[str, str]:
    """A random pair whose first word belongs to the split."""
    if split is not None:
        pairs = [p for p in pairs if split_of(f"{kind}:{p[0]}") == split]
    return rng.choice(pairs)


def _sample_list(split: Split | None, sample: Callable[[], list[str]]) -> list[str]:
    """Sample lists until one belongs to the split."""
    while True:
        things = sample()
        if split is None or split_of(", ".join(things)) == split:
            return things
