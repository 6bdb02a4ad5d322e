"""A generation is handed to the engine once, or never, whenever its caller goes."""

from __future__ import annotations

import threading

import pytest

from appliance.engine.generation import Generation
from appliance.engine.sampling import SamplingParams
from appliance.engine_daemon.queueing import Queueing
from appliance.errors import CapacityError

GENERATION = Generation(1, [1], SamplingParams(max_tokens=1))


def test_what_is_queued_while_somebody_waits_is_the_engines() -> None:
    taken: list[Generation] = []
    queueing = Queueing(taken.append)
    with queueing:
        assert not queueing.ended()
        queueing.queue(GENERATION)
    assert taken == [GENERATION]
    assert queueing.done


def test_what_is_queued_when_nobody_waits_any_more_is_dropped() -> None:
    taken: list[Generation] = []
    queueing = Queueing(taken.append)
    with queueing:
        pass
    assert queueing.ended()
    queueing.queue(GENERATION)
    assert not taken
    assert not queueing.done


def test_what_the_engine_refuses_is_not_done() -> None:
    def full(_: Generation) -> None:
        raise CapacityError("the queue is full")

    queueing = Queueing(full)
    with pytest.raises(CapacityError), queueing:
        queueing.queue(GENERATION)
    assert not queueing.done


def test_whoever_leaves_while_it_is_handed_over_knows_that_the_engine_has_it() -> None:
    inside, go = threading.Event(), threading.Event()

    def slowly(_: Generation) -> None:
        inside.set()
        assert go.wait(30)

    queueing = Queueing(slowly)
    thread = threading.Thread(target=queueing.queue, args=(GENERATION,))
    with queueing:
        thread.start()
        assert inside.wait(30)
        threading.Timer(0.05, go.set).start()
    assert queueing.done
    thread.join()
