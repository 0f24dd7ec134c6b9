"""Library code as a coroutine: what it asks, and how it ends."""

from __future__ import annotations

import contextvars
import gc
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import greenlet
import pytest
import torch

from kamado.tasks.library.coroutine import Coroutine, Ended


def test_questions_and_answers_come_in_order() -> None:
    def function(coroutine: Coroutine) -> str:
        said = [coroutine.ask(number) for number in range(3)]
        return "-".join(said)

    coroutine = Coroutine(function)
    assert coroutine.running
    assert coroutine.resume() == 0
    assert [coroutine.resume(answer) for answer in ("a", "b")] == [1, 2]
    ended = coroutine.resume("c")
    assert isinstance(ended, Ended)
    assert ended.value == "a-b-c"
    assert not coroutine.running


@pytest.mark.parametrize("value", [None, (), (1, 2), {"a": 1}, StopIteration("x"), greenlet.GreenletExit()], ids=repr)
def test_every_value_gets_through_both_ways(value: Any) -> None:
    coroutine = Coroutine(lambda coroutine: coroutine.ask(value))
    assert coroutine.resume() is value
    ended = coroutine.resume(value)
    assert isinstance(ended, Ended)
    assert ended.value is value


def test_a_question_comes_from_however_deep() -> None:
    def items(coroutine: Coroutine) -> Iterator[int]:
        for number in range(3):
            yield coroutine.ask(number) * 2

    coroutine = Coroutine(lambda coroutine: sum(sorted(items(coroutine), key=lambda item: -item)))
    question = coroutine.resume()
    while not isinstance(question, Ended):
        question = coroutine.resume(question + 10)
    assert question.value == 2 * (10 + 11 + 12)


@pytest.mark.parametrize("asked", [0, 1])
def test_what_the_function_raises_comes_out_once(asked: int) -> None:
    error = KeyError("fault")

    def function(coroutine: Coroutine) -> None:
        for number in range(asked):
            coroutine.ask(number)
        raise error

    coroutine = Coroutine(function)
    with pytest.raises(KeyError) as caught:
        for _ in range(asked + 1):
            coroutine.resume()
    assert caught.value is error
    assert not coroutine.running
    coroutine.close()
    with pytest.raises(AssertionError):
        coroutine.resume()


def test_a_base_exception_comes_out_too() -> None:
    def function(coroutine: Coroutine) -> None:
        raise SystemExit(3)

    coroutine = Coroutine(function)
    with pytest.raises(SystemExit):
        coroutine.resume()
    assert not coroutine.running


def test_two_of_them_may_handle_errors_at_the_same_time() -> None:
    def function(coroutine: Coroutine, name: str) -> str:
        try:
            raise ValueError(name)
        except ValueError:
            coroutine.ask("in the handler")
            try:
                raise
            except ValueError as error:
                return str(error)

    both = [Coroutine(lambda coroutine, name=name: function(coroutine, name)) for name in "ab"]  # type: ignore[misc]
    for coroutine in both:
        coroutine.resume()
    assert [coroutine.resume().value for coroutine in both] == ["a", "b"]


def test_closing_runs_what_is_to_be_run_at_the_end() -> None:
    done = []

    def numbers(coroutine: Coroutine) -> Iterator[int]:
        try:
            yield coroutine.ask("first")
        finally:
            done.append("generator")

    def function(coroutine: Coroutine) -> None:
        try:
            for _ in numbers(coroutine):
                coroutine.ask("second")
        finally:
            done.append("function")

    coroutine = Coroutine(function)
    coroutine.resume()
    assert coroutine.resume() == "second"
    coroutine.close()
    assert sorted(done) == ["function", "generator"]
    assert not coroutine.running
    coroutine.close()


def test_closing_before_the_start_runs_nothing_and_drops_the_function() -> None:
    class Held:
        pass

    held, ran = Held(), []
    coroutine = Coroutine(lambda coroutine, held=held: ran.append(held))  # type: ignore[misc]
    gone = weakref.ref(held)
    del held
    coroutine.close()
    assert not coroutine.running
    assert ran == []
    assert gone() is None


def test_errors_at_the_end_are_nobodys() -> None:
    for error in (RuntimeError("late"), SystemExit(1)):

        def function(coroutine: Coroutine, error: BaseException = error) -> None:
            try:
                coroutine.ask(1)
            finally:
                raise error

        coroutine = Coroutine(function)
        coroutine.resume()
        coroutine.close()
        assert not coroutine.running


def test_what_swallows_its_end_and_returns_is_over() -> None:
    def function(coroutine: Coroutine) -> str:
        try:
            coroutine.ask(1)
        except BaseException:  # noqa: BLE001 - as bad code does
            return "nobody hears"
        return "answered"

    coroutine = Coroutine(function)
    coroutine.resume()
    coroutine.close()
    assert not coroutine.running


def test_nothing_of_one_that_was_closed_is_left() -> None:
    class Held:
        pass

    gone = []

    def function(coroutine: Coroutine) -> None:
        held = Held()
        gone.append(weakref.ref(held))
        coroutine.ask(held)

    for how in ("closed", "ended"):
        coroutine = Coroutine(function)
        coroutine.resume()
        if how == "closed":
            coroutine.close()
        else:
            coroutine.resume()
    gc.collect()
    assert [reference() for reference in gone] == [None, None]


def test_context_variables_stay_inside() -> None:
    variable = contextvars.ContextVar("variable", default="nobody")

    def function(coroutine: Coroutine, name: str) -> str:
        variable.set(name)
        coroutine.ask(1)
        return variable.get()

    both = [Coroutine(lambda coroutine, name=name: function(coroutine, name)) for name in "ab"]  # type: ignore[misc]
    for coroutine in both:
        coroutine.resume()
        assert variable.get() == "nobody"
    assert [coroutine.resume().value for coroutine in both] == ["a", "b"]
    assert variable.get() == "nobody"


def test_it_starts_on_another_thread_than_it_was_made_on() -> None:
    made: list[Coroutine] = []
    thread = threading.Thread(target=lambda: made.append(Coroutine(lambda coroutine: coroutine.ask(1))))
    thread.start()
    thread.join()
    (coroutine,) = made
    assert coroutine.resume() == 1
    assert coroutine.resume("answer").value == "answer"


def test_asking_from_a_thread_of_the_librarys_own_is_refused() -> None:
    errors = []

    def function(coroutine: Coroutine) -> None:
        def call() -> None:
            try:
                coroutine.ask(1)
            except RuntimeError as error:
                errors.append(str(error))

        thread = threading.Thread(target=call)
        thread.start()
        thread.join()

    assert isinstance(Coroutine(function).resume(), Ended)
    assert len(errors) == 1
    assert "thread" in errors[0]


def test_asking_inside_a_function_mode_is_refused() -> None:
    """The mode would hold for everybody else."""

    def function(coroutine: Coroutine) -> torch.Tensor:
        with torch.device("meta"):
            coroutine.ask(1)
        raise AssertionError

    with pytest.raises(RuntimeError, match=r"torch\.device"):
        Coroutine(function).resume()
    assert torch.get_default_device() == torch.device("cpu")
    with torch.device("meta"):
        coroutine = Coroutine(lambda coroutine: [coroutine.ask(1), torch.empty(1).device.type])
        coroutine.resume()
        assert coroutine.resume().value[1] == "meta"


def test_a_coroutine_may_run_another() -> None:
    def outer(coroutine: Coroutine) -> list[Any]:
        inner = Coroutine(lambda inner: [inner.ask("inner"), inner.ask("again")])
        heard = [inner.resume()]
        heard.append(inner.resume(coroutine.ask("outer")))
        heard.append(inner.resume(coroutine.ask("outer again")).value)
        return heard

    coroutine = Coroutine(outer)
    assert coroutine.resume() == "outer"
    assert coroutine.resume(1) == "outer again"
    assert coroutine.resume(2).value == ["inner", "again", [1, 2]]
