"""A reporter in another package: the metrics of an edit as a CSV file in its run directory.

The package declares it in its pyproject.toml:

    [project.entry-points."retouch.reporters"]
    csv = "my_package.csv_reporter:metrics_csv"
"""

from __future__ import annotations

from retouch.reporting.report import FinishedEdit


def metrics_csv(edit: FinishedEdit) -> dict[str, str]:
    """One line for each metric: its name, and its values before and after the edit."""
    lines = ["suite,metric,before,after"]
    for record in edit.records:
        after = "" if record.after is None else record.after.value
        lines.append(f"{record.suite},{record.metric},{record.before.value},{after}")
    return {"metrics.csv": "\n".join(lines) + "\n"}
