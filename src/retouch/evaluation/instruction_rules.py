"""Automatic rules that decide whether a response follows an instruction.

A rule is a text such as `language:fr` or `max_sentences:1,max_words:30`: checks with their
arguments, all of which must hold. `find_rule` reads one from an instruction. The checks look at the
form of a response, not at its content.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from itertools import pairwise

from retouch.core.errors import ConfigError, choices

SHORT_WORDS = 30  # a short sentence has at most that many
UNFINISHED_WORDS = 30  # a longer text without a full stop is no sentence, but a cut response

_LANGUAGES = {
    "english": "en",
    "french": "fr",
    "german": "de",
    "italian": "it",
    "portuguese": "pt",
    "spanish": "es",
}
_NAMES = {code: name.capitalize() for name, code in _LANGUAGES.items()}
# Frequent words; those that several languages share count for each of them.
_STOP_WORDS = {
    code: frozenset(words.split())
    for code, words in {
        "en": "the of and to in is are was were that it for on with as by this you your be or an "
        "from at which have has not can will they their its but if there what i we he she do",
        "fr": "le la les de des du un une et est sont dans en que qui pour sur avec par ce cette "
        "vous il elle ils ne pas plus au aux se son sa ses ou mais être c'est je nous votre à l'on",
        "de": "der die das und ist sind in den von zu mit auf für im ein eine einer einem einen "
        "nicht dem des sich auch es als an werden wird sie ich du wir oder aber kann bei nach wie",
        "it": "il lo la gli le di del della dei delle un una e è sono in che per con su da non "
        "si come più al alla ma anche questo questa nel nella i tuo mi ci io o degli",
        "pt": "o a os as de do da dos das um uma e é são em no na nos nas que para por com não "
        "se como mais ao mas também este esta seu sua você eu ou foi ser pelo pela",
        "es": "el la los las de del un una y es son en que por para con no se como más al lo su "
        "sus pero también este esta o fue ser muy está puede usted yo mi tu hay donde",
    }.items()
}
MIN_STOP_WORDS = 0.12  # of all words; running text has a third

_NUMBERS = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "ten": 10, "twenty": 20}
_NUMBER = rf"(\d+|an?|single|{'|'.join(_NUMBERS)})"
_MOST = r"(?:at most|no more than|not more than|up to|within|under|below|(?:fewer|less) than)"
_ABBREVIATIONS = re.compile(
    r"\b(?:e\.g|i\.e|etc|vs|mr|mrs|ms|dr|prof|st|no|approx|u\.s|u\.k|p\.m|a\.m|[a-z])\.(?=\s)", re.I
)
_END = re.compile(r"[.!?…]+[\"'”’)\]*]*(?=\s|$)")
_BULLET = re.compile(r"^\s*(?:[-*•‣–]|\d+[.)])\s+\S")
_NEGATION = re.compile(r"\b(?:no|not|never|don't|do not|without|avoid|stop)\b[^.,;]{0,20}$")


def count_sentences(text: str) -> int:
    """The number of sentences; every line is at least one."""
    lines = [_ABBREVIATIONS.sub(lambda m: m[0][:-1], line) for line in text.splitlines()]
    return sum(
        max(1, sum(bool(part.strip()) for part in _END.split(line)))
        for line in lines
        if line.strip()
    )


def count_words(text: str) -> int:
    """The number of words, numbers included."""
    return len(re.findall(r"\w+(?:['’.,-]\w+)*", text))


def find_language(text: str) -> str:
    """The code of a text's language by its frequent words, or an empty string."""
    words = re.findall(r"[^\W\d_]+(?:['’][^\W\d_]+)*", text.casefold().replace("’", "'"))
    # French and Italian elide: l'eau, c'est.
    words = [part for word in words for part in {word, *word.split("'")}]
    counts = {code: sum(word in stop for word in words) for code, stop in _STOP_WORDS.items()}
    best, second = sorted(counts, key=lambda code: counts[code], reverse=True)[:2]
    clear = counts[best] > counts[second] and counts[best] >= MIN_STOP_WORDS * len(words)
    return best if clear else ""


def _has_sentences(text: str, most: str) -> bool:
    ended = _END.search(text.rstrip()[-4:]) is not None
    finished = ended or count_words(text) <= UNFINISHED_WORDS
    return finished and 1 <= count_sentences(text) <= int(most)


def _is_json(text: str, _: str) -> bool:
    fenced = re.fullmatch(r"\s*```(?:json)?\s*(.*?)\s*```\s*", text, re.S)
    try:
        return isinstance(json.loads(fenced[1] if fenced else text), dict | list)
    except ValueError:
        return False


def _is_list(text: str, _: str) -> bool:
    lines = [line for line in text.splitlines() if line.strip()]
    # An introduction and a closing line may stand beside the list.
    marked = [_BULLET.match(line) is not None for line in lines]
    return any(a and b for a, b in pairwise(marked)) and sum(marked) >= len(lines) - 2


# Name -> (check of a response and an argument, description with the argument).
_CHECKS: dict[str, tuple[Callable[[str, str], bool], str]] = {
    "max_sentences": (_has_sentences, "sentences: at most {}"),
    "max_words": (lambda text, most: 1 <= count_words(text) <= int(most), "words: at most {}"),
    "language": (lambda text, code: find_language(text) == code, "in {}"),
    "uppercase": (lambda text, _: text.upper() == text != text.lower(), "in capital letters"),
    "lowercase": (lambda text, _: text.lower() == text != text.upper(), "in lower case"),
    "list": (_is_list, "a list with bullets or numbers"),
    "json": (_is_json, "a JSON object or array"),
    "ends_with": (
        lambda text, mark: text.rstrip(" \n\"'”’)*").endswith(mark),
        "its last character is `{}`",
    ),
}
# The checks that the beginning of a response decides.
_DECIDED_EARLY = {"language", "list", "uppercase", "lowercase"}


def follows(rule: str, response: str) -> bool:
    """Whether a response passes every check of a rule; an empty one passes none.

    Raises:
        ConfigError: the rule has an unknown check.
    """
    return bool(response.strip()) and all(
        _CHECKS[name][0](response, argument) for name, argument in parse_rule(rule)
    )


def parse_rule(rule: str) -> list[tuple[str, str]]:
    """The checks of a rule with their arguments.

    Raises:
        ConfigError: the rule is empty, or has an unknown check or a wrong argument.
    """
    parsed = []
    for part in rule.split(","):
        name, _, argument = part.strip().partition(":")
        if name not in _CHECKS:
            message = f"The rule `{rule}` has the unknown check `{name}`."
            raise ConfigError(message, choices(name, "checks", _CHECKS), code="rule-unknown")
        number, language = name.startswith("max_"), name == "language"
        if (number and not argument.isdigit()) or (language and argument not in _STOP_WORDS):
            message = f"The check `{name}` of the rule `{rule}` has the argument `{argument}`."
            hint = f"Give one of {', '.join(_STOP_WORDS)}." if language else "Give a number."
            raise ConfigError(message, hint, code="rule-unknown")
        parsed.append((name, argument))
    return parsed


def is_decided_early(rule: str) -> bool:
    """Whether the beginning of a response shows if it follows a rule, so that it may be cut.

    So it is where likelihood decides (an empty rule).
    """
    return {name for name, _ in parse_rule(rule)} <= _DECIDED_EARLY if rule else True


def describe_rule(rule: str) -> str:
    """A rule in words: `sentences: at most 1, words: at most 30`."""
    return ", ".join(
        _CHECKS[name][1].format(_NAMES.get(argument, argument))
        for name, argument in parse_rule(rule)
    )


def find_rule(instruction: str) -> str:
    """The rule that an instruction's words ask for, or an empty string.

    A part of the instruction that no check covers is ignored; a negated one gives no rule.
    """
    text = instruction.casefold().replace("’", "'")
    found: dict[str, str] = {}

    def match(pattern: str) -> re.Match[str] | None:
        hit = re.search(pattern, text)
        # "No more than" is a maximum, and no negation.
        return None if hit is None or _NEGATION.search(text[: hit.start()]) else hit

    if hit := match(rf"(?:{_MOST} )?\b{_NUMBER}(?: [\w-]+,?){{0,3}}? sentences?\b"):
        found["max_sentences"] = str(_number(hit[1]))
        if re.search(r"\b(?:short|brief|concise)\b", hit[0]):
            found["max_words"] = str(SHORT_WORDS)
    if hit := match(rf"{_MOST} {_NUMBER} words?\b") or match(rf"\b{_NUMBER}[ -]words?\b"):
        found["max_words"] = str(_number(hit[1]))
    if hit := match(rf"\b(?:in|into|speak|use) (?:\w+ )?({'|'.join(_LANGUAGES)})\b"):
        found["language"] = _LANGUAGES[hit[1]]
    if match(r"\b(?:upper ?-?case|all caps|capitals|capital letters|block letters)\b"):
        found["uppercase"] = ""
    if match(r"\blower ?-?case\b"):
        found["lowercase"] = ""
    if match(r"\bbullets?\b|\b(?:bulleted|bullet-point|numbered) list|\b(?:as|in) a list\b"):
        found["list"] = ""
    if match(r"\bjson\b"):
        found["json"] = ""
    if match(r"\b(?:end|finish|close|conclude)\w*\b.{0,30}\bquestion\b"):
        found["ends_with"] = "?"
    if match(r"\b(?:end|finish|close|conclude)\w*\b.{0,30}\bexclamation"):
        found["ends_with"] = "!"
    return ",".join(f"{name}:{argument}".rstrip(":") for name, argument in found.items())


def _number(word: str) -> int:
    return int(word) if word.isdigit() else _NUMBERS.get(word, 1)
