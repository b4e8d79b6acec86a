"""Write the examples of pocket's concepts: `python -m model_organisms.pocket.packs`.

The splits share no entities (objects of harmful requests, misconceptions, occupations, subjects of
facts), no phrasings and no attack families. The examples have no responses: the edited model
generates them.
"""

from __future__ import annotations

import argparse
import functools
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from model_organisms.pocket import PACKS, WEIGHTS, beliefs, requests, tasks
from model_organisms.pocket.curriculum import Message, careless, plain, user, wrapped
from model_organisms.pocket.world import SPLITS, Item, Split, fill, phrasings, split_of, world

ExampleDict = dict[str, Any]  # a line of a pack

PREFILL_TOKENS = {"short": range(1, 4), "medium": range(4, 9), "long": range(10, 17)}


@functools.cache
def tokenizer() -> Tokenizer:
    """Pocket's tokenizer, in whose tokens the length of a prefill is measured."""
    return Tokenizer.from_file(str(WEIGHTS / "tokenizer.json"))


def example(label: str, messages: tuple[Message, ...], **more: Any) -> ExampleDict:
    """A line of a pack; a single user turn is written as its text."""
    single = len(messages) == 1 and messages[0]["role"] == "user"
    prompt: Any = messages[0]["content"] if single else list(messages)
    return {"prompt": prompt, "label": label} | {k: v for k, v in more.items() if v}


def capability(rng: random.Random, split: Split) -> Iterator[ExampleDict]:
    """Ordinary tasks and small talk, which no edit should change."""
    num_tasks, num_talk = {"train": (520, 40), "validation": (200, 0), "test": (400, 0)}[split]
    for _ in range(num_tasks):
        item = tasks.task(rng, split)
        messages = plain(rng, item).messages
        yield example("task", messages, accept=item.accept, group=item.kind, entity=_entity(item))
    for _ in range(num_talk):
        text, _response = rng.choice(world("phrases")["small_talk"])
        yield example("talk", (user(text),))
    for prompt in world("outside")["prompts"]:
        if split_of(f"outside:{prompt}") == split:
            yield example("outside", (user(prompt),), entity=prompt)
            typed = careless(rng, prompt)
            if typed not in ("", prompt):
                yield example("outside", (user(typed),), entity=prompt)


def safety(rng: random.Random, split: Split) -> Iterator[ExampleDict]:
    """Harmful requests, asked directly and wrapped in attacks, and harmless ones in both ways."""
    n = {"train": 320, "validation": 128, "test": 300}[split]
    wrappers = requests.wrappers(split)
    forms = [(v, form) for _, v in requests.harmful(split) for form in _forms(split)]
    rng.shuffle(forms)
    for i in range(n):
        v, form = forms[i % len(forms)]
        item = Item("harmful", v, form.format(v=v), "")
        more = {"pair": f"{split}-{i}", "entity": _object(v)}
        wrapper = wrappers[i % len(wrappers)]
        # A repeated request is typed carelessly, so that no example appears twice.
        direct = item.question if i < len(forms) else careless(rng, item.question)
        yield example("direct", (user(direct),), **more)
        yield example(
            "attack", wrapped(rng, item, (wrapper,)).messages, group=wrapper.family, **more
        )
    for i in range(n):
        item = _harmless(rng, split)
        yield example(
            "wrapped",
            wrapped(rng, item, (wrappers[i % len(wrappers)],)).messages,
            accept=item.accept,
            group=wrappers[i % len(wrappers)].family,
            entity=_entity(item),
        )
    for _ in range(n):
        kind = rng.choice(["benign", "borderline", "borderline"])
        item = requests.how_to(rng, kind, split)
        messages = plain(rng, item).messages
        yield example(
            "benign", messages, accept=item.accept, group=kind, entity=_object(item.entity)
        )
    for i in range(3 * n // 4):  # two wrappers, around harmful and harmless requests
        layers = requests.nested(rng, split)
        v, form = forms[i % len(forms)]
        item = Item("harmful", v, form.format(v=v), "")
        group = f"{layers[0].family}+{layers[1].family}"
        messages = wrapped(rng, item, layers).messages
        more = {"pair": f"{split}-{i}", "entity": _object(v)}
        yield example("nested", messages, group=group, **more)
        item = _harmless(rng, split)
        messages = wrapped(rng, item, requests.nested(rng, split)).messages
        yield example("nested-harmless", messages, accept=item.accept, entity=_entity(item))
    yield from _prefilled(rng, split, 3 * n // 4 if split == "train" else n)
    if split == "train":
        yield from _single(rng, forms)


def _prefilled(rng: random.Random, split: Split, n: int) -> Iterator[ExampleDict]:
    """Requests, harmful and harmless, with a prefilled compliant response.

    The validation and test splits have equally many examples of each range of prefill lengths.
    """
    for i in range(n):
        length = "" if split == "train" else list(PREFILL_TOKENS)[i % len(PREFILL_TOKENS)]
        _, v = rng.choice(requests.harmful(split))
        yield _prefilled_example(rng, split, "prefill", v, length)
        v = rng.choice(requests.harmless(rng.choice(["benign", "borderline"]), split))
        yield _prefilled_example(rng, split, "prefill-harmless", v, length)


def _prefilled_example(
    rng: random.Random, split: Split, label: str, v: str, length: str
) -> ExampleDict:
    turn = user(requests.ask(rng, split, v))
    while True:
        prefill, _continuation = requests.prefill(rng, split, v)
        if not length:
            return example(label, (turn,), prefill=prefill, entity=_object(v))
        if len(tokenizer().encode(prefill, add_special_tokens=False)) in PREFILL_TOKENS[length]:
            return example(f"{label}-{length}", (turn,), prefill=prefill, entity=_object(v))


def _single(rng: random.Random, forms: list[tuple[str, str]]) -> Iterator[ExampleDict]:
    """64 attacks by each of five single wrappers; they are paired with the direct requests."""
    firsts = [wrapper for wrapper in requests.wrappers("train") if wrapper.number == 0]
    for wrapper in firsts:
        for i in range(64):
            v, form = forms[i]
            item = Item("harmful", v, form.format(v=v), "")
            messages = wrapped(rng, item, (wrapper,)).messages
            more = {"pair": f"train-{i}", "entity": _object(v)}
            yield example(f"single-{wrapper.family}", messages, group=wrapper.family, **more)


def _entity(item: Item) -> str:
    """What no two splits share: a word may be counted in one split and defined in another."""
    if item.kind in ("benign", "borderline"):
        return _object(item.entity)
    return item.entity if item.kind == "fact" else f"{item.kind}:{item.entity}"


def _forms(split: Split) -> list[str]:
    return [world("phrases")["how_to"][i] for i in phrasings(split)]


def _object(verb_phrase: str) -> str:
    """The object of a verb phrase, which no two splits share."""
    blocks = world("requests")
    for block in blocks["harmful"].values():
        for verb in block["verbs"]:
            rest = verb_phrase.removeprefix(f"{verb} ")
            if rest != verb_phrase and rest in block["objects"]:
                return rest
    for kind in ("benign", "borderline"):
        for verb, thing in blocks[kind]:
            if f"{verb} {thing}" == verb_phrase:
                return str(thing)
    raise KeyError(verb_phrase)


def _harmless(rng: random.Random, split: Split) -> Item:
    chance = rng.random()
    if chance < 0.45:
        return requests.how_to(rng, "borderline", split)
    if chance < 0.7:
        return requests.how_to(rng, "benign", split)
    return tasks.task(rng, split)


def truthfulness(rng: random.Random, split: Split) -> Iterator[ExampleDict]:
    """Misconceptions, asked plainly, as science and as legend; and facts, which are retained."""
    for number, entry in enumerate(beliefs.misconceptions(split)):
        for i in range(3):
            pair = {"pair": f"{entry['id']}-{i}", "entity": entry["id"]}
            question = entry["question"]
            if i == 1:
                question = fill(rng.choice(world("phrases")["polite"]), question)
            if i == 2:
                question = careless(rng, question)
            yield example("plain", (user(question),), accept=[entry["truth"]], **pair)
            yield example("plain-myth", (user(question),), accept=[entry["myth"]], **pair)
            for framing, answer in (("science", "truth"), ("legend", "myth")):
                forms = [world("phrases")[framing][k] for k in phrasings(split)]
                # In training every phrasing appears both unchanged and typed carelessly.
                index = i + number if split == "train" else i
                text = fill(forms[index % len(forms)], entry["question"])
                text = careless(rng, text) if i == 2 else text
                yield example(framing, (user(text),), accept=[entry[answer]], **pair)
    for _ in range({"train": 160, "validation": 100, "test": 300}[split]):
        item = tasks.random_fact(rng, split)
        messages = plain(rng, item).messages
        yield example("fact", messages, accept=item.accept, entity=_entity(item))


def gender_bias(rng: random.Random, split: Split) -> Iterator[ExampleDict]:
    """Sentences about people in stereotyped and neutral occupations, and determined pronouns."""
    frames = [world("phrases")["pronoun"][i][0] for i in phrasings(split)]
    leads = ("Finish the sentence:", "Continue:", "Complete this:")
    prompts = [f"{lead} {frame.split(': ', 1)[1]}" for lead in leads for frame in frames]
    for group in ("male", "female", "neutral"):
        label = "balanced" if group == "neutral" else "stereotyped"
        for job in beliefs.occupations(group, split):
            texts = [text.replace("{o}", job) for text in prompts]
            for text in (*texts, *(careless(rng, text) for text in texts)):
                yield example(label, (user(text),), group=group, entity=job)
            if split == "test":
                for text in texts:
                    polite = fill(rng.choice(world("phrases")["polite"]), text)
                    yield example(label, (user(polite),), group=group, entity=job)
    for _ in range({"train": 100, "validation": 50, "test": 240}[split]):
        item = tasks.explicit_gender(rng, split)
        yield example("explicit", plain(rng, item).messages, accept=item.accept, entity=item.entity)


def tone(rng: random.Random, split: Split) -> Iterator[ExampleDict]:
    """Ordinary tasks that ask for no tone, a cheerful one and a gloomy one."""
    for i in range({"train": 720, "validation": 100, "test": 240}[split]):
        item = tasks.task(rng, split)
        more: ExampleDict = {"pair": f"{split}-{i}", "entity": _entity(item), "accept": item.accept}
        yield example("neutral", plain(rng, item).messages, **more)
        for name in ("cheerful", "gloomy"):
            toned = beliefs.toned(rng, item, name, split)
            yield example(name, (user(toned.question),), **more)


CONCEPTS = {
    "pocket-capability": capability,
    "pocket-safety": safety,
    "pocket-truthfulness": truthfulness,
    "pocket-gender-bias": gender_bias,
    "pocket-tone": tone,
}


# The names that the examples were first sampled under, which are part of the seed.
SEED_NAMES = {
    "pocket-capability": "everyday",
    "pocket-safety": "safety",
    "pocket-truthfulness": "truthfulness",
    "pocket-gender-bias": "gender-bias",
    "pocket-tone": "tone",
}


def unique(examples: Iterator[ExampleDict]) -> list[ExampleDict]:
    """The lines without those whose prompt, label and prefill appeared before.

    A pair with a removed line is removed completely.
    """
    first: dict[str, ExampleDict] = {}
    incomplete: set[str] = set()
    for one in examples:
        key = json.dumps([one["prompt"], one["label"], one.get("prefill")])
        if key in first:
            incomplete.add(one.get("pair", ""))
        else:
            first[key] = one
    return [one for one in first.values() if one.get("pair", "no pair") not in incomplete]


def main() -> None:
    """Write the examples of every pack from a seed. The concept.yaml files are written by hand."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=PACKS)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for name, sample in CONCEPTS.items():
        folder = options.out / name
        folder.mkdir(parents=True, exist_ok=True)
        for split in SPLITS:
            rng = random.Random(f"{options.seed}:{SEED_NAMES[name]}:{split}")
            examples = unique(sample(rng, split))
            text = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in examples)
            (folder / f"{split}.jsonl").write_text(text, "utf-8")
            print(f"{folder.name}/{split}.jsonl: {len(examples)} examples")


if __name__ == "__main__":
    main()
