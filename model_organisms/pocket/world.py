"""The small world that pocket knows: facts, requests, words, phrases; from `data/*.yaml`."""

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
    """Return the parsed content of `data/NAME.yaml`."""
    text = (
        resources.files("model_organisms.pocket")
        .joinpath("data", f"{name}.yaml")
        .read_text("utf-8")
    )
    return yaml.safe_load(text)


def share(key: str) -> float:
    """A number in [0, 1) that depends on `key` alone: the same on any machine, for ever."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:6], "big") / 2**48


def split_of(entity: str) -> Split:
    """The split an entity belongs to: 60 % train, 20 % validation, 20 % test."""
    at = share(f"split:{entity}")
    return "train" if at < 0.6 else "validation" if at < 0.8 else "test"


def phrasings(split: Split | None, count: int = 8) -> range:
    """The indices of the phrasings of a split: half, a quarter, a quarter; None is all of them."""
    half, three = count // 2, 3 * count // 4
    return {
        "train": range(half),
        "validation": range(half, three),
        "test": range(three, count),
        None: range(count),
    }[split]


def lower_first(sentence: str) -> str:
    """`What is ...` -> `what is ...`; `I want ...` and `"Rex" ...` stay as they are."""
    if sentence[:2] in ("I ", "I'"):
        return sentence
    return sentence[:1].lower() + sentence[1:]


def fill(template: str, question: str) -> str:
    """Put a question into a template with `{Q}` (a sentence) or `{q}` (within one)."""
    return template.replace("{Q}", question).replace("{q}", lower_first(question))


@dataclass(frozen=True)
class Item:
    """One question with the reply that pocket is taught.

    `accept` holds what a correct reply must contain (each of them), `kind` the sort of task,
    `entity` what the splits keep apart.
    """

    kind: str
    entity: str
    question: str
    reply: str
    accept: tuple[str, ...] = ()
