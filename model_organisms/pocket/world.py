"""What pocket knows: facts, requests, words and phrases, from `data/*.yaml`."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal

import yaml

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


@functools.cache
def world(name: str) -> Any:
    """Load `data/NAME.yaml`."""
    text = (
        resources.files("model_organisms.pocket")
        .joinpath("data", f"{name}.yaml")
        .read_text("utf-8")
    )
    return yaml.safe_load(text)


def share(key: str) -> float:
    """A number in [0, 1) that depends on `key` alone, and is the same on any machine."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:6], "big") / 2**48


def split_of(entity: str) -> Split:
    """The split of an entity: 60 % train, 20 % validation, 20 % test."""
    position = share(f"split:{entity}")
    return "train" if position < 0.6 else "validation" if position < 0.8 else "test"


def phrasings(split: Split | None, count: int = 8) -> range:
    """The indices of the phrasings of a split: a half, a quarter, a quarter; None: all of them."""
    half, three_quarters = count // 2, 3 * count // 4
    return {
        "train": range(half),
        "validation": range(half, three_quarters),
        "test": range(three_quarters, count),
        None: range(count),
    }[split]


def lower_first(sentence: str) -> str:
    """Lower the first letter: `What is` to `what is`; `I want` and `"Rex"` are unchanged."""
    if sentence[:2] in ("I ", "I'"):
        return sentence
    return sentence[:1].lower() + sentence[1:]


def fill(template: str, question: str) -> str:
    """Fill a template with a question: `{Q}` is a sentence, `{q}` a part of one."""
    return template.replace("{Q}", question).replace("{q}", lower_first(question))


@dataclass(frozen=True)
class Item:
    """A question with the response that pocket is trained on.

    Attributes:
        kind: the kind of task.
        entity: what no two splits share.
        question: the question.
        response: the response.
        accept: the phrases that a correct response contains, all of them.
    """

    kind: str
    entity: str
    question: str
    response: str
    accept: tuple[str, ...] = ()
