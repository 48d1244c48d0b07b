"""The MQTT topics, in one table: `llmos/<node>/<name>`."""

from __future__ import annotations

from dataclasses import dataclass

from llmosd.wire import Command, CommandReply, EventMessage, Frame, Status

ROOT = "llmos"


@dataclass(frozen=True, slots=True)
class Topic:
    """One row of the table. `payload` is the wire type, sent as JSON; `last_will` says what a lost daemon leaves."""

    name: str
    direction: str
    qos: int
    retain: bool
    payload: type
    rate: str
    last_will: str

    def on(self, node: str) -> str:
        return f"{ROOT}/{node}/{self.name}"


OUT, IN = "daemon → subscribers", "anybody → daemon"

STATUS = Topic("status", OUT, 1, True, Status, "on change, and every 10 s", "the same with state `offline`")
FRAME = Topic("frame", OUT, 0, True, Frame, "1/s", "none: the last Frame stays, its age tells")
EVENT = Topic("event", OUT, 1, False, EventMessage, "at most 4/s, what is left out is counted", "none")

TELEMETRY = (STATUS, FRAME, EVENT)

COMMAND = Topic("command", IN, 1, False, Command, "as sent", "none")
REPLY = Topic("reply", OUT, 1, False, CommandReply, "one for each command", "none")

TOPICS = (*TELEMETRY, COMMAND, REPLY)
