"""The rules of the tree: import direction, cycles, links, sizes, and what may never be imported."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("kernels", "adapters", "engine", "server")
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_TRITON_KERNEL_LINES = 120
# A process that reads untrusted bytes must not be able to run them.
BANNED_MODULES = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "kernels"}
BANNED_CALLS = {"eval", "exec", "torch.load", "yaml.load", "__import__"}
# Of the trainer, what knows no tensors.
TRAINING_STATE = ("gate", "data", "jobs", "feedback", "learning", "sampling")
TORCH_FREE = (
    "server.app",
    "server.cli",
    "engine.client",
    "engine.scheduler",
    "engine.kv_blocks",
    "engine.memory_plan",
    "engine.models.registry",
    "adapters.intake",
    "adapters.gate_process",
    "adapters.merging.child",
    "adapters.merging.merge_process",
    "adapters.registry",
    "adapters.store",
    "engine.training.data.prepare",
    "engine.training.data.run_doctor",
)


def sources(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Absolute names of imported modules, relative ones resolved, with their line."""
    parts = ("multiflora", *path.relative_to(ROOT).with_suffix("").parts)
    package = parts[:-1]
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            prefix = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*prefix, *(node.module or "").split("."))).strip(".")
            yield module, node.lineno


def top_folder(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == "multiflora" and len(parts) > 1 else None


def test_the_import_root_holds_only_its_docstring_and_four_relative_links() -> None:
    root = ROOT / "multiflora"
    found = {entry.name for entry in root.iterdir() if entry.name != "__pycache__"}
    assert found == {"__init__.py", *FOLDERS}
    for folder in FOLDERS:
        assert (root / folder).is_symlink()
        assert (root / folder).readlink() == Path("..") / folder
        assert not (ROOT / folder / "__init__.py").exists(), "would shadow packages of that name"


@pytest.mark.parametrize("folder", FOLDERS)
def test_imports_point_downwards(folder: str) -> None:
    allowed = FOLDERS[: FOLDERS.index(folder) + 1]
    for path in sources(folder):
        for module, line in imports(path):
            target = top_folder(module)
            assert target is None or target in allowed, f"{path}:{line} imports {module}"


def test_relative_imports_inside_a_folder_and_absolute_ones_across() -> None:
    for path in sources(*FOLDERS):
        own = path.relative_to(ROOT).parts[0]
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ImportFrom) and not node.level:
                assert top_folder(node.module or "") != own, f"{path}:{node.lineno}"
            if isinstance(node, ast.ImportFrom) and node.level:
                depth = len(path.relative_to(ROOT).parts) - 1
                assert node.level <= depth, f"{path}:{node.lineno} leaves its folder"


def test_the_server_sees_the_engine_only_through_its_public_modules() -> None:
    public = ("client", "text", "errors", "request", "config", "memory_plan", "doctor", "watchdog")
    public += ("log_line",)
    offline = ("export.export", "extraction.extraction")
    start_up = ("models.source", "models.registry", "models.config", "models.named_folder")
    jobs = ("training.job", "training.config", "training.estimate", "training.rule_of_thumb")
    for path in sources("server"):
        for module, line in imports(path):
            if module.startswith("multiflora.engine."):
                rest = module.removeprefix("multiflora.engine.")
                is_known = rest.startswith(tuple(f"training.{part}." for part in TRAINING_STATE))
                known = start_up + offline + jobs
                is_public = rest.split(".")[0] in public or rest in known or is_known
                assert is_public, f"{path}:{line} imports {module}"


def test_only_the_assembly_imports_the_trainer() -> None:
    """Others know its files and jobs, with their settings and events: these know no tensors."""
    public = tuple(
        f"engine.training.{name}" for name in ("job", "config", "estimate", "rule_of_thumb")
    )
    for path in sources(*FOLDERS):
        inside = "engine/training" in path.as_posix() or path.name == "assembly.py"
        for module, line in imports(path):
            is_known = re.search(rf"engine\.training\.({'|'.join(TRAINING_STATE)})(\.|$)", module)
            is_trainer = "engine.training." in module and not module.endswith(public)
            assert inside or is_known or not is_trainer, f"{path}:{line}"


def test_there_are_no_import_cycles() -> None:
    graph = {
        ".".join(("multiflora", *path.relative_to(ROOT).with_suffix("").parts)): {
            module for module, _ in imports(path) if module.startswith("multiflora.")
        }
        for path in sources(*FOLDERS)
    }
    graph = {name.removesuffix(".__init__"): found for name, found in graph.items()}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail, name))
        if name in done or name not in graph:
            return
        for found in graph[name]:
            visit(found, (*trail, name))
        done.add(name)

    for name in graph:
        visit(name, ())


def test_files_and_functions_stay_within_their_budget() -> None:
    too_long = []
    for path in sources(*FOLDERS, "tests", "benchmarks", "demo", "deploy"):
        num_lines = len(path.read_text().splitlines())
        if num_lines > MAX_FILE_LINES:
            too_long.append(f"{path}: {num_lines} lines")
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                size = (node.end_lineno or 0) - node.lineno + 1
                is_kernel = any("triton.jit" in ast.unparse(d) for d in node.decorator_list)
                if size > (MAX_TRITON_KERNEL_LINES if is_kernel else MAX_FUNCTION_LINES):
                    too_long.append(f"{path}:{node.lineno} {node.name}: {size} lines")
    assert not too_long, "\n".join(too_long)


def test_no_file_has_a_name_that_says_nothing() -> None:
    for path in sources(*FOLDERS, "benchmarks", "demo", "deploy"):
        assert path.stem not in {"utils", "util", "helpers", "helper", "common", "misc"}, path


def test_nothing_that_runs_code_from_data_is_imported_or_called() -> None:
    for path in sources(*FOLDERS):
        for module, line in imports(path):
            assert module.split(".")[0] not in BANNED_MODULES, f"{path}:{line} imports {module}"
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in BANNED_CALLS, f"{path}:{node.lineno}"


@pytest.mark.parametrize("module", TORCH_FREE)
def test_the_control_plane_starts_without_torch(module: str) -> None:
    script = (
        f"import sys, multiflora.{module}\n"
        "heavy = {'torch', 'transformers', 'triton', 'bitsandbytes', 'peft'} & set(sys.modules)\n"
        "sys.exit(f'imports {sorted(heavy)}' if heavy else 0)"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
