"""Results of which a part was not made."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from fake_pictures import FakePictureModel, draw
from kamado.errors import Cancelled, DeadlineExceeded, GenerationFailed, InvalidRequest
from kamado.events import Event, Finished, Started, Token
from kamado.jobs import Job
from kamado.media.pictures import open_picture, read_recipe
from kamado.results import Choice, Failure, Result, Timings, failure_notes, failures_in


def ended(*errors: Exception | None) -> Job:
    """A request whose answers ended in this order, each with its error."""

    def collect(events: Sequence[Event], timings: Timings) -> Result:
        return Result(request_id="r", failures=failures_in(events, lambda index: 7 + index), timings=timings)

    job = Job("r", collect, lambda request_id: None)
    job.put(Started("r"))
    for index, error in enumerate(errors):
        job.put(Finished("r", "complete" if error is None else "failed", index, error=error))
    job.close()
    return job


def test_arrivals_of_events() -> None:
    begin = time.monotonic()
    job = ended(None, GenerationFailed("black"))
    arrivals = job.arrivals()
    assert [event for event, _ in arrivals] == list(job.events())
    moments = [begin, job.submitted_s, *(moment for _, moment in arrivals), time.monotonic()]
    assert moments == sorted(moments) and job.result().timings.total_s <= moments[-1] - job.submitted_s


def test_a_part_that_failed_is_told() -> None:
    black, nan = GenerationFailed("black"), GenerationFailed("NaN")
    job = ended(None, black, None, nan)
    result = job.result()
    assert result.failures == (Failure(index=1, seed=8, error=black), Failure(index=3, seed=10, error=nan))
    assert result is job.result() and asyncio.run(job.aresult()).failures == result.failures
    assert result.failures[0].as_dict() == {"index": 1, "seed": 8, "error": "black"}


@pytest.mark.parametrize(
    ("errors", "raised"),
    [
        ((GenerationFailed("one"),), "one"),
        ((GenerationFailed("one"), GenerationFailed("two")), "one"),
        ((None, Cancelled("stopped")), "stopped"),
        ((GenerationFailed("one"), None, DeadlineExceeded("late"), Cancelled("stopped")), "late"),
        ((GenerationFailed("one"), Cancelled("stopped")), "stopped"),
    ],
)
def test_what_ends_a_request_is_raised(errors: tuple[Exception | None, ...], raised: str) -> None:
    with pytest.raises((GenerationFailed, Cancelled), match=f"^{raised}$"):
        ended(*errors).result()


def test_failures_are_in_order_whenever_they_came() -> None:
    first, second = GenerationFailed("a"), GenerationFailed("b")
    events: list[Event] = [Finished("r", "failed", 2, error=second), Token("r", 0, 5, "x")]
    events += [Finished("r", "stop", 1), Finished("r", "failed", 0, error=first)]
    assert [(failure.index, failure.error) for failure in failures_in(events, lambda index: None)] == [
        (0, first),
        (2, second),
    ]


def test_pictures_keep_their_numbers_and_seeds(tmp_path: Path) -> None:
    result = FakePictureModel(failing=frozenset({7, 9}), notes=("cut",)).generate(prompt="a cat", seed=7, n=4)
    assert result.seeds == (8, 10) and result.indices == (1, 3) and result.num_asked == 4
    assert [failure.index for failure in result.failures] == [0, 2]
    assert result.notes == (
        "cut",
        "picture 1 of 4 (seed 7) was not made: it is black",
        "picture 3 of 4 (seed 9) was not made: it is black",
    )
    assert result.failure_notes == result.notes[1:]
    paths = result.save(tmp_path / "x.png")
    assert [path.name for path in paths] == ["x-2.png", "x-4.png"] == sorted(path.name for path in tmp_path.iterdir())
    for path, seed in zip(paths, (8, 10), strict=True):
        assert open_picture(path).tobytes() == draw(seed).tobytes()
        assert read_recipe(path)["options"] == {"prompt": "a cat", "seed": seed, "n": 1}


def test_one_of_two_is_not_the_one_that_was_asked_for(tmp_path: Path) -> None:
    """A single picture that is left gets the name of its number, as its siblings would have."""
    result = FakePictureModel(failing=frozenset({8})).generate(prompt="x", seed=7, n=2)
    assert result.save(tmp_path / "x.png") == [tmp_path / "x-1.png"]
    alone = FakePictureModel().generate(prompt="x", seed=7)
    assert alone.save(tmp_path / "x.png") == [tmp_path / "x.png"] and alone.failure_notes == ()


def test_a_result_without_pictures_saves_none(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="no pictures"):
        Result(request_id="r").save(tmp_path / "x.png")


def test_texts_are_called_answers() -> None:
    failure = Failure(index=0, seed=None, error=GenerationFailed("boom"))
    choice = Choice(index=1, text="a", tokens=(1,), finish_reason="stop")
    result = Result(request_id="r", choices=(choice,), failures=(failure,))
    assert result.text == "a" and result.num_asked == 2
    assert result.failure_notes == ("answer 1 of 2 was not made: boom",)
    assert failure_notes((), 3) == ()
