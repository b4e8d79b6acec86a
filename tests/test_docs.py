"""The documentation: it builds, is up to date, its links exist and its commands parse."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import typer
from docs import reference

from retouch.cli.app import app

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
GENERATED = {DOCS / "reference" / name for name in ("configuration.md", "cli.md")}
PAGES = sorted(
    {
        *(
            ROOT / name
            for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "examples/README.md")
        ),
        *(page for page in DOCS.rglob("*.md") if "results" not in page.relative_to(DOCS).parts),
    }
    - GENERATED
)
TEXT = {page: page.read_text("utf-8") for page in PAGES}


def _name(page):
    return str(page.relative_to(ROOT))


def _blocks(text, languages):
    """The fenced blocks of some languages; `""` is a block without one."""
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S):
        if language in languages:
            yield block


def _commands():
    """Every command line of `retouch` in a page, `accelerate launch -m retouch` included."""
    for page, text in TEXT.items():
        for block in _blocks(text, ("", "bash", "sh", "console")):
            for line in block.replace("\\\n", " ").splitlines():
                if re.search(r"(^|\s)retouch\s", line) and "install" not in line:
                    words = shlex.split(line, comments=True)
                    yield page, words[words.index("retouch") + 1 :]


COMMANDS = list(_commands())


def test_generated_pages_are_up_to_date():
    assert reference.main(["--check"]) == 0, "run `python -m docs.reference`"


def test_check_reports_a_stale_page(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(reference, "FOLDER", tmp_path / "docs" / "reference")
    (tmp_path / "docs" / "reference").mkdir(parents=True)
    assert reference.main(["--check"]) == 1
    assert reference.main([]) == 0
    assert reference.main(["--check"]) == 0


@pytest.mark.slow
def test_site_builds_without_warnings_and_loads_nothing_from_the_network(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    pages = sorted(tmp_path.rglob("*.html"))
    assert {"index.html", "tutorial.html", "method.html"} <= {page.name for page in pages}
    urls = {url for page in pages for url in _resources(page.read_text("utf-8"))}
    assert not {url for url in urls if re.match(r"(https?:)?//", url)}
    method = (tmp_path / "method.html").read_text("utf-8")
    assert method.count("<math") > 20, "equations are MathML"
    assert "arithmatex" not in method, "no equation was left as LaTeX"


def _resources(html):
    """The addresses that a browser loads for a page: not those of links to click."""
    parser = _ResourceParser()
    parser.feed(html)
    return parser.found


class _ResourceParser(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if tag in ("script", "img", "iframe", "source") and values.get("src"):
            self.found.append(values["src"])
        if tag == "link" and values.get("rel") in ("stylesheet", "preload", "icon", "preconnect"):
            self.found.append(values["href"])


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_relative_links_exist(page):
    links = re.findall(r"\]\(([^)\s]+)\)", TEXT[page])
    files = {link.partition("#")[0] for link in links if not re.match(r"[a-z]+:|#", link)}
    missing = [file for file in sorted(files) if not (page.parent / file).exists()]
    assert not missing


def test_pages_have_commands():
    assert len(COMMANDS) > 30


def _parse(words):
    """Parse a command line of `retouch` without running it."""
    command = typer.main.get_command(app)
    context = command.make_context("retouch", list(words))
    while hasattr(command, "commands"):  # a group leaves its subcommand's words in the context
        left = [*context._protected_args, *context.args]
        name, command, left = command.resolve_command(context, left)
        context = command.make_context(name, left, parent=context)
    return command.name, context.params


@pytest.mark.parametrize(
    ("page", "words"),
    COMMANDS,
    ids=[f"{_name(page)}: {' '.join(words)[:60]}" for page, words in COMMANDS],
)
def test_command_parses(page, words):
    name, _ = _parse(words)
    assert name in words


def test_parsing_finds_unknown_options():
    name, values = _parse(["edit", "pocket", "--concept", "pocket-safety"])
    assert name == "edit"
    assert values["concept"] == "pocket-safety"
    with pytest.raises(Exception, match="--labels"):
        _parse(["edit", "pocket", "--labels", "16"])


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_python_blocks_are_valid(page):
    for block in _blocks(TEXT[page], ("python",)):
        compile(block, _name(page), "exec")


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_names_of_modules_targets_and_files_exist(page):
    text = TEXT[page]
    for module in re.findall(r"python\s+-m\s+((?:benchmarks|model_organisms|docs)[\w.]*)", text):
        assert (ROOT / module.replace(".", "/")).with_suffix(".py").is_file(), module
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.M))
    assert set(re.findall(r"`make ([a-z-]+)", text)) <= targets
    for file in re.findall(r"`((?:src|tests|examples|docs|benchmarks)/[\w./-]+)`", text):
        assert (ROOT / file).exists(), file
    folders = "|".join(path.name for path in (ROOT / "src/retouch").iterdir() if path.is_dir())
    for file in re.findall(rf"`((?:{folders})/\w+\.py)(?:::\w+)?", text):
        assert (ROOT / "src/retouch" / file).is_file(), file
