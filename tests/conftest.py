"""What every test may count on: markers, nothing left changed behind, and the real model."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

if TYPE_CHECKING:
    from adapter_files import Files
    from tiny_pipelines import Folders

# Timings on a busy machine say nothing about the code.
hypothesis.settings.register_profile("kamado", deadline=None)
hypothesis.settings.load_profile("kamado")


if "PYTEST_XDIST_WORKER" in os.environ:
    # Before torch is imported: workers share the cores.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    folder = Path(__file__).parent / "gpu"
    gpu_tests = [item for item in items if item.get_closest_marker("gpu") or folder in item.path.parents]
    if not gpu_tests:
        return
    reason = _why_no_gpu()
    for item in gpu_tests:
        item.add_marker(pytest.mark.gpu)
        if reason is not None:
            item.add_marker(pytest.mark.skip(reason=reason))


_frozen: dict[str, Any] = {"file": None, "modules": 0}
"""The test file and the number of imported modules when the garbage collector was last told what stays."""


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Between two files: what is imported stays to the end, and need not be looked through again and again. It is most
    of all objects, and a collection, as there is one at the end of every picture model, took half a second.

    Not within a file, where a model may be loaded that a later test expects to vanish."""
    if item.path != _frozen["file"]:
        _frozen["file"] = item.path
        if len(sys.modules) > _frozen["modules"] + 50:
            gc.collect()
            gc.freeze()
            _frozen["modules"] = len(sys.modules)


def _why_no_gpu() -> str | None:
    import torch

    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no CUDA device"
    return None


def _process_state() -> dict[str, Any]:
    """Settings of the process that belong to the host program, as `name -> value`."""
    state: dict[str, Any] = {f"environment variable {name}": value for name, value in os.environ.items()}
    state.pop("environment variable PYTEST_CURRENT_TEST", None)
    # torch itself sets this for good, as soon as transformers' modelling code imports its compiler.
    state.pop("environment variable TORCHINDUCTOR_CACHE_DIR", None)
    state["working directory"] = Path.cwd()
    state["SIGINT handler"] = signal.getsignal(signal.SIGINT)
    state["SIGTERM handler"] = signal.getsignal(signal.SIGTERM)
    return state


def _torch_state() -> dict[str, Any]:
    import torch

    return {
        "torch default dtype": torch.get_default_dtype(),
        "torch default device": torch.get_default_device(),
        "torch grad mode": torch.is_grad_enabled(),
        "torch inference mode": torch.is_inference_mode_enabled(),
        "torch threads": torch.get_num_threads(),
        "torch deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "torch matmul precision": torch.get_float32_matmul_precision(),
        "cudnn benchmark": torch.backends.cudnn.benchmark,
        "cudnn deterministic": torch.backends.cudnn.deterministic,
    }


@pytest.fixture(autouse=True)
def host_state_is_left_alone() -> Iterator[None]:
    """Fails a test that leaves the process otherwise than it found it."""
    had_torch = "torch" in sys.modules
    before = _process_state() | (_torch_state() if had_torch else {})
    yield
    after = _process_state()
    if "torch" in sys.modules:
        after |= _torch_state()
        if not had_torch:
            import torch

            before |= _torch_state() | {
                "torch default dtype": torch.float32,
                "torch default device": torch.device("cpu"),
                "torch grad mode": True,
                "torch inference mode": False,
                "torch deterministic algorithms": False,
            }
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    if changed:
        _restore(before)
        details = "; ".join(f"{name}: {before.get(name)} -> {after.get(name)}" for name in changed)
        pytest.fail(f"the test changed the host's state: {details}", pytrace=False)


def _restore(state: dict[str, Any]) -> None:
    prefix = "environment variable "
    os.environ.clear()
    os.environ.update({name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)})
    os.chdir(state["working directory"])
    signal.signal(signal.SIGINT, state["SIGINT handler"])
    signal.signal(signal.SIGTERM, state["SIGTERM handler"])
    if "torch default dtype" in state:
        import torch

        torch.set_default_dtype(state["torch default dtype"])
        torch.set_default_device(None)
        torch.set_grad_enabled(state["torch grad mode"])
        torch.set_num_threads(state["torch threads"])
        torch.use_deterministic_algorithms(state["torch deterministic algorithms"])


@pytest.fixture(scope="session", autouse=True)
def measured_peaks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where runtimes of this process keep the peaks that they measure: not in the person's own store."""
    path = tmp_path_factory.mktemp("measured") / "peaks.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kamado.memory.learned.peaks_path", lambda: path)
        yield path


@pytest.fixture(scope="session", autouse=True)
def prepared_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where runtimes of this process keep prepared weights: not in the person's own store. Its disk is never full."""
    home = tmp_path_factory.mktemp("prepared")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kamado.weights.prepared.folder.prepared_home", lambda: home)
        patch.setattr("kamado.weights.prepared.folder.room_bytes", lambda folder: 1 << 40)
        yield home


@pytest.fixture(scope="session", autouse=True)
def digests_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Digests of the tests' many small files are kept in a store of their own: they would push the person's out."""
    from kamado.checkpoint import digest
    from kamado.checkpoint.home import default_home

    persons, own = default_home(), tmp_path_factory.mktemp("digests")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digest, "digests_home", lambda: own if default_home() == persons else default_home())
        yield


@pytest.fixture(autouse=True)
def nothing_is_prepared_yet(prepared_home: Path) -> None:
    """So that no test depends on which models others loaded."""
    for path in prepared_home.glob("prepared/*"):
        path.unlink(missing_ok=True)


@pytest.fixture(autouse=True)
def nothing_is_measured_yet(measured_peaks: Path) -> None:
    """So that no plan depends on which tests ran before."""
    measured_peaks.unlink(missing_ok=True)


@pytest.fixture(scope="session")
def module_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of the tests' own for the copies of checkpoints' code that transformers makes to import it."""
    from transformers import dynamic_module_utils

    folder = tmp_path_factory.mktemp("modules")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(folder))
        yield folder
    sys.path[:] = [entry for entry in sys.path if entry != str(folder)]
    for name in [name for name in sys.modules if name.partition(".")[0] == "transformers_modules"]:
        del sys.modules[name]


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """Tiny pipelines and what is loaded beside them, by name."""
    from tiny_pipelines import Folders

    return Folders(tmp_path_factory.mktemp("pipelines"))


@pytest.fixture(scope="session")
def files(folders: Folders, tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Tiny pipelines and adapters, by name."""
    from adapter_files import Files

    return Files(folders, tmp_path_factory.mktemp("adapters"))


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The real model, pulled into the person's own store if it is not there yet. That it cannot be had is a failure."""
    from kamado.checkpoint.resolve import resolve

    return Path(resolve("smollm2:135m"))


@pytest.fixture(scope="session")
def minilm() -> Path:
    """all-MiniLM-L6-v2, likewise."""
    from kamado.checkpoint.resolve import resolve

    return Path(resolve("minilm:l6"))


@pytest.fixture(scope="session")
def realesrgan() -> Path:
    """The folder with Real-ESRGAN's networks in ncnn's form, likewise."""
    from kamado.checkpoint.resolve import resolve

    return Path(resolve("realesrgan:x4plus")).parent
