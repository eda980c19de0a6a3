"""The import law over the whole package, read from the syntax trees: imports inside functions count as well.

docs/adr/0009 says why the arrows point this way, docs/structure.md draws them.
"""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "gog_edge"

# Pure values and helpers that know nothing of policies; everybody may use them.
BASE = {
    "_version",
    "allowance",
    "errors",
    "types",
    "answer_view",
    "serde",
    "sampling_options",
    "sanitize",
    "deadline",
    "disk",
    "registry",
    "shapes",
}
FORMAT = BASE | {"manifest", "bundle", "shapes"}
MODEL = FORMAT | {"families", "image", "native", "crop", "engines"}

# unit (a folder or a module of the package) -> what it may import besides itself
LAW: dict[str, set[str]] = {
    **dict.fromkeys(BASE, BASE),
    "manifest": BASE,
    "shapes": BASE | {"manifest"},
    "bundle": BASE | {"manifest"},
    "image": BASE,
    "families": FORMAT,
    "native": FORMAT,
    "crop": FORMAT | {"image", "native"},
    "engines": FORMAT | {"families", "image", "native", "crop"},
    "runtime": MODEL,
    "search": MODEL | {"runtime"},
    "dialects": BASE,
    "library": FORMAT,  # bundles by name: what users write, wherever a bundle is loaded
    "agent": MODEL | {"library", "runtime", "search", "dialects"},
    "prompts": BASE,
    # a bundle holds a dialect, which export checks; engines are built with the binding that later loads them
    "export": FORMAT | {"families", "native", "dialects", "prompts"},
    "export.tensorrt": FORMAT | {"families", "native", "engines", "export"},
    "export.parity": MODEL | {"runtime", "search", "dialects", "agent", "export", "prompts"},
    "evaluation": MODEL | {"runtime", "search", "dialects", "agent", "prompts"},
    "serve": MODEL | {"runtime", "search", "dialects", "agent"},
    # adapters use what the server knows of wires and of who may ask
    "integrations": MODEL | {"runtime", "search", "dialects", "agent", "serve"},
    "bench": MODEL | {"runtime", "search", "dialects", "agent", "prompts"},
}
ANYTHING = {"__init__", "__main__", "cli"}  # the public API, and the commands that bring everything together
REFERENCE = {"torch", "transformers", "peft"}
HEAVY = ("torch", "transformers", "onnx", "onnxscript", "onnx_ir", "gog_edge.export")


def name_of(path: Path) -> str:
    """The dotted name of a module, below the package."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}
PEERS = PACKAGE.parent / "peers" / "gog_edge_peers"


def nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those that only a type checker reads."""
    for child in ast.iter_child_nodes(tree):
        if not (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)):
            yield child
            yield from nodes(child)


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything that a module imports, wherever it does so."""
    for node in nodes(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno}: a relative import"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def module_behind(dotted: str) -> str | None:
    """The package's module that a dotted name leads into; None outside the package."""
    if not dotted.startswith("gog_edge."):
        return None
    name = dotted.removeprefix("gog_edge.")
    while name and name not in MODULES:
        name = name.rpartition(".")[0]
    return name or "__init__"


def unit(module: str) -> str:
    """The unit of the law that a module belongs to."""
    for part in ("export.parity", "export.tensorrt"):
        if module == part or module.startswith(f"{part}."):
            return part
    return module.split(".")[0]


@functools.cache
def arrows(module: str) -> frozenset[str]:
    """Modules of the package that `module` imports."""
    found = {module_behind(name) for _, name in imported(MODULES[module])}
    return frozenset(other for other in found if other is not None) - {module}


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_the_way_the_law_says(module: str) -> None:
    home = unit(module)
    if home in ANYTHING:
        return
    allowed = LAW[home] | {home}
    wrong = sorted(other for other in arrows(module) if unit(other) not in allowed)
    assert wrong == []


def test_there_is_no_circle() -> None:
    graph = {module: arrows(module) for module in MODULES}
    done: set[str] = set()
    circles: list[list[str]] = []

    def walk(module: str, way: list[str]) -> None:
        if module in way:
            circles.append([*way[way.index(module) :], module])
        elif module not in done:
            for other in sorted(graph[module]):
                walk(other, [*way, module])
            done.add(module)

    for module in graph:
        walk(module, [])
    assert circles == []


def test_only_the_parity_gate_sees_the_reference_implementation() -> None:
    wrong = [
        f"{module}:{line} {name}"
        for module, path in MODULES.items()
        for line, name in imported(path)
        if name.split(".")[0] in REFERENCE and not module.startswith("export.parity")
    ]
    assert wrong == []


# Tables of names are how a command line starts fast; they name modules of the table's own unit, or below it.
TABLES = {"__init__", "cli.main"}


def test_no_module_is_named_in_a_string() -> None:
    wrong = [
        f"{module}:{node.lineno} {node.value}"
        for module, path in MODULES.items()
        if module not in TABLES
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and node.value.startswith("gog_edge.")
        and node.value.removeprefix("gog_edge.") in MODULES
        and (PACKAGE / node.value.removeprefix("gog_edge.").replace(".", "/")).with_suffix(".py").is_file()
    ]
    assert wrong == []


def test_peers_are_found_and_not_imported() -> None:
    wrong = [m for m, path in MODULES.items() for _, name in imported(path) if name.startswith("gog_edge_peers")]
    assert wrong == []


def test_workers_of_peers_import_nothing_of_ours() -> None:
    """They run in the environment of another program."""
    for path in (PEERS / "workers").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert not [n for n in names if n.startswith("gog_edge")], path.name


def modules_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "module", ["gog_edge.agent.agent", "gog_edge.evaluation.runner", "gog_edge.bench.suite", "gog_edge.cli.ask"]
)
def test_running_a_bundle_loads_neither_torch_nor_the_exporter(module: str) -> None:
    loaded = modules_after(f"import {module}")
    assert module in loaded
    assert not loaded.intersection(HEAVY)


def test_asking_loads_no_event_loop() -> None:
    """asyncio with ssl is 4 MB of a process and a fifth of an agent's imports: whoever awaits has loaded it already."""
    assert not modules_after("import gog_edge.agent.agent").intersection({"asyncio", "ssl"})


def test_a_bundle_loads_nothing_that_talks_to_servers(tiny_bundle: Path) -> None:
    loaded = modules_after(f"import gog_edge\ngog_edge.load({str(tiny_bundle)!r}).warm_up((64, 64))")
    assert "gog_edge.runtime.session" in loaded
    assert not [
        m
        for m in loaded
        if m.startswith(("gog_edge.engines.remote", "gog_edge.runtime.remote."))
        and m != "gog_edge.runtime.remote.start"
    ]


def test_a_greedy_token_loads_no_generator(tiny_bundle: Path) -> None:
    """numpy.random takes 15 ms to load, a fifth of the time to a first token."""
    code = [
        "from pathlib import Path",
        "from gog_edge.bench.local_subject import LocalSubject",
        f"LocalSubject(Path({str(tiny_bundle)!r})).load()",
        "from gog_edge.native import dispatch",
        "dispatch.available()",  # the operators' self-tests, which this bundle does not need
        "dispatch.gemm_rows_independent()",
    ]
    loaded = modules_after("\n".join(code))
    assert "onnxruntime" in loaded
    assert "numpy.random" not in loaded


def test_importing_the_package_is_cheap() -> None:
    loaded = modules_after("import gog_edge")
    assert not loaded.intersection({"numpy", "onnxruntime", "PIL", "tokenizers", "rich"})


def test_the_exporter_does_not_load_torch() -> None:
    loaded = modules_after("import gog_edge.export.pipeline")
    assert not loaded.intersection({"torch", "transformers"})
