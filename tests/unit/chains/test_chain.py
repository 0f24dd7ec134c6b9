"""Chains: what steps refer to, in which order they run, what runs at once, and what a failure takes with it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

import kamado
from kamado.chains.references import filled, names_in
from kamado.outputs import Audio, Scored, Scores, Video
from kamado.results import Result

from .fakes import FakeModel, FakeRuntime, echo, said

SOUND = Audio(samples=numpy.zeros((1, 4), numpy.float32), sample_rate=8000)
CLIP = Video(frames=numpy.zeros((2, 2, 2, 3), numpy.uint8), fps=8.0, audio=SOUND)


def test_references_are_things_alone_and_texts_within_texts() -> None:
    results: dict[str, Any] = {
        "topic": "rain",
        "idea": said(" a grey sky \n"),
        "sky": Result(request_id="r", images=("PICTURE",)),
        "voice": Result(request_id="r", outputs=(SOUND,)),
        "clip": Result(request_id="r", outputs=(CLIP,)),
        "best": Result(request_id="r", outputs=(Scores(items=(Scored(value="one", score=1.0),)),)),
        "number": 7,
    }
    look_up = results.__getitem__
    assert filled("{idea}", look_up) == "a grey sky"
    assert filled("On {topic}: {idea.text}, {number}.", look_up) == "On rain: a grey sky, 7."
    assert filled("{number}", look_up) == 7
    assert filled("{sky}", look_up) == "PICTURE" == filled("{sky.image}", look_up)
    assert filled(["{sky}", {"of": "{topic}"}], look_up) == ["PICTURE", {"of": "rain"}]
    assert filled("{voice}", look_up) is SOUND is filled("{clip.audio}", look_up)
    assert filled("{sky.images}", look_up) == ["PICTURE"]
    assert filled("{clip}", look_up) is CLIP and filled("{best}", look_up) == "one"
    assert filled("{{idea}} { x } {}", look_up) == "{idea} { x } {}"
    assert filled(3.5, look_up) == 3.5
    for wrong, what in (("{sky.audio}", "made no audio"), ("a {sky}", "made no text"), ("{topic.text}", "no parts")):
        with pytest.raises(kamado.InvalidRequest, match=what):
            filled(wrong, look_up)


@given(st.text())
def test_texts_without_references_stay_and_braces_can_be_written(text: str) -> None:
    assert filled(text.replace("{", "{{").replace("}", "}}"), {}.__getitem__) == text
    if not list(names_in(text)) and "{{" not in text and "}}" not in text:
        assert filled(text, {}.__getitem__) == text


def test_inputs_and_order_follow_from_what_steps_refer_to() -> None:
    chain = kamado.Chain(
        [
            kamado.ChainStep("voice", "tts", prompt="{idea}", speed=1.5),
            kamado.ChainStep("idea", "llm", prompt="About {topic}"),
        ]
    )
    assert chain.inputs == ("topic",) and [step.name for step in chain.order] == ["idea", "voice"]


@pytest.mark.parametrize(
    ("steps", "says"),
    [
        ([], "1 to 64 steps"),
        ([("a", "{b}"), ("b", "{a}")], "wait for each other: a, b"),
        ([("a", "x"), ("a", "y")], "a more than once"),
        ([("a b", "x")], "cannot be a name"),
        ([("a", "x"), ("b", "{a.colour}")], "names no part of a result"),
    ],
)
def test_bad_chains_are_refused(steps: list[tuple[str, str]], says: str) -> None:
    with pytest.raises(kamado.InvalidRequest, match=says):
        kamado.Chain([kamado.ChainStep(name, "m", prompt=prompt) for name, prompt in steps])


def two_steps() -> kamado.Chain:
    return kamado.Chain(
        [kamado.ChainStep("first", "a", prompt="{topic}"), kamado.ChainStep("second", "b", prompt="{first}")]
    )


def test_a_run_goes_through_and_tells_its_events() -> None:
    runtime: Any = FakeRuntime(a=FakeModel(echo), b=FakeModel(echo))
    events: list[str] = []
    result = two_steps().run(runtime, topic="rain", on_event=lambda step, event: events.append(step))
    assert result["second"].text == "<<rain>>" and result.is_whole
    assert runtime.loads == [("a", {}), ("b", {})]
    with pytest.raises(kamado.InvalidRequest, match="lacks topic and does not take colour; its inputs are topic"):
        two_steps().run(runtime, colour="red")
    with pytest.raises(kamado.GenerationFailed, match="it broke"):
        two_steps().run(runtime, topic="fail")
    with pytest.raises(kamado.InvalidRequest, match="refused"):
        two_steps().run(runtime, topic="refuse")


def test_a_failure_takes_with_it_only_what_depends_on_it() -> None:
    chain = kamado.Chain([*two_steps().steps, kamado.ChainStep("other", "a", prompt="about {topic}")])
    runtime: Any = FakeRuntime(a=FakeModel(echo), b=FakeModel(echo))
    found = sorted(chain.map(runtime, [{"topic": "x"}, {"topic": "fail"}]), key=lambda result: result.index)
    assert found[0].is_whole and not found[1].is_whole
    assert set(found[1].results) == {"other"} and set(found[1].errors) == {"first"}
    with pytest.raises(kamado.GenerationFailed):
        found[1]["first"]
    with pytest.raises(KeyError):
        found[1]["second"]


def in_background(function: Callable[[], Any]) -> list[Any]:
    found: list[Any] = []
    threading.Thread(target=lambda: found.append(function()), daemon=True).start()
    return found


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_the_next_inputs_first_stage_runs_while_the_last_stage_of_these_does() -> None:
    first, second = FakeModel(), FakeModel()
    runtime: Any = FakeRuntime(a=first, b=second)
    found = in_background(lambda: list(two_steps().map(runtime, [{"topic": "1"}, {"topic": "2"}], concurrency=2)))
    wait_for(lambda: len(first.jobs) == 2)
    first.jobs[0].finish(said("one"))
    wait_for(lambda: len(second.jobs) == 1)  # while the first step of the other inputs has not ended
    assert second.jobs[0].options == {"prompt": "one"}
    first.jobs[1].finish(said("two"))
    wait_for(lambda: len(second.jobs) == 2)
    for job in second.jobs:
        job.finish(said("done"))
    wait_for(lambda: bool(found))
    assert [result.index for result in found[0]] == [0, 1]


def test_a_model_that_is_out_waits_until_the_others_have_nothing_to_do() -> None:
    first, second = FakeModel(), FakeModel()
    second.in_memory = False
    runtime: Any = FakeRuntime(a=first, b=second)
    found = in_background(lambda: list(two_steps().map(runtime, [{"topic": "1"}, {"topic": "2"}])))
    wait_for(lambda: len(first.jobs) == 2)
    first.jobs[0].finish(said("one"))
    time.sleep(0.05)
    assert not second.jobs
    first.jobs[1].finish(said("two"))
    wait_for(lambda: len(second.jobs) == 2)
    for job in second.jobs:
        job.finish(said("done"))
    wait_for(lambda: bool(found))


def test_leaving_the_iterator_cancels_what_runs() -> None:
    first = FakeModel()
    runtime: Any = FakeRuntime(a=first, b=FakeModel(echo))
    results = two_steps().map(runtime, [{"topic": str(number)} for number in range(3)], concurrency=3)
    found = in_background(lambda: next(results))
    wait_for(lambda: len(first.jobs) == 3)
    first.jobs[0].finish(said("one"))
    wait_for(lambda: bool(found))
    results.close()  # type: ignore[attr-defined]
    assert [job.cancelled for job in first.jobs[1:]] == [True, True]


def test_chains_are_read_from_toml(tmp_path: Path) -> None:
    path = tmp_path / "chain.toml"
    path.write_text(
        'inputs = ["mood"]\n[[step]]\nname = "idea"\nmodel = "./llm"\nload = { quant = "int8" }\n'
        'prompt = "{topic}"\nmax_tokens = 4\n'
    )
    chain = kamado.read_chain(path)
    assert chain.inputs == ("mood", "topic")
    (step,) = chain.steps
    assert (step.model, step.load, step.options) == (
        str(tmp_path / "llm"), {"quant": "int8"}, {"prompt": "{topic}", "max_tokens": 4}
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x = [", "not TOML"),
        ("colour = 1", "unknown key 'colour'"),
        ("[[step]]\nname = 'a'", "step 1 must have a name and a model"),
        ("[[step]]\nname = 'a'\nmodel = 'm'\nload = 3", "load must be a table"),
        ("step = 3", "tables called"),
        ("inputs = 3", "inputs must be a list"),
    ],
)
def test_bad_files_are_refused_by_name(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "chain.toml"
    path.write_text(text)
    with pytest.raises(kamado.InvalidRequest, match=says) as caught:
        kamado.read_chain(path)
    assert "chain.toml" in str(caught.value)
