"""Recorded steps say what the modules say, for every architecture over pages; on a CPU with a tape for a graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import kamado
import tiny
from kamado.errors import GenerationFailed, InvalidRequest
from kamado.speculation.pace import Pace
from kamado_models.language import captured, recording
from kamado_models.language.batching import PAGED
from kamado_models.language.waits import Waits, launched_bytes
from tape import TapeGraphs

PROMPTS = [[5 + i, 9, 40 + i, 7, 12, 33] * (2 + 3 * i) for i in range(5)]
WAITING = frozenset({"gpt2", "llama4"})
"""Architectures whose forward asks for numbers that lie in tensors."""


@pytest.fixture
def runtime() -> Iterator[kamado.Runtime]:
    with kamado.Runtime(device="cpu", memory="1GiB") as runtime:
        yield runtime


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build("llama", tmp_path_factory.mktemp("llama"))


def _requests(**changes: Any) -> list[dict[str, Any]]:
    plain = {"max_tokens": 12, "temperature": 0.0, "ignore_eos": True}
    return [{"prompt_tokens": prompt, **plain, **changes} for prompt in PROMPTS]


def _answers(model: kamado.Model, requests: list[dict[str, Any]]) -> list[Any]:
    return [[choice.tokens for choice in result.choices] for result in model.generate_many(requests)]


def _graphs(runtime: kamado.Runtime, model: kamado.Model) -> dict[str, Any]:
    found: dict[str, Any] = runtime.stats()["models"][model.owner]["graphs"]
    return found


@pytest.mark.parametrize("name", sorted(tiny.CAUSAL))
def test_every_architecture(name: str, tapes: list[TapeGraphs], runtime: kamado.Runtime, tmp_path: Path) -> None:
    folder = tiny.build(name, tmp_path / name)
    plain = runtime.load(folder, kv_tokens=1024, speculation="off", compile="off")
    if runtime.stats()["models"][plain.owner]["batching"] != PAGED:
        pytest.skip("not over pages")
    recorded = runtime.load(folder, kv_tokens=1024, speculation="off")
    assert _answers(recorded, _requests()) == _answers(plain, _requests())
    if tapes:  # of types that are known to run over pages
        figures = _graphs(runtime, recorded)
        assert (tapes[0].runs > 5) == (name not in WAITING), figures


def test_rows_come_and_go(tapes: list[TapeGraphs], runtime: kamado.Runtime, folder: Path) -> None:
    """Sequences of all lengths up to some pages, which end one after the other, drawn and penalized."""
    requests = [
        {"prompt_tokens": prompt, "max_tokens": 20 * (1 + index), "temperature": 0.8, "seed": index, "n": 1 + index % 2}
        | ({"frequency_penalty": 0.3} if index % 3 else {})
        for index, prompt in enumerate([*PROMPTS, PROMPTS[4] * 4])
    ]
    plain, recorded = (runtime.load(folder, kv_tokens=2048, speculation="off", compile=c) for c in ("off", "auto"))
    assert _answers(recorded, requests) == _answers(plain, requests)
    sizes = _graphs(runtime, recorded)["sizes"]
    assert {size[0] for size in sizes} >= {1, 4, 8} and {size[1] for size in sizes} <= {16, 64}
    assert tapes[0].recorded == len(sizes) and len(tapes) == 1, "with compile='off' there is no recorder"


@pytest.mark.parametrize("name", ["gemma2", "mistral", "gpt_oss"])
def test_windows_whose_pages_are_given_back(
    name: str, tapes: list[TapeGraphs], runtime: kamado.Runtime, tmp_path: Path
) -> None:
    folder = tiny.build(name, tmp_path / name, sliding_window=24)
    requests = _requests(max_tokens=70)
    plain, recorded = (runtime.load(folder, kv_tokens=2048, speculation="off", compile=c) for c in ("off", "auto"))
    assert _answers(recorded, requests) == _answers(plain, requests)
    assert tapes[0].runs > 40


def test_proposals_are_rows(
    tapes: list[TapeGraphs], runtime: kamado.Runtime, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = runtime.load(folder, kv_tokens=2048, speculation="off", compile="off")
    wanted = _answers(plain, _requests(max_tokens=40))
    monkeypatch.setattr(Pace, "propose", lambda self, tokens, num_made, most: tuple(tokens[-3:])[: max(most, 0)])
    guessing = runtime.load(folder, kv_tokens=2048)
    results = guessing.generate_many(_requests(max_tokens=40))
    assert [[choice.tokens for choice in result.choices] for result in results] == wanted
    assert sum(result.usage.proposed_tokens for result in results) > 100
    assert any(size[0] >= 16 for size in _graphs(runtime, guessing)["sizes"]), "five sequences of four tokens"


def test_what_a_draft_reads_between_its_guesses_is_rows(
    tapes: list[TapeGraphs], runtime: kamado.Runtime, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where all guesses held, it reads two tokens at once, and these steps are recorded as well."""
    plain = runtime.load(folder, kv_tokens=1024, speculation="off", compile="off")
    asked = Pace.draft_length

    def always(self: Pace, tokens: list[int], made: int, most: int, **facts: Any) -> int:
        asked(self, tokens, made, most, **facts)
        return min(3, max(most, 0))

    monkeypatch.setattr(Pace, "draft_length", always)
    monkeypatch.setattr(Pace, "has_given_drafts_up", lambda self, made: False)
    model = runtime.load(folder, kv_tokens=1024, draft=folder)
    request = {**_requests()[1], "max_tokens": 80}
    assert model.generate(**request).tokens == plain.generate(**request).tokens
    draft, own = tapes
    assert draft.runs > 45, "of its 60 forwards, the first ones of a size come before it is recorded"
    assert own.runs > 10


def test_whoever_looks_into_the_model_sees_every_forward(
    tapes: list[TapeGraphs], runtime: kamado.Runtime, folder: Path
) -> None:
    model = runtime.load(folder, kv_tokens=1024, speculation="off")
    wanted = _answers(model, _requests())
    runs, calls = tapes[0].runs, []
    module = _loaded(model).module
    handle = module.model.layers[1].register_forward_hook(lambda *_: calls.append(1))
    assert _answers(model, _requests()) == wanted
    assert len(calls) >= 12 and tapes[0].runs == runs
    handle.remove()
    assert _answers(model, _requests()) == wanted
    assert len(calls) < 24 and tapes[0].runs > runs


def test_what_cannot_be_recorded_runs_as_ever(tapes: list[TapeGraphs], runtime: kamado.Runtime, folder: Path) -> None:
    wanted = _answers(runtime.load(folder, kv_tokens=1024, compile="off"), _requests())
    model = runtime.load(folder, kv_tokens=1024, speculation="off")
    tapes[0].fails = RuntimeError("operation not permitted when stream is capturing")
    assert _answers(model, _requests()) == wanted
    figures = _graphs(runtime, model)
    assert figures["sizes"] == [] and figures["bytes"] == 0 and "not permitted" in figures["note"]
    tapes[0].fails = None
    assert _answers(model, _requests()) == wanted
    assert tapes[0].runs == 0, "it is not tried again and again"


def test_other_logits_are_not_used(
    tapes: list[TapeGraphs], runtime: kamado.Runtime, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = _answers(runtime.load(folder, kv_tokens=1024, compile="off"), _requests())
    monkeypatch.setattr(recording, "has_kernels", lambda device: True)
    monkeypatch.setattr(recording, "fused_step", lambda model, store: lambda rows: model.lm_head.weight[rows.tokens])
    model = runtime.load(folder, kv_tokens=1024, speculation="off")
    assert _answers(model, _requests()) == wanted
    figures = _graphs(runtime, model)
    assert figures["sizes"] != [] and figures["note"], "the next way is taken"


def test_memory_is_in_the_ledger(tapes: list[TapeGraphs], runtime: kamado.Runtime, folder: Path) -> None:
    model = runtime.load(folder, kv_tokens=1024, speculation="off")
    held = runtime.ledger.held("cpu", model.owner, "graphs")
    assert held > 0, "a page for rows that only pad"
    answers = _answers(model, _requests())
    recorded = _graphs(runtime, model)["bytes"]
    assert recorded > 1000 and runtime.ledger.held("cpu", model.owner, "graphs") == held + recorded
    loaded = _loaded(model)
    assert loaded.idle_bytes() == recorded and loaded.trim() == recorded and loaded.idle_bytes() == 0
    assert runtime.ledger.held("cpu", model.owner, "graphs") == held
    assert _answers(model, _requests()) == answers
    # How requests meet decides which sizes are recorded.
    again = _graphs(runtime, model)["bytes"]
    assert again > 1000 and runtime.ledger.held("cpu", model.owner, "graphs") == held + again
    model.unload()
    assert runtime.ledger.held() == 0


def test_sizes_that_there_is_no_room_for_run_as_ever(
    tapes: list[TapeGraphs], runtime: kamado.Runtime, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = runtime.load(folder, kv_tokens=1024, speculation="off")
    wanted = _answers(runtime.load(folder, kv_tokens=1024, compile="off"), _requests())
    runtime.ledger.enter("cpu", "somebody", "things", runtime.ledger.free("cpu") - 20_000)
    assert _answers(model, _requests()) == wanted
    assert _graphs(runtime, model)["sizes"] == [] and tapes[0].runs == 0
    runtime.ledger.drop("somebody")
    assert _loaded(model).trim() == 0
    assert _answers(model, _requests()) == wanted
    assert _graphs(runtime, model)["sizes"] != []


def test_nan_says_nothing_of_a_way(tapes: list[TapeGraphs], runtime: kamado.Runtime, folder: Path) -> None:
    model = runtime.load(folder, kv_tokens=1024, speculation="off")
    module = _loaded(model).module
    weight = module.model.norm.weight.data.clone()
    module.model.norm.weight.data.fill_(float("nan"))
    with pytest.raises(GenerationFailed):
        model.generate(**_requests()[0])
    module.model.norm.weight.data.copy_(weight)
    plain = runtime.load(folder, kv_tokens=1024, compile="off")
    assert _answers(model, _requests()) == _answers(plain, _requests())
    assert tapes[0].runs > 0


def test_never_with_deterministic(tapes: list[TapeGraphs], folder: Path) -> None:
    with kamado.Runtime(device="cpu", memory="1GiB", deterministic=True) as runtime:
        model = runtime.load(folder, kv_tokens=1024)
        model.generate(**_requests()[0])
        assert "graphs" not in runtime.stats()["models"][model.owner]
    assert tapes == []


def test_not_on_a_cpu_and_not_for_other_words(runtime: kamado.Runtime, folder: Path) -> None:
    model = runtime.load(folder, kv_tokens=1024)
    assert "graphs" not in runtime.stats()["models"][model.owner]
    with pytest.raises(InvalidRequest, match=r"compile.*auto.*off.*'on'"):
        runtime.load(folder, compile="on")


def test_sizes() -> None:
    assert [captured.rows_size(n) for n in (1, 2, 3, 4, 5, 33, 64, 65)] == [1, 2, 4, 4, 8, 64, 64, 128]
    assert [captured.pages_size(n) for n in (1, 16, 17, 64, 65)] == [16, 16, 64, 64, 256]


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x[x > 0],
        lambda x: x.sum().item(),
        lambda x: x.nonzero(),
        lambda x: x.masked_select(x > 0),
        lambda x: x.to("meta").to("meta") if x.max() > 0 else x,
        lambda x: torch.repeat_interleave(x, torch.ones(4, dtype=torch.long)),
    ],
)
def test_what_waits_is_found_out(function: Callable[[torch.Tensor], Any]) -> None:
    with torch.inference_mode(), pytest.raises(Waits):
        launched_bytes(lambda: function(torch.ones(4)), torch.device("cpu"))


def test_what_launches_alone_is_let_through() -> None:
    x = torch.ones(8, 4)
    with torch.inference_mode():
        assert launched_bytes(lambda: (x @ x.t()).softmax(0)[:, 2:].sum() + 1, torch.device("cpu")) >= 2 * 256


def _loaded(model: kamado.Model) -> Any:
    return model._tenant.loaded
