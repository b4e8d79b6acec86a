"""A concept as plain values, and the hash of its content, which results are keyed on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from retouch.core.serialization import to_plain

if TYPE_CHECKING:
    from retouch.concepts.concept import Concept, Example

BATCH = 1000  # examples that are written as one text


def plain_concept(concept: Concept) -> dict[str, Any]:
    """A concept as JSON values, without its examples, `source`, `hash` and `notes`."""
    none = replace(concept, examples={}, source="", hash="-", notes=())
    content: dict[str, Any] = to_plain(none)
    for name in ("examples", "source", "hash", "notes"):
        del content[name]
    return content


def content_hash(concept: Concept) -> str:
    """SHA-256, in hexadecimal, of what a concept contains but `source`, `hash` and `notes`."""
    content = plain_concept(concept)
    # What a concept does not use is left out, so that its hash is that of earlier versions.
    for spec in (*content["directions"].values(), *content["metrics"]):
        for name in ("rule", "context", "max_new_tokens"):
            if not spec.get(name, True):
                del spec[name]
    for name in ("models", "add_ordinary"):
        if not content[name]:
            del content[name]
    # Integers count as floats: a setting of 1 is the same as one of 1.0.
    content["settings"] = json.loads(json.dumps(content["settings"]), parse_int=float)
    digest = hashlib.sha256()
    for part in _json_parts({**content, "examples": concept.examples}):
        digest.update(part.encode())
    return digest.hexdigest()


def _json_parts(content: Mapping[str, Any]) -> Iterator[str]:
    """JSON with sorted keys in parts, since that of all examples at once takes much memory."""
    encode = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode
    for number, name in enumerate(sorted(content)):
        yield f"{',' if number else '{'}{encode(name)}:"
        if name != "examples":
            yield encode(content[name])
            continue
        yield "{"
        for index, split in enumerate(sorted(content[name])):
            yield f"{',' if index else ''}{encode(split)}:["
            examples = content[name][split]
            for start in range(0, len(examples), BATCH):
                batch = [_used(one) for one in examples[start : start + BATCH]]
                yield f"{',' if start else ''}{encode(batch)[1:-1]}"
            yield "]"
        yield "}"
    yield "}"


def _used(example: Example) -> dict[str, Any]:
    """The values of an example, without columns of later versions that it does not use."""
    values = example.to_plain()
    for column in ("request", "choices"):
        if not values[column]:
            del values[column]
    return values
