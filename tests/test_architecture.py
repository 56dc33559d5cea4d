"""The architecture: which rooms may import which, and rules for every file."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CORE = ROOT / "clora_core"
FILES = sorted(CORE.rglob("*.py"))
PYTHON = sorted(
    path for folder in ("clora_core", "nodes", "tests", "benchmarks") for path in (ROOT / folder).rglob("*.py")
)

# From the ground up. A room imports only rooms below it; what lies loose in the root is on the ground or on top.
ROOMS = (
    *("model", "method", "museum", "learning", "report"),
    *("starter", "over_diffusers", "classification", "commands", "bench"),
)
GROUND = {"errors", "texts", "seeds", "measure", "pictures", "picture_files", "sheets"}
TOP = {"cli", "__main__"}
LOOSE_MOST = 10
HOST = {"comfy", "comfy_api", "comfy_execution", "comfy_extras", "folder_paths", "server", "nodes", "execution"}
MODEL_LIBRARIES = {"diffusers", "transformers", "tokenizers"}
KNOW_MODEL_LIBRARIES = {"over_diffusers", "starter", "classification", "bench"}


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def dotted(path: Path) -> str:
    """museum/file/header.py → museum.file.header; a package has its own name."""
    parts = path.relative_to(CORE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__") or "clora_core"


MODULES = {dotted(path): path for path in FILES}


def imports(path: Path, *, inside: bool = True) -> Iterator[str]:
    """Absolute dotted names of all modules that a file imports. inside: also those imported by its functions."""
    package = ["clora_core", *path.relative_to(CORE).parent.parts]
    for node in ast.walk(tree(path)) if inside else tree(path).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                whole = f"{stem}.{alias.name}"
                yield whole if whole.removeprefix("clora_core.") in MODULES else stem


def own_imports(path: Path, *, inside: bool = True) -> set[str]:
    """The modules of this package that a file imports."""
    names = {
        name.removeprefix("clora_core.") for name in imports(path, inside=inside) if name.startswith("clora_core.")
    }
    assert names <= set(MODULES), f"{path.name} imports {names - set(MODULES)}, which are no modules"
    return names


def floor(module: str) -> int:
    """0 for the ground, then the rooms, then the top."""
    room = module.partition(".")[0]
    if room in GROUND | {"clora_core"}:
        return 0
    assert room in ROOMS or room in TOP, f"'{module}' has no floor yet: put it into a room"
    return ROOMS.index(room) + 1 if room in ROOMS else len(ROOMS) + 1


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_its_own_room_and_lower_ones(module: str):
    for imported in own_imports(MODULES[module]):
        assert floor(imported) <= floor(module), f"{module} must not know {imported}"


def test_few_files_are_in_the_root():
    assert len(list(CORE.glob("*.py"))) <= LOOSE_MOST
    assert {path.name for path in CORE.iterdir() if path.is_dir()} - {"__pycache__"} == set(ROOMS)


@pytest.mark.parametrize("module", MODULES)
def test_research_is_loaded_only_by_its_own_command(module: str):
    if not module.startswith("bench"):
        assert not [name for name in own_imports(MODULES[module], inside=False) if name.startswith("bench")]


def test_imports_do_not_go_in_circles():
    graph = {module: own_imports(path) for module, path in MODULES.items()}
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        # a package's own __init__ may gather its modules, and they may not come back to it
        assert module not in way, " → ".join([*way, module])
        if module not in done:
            for imported in graph[module]:
                visit(imported, (*way, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_the_tests_of_imports_can_fail():
    assert floor("learning.learn") > floor("errors") and floor("cli") > floor("museum.file.header")
    assert "errors" in own_imports(CORE / "model" / "concept.py")
    assert "method.regularizers" in own_imports(CORE / "method" / "recipe.py")
    assert "method.regularizers.protocol" in own_imports(CORE / "method" / "regularizers" / "__init__.py")


@pytest.mark.parametrize("module", MODULES)
def test_the_core_never_knows_the_host(module: str):
    assert not {name.partition(".")[0] for name in imports(MODULES[module])} & HOST


@pytest.mark.parametrize("module", MODULES)
def test_only_the_diffusers_base_and_the_starter_know_the_model_libraries(module: str):
    if module.partition(".")[0] not in KNOW_MODEL_LIBRARIES:
        assert not {name.partition(".")[0] for name in imports(MODULES[module])} & MODEL_LIBRARIES


def test_learning_imports_without_the_host_and_the_model_libraries():
    blocked = sorted(HOST | MODEL_LIBRARIES | {"peft"})
    script = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
sys.modules.update(dict.fromkeys({blocked!r}))
try:
    import diffusers
except ImportError:
    pass
else:
    raise SystemExit("diffusers is not blocked")
import clora_core.learning.learn, clora_core.model.sampling, clora_core.measure, clora_core.museum.file
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("path", PYTHON, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_is_longer_than_four_hundred_lines(path: Path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


@pytest.mark.parametrize("path", sorted((CORE / "method" / "regularizers").glob("*.py")), ids=lambda path: path.stem)
def test_a_file_that_defines_a_regularizer_cites_its_paper(path: Path):
    classes = [node for node in tree(path).body if isinstance(node, ast.ClassDef)]
    begins = any(isinstance(item, ast.FunctionDef) and item.name == "begin" for one in classes for item in one.body)
    if begins and path.stem != "protocol":
        assert re.search(r"arXiv:\d{4}\.\d{4,5}", ast.get_docstring(tree(path)) or "")


@pytest.mark.parametrize("module", MODULES)
def test_every_module_has_a_docstring(module: str):
    if MODULES[module].read_text(encoding="utf-8").strip():
        assert ast.get_docstring(tree(MODULES[module]))


FORBIDDEN_CALLS = {"eval", "exec", "__import__", "torch.load", "torch.save"}
FORBIDDEN_MODULES = {"pickle", "cloudpickle", "dill", "marshal", "shelve"}


@pytest.mark.parametrize("module", MODULES)
def test_no_data_is_executed(module: str):
    assert not {name.partition(".")[0] for name in imports(MODULES[module])} & FORBIDDEN_MODULES
    called = {ast.unparse(node.func) for node in ast.walk(tree(MODULES[module])) if isinstance(node, ast.Call)}
    assert not called & FORBIDDEN_CALLS


@pytest.mark.parametrize("module", MODULES)
def test_only_the_command_line_prints(module: str):
    called = {ast.unparse(node.func) for node in ast.walk(tree(MODULES[module])) if isinstance(node, ast.Call)}
    assert module == "cli" or "print" not in called


@pytest.mark.parametrize("module", MODULES)
def test_there_are_no_mutable_globals(module: str):
    assert not [node for node in ast.walk(tree(MODULES[module])) if isinstance(node, ast.Global)]
    for node in tree(MODULES[module]).body:
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None and _is_mutable(node.value):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for name in (ast.unparse(target) for target in targets):
                assert name == "__all__" or re.fullmatch(r"_?[A-Z][A-Z0-9_]*", name), f"{name} is a mutable global"


@pytest.mark.parametrize("module", MODULES)
def test_constants_are_never_written_to(module: str):
    """What is called by an ALL_CAPS name is not changed in place."""
    changing = {
        "append",
        "extend",
        "insert",
        "remove",
        "pop",
        "clear",
        "update",
        "add",
        "setdefault",
        "popitem",
        "sort",
    }
    for node in ast.walk(tree(MODULES[module])):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in changing:
            assert not _is_constant(node.func.value), ast.unparse(node)
        if isinstance(node, (ast.Assign, ast.AugAssign, ast.Delete)):
            targets = [node.target] if isinstance(node, ast.AugAssign) else node.targets
            for target in targets:
                assert not (isinstance(target, ast.Subscript) and _is_constant(target.value)), ast.unparse(node)


def _is_mutable(value: ast.expr) -> bool:
    built = isinstance(value, ast.Call) and ast.unparse(value.func) in {"dict", "list", "set", "defaultdict", "deque"}
    return built or isinstance(value, (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp))


def _is_constant(value: ast.expr) -> bool:
    return isinstance(value, ast.Name) and re.fullmatch(r"_?[A-Z][A-Z0-9_]+", value.id) is not None


def test_public_functions_and_classes_have_names_of_their_own():
    names = [
        node.name
        for path in PYTHON
        if path.is_relative_to(CORE) or path.is_relative_to(ROOT / "nodes")
        for node in tree(path).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    ]
    commands = {"add", "run", "main"}  # of every command and script
    assert {name for name in names if names.count(name) > 1} <= commands
