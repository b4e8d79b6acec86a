from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from retouch.models.oom import is_out_of_memory, split_on_oom


def test_only_errors_about_memory_count_as_such() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError())
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shapes do not match"))


def test_other_errors_are_not_retried() -> None:
    def run(rows: Sequence[int]) -> list[int]:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        split_on_oom(run, [1, 2])


def test_parts_keep_the_order() -> None:
    def run(rows: Sequence[int]) -> list[int]:
        if len(rows) > 2:
            raise MemoryError
        return [10 * row for row in rows]

    assert split_on_oom(run, range(7)) == [10 * i for i in range(7)]
