"""scripts/setup.sh, with an interpreter whose `venv` and `pip` only write down what they were asked."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# `-c` is the real interpreter's; `-m venv` makes a folder; pip notes its arguments, and fails where the test says so.
FAKE_PYTHON = """#!/usr/bin/env bash
case "$1 $2" in
    "-c "*)
        if [[ $2 == *version_info* && -n ${FAKE_TOO_OLD:-} ]]; then exit 1; fi
        if [[ $2 == *ensurepip* && -n ${FAKE_NO_VENV:-} ]]; then exit 1; fi
        if [[ $2 == *importlib.metadata* ]]; then exit 1; fi
        exec "$REAL_PYTHON" "$@" ;;
    "-V "*) echo "Python 3.11.0" ;;
    "-m venv")
        echo venv >>"$FAKE_LOG"
        mkdir -p "$3/bin"
        cp "$0" "$3/bin/python"
        echo "version = ${FAKE_VERSION:-3.11.0}" >"$3/pyvenv.cfg" ;;
    "-I -m")
        shift 4
        echo "pip $*" >>"$FAKE_LOG"
        sleep "${FAKE_SLEEP:-0}"
        for ((i = 0; i < 1200; i++)); do [[ -e ${FAKE_HOLD:-} ]] || break; sleep 0.05; done
        if [[ -n ${FAKE_FAIL:-} && "$*" == *"$FAKE_FAIL"* ]]; then echo "ERROR: cannot have it"; exit 1; fi ;;
    *) echo "unexpected: $*" >&2; exit 9 ;;
esac
"""

SOURCE_IN_C = "runtime/kamado/kernels/source"


class Repository:
    """A copy of the scripts in a folder with a space in its name, and a PATH with the fake interpreter first."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "a clone"
        self.log = folder / "log"
        self.bin = folder / "bin"
        self.bin.mkdir()
        self.root.mkdir()
        for name in ("scripts", SOURCE_IN_C):
            shutil.copytree(ROOT / name, self.root / name)
        for name in ("pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, self.root)
        (self.bin / "python3").write_text(FAKE_PYTHON)
        (self.bin / "python3").chmod(0o755)
        for tool in (
            "bash",
            "env",
            "sed",
            "cat",
            "cksum",
            "rm",
            "mkdir",
            "cp",
            "sleep",
            "uname",
            "grep",
            "tail",
            "dirname",
        ):
            found = shutil.which(tool)
            assert found
            (self.bin / tool).symlink_to(found)

    def start(self, level: str = "base", *, gpu: bool = False, **environment: str) -> subprocess.Popen[str]:
        script = f'. "$0"; has_nvidia_gpu() {{ {"true" if gpu else "false"}; }}; kamado_setup {level}; echo done'
        base = {"PATH": str(self.bin), "REAL_PYTHON": sys.executable, "FAKE_LOG": str(self.log)}
        command = ["bash", "-euo", "pipefail", "-c", script, str(self.root / "scripts" / "setup.sh")]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd="/", env=base | environment)

    def run(self, level: str = "base", *, gpu: bool = False, **environment: str) -> tuple[int, str, str]:
        process = self.start(level, gpu=gpu, **environment)
        out, err = process.communicate(timeout=120)
        return process.returncode, out, err

    def asked(self) -> list[str]:
        """What was asked of venv and pip since the last call, without the options that are always there."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        always = ["--disable-pip-version-check --no-input ", f"--constraint {self.root}/constraints.txt "]
        for text in (*always, "--no-build-isolation ", f"--editable {self.root}"):
            lines = [line.replace(text, "kamado" if text.startswith("--editable") else "") for line in lines]
        return lines


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path)


SPANDREL = "pip --no-deps spandrel"


def _torch() -> str:
    (line,) = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch==")]
    return line


def test_installs_once_and_speaks_on_stderr_only(repository: Repository) -> None:
    status, out, err = repository.run()
    assert (status, out) == (0, "done\n")
    assert err.splitlines()[-1] == "kamado: ready"
    assert repository.asked() == [
        "venv",
        "pip setuptools",
        f"pip {_torch()}+cpu",
        SPANDREL,
        "pip kamado[video,restore,vision,sound]",
    ]
    assert repository.run() == (0, "done\n", "")
    assert repository.asked() == []


def test_extras_are_added_when_they_are_needed(repository: Repository) -> None:
    repository.run("base")
    repository.asked()
    repository.run("dev")
    assert repository.asked() == ["pip setuptools", f"pip {_torch()}+cpu", SPANDREL, "pip kamado[dev]"]
    repository.run("test")
    repository.run("base")
    assert repository.asked() == []


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt", "scripts/setup.sh", f"{SOURCE_IN_C}/linear.c"])
def test_a_change_is_taken_up(repository: Repository, name: str) -> None:
    repository.run()
    repository.asked()
    with (repository.root / name).open("a") as file:
        file.write("# changed\n")
    assert repository.run()[0] == 0
    assert repository.asked()[-1] == "pip kamado[video,restore,vision,sound]"


def test_a_moved_clone_is_set_up_anew(repository: Repository) -> None:
    repository.run()
    repository.asked()
    repository.root = repository.root.rename(repository.root.with_name("moved"))
    assert repository.run()[0] == 0
    assert repository.asked()[0] == "venv"


def test_two_at_once_install_once(repository: Repository) -> None:
    both = [repository.start(FAKE_SLEEP="0.2") for _ in range(2)]
    assert [process.communicate(timeout=120)[0] for process in both] == ["done\n", "done\n"]
    assert repository.asked() == [
        "venv",
        "pip setuptools",
        f"pip {_torch()}+cpu",
        SPANDREL,
        "pip kamado[video,restore,vision,sound]",
    ]


def test_a_killed_set_up_is_begun_anew_once_its_pip_has_ended(repository: Repository, tmp_path: Path) -> None:
    hold = tmp_path / "hold"
    hold.touch()
    process = repository.start(FAKE_HOLD=str(hold))
    deadline = time.monotonic() + 60
    while not (repository.log.exists() and "pip" in repository.log.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()
    repository.asked()
    with repository.start() as second:
        assert second.stderr is not None
        assert second.stderr.readline() == "kamado: waiting for another set-up of this folder\n"
        assert repository.asked() == []
        hold.unlink()
        second.communicate(timeout=60)
    assert second.returncode == 0
    assert repository.asked()[0] == "venv"


def test_a_failed_download_says_so_and_can_be_tried_again(repository: Repository) -> None:
    status, out, err = repository.run(FAKE_FAIL="--editable")
    assert (status, out) == (1, "")
    assert "ERROR: cannot have it" in err
    assert err.splitlines()[-1].startswith("kamado: could not install the packages in pyproject.toml; the whole story")
    repository.asked()
    assert repository.run()[0] == 0
    assert repository.asked()[0] == "pip setuptools"


def test_without_a_cpu_build_the_default_one_is_taken(repository: Repository) -> None:
    status, _, err = repository.run(FAKE_FAIL="+cpu")
    assert status == 0
    assert "KAMADO_TORCH_INDEX" in err
    assert repository.asked()[2:] == [
        f"pip {_torch()}+cpu",
        f"pip {_torch()}",
        SPANDREL,
        "pip kamado[video,restore,vision,sound]",
    ]


def test_with_a_gpu_no_cpu_build_is_looked_for(repository: Repository) -> None:
    assert repository.run(gpu=True)[0] == 0
    assert repository.asked() == [
        "venv",
        "pip setuptools",
        f"pip {_torch()}",
        SPANDREL,
        "pip kamado[video,restore,vision,sound]",
    ]


def test_another_index_for_torch(repository: Repository) -> None:
    repository.run(KAMADO_TORCH_INDEX="file:///some where")
    assert f"pip --extra-index-url file:///some where {_torch()}+cpu" in repository.asked()


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"FAKE_TOO_OLD": "1"}, "kamado: needs Python 3.11 or newer, and found none"),
        ({"FAKE_NO_VENV": "1"}, "kamado: python3 has no venv module"),
    ],
)
def test_what_is_missing_is_named_in_one_line(
    repository: Repository, environment: dict[str, str], message: str
) -> None:
    status, out, err = repository.run(**environment)
    assert (status, out) == (1, "")
    assert err.startswith(message)
    assert len(err.splitlines()) == 1
    assert repository.asked() == []


def test_a_folder_that_cannot_be_written(repository: Repository) -> None:
    (repository.root / ".venv.lock").mkdir()
    status, out, err = repository.run()
    assert (status, out) == (1, "")
    assert err.splitlines()[-1] == f"kamado: cannot write in {repository.root}"
