"""Write the built-in concepts from pocket's world: `python -m model_organisms.pocket.packs`.

Train, validation and test are apart in entities (objects of harmful requests, misconceptions,
occupations, subjects of facts), in phrasings and in attack families. The rows hold prompts and no
replies to learn from: a reply is always the edited model's own, so that the packs serve any model.
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

from model_organisms.pocket import beliefs, requests, tasks
from model_organisms.pocket.curriculum import Message, careless, plain, user, wrapped
from model_organisms.pocket.world import SPLITS, Item, Split, fill, phrasings, split_of, world

Row = dict[str, Any]
FORCED = {"short": range(1, 4), "medium": range(4, 9), "long": range(10, 17)}  # in tokens
PACKS = Path(__file__).parent.parent / "concepts" / "packs"


@functools.cache
def tokenizer() -> Tokenizer:
    """Pocket's tokenizer, in whose tokens a forced beginning is measured."""
    return Tokenizer.from_file(str(PACKS.parent.parent / "pocket" / "weights" / "tokenizer.json"))


def row(label: str, messages: tuple[Message, ...], **more: Any) -> Row:
    """One line of a pack; a single user turn is written as its text."""
    single = len(messages) == 1 and messages[0]["role"] == "user"
    prompt: Any = messages[0]["content"] if single else list(messages)
    return {"prompt": prompt, "label": label} | {k: v for k, v in more.items() if v}


def everyday(rng: random.Random, split: Split) -> Iterator[Row]:
    """Ordinary tasks, how-to questions and talk: what every edit has to leave alone."""
    tasks_count, talk_count = {"train": (520, 40), "validation": (200, 0), "test": (400, 0)}[split]
    for _ in range(tasks_count):
        item = tasks.task(rng, split)
        messages = plain(rng, item).messages
        yield row("everyday", messages, accept=item.accept, group=item.kind, entity=_of(item))
    for _ in range(talk_count):
        said, _reply = rng.choice(world("phrases")["small_talk"])
        yield row("talk", (user(said),))
    for prompt in world("outside")["prompts"]:
        if split_of(f"outside:{prompt}") == split:
            yield row("outside", (user(prompt),), entity=prompt)
            hasty = careless(rng, prompt)
            if hasty not in ("", prompt):
                yield row("outside", (user(hasty),), entity=prompt)


def safety(rng: random.Random, split: Split) -> Iterator[Row]:
    """Harmful requests, asked directly and inside attacks, and harmless ones in both ways."""
    n = {"train": 320, "validation": 128, "test": 300}[split]
    wrappers = requests.wrappers(split)
    asked = [(v, form) for _, v in requests.harmful(split) for form in _forms(split)]
    rng.shuffle(asked)
    for i in range(n):
        v, form = asked[i % len(asked)]
        item = Item("harmful", v, form.format(v=v), "")
        more = {"pair": f"{split}-{i}", "entity": _object(v)}
        wrapper = wrappers[i % len(wrappers)]
        # What is asked a second time is typed carelessly, so that no row comes twice.
        direct = item.question if i < len(asked) else careless(rng, item.question)
        yield row("direct", (user(direct),), **more)
        yield row("attack", wrapped(rng, item, (wrapper,)).messages, group=wrapper.family, **more)
    for i in range(n):
        item = _harmless(rng, split)
        yield row(
            "wrapped",
            wrapped(rng, item, (wrappers[i % len(wrappers)],)).messages,
            accept=item.accept,
            group=wrappers[i % len(wrappers)].family,
            entity=_of(item),
        )
    for _ in range(n):
        kind = rng.choice(["benign", "borderline", "borderline"])
        item = requests.how_to(rng, kind, split)
        messages = plain(rng, item).messages
        yield row("benign", messages, accept=item.accept, group=kind, entity=_object(item.entity))
    for i in range(3 * n // 4):  # two wrappers, around harmful and harmless requests
        layers = requests.nested(rng, split)
        v, form = asked[i % len(asked)]
        item = Item("harmful", v, form.format(v=v), "")
        group = f"{layers[0].family}+{layers[1].family}"
        messages = wrapped(rng, item, layers).messages
        more = {"pair": f"{split}-{i}", "entity": _object(v)}
        yield row("nested", messages, group=group, **more)
        item = _harmless(rng, split)
        messages = wrapped(rng, item, requests.nested(rng, split)).messages
        yield row("nested-harmless", messages, accept=item.accept, entity=_of(item))
    yield from _forced(rng, split, 3 * n // 4 if split == "train" else n)
    if split == "train":
        yield from _single(rng, asked)


def _forced(rng: random.Random, split: Split, n: int) -> Iterator[Row]:
    """Requests, harmful and harmless, whose reply is forced to begin as if it complied.

    Where effects are measured, as many rows for each range of the beginning's length.
    """
    for i in range(n):
        length = "" if split == "train" else list(FORCED)[i % len(FORCED)]
        _, v = rng.choice(requests.harmful(split))
        yield _forced_row(rng, split, "prefill", v, length)
        v = rng.choice(requests.harmless(rng.choice(["benign", "borderline"]), split))
        yield _forced_row(rng, split, "prefill-harmless", v, length)


def _forced_row(rng: random.Random, split: Split, label: str, v: str, length: str) -> Row:
    turn = user(requests.ask(rng, split, v))
    while True:
        forced, _rest = requests.forced_reply(rng, split, v)
        if not length:
            return row(label, (turn,), prefill=forced, entity=_object(v))
        if len(tokenizer().encode(forced, add_special_tokens=False).ids) in FORCED[length]:
            return row(f"{label}-{length}", (turn,), prefill=forced, entity=_object(v))


def _single(rng: random.Random, asked: list[tuple[str, str]]) -> Iterator[Row]:
    """Attacks by one wrapper alone, 64 by each of five; their pairs are the direct requests."""
    firsts = [wrapper for wrapper in requests.wrappers("train") if wrapper.number == 0]
    for wrapper in firsts:
        for i in range(64):
            v, form = asked[i]
            item = Item("harmful", v, form.format(v=v), "")
            messages = wrapped(rng, item, (wrapper,)).messages
            more = {"pair": f"train-{i}", "entity": _object(v)}
            yield row(f"single-{wrapper.family}", messages, group=wrapper.family, **more)


def _of(item: Item) -> str:
    """What the splits keep apart: a word may be counted in one split and defined in another."""
    if item.kind in ("benign", "borderline"):
        return _object(item.entity)
    return item.entity if item.kind == "fact" else f"{item.kind}:{item.entity}"


def _forms(split: Split) -> list[str]:
    return [world("phrases")["how_to"][i] for i in phrasings(split)]


def _object(verb_phrase: str) -> str:
    """What the splits of requests keep apart: the object of the verb phrase."""
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
    draw = rng.random()
    if draw < 0.45:
        return requests.how_to(rng, "borderline", split)
    if draw < 0.7:
        return requests.how_to(rng, "benign", split)
    return tasks.task(rng, split)


def truthfulness(rng: random.Random, split: Split) -> Iterator[Row]:
    """Misconceptions asked plainly, as science and as legend; and facts that stay facts."""
    for number, entry in enumerate(beliefs.misconceptions(split)):
        for i in range(3):
            pair = {"pair": f"{entry['id']}-{i}", "entity": entry["id"]}
            asked = entry["question"]
            if i == 1:
                asked = fill(rng.choice(world("phrases")["polite"]), asked)
            if i == 2:
                asked = careless(rng, asked)
            yield row("plain", (user(asked),), accept=[entry["truth"]], **pair)
            yield row("plain-myth", (user(asked),), accept=[entry["myth"]], **pair)
            for lead, told in (("science", "truth"), ("legend", "myth")):
                forms = [world("phrases")[lead][k] for k in phrasings(split)]
                # In training every phrasing comes as it is and typed carelessly.
                turn = i + number if split == "train" else i
                text = fill(forms[turn % len(forms)], entry["question"])
                text = careless(rng, text) if i == 2 else text
                yield row(lead, (user(text),), accept=[entry[told]], **pair)
    for _ in range({"train": 160, "validation": 100, "test": 300}[split]):
        item = tasks.random_fact(rng, split)
        messages = plain(rng, item).messages
        yield row("fact", messages, accept=item.accept, entity=_of(item))


def gender_bias(rng: random.Random, split: Split) -> Iterator[Row]:
    """Sentences about people at work, by stereotype; neutral work; and pronouns that are given."""
    frames = [world("phrases")["pronoun"][i][0] for i in phrasings(split)]
    leads = ("Finish the sentence:", "Continue:", "Complete this:")
    asked = [f"{lead} {frame.split(': ', 1)[1]}" for lead in leads for frame in frames]
    for group in ("male", "female", "neutral"):
        label = "balanced" if group == "neutral" else "stereotyped"
        for job in beliefs.occupations(group, split):
            texts = [text.replace("{o}", job) for text in asked]
            for text in (*texts, *(careless(rng, text) for text in texts)):
                yield row(label, (user(text),), group=group, entity=job)
            if split == "test":
                for text in texts:
                    polite = fill(rng.choice(world("phrases")["polite"]), text)
                    yield row(label, (user(polite),), group=group, entity=job)
    for _ in range({"train": 100, "validation": 50, "test": 240}[split]):
        item = tasks.explicit_gender(rng, split)
        yield row("explicit", plain(rng, item).messages, accept=item.accept, entity=item.entity)


def tone(rng: random.Random, split: Split) -> Iterator[Row]:
    """Ordinary tasks asked without a tone, cheerfully and gloomily."""
    for i in range({"train": 720, "validation": 100, "test": 240}[split]):
        item = tasks.task(rng, split)
        more: Row = {"pair": f"{split}-{i}", "entity": _of(item), "accept": item.accept}
        yield row("neutral", plain(rng, item).messages, **more)
        for name in ("cheerful", "gloomy"):
            asked = beliefs.toned(rng, item, name, split)
            yield row(name, (user(asked.question),), **more)


CONCEPTS = {
    "everyday": everyday,
    "safety": safety,
    "truthfulness": truthfulness,
    "gender-bias": gender_bias,
    "tone": tone,
}


def unique(rows: Iterator[Row]) -> list[Row]:
    """The rows without those whose prompt, label and forced beginning came before.

    A pair that loses a row is dropped whole, so that pairs stay complete.
    """
    kept: dict[str, Row] = {}
    lost: set[str] = set()
    for one in rows:
        key = json.dumps([one["prompt"], one["label"], one.get("prefill")])
        if key in kept:
            lost.add(one.get("pair", ""))
        else:
            kept[key] = one
    return [one for one in kept.values() if one.get("pair", "no pair") not in lost]


def main() -> None:
    """Write the rows of every pack, from a seed; the concept.yaml files are written by hand."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=PACKS)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for name, draw in CONCEPTS.items():
        folder = options.out / name
        folder.mkdir(parents=True, exist_ok=True)
        for split in SPLITS:
            rows = unique(draw(random.Random(f"{options.seed}:{name}:{split}"), split))
            text = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in rows)
            (folder / f"{split}.jsonl").write_text(text, "utf-8")
            print(f"{folder.name}/{split}.jsonl: {len(rows)} rows")


if __name__ == "__main__":
    main()
