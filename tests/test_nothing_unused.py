"""Nothing in the package is there for tests alone, and nothing is installed that the package doesn't import."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ("gog_edge/**/*.py", "peers/gog_edge_peers/**/*.py")
# What others call by name: click, logging, html.parser, pickle and io. And the Python API that the guide describes.
CALLED_FROM_OUTSIDE = {
    "list_commands", "get_command", "format_commands", "emit", "find_class", "makefile", "readable",
    "handle_starttag", "handle_endtag", "handle_data",
    "resume", "on_broken_pipe", "aask", "astream", "ask_many", "_repr_html_", "plot", "save_crops", "to_dict",
}  # fmt: skip
OTHER_NAMES = {"pillow": "PIL"}  # of the package on the index: of the module


def trees(*patterns: str) -> Iterator[tuple[Path, ast.Module]]:
    for pattern in patterns:
        for path in sorted(ROOT.glob(pattern)):
            yield path, ast.parse(path.read_text("utf-8"))


def mentioned(*patterns: str) -> Counter[str]:
    """Names that code uses: loads, attributes, keywords, and words of short strings such as "module:factory"."""
    found: Counter[str] = Counter()
    for _, tree in trees(*patterns):
        for node in ast.walk(tree):
            if isinstance(node, ast.Name):
                found[node.id] += 1
            elif isinstance(node, ast.Attribute):
                found[node.attr] += 1
            elif isinstance(node, ast.alias) and node.asname:
                found[node.name] += 1
            elif (
                isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r"[\w.:]+", node.value)
            ):
                found.update(re.findall(r"\w+", node.value))
    return found


def test_every_function_and_class_is_used_outside_of_tests() -> None:
    used = mentioned(*SHIPPED, "studies/*.py", "models/**/*.py", "integrations/**/*.py")
    idle = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
        for path, tree in trees(*SHIPPED)
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.ClassDef))
        and not node.name.startswith("__")
        and not used[node.name]
        and node.name not in CALLED_FROM_OUTSIDE
        and not any("command" in ast.dump(d) or "group" in ast.dump(d) for d in node.decorator_list)
    ]
    assert idle == []


def test_every_base_dependency_is_imported() -> None:
    block = (ROOT / "pyproject.toml").read_text("utf-8").partition("\ndependencies = [")[2].partition("\n]")[0]
    wanted = {OTHER_NAMES.get(n, n) for n in re.findall(r'^\s*"([\w-]+)', block, re.MULTILINE)}
    imported: set[str] = set()
    for _, tree in trees("gog_edge/**/*.py"):
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.partition(".")[0])
    assert wanted and wanted <= imported
