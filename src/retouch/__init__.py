"""Edit one concept inside an open language model and leave the rest as it was.

```python
import retouch

result = retouch.edit("pocket", concept="pocket-safety", direction="raise")
print(result.metrics)
```

The names below are imported on first use, so that `import retouch` is fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retouch.comparison.compare import compare
    from retouch.concepts.concept import Concept, Context, Demonstration
    from retouch.contrast.report import ContrastReport
    from retouch.core.config import (
        AdversaryConfig,
        DataConfig,
        DiscriminatorConfig,
        EditConfig,
        EvaluationConfig,
        LoadConfig,
        LoraConfig,
        LossConfig,
        TrainConfig,
    )
    from retouch.evaluation.judge_loading import load_judge
    from retouch.evaluation.outcome import Outcome
    from retouch.models.editable_model import EditableModel
    from retouch.models.load import load
    from retouch.pipeline import check_contrast, edit, evaluate, resume
    from retouch.result import EditResult

__version__ = "0.1.0"

_GROUPS = (
    "AdversaryConfig",
    "DataConfig",
    "DiscriminatorConfig",
    "EditConfig",
    "EvaluationConfig",
    "LoadConfig",
    "LoraConfig",
    "LossConfig",
    "TrainConfig",
)
_MODULES = {
    "Concept": "retouch.concepts.concept",
    "Context": "retouch.concepts.concept",
    "ContrastReport": "retouch.contrast.report",
    "Demonstration": "retouch.concepts.concept",
    "EditResult": "retouch.result",
    "EditableModel": "retouch.models.editable_model",
    "Outcome": "retouch.evaluation.outcome",
    "check_contrast": "retouch.pipeline",
    "compare": "retouch.comparison.compare",
    "edit": "retouch.pipeline",
    "evaluate": "retouch.pipeline",
    "load": "retouch.models.load",
    "load_judge": "retouch.evaluation.judge_loading",
    "resume": "retouch.pipeline",
    **dict.fromkeys(_GROUPS, "retouch.core.config"),
}
__all__ = [  # noqa: RUF022
    "edit",
    "check_contrast",
    "resume",
    "evaluate",
    "compare",
    "load",
    "load_judge",
    "Concept",
    "Context",
    "Demonstration",
    "EditableModel",
    "EditConfig",
    "LoadConfig",
    "DataConfig",
    "LoraConfig",
    "TrainConfig",
    "LossConfig",
    "DiscriminatorConfig",
    "AdversaryConfig",
    "EvaluationConfig",
    "EditResult",
    "ContrastReport",
    "Outcome",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
