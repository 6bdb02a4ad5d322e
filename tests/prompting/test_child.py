"""A child's own doing and its machine's are told apart: the real process, stopped or burning."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from appliance.errors import RequestError, UnavailableError
from appliance.prompting import ChatTemplate, Conversation, Message
from appliance.prompting.child import Child, ChildLostError
from appliance.prompting.worker import HEADER

WORKER = "appliance.prompting.worker"
PATIENT = 60.0
ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
ASKED = Conversation((Message("user", "x"),))


def message(document: dict[str, object]) -> bytes:
    data = json.dumps(document).encode("ascii")
    return HEADER.pack(len(data)) + data


@contextmanager
def worker(template: str) -> Iterator[Child]:
    """One that has compiled `template`."""
    child = Child(WORKER)
    try:
        child.begin(PATIENT)
        child.send(message({"template": template, "max_chars": 100}))
        assert answered(child) == {"text": ""}
        yield child
    finally:
        child.kill()


def answered(child: Child) -> object:
    return json.loads(child.receive(HEADER.unpack(child.receive(HEADER.size))[0]))


def workers() -> set[int]:
    """The processes of templates that this one has."""
    found = set()
    for task in Path("/proc/self/task").iterdir():
        found |= set(map(int, said_of(task, "children").split()))
    return {pid for pid in found if WORKER in said_of(Path(f"/proc/{pid}"), "cmdline")}


def said_of(process: Path, what: str) -> str:
    """Nothing if it has ended: other tests leave threads and processes that come to their end."""
    try:
        return (process / what).read_text()
    except OSError:
        return ""


def test_one_that_is_not_let_run_is_not_at_fault_and_answers_later() -> None:
    with worker("hello") as child:
        pid = child._process.pid
        os.kill(pid, signal.SIGSTOP)
        child.begin(0.2, 0.1)
        child.send(message({}))
        with pytest.raises(UnavailableError) as refused:
            child.receive(HEADER.size)
        assert refused.value.code == "machine_busy"
        os.kill(pid, signal.SIGCONT)
        child.begin(PATIENT)
        assert answered(child) == {"text": "hello"}


def test_one_that_burns_its_time_is_lost() -> None:
    with worker(ENDLESS) as child:
        child.begin(0.3, PATIENT)
        child.send(message({}))
        with pytest.raises(ChildLostError, match="too long"):
            child.receive(HEADER.size)


def test_an_answer_that_is_there_counts_however_late_it_is_taken() -> None:
    """So that it does not matter if it was the parent that was stopped."""
    with worker("hello") as child:
        child.begin(PATIENT)
        child.send(message({}))
        size = HEADER.unpack(child.receive(HEADER.size))[0]
        child.begin(0.0, 0.0)  # the body came with the head
        assert json.loads(child.receive(size)) == {"text": "hello"}


def test_one_that_ended_is_lost() -> None:
    with worker("hello") as child:
        os.kill(child._process.pid, signal.SIGKILL)
        child.begin(PATIENT)
        with pytest.raises(ChildLostError, match="ended"):
            child.receive(HEADER.size)


def test_a_conversation_is_not_blamed_for_a_stopped_template() -> None:
    before = workers()
    template = ChatTemplate("hello", seconds=0.2, late_seconds=0.1)
    try:
        (stopped,) = workers() - before
        os.kill(stopped, signal.SIGSTOP)
        with pytest.raises(UnavailableError) as refused:
            template.render(ASKED)
        assert refused.value.code == "machine_busy"
        assert stopped not in workers()
        assert _rendered_at_last(template) == "hello"
    finally:
        template.close()


def test_a_template_that_was_closed_starts_no_process_again() -> None:
    before = workers()
    template = ChatTemplate("hello")
    template.close()
    with pytest.raises(UnavailableError, match="unloaded"):
        template.render(ASKED)
    assert workers() == before


def _rendered_at_last(template: ChatTemplate) -> str:
    """Tried again as a caller would: this machine may be busy indeed."""
    while True:
        try:
            return template.render(ASKED).text
        except UnavailableError:
            continue


def test_a_template_that_runs_on_is_its_conversations_fault() -> None:
    template = ChatTemplate(ENDLESS, seconds=0.3, late_seconds=PATIENT)
    try:
        with pytest.raises(RequestError) as refused:
            template.render(ASKED)
        assert refused.value.code == "template_stopped"
    finally:
        template.close()
