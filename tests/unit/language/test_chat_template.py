"""Chat templates: what they may do, and what stops them."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kamado.errors import InvalidRequest, UnsupportedCheckpoint
from kamado_models.language.chat_template import ChatTemplate, started_worker
from kamado_models.language.tokenizer import Tokenizer

MESSAGES = [{"role": "user", "content": "Hé 😀"}]
CHATML = "{% for m in messages %}<{{ m.role }}>{{ m['content'] }}\n{% endfor %}{{ eos_token }}"


def render(source: str, **variables: Any) -> str:
    template = ChatTemplate(source, time_limit_s=20)
    try:
        return template.render(MESSAGES, variables)
    finally:
        template.close()


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (CHATML, "<user>Hé 😀\n</s>"),
        ("{% for m in messages %}\n  {% if true %}\n  x\n  {% endif %}\n{% endfor %}", "  x\n"),
        ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        ("{% set ns = namespace(n=1) %}{% set ns.n = ns.n + 1 %}{{ ns.n }}", "2"),
        ("{% generation %}{{ messages[0].role }}{% endgeneration %}!", "user!"),
        ("{{ {'a': '<é>', 'b': [1, none]} | tojson }}", '{"a": "<é>", "b": [1, null]}'),
        ("{{ strftime_now('%Y') | length }}", "4"),
        ("{{ missing }}|{{ missing is defined }}", "|False"),
    ],
)
def test_what_templates_use(source: str, text: str) -> None:
    assert render(source, eos_token="</s>") == text


def test_same_text_as_transformers(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    import tiny

    tiny.write_tokenizer(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    chat = [{"role": r, "content": c} for r, c in (("system", "Be\n brief"), ("user", "<b>&amp;"), ("assistant", ""))]
    expected = theirs.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    template = ChatTemplate(tiny.CHAT_TEMPLATE)
    assert template.render(chat, {"add_generation_prompt": True}) == expected
    template.close()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", "refuses these messages: roles must alternate"),
        ("{{ messages[5].content.x }}", "fails for these messages"),
        ("{{ 1 / 0 }}", "fails for these messages: ZeroDivisionError"),
        ("{{ 'a' * 10 ** 10 }}", "used up its memory"),
        ("{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}", "longer than 16777216 characters"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "fails for these messages"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ cycler.__init__.__globals__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "fails for these messages"),
        ("{{ namespace(__class__=1) }}", "cannot hold '__class__'"),
        ("{% include '/etc/passwd' %}", "fails for these messages"),
        ("{{ ('%s' | format).__globals__ }}", "fails for these messages"),
    ],
)
def test_what_templates_may_not_do(source: str, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        render(source)


@pytest.mark.parametrize("source", ["{% if", "{{ 1 +", "{% nonsense %}", "{% for %}"])
def test_what_is_no_template(source: str) -> None:
    with pytest.raises(UnsupportedCheckpoint, match="chat template is not valid"):
        render(source)


def test_a_loop_is_stopped_and_the_next_request_served() -> None:
    source = "{% if bomb %}{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}{% endif %}ok"
    template = ChatTemplate(source, time_limit_s=1.0)
    started = time.monotonic()
    with pytest.raises(InvalidRequest, match="did not finish within 1 s"):
        template.render(MESSAGES, {"bomb": True})
    assert time.monotonic() - started < 10
    slow_start = ChatTemplate(source, time_limit_s=20)
    assert slow_start.render(MESSAGES, {"bomb": False}) == "ok"
    slow_start.close()
    template.close()


def test_threads_get_their_own_answers() -> None:
    template = ChatTemplate("{{ messages[0].content }}")
    answers: dict[int, str] = {}

    def ask(i: int) -> None:
        answers[i] = template.render([{"role": "user", "content": str(i)}], {})

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert answers == {i: str(i) for i in range(8)}
    template.close()


def test_the_process_ends_with_the_program() -> None:
    program = (
        "from kamado_models.language.chat_template import ChatTemplate\n"
        "t = ChatTemplate('x'); t.render([], {})\n"
        "print(t._workers[0]._process.pid)"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    if Path("/proc").exists():
        assert not Path(f"/proc/{answer.stdout.strip()}").exists()


def test_a_dead_process_is_replaced() -> None:
    template = ChatTemplate("ok")
    assert template.render(MESSAGES, {}) == "ok"
    template._workers[0]._process.kill()
    with pytest.raises(InvalidRequest):
        template.render(MESSAGES, {})
    assert template.render(MESSAGES, {}) == "ok"
    template.close()


def test_messages_must_be_plain_data() -> None:
    with pytest.raises(InvalidRequest, match="plain texts"):
        ChatTemplate("x").render([{"role": "user", "content": object()}], {})


def test_a_huge_template_is_refused() -> None:
    with pytest.raises(UnsupportedCheckpoint, match="characters; at most"):
        ChatTemplate("x" * (2 << 20))


@pytest.fixture(scope="module")
def echo() -> ChatTemplate:
    return ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}")


@settings(max_examples=50)
@given(contents=st.lists(st.text(), max_size=4))
def test_contents_come_through_unchanged(contents: list[str], echo: ChatTemplate) -> None:
    messages = [{"role": "user", "content": content} for content in contents]
    assert echo.render(messages, {}) == "".join(contents)


def test_a_process_that_was_started_before_is_used() -> None:
    worker = started_worker()
    assert worker is not None
    template = ChatTemplate("{{ messages[0].content }}")
    template.adopt(worker)
    assert template.render([{"content": "hello"}], {}) == "hello"
    assert template._workers == [worker]
    other = started_worker()
    assert other is not None
    template.adopt(other)
    assert worker._process.returncode is not None, "there is only one"
    template.close()
    assert other._process.returncode is not None


def test_a_tokenizer_without_a_template_ends_it(tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Backend
    from tokenizers import models

    worker = started_worker()
    assert worker is not None
    Tokenizer(Backend(models.BPE()), eos_ids=frozenset(), bos_id=None).adopt(worker)
    assert worker._process.returncode is not None
