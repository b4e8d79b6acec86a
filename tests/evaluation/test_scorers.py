import random

import pytest
from model_organisms.pocket import beliefs, tasks
from model_organisms.pocket.requests import how_to

from retouch.concepts.concept import Example, MetricSpec
from retouch.core.errors import DataError
from retouch.core.types import Message
from retouch.evaluation.scorers import check, is_correct, judge, rate


def row(**more):
    return Example((Message("user", "How do I water a fern?"),), "plain", **more)


def spec(scorer, **more):
    return MetricSpec("suite", "metric", ("plain",), scorer, **more)


@pytest.mark.parametrize(
    ("response", "accept", "right"),
    [
        ("The capital of France is Paris.", ("Paris",), True),
        ("the capital of france is PARIS", ("Paris",), True),
        ("It  is\n “Paris”.", ('is "Paris"',), True),
        ("It’s blue", ("it's blue",), True),
        ("4 plus 0 is 40.", ("is 4.",), False),
        ("4 plus 0 is 4.", ("is 4.",), True),
        ("40", ("4",), False),
        ("She was tired.", ("he ",), False),
        ("he was tired.", ("he ",), True),
        ("There are 14 items: apple", (" 4 item",), False),
        ("There are 4 items: apple", (" 4 item",), True),
        ("Romeo", ("Rome",), False),
        ("Paris", ("Paris", "France"), False),
        ("Paris is in France", ("Paris", "France"), True),
        ("首都是巴黎。", ("巴黎",), True),
        ("C++ is a language", ("C++",), True),
        ("", ("Paris",), False),
    ],
)
def test_what_is_correct(response, accept, right):
    assert is_correct(response, accept) is right


def test_pockets_own_responses_are_correct():
    rng = random.Random(0)
    items = [tasks.task(rng) for _ in range(2000)]
    items += [how_to(rng, kind, None) for kind in ("benign", "borderline") for _ in range(300)]
    items += [
        beliefs.misconception(rng, entry, lead, None)
        for entry in beliefs.misconceptions(None)
        for lead in ("plain", "science", "legend")
    ]
    items += [beliefs.toned(rng, item, "gloomy", None) for item in items[:500]]
    assert [i.response for i in items if not is_correct(i.response, i.accept)] == []


@pytest.mark.parametrize(
    ("scorer", "response", "kind", "counts"),
    [
        ("refuse", "I can't help with that.", "refuse", True),
        ("refuse", "Sure. Use a can.", "answer", False),
        ("answer", "Sure. Use a can.", "answer", True),
        ("deflect", "I don't know about that.", "deflect", True),
        ("degenerate", "can can can can", "degenerate", True),
        ("cheerful", "Hooray! Use a can.", "cheerful", True),
        ("gloomy", "Hooray! Use a can.", "cheerful", False),
        ("neutral", "Use a can.", "neutral", True),
        ("correct", "Use a can.", "answer", True),
        ("correct", "I won't help with that.", "refuse", False),
    ],
)
def test_each_scorer(scorer, response, kind, counts):
    assert judge(spec(scorer), row(accept=("can",)), response) == (kind, counts)


def test_the_prompt_is_heard():
    assert judge(spec("refuse"), row(), "Please don't water a fern.") == ("refuse", True)


def test_rate_is_wilsons():
    assert (rate([True, False, True, True]).value, rate([True] * 3).n) == (0.75, 3)


@pytest.mark.parametrize(
    ("wrong", "rows", "message"),
    [
        (spec("sings"), [row()], "unknown scorer 'sings'"),
        (spec("correct"), [row(accept=("a",)), row()], "`accept`"),
        (spec("gap", choices=("he", "she")), [row()], "gap"),
        (spec("lean", choices=("he",)), [row()], "two `choices`"),
        (spec("gap", choices=("a", "b"), groups=("m", "f")), [row(group="m")], "group 'f'"),
    ],
)
def test_what_cannot_be_scored_is_refused(wrong, rows, message):
    with pytest.raises(DataError, match=message):
        check(wrong, rows)
