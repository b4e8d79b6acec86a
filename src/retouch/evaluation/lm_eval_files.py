"""The task files of lm-eval: which are run, what is refused of them, and how they are loaded."""

from __future__ import annotations

import difflib
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import (
    AbstractContextManager,
    contextmanager,
)
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from retouch.core.errors import ConfigError, DataError, code_list
from retouch.core.files import MAX_CONFIG, read_text
from retouch.core.types import Progress


def find_tasks(
    tasks: Sequence[str], include_path: Path | None, source: str
) -> tuple[Any, list[str]]:
    """lm-eval's task manager, and the names of the tasks in its index; no data is loaded.

    Raises:
        ConfigError: a task does not exist.
        DataError: a task does not exist, and a file of the folder is no YAML.
    """
    manager_type = import_module("lm_eval.tasks").TaskManager
    options: dict[str, Any] = {"metadata": {"pretrained": source}}
    manager = None
    if include_path is not None:
        options["include_path"] = str(include_path)
        manager = manager_type(**options, include_defaults=False)
    if manager is None or _reachable(manager.task_index, tasks)[1]:
        manager = manager_type(**options)  # reads the thousands of files of the package
    matches = {name: manager.match_tasks([name]) for name in tasks}
    unknown = [name for name, found in matches.items() if not found]
    if not unknown:
        return manager, list(dict.fromkeys(name for found in matches.values() for name in found))
    for file in sorted(include_path.rglob("*.yaml")) if include_path else ():
        _compose(file)  # lm-eval skips files with errors, and the task may be in one
    known = manager.all_tasks
    close = [near for name in unknown for near in difflib.get_close_matches(name, known, n=3)]
    hint = f"Did you mean {code_list(close)}? " if close else ""
    raise ConfigError(
        f"lm-eval has no task {code_list(unknown)}.",
        f"{hint}`lm-eval ls tasks` lists its tasks; `include_path` adds a folder of others.",
        code="task-unknown",
    )


def files_of_users(index: Mapping[str, Any], names: Iterable[str]) -> list[Path]:
    """The files of tasks and their members that are not of the package."""
    files = (Path(one.yaml_path) for one in _reachable(index, names)[0] if one.yaml_path)
    return sorted(file for file in files if not _is_shipped(file))


def _reachable(index: Mapping[str, Any], names: Iterable[str]) -> tuple[list[Any], list[str]]:
    """The entries of names and of all their members, and the names that are not in the index."""
    queue, found = list(names), {}
    missing: list[str] = []
    while queue:
        name = queue.pop()
        if name in found:
            continue
        if name not in index:
            missing.append(name)
            continue
        entry = found[name] = index[name]
        if entry.kind.name == "TAG":
            queue += entry.tags
        elif entry.kind.name == "GROUP":
            queue += _members((entry.cfg or {}).get("task"), index)
    return list(found.values()), missing


def _members(items: Any, index: Container[str]) -> Iterator[str]:
    """The names in the `task` list of a group, those of groups within it included."""
    for item in [items] if isinstance(items, str) else items or ():
        if isinstance(item, str):
            yield item
        elif "group" in item and item["group"] not in index:
            yield from _members(item.get("task"), index)
        else:
            yield item.get("group", item.get("task"))


def _is_shipped(file: Path) -> bool:
    """Whether a task file belongs to the package lm-eval."""
    tasks = Path(import_module("lm_eval.tasks.manager").__file__ or "").parent
    return file.resolve().is_relative_to(tasks.resolve())


def _compose(file: Path) -> Any:
    """The nodes of a YAML file, of which nothing is constructed.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return yaml.compose(read_text(file, MAX_CONFIG), Loader=yaml.SafeLoader)
    except (OSError, ValueError, yaml.YAMLError) as error:
        problem = " ".join(str(error).split())
        raise DataError(f"{file} cannot be read: {problem}.", code="task-unreadable") from None


def check_code(files: Iterable[Path]) -> None:
    """Check that task files run no code.

    Raises:
        ConfigError: one does.
        DataError: a file that one includes cannot be read.
    """
    import_module("lm_eval.api.metrics")  # registers lm-eval's own metrics
    metrics = import_module("lm_eval.api.registry").metric_registry
    seen: set[Path] = set()
    if code := next((one for file in files for one in _code_in(file, metrics, seen)), None):
        message = f"A task file would run code: {code}."
        hint = "Read the code, and pass `trust_remote_code=True` if you trust it."
        raise ConfigError(message, hint, code="task-code")


def _code_in(file: Path, metrics: Container[str], seen: set[Path]) -> Iterator[str]:
    """What a task file, and the files that it includes, would run as code."""
    file = file.resolve()
    if file in seen or _is_shipped(file):
        return
    seen.add(file)
    root = _compose(file)
    for node in _nodes(root, set()):
        line = f"{file}:{node.start_mark.line + 1}"
        tag = node.tag.removeprefix("tag:yaml.org,2002:")
        if tag == node.tag or tag.startswith("python"):
            yield f"`{node.tag}` in {line}"
        pairs = node.value if isinstance(node, yaml.MappingNode) else ()
        for key, value in ((key.value, value) for key, value in pairs):
            scalar = str(value.value) if isinstance(value, yaml.ScalarNode) else ""
            if key in ("custom_generate", "hf_evaluate", "trust_remote_code"):
                if scalar.lower() not in ("false", "no", "off", "null", "~"):
                    yield f"`{key}` in {line}"
            elif key == "dataset_path" and scalar == "pandas":
                yield f"pickled data in {line}"
            elif key == "metric_list" and isinstance(value, yaml.SequenceNode):
                for name in _scalars(value, "metric"):
                    if name not in metrics:
                        yield f"the metric {name}, which lm-eval would load as a script, in {line}"
            elif key == "include" and node is root:
                included = value.value if isinstance(value, yaml.SequenceNode) else [value]
                for one in included:
                    yield from _code_in(file.parent / str(one.value), metrics, seen)


def _nodes(node: Any, seen: set[int]) -> Iterator[Any]:
    """A YAML node and all nodes in it, each once."""
    if node is None or id(node) in seen:
        return
    seen.add(id(node))
    yield node
    for child in node.value if isinstance(node.value, list) else ():
        for one in child if isinstance(child, tuple) else (child,):
            yield from _nodes(one, seen)


def _scalars(sequence: Any, key: str) -> Iterator[str]:
    """The values of a key in a sequence of mappings."""
    for item in sequence.value:
        for name, value in item.value if isinstance(item, yaml.MappingNode) else ():
            if name.value == key and isinstance(value, yaml.ScalarNode):
                yield value.value


def load_tasks(manager: Any, names: Sequence[str], progress: Progress) -> list[Any]:
    """lm-eval's tasks and groups with their data.

    Raises:
        DataError: the data cannot be loaded, or a file is wrong.
        ConfigError: a task needs images or sound, or runs code that the model writes.
    """
    items: list[Any] = []
    for done, name in enumerate(names):
        progress("lm-eval: loading tasks", done, len(names))
        try:
            found = manager.load([name])
        except Exception as error:  # a task's own functions can raise anything
            problem = first_line(error)
            raise DataError(
                f"The task `{name}` cannot be loaded: {problem}.",
                "Its data is downloaded on first use; the documentation of lm-eval describes its "
                "file.",
                code="task-unloadable",
            ) from error
        group = found["groups"].get(name)
        items += [group] if group is not None else found["tasks"].values()
    for task in leaf_tasks(items).values():
        if getattr(task, "UNSAFE_CODE", False):
            message = f"The task `{task.task_name}` runs code that the model writes."
            hint = "Run it with lm-eval's own command, in a sandbox."
            raise ConfigError(message, hint, code="task-unsafe")
        if getattr(task, "MULTIMODAL", False):
            message = f"The task `{task.task_name}` needs images or sound."
            raise ConfigError(message, "Only text is supported.", code="task-multimodal")
    return items


def leaf_tasks(items: Iterable[Any]) -> dict[str, Any]:
    """The tasks by name, those in groups included."""
    leaves = (
        task
        for item in items
        for task in (item.get_all_tasks() if hasattr(item, "get_all_tasks") else (item,))
    )
    return {task.task_name: task for task in leaves}


def sandboxed_templates() -> AbstractContextManager[None]:
    """Evaluate the templates of tasks in Jinja's sandbox, which denies access to Python's types."""
    from jinja2.sandbox import SandboxedEnvironment

    utils = import_module("lm_eval.utils")
    sandbox = SandboxedEnvironment(
        loader=utils.env.loader,
        undefined=utils.env.undefined,
        keep_trailing_newline=utils.env.keep_trailing_newline,
    )
    sandbox.filters |= utils.env.filters
    return attribute(utils, "env", sandbox)


@contextmanager
def attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Set an attribute inside the context."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def first_line(error: BaseException) -> str:
    """The kind of an error and the first line of its message."""
    text = str(error).strip().partition("\n")[0].rstrip(".")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
