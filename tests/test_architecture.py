"""Properties of the source tree that no single module's test can hold."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "retouch"
OTHERS = {"benchmarks", "faults", "fuzz", "model_organisms", "real"}  # that are no packages
MAX_WHOLE_CONFIG = 8  # files that receive a whole EditConfig; the others receive one group


def _files() -> Iterator[tuple[str, ast.Module]]:
    for file in sorted(SOURCE.rglob("*.py")):
        yield str(file.relative_to(SOURCE)), ast.parse(file.read_text("utf-8"))


def _annotations(tree: ast.AST) -> Iterator[str]:
    """The annotations of all parameters and of the fields of classes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.arg) and node.annotation is not None:
            yield ast.unparse(node.annotation)
        elif isinstance(node, ast.ClassDef):
            for field in node.body:
                if isinstance(field, ast.AnnAssign):
                    yield ast.unparse(field.annotation)


def test_few_files_receive_the_whole_configuration() -> None:
    found = [
        name
        for name, tree in _files()
        if any("EditConfig" in annotation for annotation in _annotations(tree))
    ]
    assert len(found) <= MAX_WHOLE_CONFIG, found


def test_tests_mirror_the_source_tree() -> None:
    tests = Path(__file__).parent
    for folder in tests.iterdir():
        if folder.is_dir() and any(folder.glob("test_*.py")):
            known = {path.name for path in SOURCE.iterdir() if path.is_dir()}
            assert folder.name in known | OTHERS, folder


def test_no_test_imports_another_test() -> None:
    tests = Path(__file__).parent
    for file in tests.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            modules = []
            if isinstance(node, ast.ImportFrom):
                modules = [node.module or ""]
            elif isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            for module in modules:
                last = module.rpartition(".")[2]
                assert not last.startswith("test_"), f"{file}: {module}"


def test_importing_the_package_imports_no_heavy_library() -> None:
    code = (
        "import sys, retouch, retouch.cli.app; "
        "print(sorted({'torch', 'transformers', 'peft', 'numpy', 'rich', 'pandas', 'matplotlib'}"
        " & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
