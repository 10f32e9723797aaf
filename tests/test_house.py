"""The house stays as it was drawn: who may import whom, and that importing does nothing."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HOUSE = Path(__file__).parent.parent / "aiohttp_observe"

FLOORS = (
    {"daemonthread", "jsonpieces", "records", "switchinterval", "texts"},
    {"bundles", "cli", "exchange", "flood", "forks", "options", "redaction"},
    {"exceptiontext"},
    {"flightrecorder", "history", "tasks"},
    {"incidents", "profile"},
    {"admin", "background", "failures", "logs", "loopwatch", "metrics", "middleware", "tracing"},
    {"client", "findings"},
    {"documents"},
    {"plugin"},
    {"__init__"},
)
"""From the ground up.  A room imports only from floors below its own, and from itself."""

LIBRARIES = {
    "aiohttp": {"admin", "cli", "client", "logs", "metrics", "middleware", "plugin", "tracing"},
    "prometheus_async": {"metrics"},
    "prometheus_client": {"metrics"},
    "multidict": {"middleware", "tracing"},
    "aiohttp_sse": {"admin"},
    "msgspec": {"logs"},
    "opentelemetry": {"tracing"},
    "yarl": {"tracing"},
}
"""The rooms a library may be imported in; the longest name that fits counts."""

MODULES = {path.relative_to(HOUSE.parent).as_posix(): path for path in sorted(HOUSE.rglob("*.py"))}


def room_of(path: Path) -> str:
    """The room a file belongs to: the name of the module, or of the package, next to the door."""
    return path.relative_to(HOUSE).with_suffix("").parts[0]


def floor_of(room: str) -> int:
    """How far above the ground a room is."""
    for floor, rooms in enumerate(FLOORS):
        if room in rooms:
            return floor
    pytest.fail(f"the room {room!r} stands on no floor: draw it into FLOORS")


def imports(path: Path) -> Iterator[str]:
    """The full dotted name of everything that a file imports, wherever in the file."""
    package = path.relative_to(HOUSE.parent).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            origin = ".".join((*above, *filter(None, [node.module])))
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def rooms_entered(path: Path) -> set[str]:
    """The other rooms that a file imports from."""
    ours = [[*name.split("."), ""][1] for name in imports(path) if name.split(".")[0] == HOUSE.name]
    known = set().union(*FLOORS)
    return {room if room in known else "__init__" for room in ours} - {room_of(path)}


def libraries_used(path: Path) -> set[str]:
    """What a file imports that is neither the standard library's nor ours."""
    ours = {*sys.stdlib_module_names, HOUSE.name}
    return {name for name in imports(path) if name.partition(".")[0] not in ours}


def rule_for(library: str) -> str | None:
    """The longest entry of `LIBRARIES` that a dotted name falls under."""
    fitting = (entry for entry in LIBRARIES if f"{library}.".startswith(f"{entry}."))
    return max(fitting, key=len, default=None)


@pytest.mark.parametrize("module", MODULES)
def test_a_room_imports_only_from_the_floors_below(module: str) -> None:
    path = MODULES[module]
    own = floor_of(room_of(path))
    sideways_or_up = {room for room in rooms_entered(path) if floor_of(room) >= own}
    assert not sideways_or_up, f"{module} imports from {sorted(sideways_or_up)}"


@pytest.mark.parametrize("module", MODULES)
def test_a_room_is_entered_by_its_door(module: str) -> None:
    path = MODULES[module]
    for name in imports(path):
        package, *inside = name.split(".")
        if package == HOUSE.name and inside[:1] != [room_of(path)]:
            assert len(inside) <= 2, f"{module} imports {name}"


@pytest.mark.parametrize("module", MODULES)
def test_a_library_is_imported_only_in_its_own_room(module: str) -> None:
    path = MODULES[module]
    for library in libraries_used(path):
        rule = rule_for(library)
        assert rule is not None, f"{module} imports {library}, which has no room: draw it into LIBRARIES"
        assert room_of(path) in LIBRARIES[rule], f"{module} imports {library}"


@pytest.mark.parametrize("module", MODULES)
def test_public_names_are_sorted_and_exist(module: str) -> None:
    tree = ast.parse(MODULES[module].read_text())
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            names: list[str] = ast.literal_eval(node.value)
            assert names == sorted(set(names), key=constants_then_classes_then_functions)
            assert set(names) <= set(bound_at_top(tree))


def constants_then_classes_then_functions(name: str) -> tuple[int, str]:
    """The order that ruff's RUF022 keeps."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)


def bound_at_top(tree: ast.Module) -> Iterator[str]:
    """The names a module binds by definition, assignment or import."""
    for node in tree.body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node.name
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from (alias.asname or alias.name for alias in node.names)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (ast.unparse(target) for target in targets)


SURROUNDINGS = """
import asyncio, atexit, gc, importlib, json, logging, os, signal, sys, threading, warnings

for library in json.loads(sys.argv[1]):
    try:
        importlib.import_module(library)
    except ImportError:  # a class or function, or an optional library
        pass

import aiohttp, opentelemetry.trace, prometheus_client
from aiohttp import web

PATCHABLE = (
    asyncio, asyncio.AbstractEventLoop, asyncio.BaseEventLoop, asyncio.Task,
    logging.Logger, logging.LogRecord, threading.Thread,
    aiohttp.ClientSession, web.Application, web.AppRunner, web.Request, web.Response,
)

def aiohttps_loggers():
    for name, logger in sorted(logging.root.manager.loggerDict.items()):
        if name.startswith("aiohttp.") and isinstance(logger, logging.Logger):
            yield name, repr(logger.handlers), logger.level, logger.disabled, logger.propagate

def surroundings():
    root = logging.root
    return {
        "attributes": {repr(owner): {k: id(v) for k, v in vars(owner).items()} for owner in PATCHABLE},
        "root logger": [repr(root.handlers), root.level, repr(root.filters)],
        "record factory": repr(logging.getLogRecordFactory()),
        "logger class": repr(logging.getLoggerClass()),
        "aiohttp's loggers": list(aiohttps_loggers()),
        "warnings": [repr(warnings.filters), repr(warnings.showwarning)],
        "sys hooks": [repr(h) for h in (sys.excepthook, sys.unraisablehook, sys.displayhook)],
        "other hooks": [repr(h) for h in (threading.excepthook, gc.callbacks, sys.meta_path)],
        "tracing": [repr(sys.getprofile()), repr(sys.gettrace()), repr(sys.get_asyncgen_hooks())],
        "coroutine origins": sys.get_coroutine_origin_tracking_depth(),
        "loop policy": repr(asyncio.events._event_loop_policy),
        "exit functions": atexit._ncallbacks(),
        "threads": [thread.name for thread in threading.enumerate()],
        "signals": [repr(signal.getsignal(number)) for number in signal.valid_signals()],
        "environment": dict(os.environ),
        "scraped": sorted(metric.name for metric in prometheus_client.REGISTRY.collect()),
        "tracer provider": repr(opentelemetry.trace._TRACER_PROVIDER),
        "fork hooks": len(forks),
        "switches": [sys.getswitchinterval(), gc.get_threshold(), gc.get_freeze_count()],
    }

forks, register_at_fork = [], os.register_at_fork
os.register_at_fork = lambda **hooks: forks.append(hooks) or register_at_fork(**hooks)
before = surroundings()
import aiohttp_observe
after = surroundings()
print(json.dumps([what for what in before if before[what] != after[what]]))
"""


def libraries_by_module() -> list[str]:
    """Every library that the package imports, and each parent of it, as importable names."""
    used = set().union(*map(libraries_used, MODULES.values()))
    return sorted({prefix for name in used for prefix in (name, name.rpartition(".")[0]) if prefix})


def test_importing_the_package_has_no_effect() -> None:
    """The libraries are imported first: what they do is theirs."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SURROUNDINGS, json.dumps(libraries_by_module())],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=HOUSE.parent,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == []


@pytest.mark.parametrize("package", sorted({path.parent for path in HOUSE.rglob("__init__.py")}))
def test_the_map_of_a_package_is_whole(package: Path) -> None:
    """Each file and folder of a room that is a package has its line at the head of the room."""
    rooms = (path for path in package.iterdir() if path.is_dir() or path.suffix == ".py")
    files = {path.stem for path in rooms} - {"__init__", "__pycache__"}
    head = ast.get_docstring(ast.parse((package / "__init__.py").read_text())) or ""
    assert set(re.findall(r"^``(\w+)``", head, re.MULTILINE)) == files
