from __future__ import annotations

from dataclasses import replace

import engine_world as world
from engine_world import TICKETS, Listener, spec

from llmosd.application.engine import Control, Submit, ThreadEngine
from llmosd.prediction.cost_executor import ManualClock
from llmosd.system.control import Selection, Suspend
from llmosd.types import Ended, State


def test_a_deadline_passes_while_nothing_runs(listener: Listener) -> None:
    """The engine wakes for it without being asked for anything."""
    clock = ManualClock()
    engine = ThreadEngine(world.build_paced, listener, lambda: clock.now)
    engine.start()
    try:
        engine.post(Submit(next(TICKETS), replace(spec("a", max_tokens=900), deadline=50_000_000)))
        listener.first_output("a")
        suspend = Control(next(TICKETS), Suspend(), Selection(("a",)))
        engine.post(suspend)
        listener.reply(suspend)
        clock.now = 50_000_000
        assert listener.ended("a").state is State.FAILED
        [ended] = [event for event in listener.events if isinstance(event, Ended)]
        assert (ended.timeout, ended.interrupted) == ("deadline", False)
    finally:
        engine.stop(drain=False)
        assert engine.join(timeout=60)
