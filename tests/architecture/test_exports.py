"""What a module says it exports is there, and the package exports all that it shows."""

from __future__ import annotations

import importlib

import pytest
from source import module_name, source_files

import kamado

MODULES = [module_name(path) for path in source_files() if "__all__" in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("name", MODULES)
def test_all_names_exist_once(name: str) -> None:
    module = importlib.import_module(name)
    assert len(set(module.__all__)) == len(module.__all__)
    assert [missing for missing in module.__all__ if not hasattr(module, missing)] == []


def test_the_package_exports_what_it_shows() -> None:
    assert set(kamado.__all__) <= set(dir(kamado))
    own = {name for name, value in vars(kamado).items() if getattr(value, "__module__", "").startswith("kamado")}
    assert {name for name in own if not name.startswith("_")} <= set(kamado.__all__)


def test_the_promised_names_are_exported() -> None:
    errors = {"ModelNotFound", "UnsupportedCheckpoint", "UnsafeCheckpoint", "DoesNotFit", "InvalidRequest"}
    errors |= {"ContextOverflow", "Cancelled", "GenerationFailed", "KamadoError"}
    assert errors | {"Runtime", "generate"} <= set(kamado.__all__)
    assert all(issubclass(getattr(kamado, name), kamado.KamadoError) for name in errors)


def test_a_misspelt_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="Runtimes"):
        kamado.Runtimes  # noqa: B018
