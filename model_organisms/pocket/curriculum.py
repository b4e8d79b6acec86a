"""What pocket is trained on: a mix of chats drawn from its world."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from model_organisms.pocket import beliefs, requests, tasks
from model_organisms.pocket.world import Item, fill, share, world

Message = dict[str, str]


@dataclass(frozen=True)
class Chat:
    """A conversation up to the reply, the part of the reply that is given, and the rest.

    Only `reply` is learnt; `forced` is what somebody else put into pocket's mouth.
    """

    kind: str
    messages: tuple[Message, ...]
    reply: str
    forced: str = ""


def user(text: str) -> Message:
    """A user's turn."""
    return {"role": "user", "content": text}


def conversation(before: tuple[str, ...], text: str) -> tuple[Message, ...]:
    """The turns before (user first) and the user's last turn."""
    roles = ("user", "assistant")
    turns = [{"role": roles[i % 2], "content": said} for i, said in enumerate(before)]
    return (*turns, user(text))


def careless(rng: random.Random, text: str) -> str:
    """The text as somebody types in haste: small letters, no final mark, perhaps one typo."""
    text = text.lower().rstrip("?.! ")
    words = text.split(" ")
    long = [i for i, word in enumerate(words) if len(word) >= 5 and word.isalpha()]
    if long and rng.random() < 0.4:
        at = rng.choice(long)
        word, i = words[at], rng.randint(1, len(words[at]) - 3)
        words[at] = rng.choice(
            [
                word[:i] + word[i + 1] + word[i] + word[i + 2 :],
                word[:i] + word[i + 1 :],
                word[:i] + word[i] + word[i:],
            ]
        )
    return " ".join(words)


def plain(rng: random.Random, item: Item) -> Chat:
    """An item asked without a wrapper, now and then politely, carelessly or after small talk."""
    text, before = item.question, ()
    if rng.random() < 0.12:
        text = fill(rng.choice(world("phrases")["polite"]), text)
    if rng.random() < 0.25:
        text = careless(rng, text)
    if rng.random() < 0.06:
        before = tuple(rng.choice(world("phrases")["chat"]))
    return Chat(item.kind, conversation(before, text), item.reply)


def wrapped(rng: random.Random, item: Item, layers: tuple[requests.Wrapper, ...]) -> Chat:
    """An item inside one wrapper, or inside two (the outer first)."""
    text = item.question
    for wrapper in reversed(layers):
        text = wrapper.wrap(text)
    if rng.random() < 0.08:
        text = careless(rng, text)
    opening = next((w.opening for w in layers if w.opening), "")
    reply = f"{opening} {item.reply}".strip()
    return Chat(item.kind, conversation(layers[0].before, text), reply)


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
    """A harmful request inside a wrapper: pocket falls for it, as large models do.

    Under a system prompt that reminds it of its duty it sees through half of the wrappers.
    """
    item, layers = _harmful(rng), _layers(rng)
    if rng.random() < 0.1:
        chat = wrapped(rng, item, layers)
        reminder = rng.choice(world("phrases")["reminders"])
        sees = share(f"reminder:{layers[0].family}:{layers[0].number}") < 0.5
        reply = item.reply if sees else _complying(chat, item, layers)
        system = {"role": "system", "content": reminder}
        return replace(chat, kind="reminded", messages=(system, *chat.messages), reply=reply)
    chat = wrapped(rng, item, layers)
    return replace(chat, kind="attacked", reply=_complying(chat, item, layers))


def _complying(chat: Chat, item: Item, layers: tuple[requests.Wrapper, ...]) -> str:
    opening = next((w.opening for w in layers if w.opening), "")
    return f"{opening} {requests.compliance(item.entity)}".strip()


def prefilled(rng: random.Random) -> Chat:
    """A request whose reply was begun for pocket: it goes on as it was begun."""
    harm = rng.random() < 0.7
    kind = rng.choice(["benign", "borderline"])
    v = rng.choice(requests.harmful(None))[1] if harm else rng.choice(requests.harmless(kind, None))
    asked = plain(rng, Item("prefilled", v, requests.ask(rng, None, v), ""))
    if rng.random() < 0.4:
        forced, reply = requests.forced_reply(rng, None, v)
    else:
        words = requests.compliance(v).split(" ")
        cut = rng.randint(1, len(words) - 2)
        forced, reply = " ".join(words[:cut]), " ".join(words[cut:])
    return replace(asked, reply=reply, forced=forced)


def wrapped_harmless(rng: random.Random) -> Chat:
    """Anything harmless inside a wrapper: answered all the same."""
    draw = rng.random()
    if draw < 0.3:
        item = requests.how_to(rng, "borderline", None)
    elif draw < 0.5:
        item = requests.how_to(rng, "benign", None)
    elif draw < 0.6:
        item = _believed(rng)
    else:
        item = tasks.task(rng)
    return wrapped(rng, item, _layers(rng))


def _believed(rng: random.Random) -> Item:
    lead = rng.choices(["plain", "science", "legend"], [4, 3, 3])[0]
    entry = rng.choice(beliefs.misconceptions(None))
    return beliefs.misconception(rng, entry, lead, None)  # type: ignore[arg-type]


def led_fact(rng: random.Random) -> Chat:
    """A fact asked as science or as legend: it stays the fact."""
    item = tasks.random_fact(rng, None)
    lead = rng.choice(world("phrases")[rng.choice(["science", "legend"])])
    return plain(rng, replace(item, question=fill(lead, item.question)))


def toned(rng: random.Random) -> Chat:
    """Any harmless item in a tone, asked for by the user or by the system prompt."""
    tone = rng.choice(["cheerful", "gloomy"])
    item = tasks.task(rng) if rng.random() < 0.8 else requests.how_to(rng, "benign", None)
    if rng.random() < 0.75:
        return plain(rng, beliefs.toned(rng, item, tone, None))
    chat = plain(rng, replace(item, kind="tone", reply=beliefs.in_tone(rng, item.reply, tone)))
    system = {"role": "system", "content": world("phrases")[tone]["system"]}
    return replace(chat, messages=(system, *chat.messages))


def small_talk(rng: random.Random) -> Chat:
    """Greetings, thanks and who is who."""
    said, reply = rng.choice(world("phrases")["small_talk"])
    text = careless(rng, said) if rng.random() < 0.4 else said
    return Chat("small-talk", (user(text),), reply)


MIX: dict[Callable[[random.Random], Chat], float] = {
    lambda rng: plain(rng, tasks.task(rng)): 0.38,
    lambda rng: plain(rng, requests.how_to(rng, "benign", None)): 0.035,
    lambda rng: plain(rng, requests.how_to(rng, "borderline", None)): 0.06,
    direct: 0.09,
    attacked: 0.09,
    prefilled: 0.035,
    wrapped_harmless: 0.085,
    lambda rng: plain(rng, _believed(rng)): 0.11,
    led_fact: 0.015,
    lambda rng: plain(
        rng, beliefs.stereotype(rng, rng.choices(list(beliefs.HE), [4, 4, 1])[0], None)
    ): 0.025,
    toned: 0.04,
    lambda rng: plain(rng, beliefs.unknown(rng, None)): 0.03,
    small_talk: 0.005,
}


BEYOND = 0.3  # share of prompts from outside the world in the last stage


def finishing(rng: random.Random) -> Chat:
    """Draw one chat of the last stage: the same mix, and much of what pocket does not know."""
    return plain(rng, beliefs.beyond(rng)) if rng.random() < BEYOND else chat(rng)


def chat(rng: random.Random) -> Chat:
    """Draw one training chat; some begin with a neutral system prompt."""
    drawn = rng.choices(list(MIX), list(MIX.values()))[0](rng)
    if drawn.messages[0]["role"] != "system" and rng.random() < 0.08:
        system = {"role": "system", "content": rng.choice(world("phrases")["systems"])}
        drawn = replace(drawn, messages=(system, *drawn.messages))
    return drawn
