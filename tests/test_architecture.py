"""The rules of the house: who may import whom, how long things are, and what carries a docstring. Read from the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "ablation"
FILES = sorted(PACKAGE.rglob("*.py"))

LAYERS = (
    "errors",
    "config",
    "merge",
    "store",
    "keys",
    "parts",
    "stage",
    "discover",
    "torchvision_compat",
    "compute",
    "efficientnet",  # the perceptual loss reads the same network
    "tokenizers",
    "diffusion",
    "train",
    "denoiser",
    "cost",
    "data",
    "evaluation",
    "checks",
    "design",
    "layouts",
    "coalitions",
    "report",
    "plan",
    "jobs",
    "ready_studies",
    "checkpoint_probes",
    "study",
    "collect",
    "results_folder",
    "verify",
    "bundle",
    "status",
    "launch",
    "rates",
    "pricing",
    "calibration",
    "protocols",  # names the types of all kinds of parts
    "effects",
    "export",
    "scaffold",
    "pictures",
    "terminal",
    "schema",
    "completion",
    "options",
    "doctor",
    "execute",
    "api",
    "commands",
    "cli",
    "__main__",
)
"""Every module imports from its own layer and from earlier ones only."""

LIGHT = (
    "errors config store keys stage discover cost checks design layouts plan study collect results_folder verify status terminal cli "
    "data.folder_index data.storage commands.cache "
    "rates pricing denoiser.sizes commands.plan_cost commands.calibrate commands.report commands.verify data.fingerprint data.sources "
    "coalitions diffusion.feasible tokenizers.checks launch.base launch.inline launch.local launch.watch launch.worker "
    "launch.together commands.slurm "
    "parts protocols scaffold schema completion commands.schema execute api commands.check commands.new_stage "
    "merge ready_studies bundle commands.bundle checkpoint_probes commands.probe"
).split()
HEAVY = {"torch", "torchvision", "timm", "diffusers", "numpy", "scipy", "PIL", "pandas", "matplotlib", "safetensors", "torch_fidelity"}
LONGEST_FUNCTION, LONGEST_FILE = 75, 420
FOREIGN_FORMATS = {"denoiser.diffusers_format"}  # its `config` is another library's JSON file
VAGUE_NAMES = {"utils", "util", "helper", "helpers", "misc", "common", "lib", "exp", "trial", "legacy"}


def name_of(path: Path) -> str:
    """Return a module's name below the package: "diffusion.process", or "diffusion" for its __init__."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts) or "__init__"


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imported(nodes: Iterator[ast.AST]) -> Iterator[str]:
    """Yield the modules that import statements name, with imported names as a last part."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def all_imports(path: Path) -> set[str]:
    return set(imported(ast.walk(tree_of(path))))


def own_imports(path: Path) -> set[str]:
    """Return the names below the package that a file imports anywhere."""
    return {name.removeprefix("ablation.") for name in all_imports(path) if name.startswith("ablation.")}


def layer_of(module: str) -> str:
    """Return the layer of a module or of a name in it."""
    found = [layer for layer in LAYERS if module == layer or module.startswith(f"{layer}.")]
    assert found, f"{module} belongs to no layer; add it to LAYERS"
    return max(found, key=len)


def executed_at_import(module: ast.Module) -> Iterator[ast.AST]:
    """Yield the nodes that run when a module is imported: neither function bodies nor blocks for type checkers."""
    waiting: list[ast.AST] = list(module.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        yield node
        waiting.extend(ast.iter_child_nodes(node))


@pytest.mark.parametrize("path", [path for path in FILES if name_of(path) != "__init__"], ids=name_of)
def test_imports_follow_one_direction(path):
    mine = LAYERS.index(layer_of(name_of(path)))
    upwards = {name for name in own_imports(path) if LAYERS.index(layer_of(name)) > mine}
    assert not upwards


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("diffusion", {"denoiser", "train", "jobs", "data"}),
        ("denoiser", {"diffusion", "train", "data"}),
        ("report", set(LAYERS) - {"errors", "report"}),
        ("train", {"tokenizers", "diffusion", "denoiser", "data"}),
    ],
)
def test_neighbours_do_not_know_each_other(package, forbidden):
    for path in FILES:
        if layer_of(name_of(path)) == package if name_of(path) != "__init__" else False:
            assert not {layer_of(name) for name in own_imports(path)} & forbidden, path


def test_only_the_slurm_launcher_knows_submitit():
    users = {name_of(path) for path in FILES if any(name.split(".")[0] == "submitit" for name in all_imports(path))}
    assert users <= {"launch.slurm"}


@pytest.mark.parametrize("module", LIGHT)
def test_light_modules_import_nothing_heavy(module):
    """Neither themselves nor through what they import when they are imported."""
    modules = {name_of(path): path for path in FILES}
    waiting, seen = [module], set()
    while waiting:
        name = waiting.pop()
        if name in seen or name not in modules:
            continue
        seen.add(name)
        for target in imported(executed_at_import(tree_of(modules[name]))):
            assert target.split(".")[0] not in HEAVY, f"{module} imports {target} through {name}"
            parts = target.removeprefix("ablation.").split(".") if target.startswith("ablation.") else []
            waiting.extend(".".join(parts[:length]) for length in range(1, len(parts) + 1))  # packages run their __init__


def test_the_environment_is_read_in_few_places():
    readers = {name_of(path).split(".")[0] for path in FILES if {"environ", "getenv"} & set(attributes(tree_of(path)))}
    assert readers <= {"cli", "launch", "doctor"}


def attributes(module: ast.Module) -> Iterator[str]:
    return (node.attr for node in ast.walk(module) if isinstance(node, ast.Attribute))


def functions(module: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(module) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_functions_and_files_stay_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST_FILE
    long = {
        node.name: length for node in functions(tree_of(path)) if (length := (node.end_lineno or 0) - node.lineno + 1) > LONGEST_FUNCTION
    }
    assert not long


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_everything_public_says_what_it_is(path):
    """Modules, and public functions, classes and methods; members of a protocol that are `...` are said by their name."""
    module = tree_of(path)
    assert not module.body or ast.get_docstring(module)
    silent = [name for name, node in public(module, "") if not ast.get_docstring(node) and not only_declared(node)]
    assert not silent


def public(parent: ast.Module | ast.ClassDef, prefix: str) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]]:
    """Yield public definitions by their dotted names; what belongs to a private class is private."""
    for node in parent.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from public(node, f"{prefix}{node.name}.")


def only_declared(node: ast.AST) -> bool:
    """Say whether a function is a declaration without a body, as in protocols and overloads."""
    return isinstance(node, ast.FunctionDef) and all(
        isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant) and line.value.value is ... for line in node.body
    )


def test_no_module_has_a_vague_name():
    words = {part for path in [*FILES, *PACKAGE.parent.glob("stages/*.py")] for part in (path.stem, path.parent.name)}
    assert not words & VAGUE_NAMES


@pytest.mark.parametrize("path", [path for path in FILES if name_of(path) not in FOREIGN_FORMATS], ids=name_of)
def test_settings_have_no_second_default(path):
    """`config.get(name, default)` would hide a default outside config.py."""
    calls = [node for node in ast.walk(tree_of(path)) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
    suspects = [
        call.lineno
        for call in calls
        if isinstance(call.func, ast.Attribute) and call.func.attr == "get" and len(call.args) == 2 and mentions_config(call.func.value)
    ]
    assert not suspects


def mentions_config(node: ast.AST) -> bool:
    return any(isinstance(part, ast.Name) and part.id in ("config", "cfg", "settings") for part in ast.walk(node))


def test_test_files_have_names_of_their_own():
    """Without packages, pytest imports a test file by its bare name: two of one name stop the whole suite."""
    names = [path.name for path in Path(__file__).parent.rglob("test_*.py")]
    assert sorted(set(names)) == sorted(names)
