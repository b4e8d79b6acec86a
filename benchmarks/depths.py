"""Training steps on models of different depths, with the segment held the same."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from benchmarks.loops import seat
from benchmarks.workload import Case, draw_prompts, llama, middle

DEPTHS = (8, 16, 32, 64)
ROUNDS = 6  # the first warms up


def case_of(depth: int) -> Case:
    """A narrow Llama of so many blocks, four of them in the segment; hardly any discriminator."""
    blocks = middle(depth)
    model = llama(depth, 256, 704, 1024, 4)
    plain = Case(f"depth-{depth}", blocks, blocks, model, prompts=32, tests=2, batch=16)
    return replace(plain, rounds=ROUNDS, epochs=4, discriminator_epochs=1)


def step_seconds(depths: Sequence[int] = DEPTHS, device: str = "cpu") -> dict[int, float]:
    """By depth the seconds of a training step: the fastest round of the game over its steps.

    A round reads the states of its prompts too, and trains a discriminator for one step. The
    models take turns, round by round, so that all of them have what the machine gives.
    """
    games = {}
    for depth in depths:
        case = case_of(depth)
        editable = case.load(device)
        games[depth] = seat(
            editable, case, draw_prompts(case, editable.model.config.vocab_size)
        ).train()
    best = dict.fromkeys(depths, float("inf"))
    for number in range(ROUNDS):
        for depth, game in games.items():
            began = time.perf_counter()
            next(game)
            if number:
                best[depth] = min(best[depth], (time.perf_counter() - began) / case_of(depth).steps)
    return best
