"""Edit one concept inside an open language model and leave the rest as it was.

```python
import retouch

run = retouch.edit("pocket", concept="safety", direction="raise")
print(run.metrics)
```

The names below are loaded when they are first used, so that `import retouch` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retouch.comparison.compare import compare
    from retouch.core.types import Concept
    from retouch.models.load import load
    from retouch.pipeline import Run
    from retouch.pipeline import edit_model as edit
    from retouch.pipeline import evaluate_model as evaluate

__version__ = "0.1.0"
__all__ = ["Concept", "Run", "__version__", "compare", "edit", "evaluate", "load"]

_HOMES = {
    "Concept": ("retouch.core.types", "Concept"),
    "Run": ("retouch.pipeline", "Run"),
    "compare": ("retouch.comparison.compare", "compare"),
    "edit": ("retouch.pipeline", "edit_model"),
    "evaluate": ("retouch.pipeline", "evaluate_model"),
    "load": ("retouch.models.load", "load"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _HOMES[name]
    value = getattr(import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
