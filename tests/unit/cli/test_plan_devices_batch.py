"""`kamado plan`, `kamado devices` and `kamado batch` over a fake model."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fake_model import FakeModel, FakeRuntime, make_plan
from kamado.errors import DoesNotFit
from kamado.memory.devices import DeviceFacts, fake_device
from kamado.memory.rates import Rates

from .conftest import Kamado


@pytest.mark.usefixtures("runtime")
def test_a_plan_that_fits(kamado: Kamado) -> None:
    done = kamado("plan", "fake")
    assert done.status == 0 and done.err == ""
    assert "FakeForCausalLM" in done.out and "95.4 MiB" in done.out and "1000 tokens" in done.out
    assert [line.split() for line in done.out.splitlines() if line.startswith("fits")] == [["fits", "yes"]]


def test_a_plan_that_does_not_fit_is_shown_and_status_3(kamado: Kamado, runtime: FakeRuntime) -> None:
    runtime.plan_to_give = make_plan(available_bytes=10**6)
    done = kamado("plan", "fake", "--memory", "1MB")
    assert done.status == 3
    assert "--quant int8 would make it smaller." in done.out
    assert done.err.startswith("kamado: fake needs at least 97.3 MiB on cpu") and len(done.err.splitlines()) == 1
    as_json = kamado("plan", "fake", "--json")
    assert as_json.status == 3
    assert json.loads(as_json.out)["fits"] is False and json.loads(as_json.out)["minimum_bytes"] == 102_000_000


def test_plan_options_arrive(kamado: Kamado, runtime: FakeRuntime) -> None:
    kv = ("--kv-tokens", "7", "--kv-dtype", "fp8")
    kamado("plan", "fake", *kv, "--quant", "int8", "--dtype", "float16", "--allow-code", "fake", "--draft", "small")
    given = {"dtype": "float16", "quant": "int8", "kv_tokens": 7, "kv_dtype": "fp8", "offload": "auto"}
    given |= {"allow_code": "fake", "offline": False, "components": None, "base": None, "draft": "small"}
    assert runtime.loaded == [("fake", given)]
    kamado("run", "fake", "hi", "--base", "org/name")
    assert runtime.loaded[1][1]["base"] == "org/name"


def test_components_arrive(kamado: Kamado, runtime: FakeRuntime) -> None:
    items = ("vae=org/vae", "controlnet=a", "controlnet=b#c=d", "safety_checker=")
    kamado("plan", "fake", *(part for item in items for part in ("--component", item)))
    kamado("run", "fake", "hi", "--component", "vae=x")
    assert [options["components"] for _, options in runtime.loaded] == [
        {"vae": ["org/vae"], "controlnet": ["a", "b#c=d"], "safety_checker": None},
        {"vae": ["x"]},
    ]
    for bad in (("vae",), ("a b=c",), ("vae=", "vae=x")):
        done = kamado("plan", "fake", *(part for item in bad for part in ("--component", item)))
        assert done.status == 2 and "--component" in done.err
    assert len(runtime.loaded) == 2


def test_devices(kamado: Kamado, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [
        fake_device("cuda:0", model="Fast One", capability="9.0", features=("fp8",)),
        fake_device(notes=("A note.",)),
    ]
    monkeypatch.setattr("kamado.cli.devices.find_devices", lambda: found)
    done = kamado("devices")
    assert "cuda:0: Fast One" in done.out and "9.0" in done.out and "A note." in done.out
    document = json.loads(kamado("devices", "--json").out)
    assert [device["name"] for device in document] == ["cuda:0", "cpu"]
    assert document[1]["good_dtypes"] == ["float32"] and document[1]["budget_bytes"] > 0


RATES = Rates(
    read_bytes_per_s=27.54e9,
    copy_bytes_per_s=3e10,
    operations_per_s={"bfloat16": 7.91e14, "int8": 2.86e11},
    to_device_bytes_per_s={"pinned": 5.5e10},
    disk_bytes_per_s=1.5e9,
    disk_read="cached",
    threads=2,
    torch="2.13.0",
    measured_s=1.7e9,
    notes=("fp8 is missing.",),
)


def test_rates_of_devices(kamado: Kamado, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shown as they are kept, and measured when asked. One device that is busy does not keep the others waiting."""
    found = [fake_device("cuda:0"), fake_device("cuda:1"), fake_device(rates=RATES)]
    monkeypatch.setattr("kamado.cli.devices.find_devices", lambda: found)
    done = kamado("devices")
    for text in (
        "read 27.5 GB/s, copy 30 GB/s",
        "bfloat16 791 TFLOP/s, int8 286 GOP/s",
        "pinned 55 GB/s",
        "fp8 is missing.",
    ):
        assert done.out.count(text) == 1
    assert done.out.count("not measured yet") == 2 and "1.5 GB/s, perhaps out of the page cache" in done.out
    document = json.loads(kamado("devices", "--json").out)
    assert [device["rates"] for device in document[:2]] == [None, None]
    assert document[2]["rates"]["operations_per_s"] == {"bfloat16": 7.91e14, "int8": 2.86e11}

    def measure(facts: DeviceFacts, *, progress: Callable[[str], None]) -> Rates:
        progress("memory")
        if facts.name == "cuda:0":
            raise DoesNotFit("cuda:0 has only 1.0 MiB free", needed_bytes=2, available_bytes=1)
        return replace(RATES, read_bytes_per_s=9e9)

    monkeypatch.setattr("kamado.cli.devices.measure_rates", measure)
    done = kamado("devices", "--measure", "--json")
    assert done.status == 3 and done.err == "kamado: cuda:0 has only 1.0 MiB free\n"
    rates = [device["rates"] for device in json.loads(done.out)]
    assert rates[0] is None and [each["read_bytes_per_s"] for each in rates[1:]] == [9e9, 9e9]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_text('{"id": "a", "prompt": "hi"}\n{"id": "b", "prompt": "ho"}\n')
    return path


def test_a_batch(kamado: Kamado, model: FakeModel, source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    done = kamado("batch", "fake", str(source), "-o", str(folder), "--max-tokens", "3", "--concurrency", "1")
    assert done.status == 0 and done.out == f"{folder / 'results.jsonl'}\n"
    assert "2 lines" in done.err and "6 tokens" in done.err
    assert [request["max_tokens"] for request in model.requests] == [3, 3]
    again = kamado("batch", "fake", str(source), "-o", str(folder), "--max-tokens", "3", "--json")
    assert json.loads(again.out) | {"seconds": 0} == {
        "results": str(folder / "results.jsonl"),
        "lines": 2,
        "ok": 2,
        "failed": 0,
        "answered_earlier": 2,
        "completion_tokens": 0,
        "seconds": 0,
    }
    assert len(model.requests) == 2, "the second run needs no model"


def test_going_on_with_another_device_is_refused(
    kamado: Kamado, model: FakeModel, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it is `auto` that means another one now."""
    args = ("batch", "fake", str(source), "-o", str(tmp_path / "out"))
    cpu, fast, faster = fake_device(), *(fake_device("cuda:0", model=product) for product in ("Fast One", "Faster"))
    here = [cpu]
    monkeypatch.setattr("kamado.cli.batch.resolve_device", lambda name: here[-1])
    assert kamado(*args).status == 0
    here.append(fast)
    done = kamado(*args)
    assert done.status == 2 and "another device ('cpu', now 'cuda:0 (Fast One)')" in done.err
    assert "--restart" in done.err
    here.append(cpu)
    assert kamado(*args).status == 0
    assert len(model.requests) == 2
    here.append(fast)
    assert kamado(*args, "--restart").status == 0
    here.append(faster)
    assert kamado(*args).status == 2


def test_lines_that_fail_are_status_1(kamado: Kamado, model: FakeModel, tmp_path: Path) -> None:
    source, folder = tmp_path / "in.jsonl", tmp_path / "out"
    source.write_text('{"prompt": "hi"}\nnot json\n{"prompt": "boom"}\n')
    done = kamado("batch", "fake", str(source), "-o", str(folder))
    assert done.status == 1 and "2 of 3 lines failed" in done.err
    again = kamado("batch", "fake", str(source), "-o", str(folder), "--retry-failed")
    assert again.status == 1 and "going on after 1 of 3 lines" in again.err
    assert [request["prompt"] for request in model.requests] == ["hi", "boom", "boom"]


def test_an_interrupted_batch_says_how_to_go_on(
    kamado: Kamado, model: FakeModel, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = FakeModel.generate

    def interrupted(self: FakeModel, prompt: str | None = None, **options: object) -> object:
        if len(self.requests) == 1:
            raise KeyboardInterrupt
        return real(self, prompt, **options)

    args = ("batch", "fake", str(source), "-o", str(tmp_path / "out"), "--concurrency", "1")
    with monkeypatch.context() as patch:
        patch.setattr(FakeModel, "generate", interrupted)
        done = kamado(*args)
    assert done.status == 130 and done.out == ""
    assert "stopped after 1 of 2 lines; the same command goes on from there" in done.err
    assert kamado(*args).status == 0
    assert [request["prompt"] for request in model.requests] == ["hi", "ho"]


def test_an_empty_batch(kamado: Kamado, model: FakeModel, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").touch()
    done = kamado("batch", "fake", str(tmp_path / "in.jsonl"), "-o", str(tmp_path / "out"))
    assert done.status == 0 and "no lines" in done.err and model.requests == []
    assert (tmp_path / "out" / "results.jsonl").read_bytes() == b""


@pytest.mark.usefixtures("runtime")
def test_batches_that_cannot_be(kamado: Kamado, source: Path, tmp_path: Path) -> None:
    assert kamado("batch", "fake", str(tmp_path / "absent"), "-o", str(tmp_path / "out")).status == 2
    assert kamado("batch", "fake", str(tmp_path), "-o", str(tmp_path / "out")).status == 2
    assert kamado("batch", "fake", str(source), "-o", str(source)).status == 2
    assert kamado("batch", "fake", str(source), "-o", str(tmp_path / "o"), "--seed", "-1").status == 2
    assert kamado("batch", "fake", str(source), "-o", str(tmp_path / "o")).status == 0
    other = kamado("batch", "other", str(source), "-o", str(tmp_path / "o"))
    assert other.status == 2 and "another model ('fake', now 'other')" in other.err


def test_a_batch_into_a_folder_that_cannot_be_made(kamado: Kamado, model: FakeModel, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"prompt": "Hi"}\n')
    done = kamado("batch", "fake", str(tmp_path / "in.jsonl"), "-o", str(tmp_path / "in.jsonl" / "out"))
    assert done.status == 2 and len(done.err.splitlines()) == 1
    assert "cannot be made" in done.err and "is a file; name another folder" in done.err
    assert model.requests == []
