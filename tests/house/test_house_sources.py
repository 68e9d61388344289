"""How every source file is written: words at the top, one idea, nothing printed, nothing of a machine."""

import ast
import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("common", "client", "server", "simulation")
LONGEST_LINES = 400

MAY_PRINT = {"__main__.py"}
WRITES_STDOUT = {  # what every __main__ prints with
    f"common/oncofed_common/{name}.py" for name in ("screen", "terminal")
}

MACHINE = re.compile(
    r"/(work|Users|opt/pypi|opt/wheels)/|/root/\.|"
    r"/home/(?!oncofed\b|exchange\b)[a-z]|"
    r"\b(files\.)?python(hosted|package)\w*\.org|\bpypi\.(org|python)|"
    r"\b(registry\.npmjs|download\.pytorch|deb\.debian|security\.debian|crates)\.\w+|"
    r"\b(ghcr|quay|gcr)\.io\b|\bdocker\.io/(?!library/(python|nginx):)",
)


def _tracked():
    """Files that git knows, and new ones that it does not ignore, which exist."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=True,
        timeout=30,
    )
    return [
        ROOT / name
        for name in listed.stdout.decode().split("\0")
        if name and (ROOT / name).is_file()
    ]


def _texts():
    for path in _tracked():
        content = path.read_bytes()
        if b"\0" not in content:
            yield path.relative_to(ROOT).as_posix(), content.decode("utf-8")


TEXTS = dict(_texts())
PYTHON = {name: text for name, text in TEXTS.items() if name.endswith(".py")}
OURS = {name: text for name, text in PYTHON.items() if name.startswith(ROOMS)}


def prints(text):
    """Lines of a source text that print to stdout."""
    found = []
    for node in ast.walk(ast.parse(text)):
        called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        if called and node.func.id in {"print", "pprint"}:
            found.append(node.lineno)
        if isinstance(node, ast.Attribute) and ast.unparse(node) in {
            "sys.stdout",
            "sys.__stdout__",
        }:
            found.append(node.lineno)
    return found


def says_what_it_is_for(text):
    """Whether a module has a docstring, or holds nothing at all."""
    return not text.strip() or bool((ast.get_docstring(ast.parse(text)) or "").strip())


def test_the_house_has_sources():
    assert len(OURS) > 40
    assert {name.partition("/")[0] for name in OURS} == set(ROOMS)


def test_only_a_main_module_prints():
    printing = {
        name: lines
        for name, text in OURS.items()
        if Path(name).name not in MAY_PRINT
        and name not in WRITES_STDOUT
        and (lines := prints(text))
    }
    assert printing == {}


@pytest.mark.parametrize("line", ["print(1)", "import sys; sys.stdout.write('x')"])
def test_a_planted_print_is_found(line):
    assert prints(f'"""Words."""\n{line}\n') == [2]


def test_every_module_says_at_its_top_what_it_is_for():
    assert [name for name, text in PYTHON.items() if not says_what_it_is_for(text)] == []


def test_a_module_without_words_is_found():
    assert not says_what_it_is_for("import os\n")


def test_no_source_file_is_longer_than_one_idea():
    long = {name: n for name, text in PYTHON.items() if (n := text.count("\n")) > LONGEST_LINES}
    assert long == {}


def test_no_source_file_is_a_heap_of_helpers():
    heaps = {"utils.py", "util.py", "helpers.py", "misc.py"}
    assert [name for name in PYTHON if Path(name).name in heaps] == []


def test_no_file_names_a_machine_or_a_registry():
    found = {
        f"{name}:{number}": line.strip()
        for name, text in TEXTS.items()
        if name != "tests/house/test_house_sources.py"  # the pattern itself
        for number, line in enumerate(text.splitlines(), 1)
        if MACHINE.search(line)
    }
    assert found == {}


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("cd /work/thing", True),
        ("open('/root/.cache')", True),
        ("see /home/maria/scans", True),
        ("index-url = https://pypi.org/simple", True),
        ("FROM ghcr.io/someone/thing:1", True),
        ("FROM docker.io/someone/thing:1", True),
        ("FROM docker.io/library/python:3.11-slim", False),
        ("--home /home/oncofed", False),
        ("network/traffic", False),
    ],
)
def test_a_planted_machine_path_or_registry_is_found(line, named):
    assert bool(MACHINE.search(line)) is named


def test_every_test_module_has_a_name_of_its_own():
    names = Counter(Path(name).name for name in PYTHON if name.startswith("tests/"))
    assert [name for name, count in names.items() if count > 1 and name != "conftest.py"] == []


def test_continuous_integration_runs_the_commands_that_people_run():
    script = TEXTS[".ci/run"].splitlines()
    assert "set -euo pipefail" in script
    assert [line for line in script if line.startswith("make ")] == [
        "make check",
        "make check-long",
    ]


def test_make_check_holds_the_tests_and_every_static_check():
    makefile = TEXTS["Makefile"]
    assert re.search(r"^check: .*\btest\b", makefile, re.MULTILINE)
    assert re.search(r"^check: .*\blint\b", makefile, re.MULTILINE)
    for tool in ("ruff format --check", "ruff check", "mypy", "lint-imports", "deptry"):
        assert f"$(BIN)/{tool}" in makefile
