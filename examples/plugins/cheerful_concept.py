"""A concept in another package: the folder `cheerful_capitals`, a pack, beside this module.

    [project.entry-points."retouch.concepts"]
    cheerful-capitals = "my_package.cheerful_concept:folder"

The name of the entry point is the `name` in the pack's concept.yaml.
"""

from __future__ import annotations

from importlib.resources import files
from importlib.resources.abc import Traversable


def folder() -> Traversable:
    """The folder with concept.yaml, train.jsonl, validation.jsonl and test.jsonl."""
    return files(__package__) / "cheerful_capitals"
