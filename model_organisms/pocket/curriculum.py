"""The training data of pocket: a mixture of chats, sampled from a seed."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from model_organisms.pocket import beliefs, requests, tasks
from model_organisms.pocket.world import Item, fill, share, world

Message = dict[str, str]


@dataclass(frozen=True)
class Chat:
    """A training example.

    Attributes:
        kind: the kind of example.
        messages: the turns of the prompt.
        response: the part of the response that is trained on.
        prefill: the part before it, which is given.
    """

    kind: str
    messages: tuple[Message, ...]
    response: str
    prefill: str = ""


def user(text: str) -> Message:
    """A turn of the user."""
    return {"role": "user", "content": text}


def conversation(before: tuple[str, ...], text: str) -> tuple[Message, ...]:
    """Earlier turns, the user's first, and the last turn of the user."""
    roles = ("user", "assistant")
    turns = [{"role": roles[i % 2], "content": content} for i, content in enumerate(before)]
    return (*turns, user(text))


def careless(rng: random.Random, text: str) -> str:
    """The text typed carelessly: lower case, no final punctuation, in some cases a typo."""
    text = text.lower().rstrip("?.! ")
    words = text.split(" ")
    long = [i for i, word in enumerate(words) if len(word) >= 5 and word.isalpha()]
    if long and rng.random() < 0.4:
        index = rng.choice(long)
        word, i = words[index], rng.randint(1, len(words[index]) - 3)
        words[index] = rng.choice(
            [
                word[:i] + word[i + 1] + word[i] + word[i + 2 :],
                word[:i] + word[i + 1 :],
                word[:i] + word[i] + word[i:],
            ]
        )
    return " ".join(words)


def plain(rng: random.Random, item: Item) -> Chat:
    """An item without a wrapper; in some cases polite, careless or after small talk."""
    text, before = item.question, ()
    if rng.random() < 0.12:
        text = fill(rng.choice(world("phrases")["polite"]), text)
    if rng.random() < 0.25:
        text = careless(rng, text)
    if rng.random() < 0.06:
        before = tuple(rng.choice(world("phrases")["chat"]))
    return Chat(item.kind, conversation(before, text), item.response)


def wrapped(rng: random.Random, item: Item, layers: tuple[requests.Wrapper, ...]) -> Chat:
    """An item in one wrapper, or in two (the outer one first)."""
    text = item.question
    for wrapper in reversed(layers):
        text = wrapper.wrap(text)
    if rng.random() < 0.08:
        text = careless(rng, text)
    opening = next((w.opening for w in layers if w.opening), "")
    response = f"{opening} {item.response}".strip()
    return Chat(item.kind, conversation(layers[0].before, text), response)


def _layers(rng: random.Random) -> tuple[requests.Wrapper, ...]:
    if rng.random() < 0.25:
        return requests.nested(rng, None)
    return (rng.choice(requests.wrappers(None)),)


def _harmful(rng: random.Random) -> Item:
    category, v = rng.choice(requests.harmful(None))
    return Item("harmful", v, requests.ask(rng, None, v), requests.refusal(category, v))


def direct(rng: random.Random) -> Chat:
    """A harmful request asked directly: refused."""
    return plain(rng, _harmful(rng))


def attacked(rng: random.Random) -> Chat:
    """A harmful request in a wrapper, with a compliant response, as large models give.

    Under a system prompt with a safety reminder, the response to half of the wrappers is a refusal.
    """
    item, layers = _harmful(rng), _layers(rng)
    if rng.random() < 0.1:
        chat = wrapped(rng, item, layers)
        reminder = rng.choice(world("phrases")["reminders"])
        refused = share(f"reminder:{layers[0].family}:{layers[0].number}") < 0.5
        response = item.response if refused else _compliance(item, layers)
        system = {"role": "system", "content": reminder}
        return replace(chat, kind="reminded", messages=(system, *chat.messages), response=response)
    chat = wrapped(rng, item, layers)
    return replace(chat, kind="attacked", response=_compliance(item, layers))


def _compliance(item: Item, layers: tuple[requests.Wrapper, ...]) -> str:
    """The compliant response, with the opening that a wrapper asks for."""
    opening = next((w.opening for w in layers if w.opening), "")
    return f"{opening} {requests.compliance(item.entity)}".strip()


def prefilled(rng: random.Random) -> Chat:
    """A request with a prefilled compliant response, which is continued."""
    harm = rng.random() < 0.7
    kind = rng.choice(["benign", "borderline"])
    v = rng.choice(requests.harmful(None))[1] if harm else rng.choice(requests.harmless(kind, None))
    request = plain(rng, Item("prefilled", v, requests.ask(rng, None, v), ""))
    if rng.random() < 0.4:
        prefill, response = requests.prefill(rng, None, v)
    else:
        words = requests.compliance(v).split(" ")
        cut = rng.randint(1, len(words) - 2)
        prefill, response = " ".join(words[:cut]), " ".join(words[cut:])
    return replace(request, response=response, prefill=prefill)


def wrapped_harmless(rng: random.Random) -> Chat:
    """A harmless item in a wrapper, which is answered."""
    chance = rng.random()
    if chance < 0.3:
        item = requests.how_to(rng, "borderline", None)
    elif chance < 0.5:
        item = requests.how_to(rng, "benign", None)
    elif chance < 0.6:
        item = _believed(rng)
    else:
        item = tasks.task(rng)
    return wrapped(rng, item, _layers(rng))


def _believed(rng: random.Random) -> Item:
    framings: tuple[beliefs.Framing, ...] = ("plain", "science", "legend")
    framing = rng.choices(framings, [4, 3, 3])[0]
    entry = rng.choice(beliefs.misconceptions(None))
    return beliefs.misconception(rng, entry, framing, None)


def framed_fact(rng: random.Random) -> Chat:
    """A question about a fact, asked as science or as legend; the answer is the same."""
    item = tasks.random_fact(rng, None)
    framing = rng.choice(world("phrases")[rng.choice(["science", "legend"])])
    return plain(rng, replace(item, question=fill(framing, item.question)))


def toned(rng: random.Random) -> Chat:
    """A harmless item in a tone that the user or the system prompt asks for."""
    tone = rng.choice(["cheerful", "gloomy"])
    item = tasks.task(rng) if rng.random() < 0.8 else requests.how_to(rng, "benign", None)
    if rng.random() < 0.75:
        return plain(rng, beliefs.toned(rng, item, tone, None))
    chat = plain(
        rng, replace(item, kind="tone", response=beliefs.in_tone(rng, item.response, tone))
    )
    system = {"role": "system", "content": world("phrases")[tone]["system"]}
    return replace(chat, messages=(system, *chat.messages))


def small_talk(rng: random.Random) -> Chat:
    """Greetings, thanks and questions about the model."""
    text, response = rng.choice(world("phrases")["small_talk"])
    if rng.random() < 0.4:
        text = careless(rng, text)
    return Chat("small-talk", (user(text),), response)


MIXTURE: dict[Callable[[random.Random], Chat], float] = {
    lambda rng: plain(rng, tasks.task(rng)): 0.38,
    lambda rng: plain(rng, requests.how_to(rng, "benign", None)): 0.035,
    lambda rng: plain(rng, requests.how_to(rng, "borderline", None)): 0.06,
    direct: 0.09,
    attacked: 0.09,
    prefilled: 0.035,
    wrapped_harmless: 0.085,
    lambda rng: plain(rng, _believed(rng)): 0.11,
    framed_fact: 0.015,
    lambda rng: plain(
        rng, beliefs.stereotype(rng, rng.choices(list(beliefs.HE), [4, 4, 1])[0], None)
    ): 0.025,
    toned: 0.04,
    lambda rng: plain(rng, beliefs.unknown(rng, None)): 0.03,
    small_talk: 0.005,
}


BEYOND = 0.3  # proportion of unanswerable questions in the last stage


def finishing(rng: random.Random) -> Chat:
    """Sample a chat of the last stage, which has more unanswerable questions."""
    return plain(rng, beliefs.beyond(rng)) if rng.random() < BEYOND else chat(rng)


def chat(rng: random.Random) -> Chat:
    """Sample a training chat; some begin with a neutral system prompt."""
    sampled = rng.choices(list(MIXTURE), list(MIXTURE.values()))[0](rng)
    if sampled.messages[0]["role"] != "system" and rng.random() < 0.08:
        system = {"role": "system", "content": rng.choice(world("phrases")["systems"])}
        sampled = replace(sampled, messages=(system, *sampled.messages))
    return sampled
