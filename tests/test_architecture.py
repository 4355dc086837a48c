"""The floors of the house: imports go downward only, wings never meet, and nothing leans on what is not installed."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "lepton_jax"

FLOORS = [
    {"types", "tree", "keys", "errors", "files", "timing", "convolutions", "noting"},
    {
        "models",
        "weights",
        "augment",
        "data",
        "mesh",
        "metrics",
        "schedules",
        "optimizers",
        "decay",
        "quantile",
        "digests",
        "agreement",
    },
    {"losses", "gradients", "precision", "rematerialization"},
    {"step", "replicas", "soups"},
    {"privacy", "federated", "compress", "explain"},
    {
        "evaluate",
        "checkpoint",
        "manifest",
        "report",
        "runs",
        "rows",
        "lease",
        "preemption",
        "recovery",
        "survival",
        "selection",
        "train",
        "config",
        "cli",
        "hugepages",
        "clients",
        "holdings",
        "rounds",
        "recipe",
        "finder",
        "summary",
        "experiment",
        "preparation",
        "finished",
        "compaction",
        "compressions",
        "several",
        "processes",
        "progress",
        "sharding",
        "trainer",
        "export",
        "serve",
        "launch",
        "plan",
        "federation",
    },
    {"__main__"},
]
WINGS = FLOORS[4]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def modules() -> list[pathlib.Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def room(path: pathlib.Path) -> str:
    """A command of a room, `python -m lepton_jax.data`, stands above all rooms."""
    if path.name == "__main__.py":
        return "__main__"
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: pathlib.Path) -> set[str]:
    """The rooms that a module imports, wherever in the file; its own among them."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "lepton_jax":
            rooms |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lepton_jax."):
            rooms.add((node.module or "").split(".")[1])
        elif isinstance(node, ast.Import):
            rooms |= {a.name.split(".")[1] for a in node.names if a.name.startswith("lepton_jax.")}
    return rooms


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_downward(path):
    here = room(path)
    for other in imported(path) - {here}:
        assert FLOOR[other] <= FLOOR[here], f"{here} (floor {FLOOR[here]}) imports {other} (floor {FLOOR[other]})"
        assert not ({here, other} <= WINGS), f"the wings {here} and {other} meet"


def test_no_room_imports_itself_in_a_circle():
    graph: dict[str, set[str]] = {}
    for path in modules():
        graph.setdefault(room(path), set()).update(imported(path) - {room(path)})

    def reaches(start: str, goal: str, seen: set[str]) -> bool:
        return any(n == goal or (n not in seen and reaches(n, goal, seen | {n})) for n in graph.get(start, ()))

    circles = [name for name in graph if reaches(name, name, {name})]
    assert not circles


@pytest.mark.parametrize("path", sorted((ROOT / "experiments").glob("*.py")), ids=lambda path: path.name)
def test_recipes_import_only_the_public_package(path):
    if path.name == "__init__.py":
        return
    tree = ast.parse(path.read_text())
    named = [n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
    named += [a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names]
    assert {name for name in named if name.startswith("lepton_jax")} <= {"lepton_jax"}


def test_importing_the_package_stays_light():
    program = "import sys, lepton_jax; print(*{'jax', 'flax', 'optax', 'numpy', 'orbax', 'tyro'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.strip() == ""


def test_the_command_line_is_read_before_jax_is_imported():
    program = (
        "import sys; import experiments.resnet as r; import lepton_jax as lp;"
        "lp.cli.parse(r.Config, r.PRESETS, ['--mesh', '8x1'], 'p');"
        "print(*{'jax', 'flax', 'optax', 'orbax'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.strip() == ""


def test_every_public_name_loads_and_every_function_says_what_it_does():
    import inspect

    import lepton_jax

    silent = []
    for path in modules():
        for node in ast.parse(path.read_text()).body:
            named = isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
            if named and not ast.get_docstring(node):
                silent.append(f"{path.relative_to(ROOT)}: {node.name}")
    assert not silent
    for name in lepton_jax.__all__:
        assert inspect.getdoc(getattr(lepton_jax, name)), name
