"""Police the tail: no long file, no long function, no way around the safe loaders."""

from __future__ import annotations

import ast

from source import ROOT, imported_modules, parse, relative, source_files

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
ALL_FILES = source_files(ROOT / "runtime", ROOT / "models", ROOT / "tests", ROOT / "benchmarks")

# Formats that run code when they are read, and libraries that read them.
FORBIDDEN_IMPORTS = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
FORBIDDEN_CALLS = {"torch.load", "torch.hub.load", "numpy.load", "np.load", "torch.jit.load"}
# A program that runs alone, in a restricted process, when a person asks for a conversion.
CONVERTER = "runtime/kamado/checkpoint/convert_child.py"
# The only modules that may reach out of the machine.
NETWORK_MODULES = {
    "huggingface_hub",
    "httpx",
    "httpx2",
    "requests",
    "urllib.request",
    "urllib3",
    "http.client",
    "socket",
}
MAY_USE_NETWORK = ("runtime/kamado/checkpoint/",)


def test_there_is_something_to_police() -> None:
    assert len(source_files()) > 20


def test_files_are_short() -> None:
    lengths = {relative(path): len(path.read_text(encoding="utf-8").splitlines()) for path in ALL_FILES}
    assert {name: lines for name, lines in lengths.items() if lines > MAX_FILE_LINES} == {}


def test_functions_are_short() -> None:
    too_long = {}
    for path in ALL_FILES:
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > MAX_FUNCTION_LINES:
                    too_long[f"{relative(path)}:{node.lineno} {node.name}"] = lines
    assert too_long == {}


def test_nothing_can_unpickle() -> None:
    found = []
    for path in source_files():
        tree = parse(path)
        found += [
            f"{relative(path)}:{line} imports {name}"
            for line, name in imported_modules(tree)
            if name.partition(".")[0] in FORBIDDEN_IMPORTS
        ]
        found += [
            f"{relative(path)}:{node.lineno} uses {ast.unparse(node)}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and ast.unparse(node) in FORBIDDEN_CALLS and relative(path) != CONVERTER
        ]
    assert found == []


def test_the_converter_stays_alone_and_restricted() -> None:
    tree = parse(ROOT / CONVERTER)
    loads = [
        node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) in FORBIDDEN_CALLS
    ]
    assert loads, "the exception for the converter is not needed any more"
    for call in loads:
        assert {"weights_only": "True"}.items() <= {word.arg: ast.unparse(word.value) for word in call.keywords}.items()
    importers = [
        relative(path)
        for path in source_files()
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Import | ast.ImportFrom) and "convert_child" in ast.unparse(node)
    ]
    assert importers == []


def test_one_package_uses_the_network() -> None:
    found = [
        f"{relative(path)}:{line} imports {name}"
        for path in source_files()
        if not relative(path).startswith(MAY_USE_NETWORK)
        for line, name in imported_modules(parse(path))
        if any(name == module or name.startswith(f"{module}.") for module in NETWORK_MODULES)
    ]
    assert found == []
