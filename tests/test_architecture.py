"""Who may import whom, who may print, and what starts without the heavy libraries."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import mvw_cli

ROOT = Path(__file__).parent.parent
CORE = ROOT / "mvw_cli"
ADAPTERS = ROOT / "adapters"
PACKAGES = sorted(path.name for path in ADAPTERS.iterdir() if (path / "__init__.py").exists())
PUBLIC = {name for name in mvw_cli.__all__ if not name.startswith("_")}

HEAVY = {"torch", "transformers", "PIL", "numpy"}
DRAWING = {"rich", "yaml", "pydantic"}
SERVING = {"fastapi", "starlette", "uvicorn", "h11", "prometheus_client"}


def modules(folder: Path) -> list[Path]:
    found = sorted(folder.rglob("*.py"))
    assert found, folder
    return found


def imports(path: Path) -> Iterator[tuple[str, str | None]]:
    """Yield each imported module, with the name taken from it, at any depth of the file."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (start, node.module) if part)
            yield from ((module, alias.name) for alias in node.names)


def top(module: str) -> str:
    return module.partition(".")[0]


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_the_repository_is_where_this_test_thinks() -> None:
    assert {"mvw_hf", "mvw_shapes"} <= set(PACKAGES)
    assert {"Adapter", "hookimpl"} <= PUBLIC
    assert not (ADAPTERS / "__init__.py").exists()  # it would shadow PyPI's package of that name


def test_the_core_imports_no_adapter() -> None:
    wrong = [
        (shown(path), module)
        for path in modules(CORE)
        for module, _ in imports(path)
        if top(module) in PACKAGES or top(module) == "adapters"
    ]
    assert wrong == []


LAYERS = (
    "errors", "text", "files", "environment", "console", "adapter", "policy",
    "hookspecs", "plugins", "images", "engine", "policies", "oracle", "profiles", "cost",
    "machine", "vllm", "session", "render", "doctor", "batch", "serve", "bench", "explain",
    "calibrate", "evaluate", "testing", "scaffold", "cli", "__main__",
    "integrations",
)  # fmt: skip
"""The parts of `mvw_cli`, lowest first: each imports only parts that stand before it."""

INNER_LAYERS = {
    "batch": ("items", "source", "store", "serve", "workers"),
    "bench": (
        "stats",
        "matching",
        "documents",
        "measure",
        "quality",
        "verdict",
        "bounds",
        "report",
    ),
}
"""The same within a part; what is not named there is imported by its own folder alone."""


def test_the_table_of_layers_is_complete() -> None:
    parts = {path.stem if path.is_file() else path.name for path in CORE.iterdir()}
    assert parts - {"__init__", "__pycache__", "py"} == set(LAYERS)


def test_imports_go_down_the_layers() -> None:
    wrong = []
    for module, imported in _own_imports():
        part, other = _part(module), _part(imported)
        if "" in (part, other) or part == other:
            continue  # `mvw_cli` itself: the public names
        if LAYERS.index(other) > LAYERS.index(part):
            wrong.append((module, imported))
    assert wrong == []


@pytest.mark.parametrize("part", INNER_LAYERS)
def test_imports_go_down_the_layers_within(part: str) -> None:
    order = INNER_LAYERS[part]
    wrong = []
    for module, imported in _own_imports():
        if _part(module) == _part(imported) == part:
            inner, other = (
                name.split(".")[2] for name in (module, imported) if name.count(".") > 1
            )
            if order.index(other) > order.index(inner):
                wrong.append((module, imported))
    assert wrong == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph: dict[str, set[str]] = {}
    for module, imported in _own_imports():
        if imported != "mvw_cli":  # it re-exports for plugins; own modules take the version alone
            graph.setdefault(module, set()).add(imported)
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_own_modules_take_the_version_alone_from_the_public_names() -> None:
    taken = {
        (shown(path), name)
        for path in modules(CORE)
        for module, name in imports(path)
        if module == "mvw_cli" and not (CORE / f"{name}.py").exists()
    }
    assert {name for _, name in taken} == {"__version__"}, taken


def _part(module: str) -> str:
    return module.partition(".")[2].partition(".")[0]


def _own_imports() -> list[tuple[str, str]]:
    """Each module of `mvw_cli` with each other that it imports, at any depth of the file."""
    files = {_name(path): path for path in modules(CORE)}
    found = {
        (module, f"{source}.{name}" if f"{source}.{name}" in files else source)
        for module, path in files.items()
        for source, name in imports(path)
        if source in files
    }
    return sorted(pair for pair in found if pair[0] != pair[1])


def _name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def test_the_engine_knows_no_terminal_and_no_plugin() -> None:
    wrong = [
        (shown(path), module)
        for path in modules(CORE / "engine")
        for module, _ in imports(path)
        if top(module) in ("click", "rich", "pluggy", "yaml", "pydantic")
    ]
    assert wrong == []


@pytest.mark.parametrize("folder", [ADAPTERS, ROOT / "docs" / "examples"], ids=shown)
def test_adapters_use_public_names_alone(folder: Path) -> None:
    """`from mvw_cli import X`, with X in `mvw_cli.__all__`: what a third party may rely on."""
    wrong = [
        (shown(path), module, name)
        for path in modules(folder)
        for module, name in imports(path)
        if top(module) == "mvw_cli" and (module != "mvw_cli" or name not in PUBLIC)
    ]
    assert wrong == []


def test_plugin_modules_are_light() -> None:
    """What an entry point names is imported on every start."""
    for package in PACKAGES:
        tree = ast.parse((ADAPTERS / package / "__init__.py").read_text(encoding="utf-8"))
        named = [
            top(getattr(node, "module", None) or node.names[0].name)
            for node in tree.body
            if isinstance(node, ast.Import | ast.ImportFrom)
        ]
        assert not (HEAVY | DRAWING) & set(named), package


def test_nothing_prints_or_exits_outside_the_command_line() -> None:
    """Scripts of their own (`python -m …`) may use click.echo."""
    wrong = [
        (shown(path), node.lineno)
        for path in [*modules(CORE), *modules(ADAPTERS)]
        if CORE / "cli" not in path.parents and path != CORE / "__main__.py"
        for statement in ast.parse(path.read_text(encoding="utf-8")).body
        if not _is_the_script(statement)
        for node in ast.walk(statement)
        if _prints_or_exits(node)
    ]
    assert wrong == []


def _is_the_script(statement: ast.stmt) -> bool:
    """Whether this is what a module does as a script: `if __name__ == "__main__"`."""
    return isinstance(statement, ast.If) and ast.unparse(statement.test) == "__name__ == '__main__'"


def _prints_or_exits(node: ast.AST) -> bool:
    if isinstance(node, ast.Raise):
        raised = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
        return isinstance(raised, ast.Name) and raised.id == "SystemExit"
    if not isinstance(node, ast.Call):
        return False
    if isinstance(node.func, ast.Name):
        return node.func.id in ("print", "exit", "quit")
    return isinstance(node.func, ast.Attribute) and node.func.attr in ("exit", "_exit")


@pytest.mark.parametrize("folder", [CORE, ADAPTERS], ids=shown)
def test_every_module_says_what_it_is(folder: Path) -> None:
    silent = [
        shown(path)
        for path in modules(folder)
        if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert silent == []


@pytest.mark.parametrize(
    ("command", "absent"),
    [
        ("", HEAVY | DRAWING),
        ("--help", HEAVY | DRAWING | SERVING),
        ("--version", HEAVY | DRAWING),
        ("infer --help", HEAVY | DRAWING),
        ("serve --help", HEAVY | DRAWING | SERVING),
        ("show --help", HEAVY | DRAWING),
        ("eval --help", HEAVY | DRAWING),
        ("doctor --help", HEAVY | DRAWING),
        ("new-adapter --help", HEAVY | DRAWING),
        ("new-policy --help", HEAVY | DRAWING),
        ("compare --help", HEAVY | DRAWING),
        ("list adapters", HEAVY | DRAWING),
        ("list policies --json", HEAVY),
        ("list profiles", HEAVY),
        ("plugins", HEAVY),
        ("show shapes", HEAVY),
    ],
)
def test_what_a_command_leaves_alone(command: str, absent: set[str]) -> None:
    code = (
        "import json, sys\n"
        "from mvw_cli.__main__ import main\n"
        "code = main(sys.argv[1:])\n"
        "print(json.dumps([code, *sys.modules]), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *command.split()],
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "MVW_LOAD_PLUGINS": ""},
        check=True,
    )
    code_and_modules = json.loads(done.stderr.splitlines()[-1])
    assert code_and_modules[0] == 0, done.stderr
    assert {top(name) for name in code_and_modules[1:]} & absent == set()


FILES_THAT_RUN = """
import json, sys, threading
from pathlib import Path

ran = set()

def called(frame, event, arg):
    code = frame.f_code
    if event == "call" and code.co_flags & 1:  # a function, not the body of a module or a class
        ran.add(code.co_filename)

threading.setprofile(called)
sys.setprofile(called)
from mvw_cli.__main__ import main

code = main(sys.argv[2:])
sys.setprofile(None)
own = (Path(sys.argv[1], "mvw_cli"), Path(sys.argv[1], "adapters"))
files = sorted(f for f in ran if any(folder in Path(f).parents for folder in own))
print(json.dumps([code, *files]), file=sys.stderr)
"""


@pytest.mark.parametrize(("command", "most"), [("infer", 45), ("batch", 65)])
def test_few_files_run_on_the_way_to_an_answer(command: str, most: int, tmp_path: Path) -> None:
    """A newcomer who follows one answer from argv to its token opens so many files."""
    from mvw_shapes.samples import write_samples

    write_samples(tmp_path / "samples", 1, seed=0)
    image = tmp_path / "samples" / "scene-0001.png"
    words = [str(image), "How many red circles are there?", "--max-new-tokens", "1"]
    done = subprocess.run(
        [sys.executable, "-c", FILES_THAT_RUN, str(ROOT), command, *words],
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "MVW_LOAD_PLUGINS": "", "HF_HUB_OFFLINE": "1"},
        cwd=tmp_path,
        check=True,
    )
    code, *files = json.loads(done.stderr.splitlines()[-1])
    assert code == 0, done.stderr
    assert 20 < len(files) <= most, "\n".join(files)
