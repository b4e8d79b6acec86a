"""Damage to files: at random, and in ways after which a file cannot be valid."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable, Sequence
from typing import Any

Breaker = Callable[[random.Random, bytes], bytes]

ODD = (
    *(
        b"\x00",
        b"\xff\xfe",
        b"\xed\xa0\x80",
        b"\r",
        b"\n",
        b'"',
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b":",
    ),
    *(
        b"\\",
        b"'",
        b"\t",
        b"&a *a",
        b"!!python/object/apply:os.system [x]",
        b"null",
        b"NaN",
        b"1e999",
    ),
    *(
        b"-1",
        b"\xe2\x80\xae",
        b"\x1b[2J",
        b"\xf0\x9f\x98\x80",
        b"{{",
        b"{%",
        b"%}",
        b"..",
        b"/",
        b"~",
    ),
)


def damage(rng: random.Random, data: bytes) -> bytes:
    """Change one to four places of a file; it may stay valid."""
    content = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(content) + 1)
        way = rng.randrange(7)
        if way == 0 and content:
            content[at - 1] = rng.randrange(256)
        elif way == 1:
            content[at:at] = rng.choice(ODD)
        elif way == 2:
            del content[at : at + rng.randint(1, 40)]
        elif way == 3:
            content[at:at] = content[at : at + rng.randint(1, 200)]
        elif way == 4:
            del content[at:]
        elif way == 5:
            content[at:at] = bytes(rng.randrange(256) for _ in range(rng.randint(1, 12)))
        else:
            content[at : at + 8] = rng.choice((b"\xff" * 8, b"\x00" * 8, b"9" * 40))
    return bytes(content)


def _whole(content: bytes) -> Breaker:
    return lambda rng, data: content


def _lines(change: Callable[[random.Random, list[bytes]], None]) -> Breaker:
    """Change the lines of a file; the first one is a header, or a row."""

    def broken(rng: random.Random, data: bytes) -> bytes:
        lines = data.rstrip(b"\n").split(b"\n")
        change(rng, lines)
        return b"\n".join(lines) + b"\n"

    return broken


def _replace_line(*choices: bytes) -> Breaker:
    def change(rng: random.Random, lines: list[bytes]) -> None:
        lines[rng.randrange(1, len(lines))] = rng.choice(choices)

    return _lines(change)


def _in_json(change: Callable[[random.Random, dict[str, Any]], object]) -> Breaker:
    def broken(rng: random.Random, data: bytes) -> bytes:
        values = json.loads(data)
        change(rng, values)
        return json.dumps(values).encode()

    return broken


def _set_in_row(name: str, *values: Any) -> Breaker:
    """A row of a JSONL file with another value."""

    def change(rng: random.Random, lines: list[bytes]) -> None:
        at = rng.randrange(len(lines))
        lines[at] = json.dumps(json.loads(lines[at]) | {name: rng.choice(values)}).encode()

    return _lines(change)


def _header(change: Callable[[random.Random, dict[str, Any]], object]) -> Breaker:
    """A safetensors file with another header."""

    def broken(rng: random.Random, data: bytes) -> bytes:
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + length])
        change(rng, header)
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + data[8 + length :]

    return broken


def _tensor(rng: random.Random, header: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = header[rng.choice([name for name in header if name != "__metadata__"])]
    return found


NOT_UTF8 = b"prompt,label\n\xff\xfe\xfd,positive\n"
EMPTY = (b"", b"\n\n", b"\xef\xbb\xbf", b"   ")
DEEP = b"[" * 100_000

BREAKERS: dict[str, Sequence[Breaker]] = {
    "csv": (
        *map(_whole, EMPTY),
        _whole(NOT_UTF8),
        _whole(b"prompt,label\n"),
        _replace_line(b'"never closed,positive,3', b"too,many,fields,in,this,row,x,y"),
        _replace_line(b",positive,1", b"   ,negative,2", b"a prompt,,3", b"\xff\xff,positive,4"),
        _lines(lambda rng, lines: lines.__setitem__(0, b"prompt,prompt,pair")),
        _lines(lambda rng, lines: lines.__setitem__(0, b"question,label,pair")),
    ),
    "jsonl": (
        *map(_whole, EMPTY),
        _whole(DEEP),
        _whole(b'{"a":' * 50_000),
        _replace_line(b"{", b"[1]", b"3", b'"text"', b"null", b"{}", b'{"prompt": 1}', b"\xff"),
        _replace_line(b'{"prompt": "a", "prompt": "b", "label": "positive"}', DEEP),
        _set_in_row("prompt", "", "  ", "\u200b", 3, [], {}, None, [["a"]], [{"role": "x"}]),
        _set_in_row("label", "", 7, [], {}, "\u200b", 1e308),
        _set_in_row("response", 3, [], {"a": 1}),
    ),
    "parquet": (
        *map(_whole, EMPTY),
        _whole(b"PAR1"),
        _whole(b"PAR1" + b"\x00" * 40 + b"PAR1"),
        lambda rng, data: data[: rng.randrange(4, len(data) - 8)],
    ),
    "yaml": (
        _whole(b"- a\n- b\n"),
        _whole(b"{"),
        _whole(b"3\n"),
        _whole(b"a: !!python/object/apply:os.system ['touch x']\n"),
        _whole(b"a: &a [x, x]\n" + b"".join(b"b%d: [*a, *a, *a]\n" % i for i in range(200))),
        _whole(b"? [a, b]\n: c\n"),
        _whole(b"1: 2\n"),
        _whole(b"when: 2020-01-01\n"),
        _whole(b"a: " + DEEP),
        _whole(b"\xff\xfe"),
        _whole(b"name: a\nname: b\n"),
        _whole(b"surprise: true\n"),
        _whole(b"train: {rounds: 9" + b"9" * 5000 + b"}\n"),
    ),
    "adapter": (
        *map(_whole, EMPTY),
        _whole(b"[]"),
        _whole(DEEP),
        _in_json(lambda rng, v: v.update(peft_type=rng.choice(["IA3", 3, None, "lora", []]))),
        _in_json(lambda rng, v: v.update(r=rng.choice([0, -1, 10**9, "8", None, 1.5, []]))),
        _in_json(lambda rng, v: v.update(target_modules=rng.choice([".*", ["("], [3], 7, ["no"]]))),
        _in_json(lambda rng, v: v.update(lora_alpha=rng.choice(["x", [], float("nan"), -1]))),
        _in_json(lambda rng, v: v.update(task_type=rng.choice(["SEQ_CLS", 3, "os.system"]))),
        _in_json(lambda rng, v: v.update(auto_mapping={"parent_library": "os"})),
        _in_json(lambda rng, v: v.update(megatron_config={"a": 1}, megatron_core="os")),
        _in_json(lambda rng, v: v.update(corda_config={"cache_file": "/etc/passwd"})),
        _in_json(lambda rng, v: v.update(surprise={"a": 1})),
        _in_json(lambda rng, v: v.pop("peft_type")),
    ),
    "safetensors": (
        *map(_whole, EMPTY),
        _whole(struct.pack("<Q", 1 << 62) + b"{}"),
        _whole(struct.pack("<Q", 2) + b"{}"),
        lambda rng, data: data[: rng.randrange(1, len(data) - 1)],
        lambda rng, data: data + b"more",
        _header(lambda rng, h: _tensor(rng, h).update(dtype=rng.choice(["F99", "I8", 3, None]))),
        _header(lambda rng, h: _tensor(rng, h).update(shape=rng.choice([[-1], [1 << 62], 3, []]))),
        _header(lambda rng, h: _tensor(rng, h).update(data_offsets=[0, 1 << 62])),
        _header(lambda rng, h: h.pop(rng.choice([k for k in h if k != "__metadata__"]))),
        _header(
            lambda rng, h: h.update(surprise={"dtype": "F32", "shape": [0], "data_offsets": [0, 0]})
        ),
        lambda rng, data: data[:-64] + b"\xff" * 64,  # NaN
    ),
    "json": (
        *map(_whole, EMPTY),
        _whole(b"[]"),
        _whole(b"3"),
        _whole(DEEP),
        _whole(b"{" * 1000),
        lambda rng, data: data[: rng.randrange(1, len(data) // 2)],
        lambda rng, data: b"\xff" + data,
    ),
    "gguf": (
        *map(_whole, EMPTY),
        _whole(b"GGUF"),
        _whole(b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 1 << 60)),
        _whole(b"GGUF" + struct.pack("<IQQ", 99, 1, 1)),
        lambda rng, data: data[: rng.randrange(8, len(data) - 64)],
        lambda rng, data: b"GGML" + data[4:],
    ),
    "template": (
        _whole(b""),
        _whole(b"no messages"),
        _whole(b"{% for"),
        _whole(b"{{ messages.__class__.__mro__[1].__subclasses__() }}"),
        _whole(b"{% for i in range(10**9) %}{% for j in range(10**9) %}{% endfor %}{% endfor %}"),
        _whole(b"{% set x = 'a' * 10**10 %}{{ x }}"),
        _whole(b"{{ raise_exception('no') }}"),
        _whole(b"{{ 1 / 0 }}"),
        _whole(b"{% include '/etc/passwd' %}"),
        _whole(b"{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"),
        _whole(b"\xff\xfe"),
    ),
}
