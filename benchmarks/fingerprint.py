"""Record the adapters and metrics of edits of `pocket`, and check that they have not changed.

    python -m benchmarks.fingerprint --check benchmarks/fingerprint.json [--only pocket-safety]
    python -m benchmarks.fingerprint --write FILE [--adapters-only]

Edits `pocket` with the defaults and seed 0: `pocket-safety`, `pocket-truthfulness` and
`pocket-tone` raised, `pocket-gender-bias` lowered. The safety edit is measured on all suites unless
`--adapters-only` is given.
The file holds the SHA-256 of each adapter's weights and the metrics. `--check` prints the metrics
whose values differ and says which of them are outside of the recorded 95 % interval; the exit code
is 1 where an adapter differs, since a refactoring must not change one bit of it. It takes minutes.

Bits depend on the machine: results are comparable for the same torch version, the same kind of
processor and the same number of threads. The latter is recorded and set by `--check`.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

import retouch
from benchmarks.common import SEED, argument_parser, describe_machine, parse_names
from retouch.core.serialization import from_plain, to_plain
from retouch.core.types import Direction, Record, Score

EDITS: dict[str, Direction] = {
    "pocket-safety": "raise",
    "pocket-truthfulness": "raise",
    "pocket-gender-bias": "lower",
    "pocket-tone": "raise",
}
MEASURED = "pocket-safety"
WEIGHTS = Path("adapter", "adapter_model.safetensors")
ENVIRONMENT = ("torch", "cpu", "threads")  # what the bits of a result depend on


@dataclass(frozen=True)
class Fingerprint:
    """The adapters and metrics of the edits.

    Attributes:
        environment: torch version, processor and threads of the machine.
        adapters: the SHA-256 of each adapter's weights, by the name of the edit.
        metrics: the metrics of the measured edit; empty if none was measured.
    """

    environment: Mapping[str, Any]
    adapters: Mapping[str, str]
    metrics: tuple[Record, ...]


@dataclass(frozen=True)
class Difference:
    """A value of a metric that is not the recorded one.

    Attributes:
        name: `suite/metric`, and whether it is the base model's or the edited one's.
        recorded: the recorded score; None where the metric was not recorded.
        found: the present score; None where the metric was not measured.
    """

    name: str
    recorded: Score | None
    found: Score | None

    @property
    def outside(self) -> bool:
        """Whether the value is outside of the recorded 95 % interval, or one of the two missing."""
        if self.recorded is None or self.found is None:
            return True
        return not self.recorded.low <= self.found.value <= self.recorded.high

    def row(self) -> str:
        """A row of the table."""
        recorded, found = self.recorded, self.found
        interval = "" if recorded is None else f"{recorded.low:g} to {recorded.high:g}"
        values = ["-" if one is None else f"{one.value:g}" for one in (recorded, found)]
        result = "OUTSIDE" if self.outside else "inside"
        if recorded is None or found is None:
            result = "NOT MEASURED" if found is None else "NOT RECORDED"
        return f"| {' | '.join([self.name, *values, interval, result])} |"


def hash_weights(file: Path) -> str:
    """SHA-256 of a safetensors file's tensors: name, shape and bytes, in the order of the names.

    The file's own bytes are not comparable: the order of its header's entries is not fixed.
    """
    digest = hashlib.sha256()
    with safe_open(file, "pt") as tensors:
        for name in sorted(tensors.keys()):
            tensor = tensors.get_tensor(name).contiguous()
            digest.update(f"{name}{tuple(tensor.shape)}".encode())
            digest.update(tensor.view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def run_edits(names: Iterable[str], *, measure: bool) -> Fingerprint:
    """Make the named edits in a temporary folder; `measure` whether one of them is measured."""
    adapters: dict[str, str] = {}
    metrics: tuple[Record, ...] = ()
    with tempfile.TemporaryDirectory(prefix="retouch-") as folder:
        for name in names:
            suites = "all" if measure and name == MEASURED else "none"
            result = retouch.edit(
                "pocket",
                concept=name,
                direction=EDITS[name],
                seed=SEED,
                config={"evaluation": {"suites": suites}},
                output_dir=Path(folder, name),
            )
            adapters[name] = hash_weights(result.path / WEIGHTS)
            metrics += tuple(result.metrics)
            print(f"{name}: {adapters[name][:16]}", file=sys.stderr, flush=True)
    machine = describe_machine("cpu")
    return Fingerprint({key: machine[key] for key in ENVIRONMENT}, adapters, metrics)


def write_fingerprint(file: Path, fingerprint: Fingerprint) -> None:
    """Write a fingerprint as JSON."""
    file.write_text(json.dumps(to_plain(fingerprint), indent=1) + "\n", "utf-8")


def read_fingerprint(file: Path) -> Fingerprint:
    """Read what `write_fingerprint` wrote.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no fingerprint.
    """
    return from_plain(Fingerprint, json.loads(file.read_text("utf-8")))


def changed_adapters(recorded: Fingerprint, found: Fingerprint) -> list[str]:
    """The edits of `found` whose adapters are not those that were recorded."""
    return [
        name for name, digest in found.adapters.items() if recorded.adapters.get(name) != digest
    ]


def changed_metrics(recorded: Sequence[Record], found: Sequence[Record]) -> list[Difference]:
    """Every value that differs, of the base model and of the edited one, in the recorded order."""
    before, after = _scores(recorded), _scores(found)
    return [
        Difference(name, before.get(name), after.get(name))
        for name in dict.fromkeys((*before, *after))
        if before.get(name) != after.get(name)
    ]


def _scores(records: Iterable[Record]) -> dict[str, Score]:
    scores = {}
    for record in records:
        for model, score in (("base", record.before), ("edited", record.after)):
            if score is not None:
                scores[f"{record.suite}/{record.metric} ({model})"] = score
    return scores


def compare(recorded: Fingerprint, found: Fingerprint) -> tuple[str, bool]:
    """A report of all differences, and whether all adapters are the recorded ones.

    Metrics are compared only if they were measured.
    """
    changed, total = changed_adapters(recorded, found), len(found.adapters)
    lines = [f"{total - len(changed)} of {total} adapters bit-identical"]
    lines += [f"  DIFFERENT: {name}" for name in changed]
    for key, value in recorded.environment.items():
        if found.environment.get(key) != value:
            lines.append(
                f"  {key}: recorded {value}, here {found.environment.get(key)}; bits may differ"
            )
    if found.metrics:
        differences = changed_metrics(recorded.metrics, found.metrics)
        num_scores = len(_scores(found.metrics))
        outside = sum(one.outside for one in differences)
        lines.append(
            f"{len(differences)} of {num_scores} metric values differ, "
            f"{outside} outside of the recorded 95 % interval"
        )
        if differences:
            lines += ["", "| metric | recorded | here | 95 % interval | |", "|---|---|---|---|---|"]
            lines += [one.row() for one in differences]
    return "\n".join(lines), not changed


def main(words: Sequence[str] | None = None) -> int:
    """Parse the options, run the edits, write or compare; the exit code."""
    parser = argument_parser(__doc__)
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--write", type=Path, metavar="FILE", help="record the fingerprint")
    mode.add_argument("--check", type=Path, metavar="FILE", help="compare with a recorded one")
    parser.add_argument("--only", default="", metavar="NAME,...", help=f"of {', '.join(EDITS)}")
    parser.add_argument("--adapters-only", action="store_true", help="do not measure")
    options = parser.parse_args(words)
    names = parse_names(parser, "--only", options.only, list(EDITS)) or list(EDITS)
    recorded = None
    if options.check is not None:  # read first: a wrong file should not cost minutes
        try:
            recorded = read_fingerprint(options.check)
        except (OSError, ValueError) as error:
            parser.error(f"--check {options.check}: {error}")
        torch.set_num_threads(int(recorded.environment["threads"]))
    found = run_edits(names, measure=not options.adapters_only)
    if recorded is None:
        write_fingerprint(options.write, found)
        print(f"Written to {options.write}.")
        return 0
    report, identical = compare(recorded, found)
    print(report)
    return 0 if identical else 1


if __name__ == "__main__":
    sys.exit(main())
