"""Process control as people ask for it, over HTTP and MQTT alike: ps, kill, nice, suspend, resume, wait, policy."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

from llmosd.application.access import Caller, Deed
from llmosd.application.service import Service
from llmosd.errors import InvalidRequest
from llmosd.system.control import FILTERS, Action, Kill, Nice, Resume, Selection, Suspend
from llmosd.types import RequestId, RequestView, ServiceClass, State
from llmosd.wire import CommandBody

COMMANDS = ("ps", "kill", "nice", "suspend", "resume", "wait", "policy")
_NEEDED = {"nice": "a whole number", "policy": "a name"}  # fields that the command of the same name takes

FIELDS = {"class" if name == "service_class" else name: name for name in FILTERS}  # as they are written → as meant
CLASSES = get_args(ServiceClass)
WAIT_S = 60.0  # at most, then whoever waits asks again: connections and tasks are not held for ever


class Commands:
    """Carries out whole commands: who may, which requests, what."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def do(self, command: CommandBody, caller: Caller) -> list[RequestView]:
        """The requests that it was about, as they are afterwards, without what the caller may not read.

        Raises InvalidRequest, Forbidden, NotFound or Unavailable; then nothing has changed.
        """
        _check(command)
        selection = selection_of(command)
        match command.command:
            case "policy":
                caller.check(Deed.ADMINISTER)
                await self._service.set_policy(command.policy or "")
                views = []
            case "ps":
                caller.check(Deed.SEE)
                views = await self._service.select(selection)
            case "wait":
                caller.check(Deed.SEE)
                views = await self._service.wait(selection, WAIT_S if command.timeout_s is None else command.timeout_s)
            case _:
                views = await self._control(_action(command, caller), selection, caller)
        return [shown(view, caller) for view in views]

    async def _control(self, action: Action, selection: Selection, caller: Caller) -> list[RequestView]:
        caller.check(Deed.CONTROL)
        return await self._service.control(action, selection, caller.owner)

    async def of(self, id: RequestId, action: Action, caller: Caller) -> RequestView:
        """One action on one request. Raises as `do`."""
        [view] = await self._control(action, Selection((id,)), caller)
        return shown(view, caller)


def shown(view: RequestView, caller: Caller) -> RequestView:
    """What the caller may see of it: a label may hold the beginning of a prompt."""
    return view if caller.may_read(view) else replace(view, label="")


def selection_of(command: CommandBody) -> Selection:
    """Raises InvalidRequest for what no request could be."""
    filters = {name: getattr(command, name) for name in FILTERS if getattr(command, name) is not None}
    if command.ids and filters:
        raise InvalidRequest("give ids or a filter, not both", param="ids")
    if command.command == "policy" and (command.ids or filters):
        raise InvalidRequest("the policy orders all requests: name none", param="ids")
    if not command.ids and not filters and command.command not in ("ps", "policy"):
        raise InvalidRequest(f"say which requests are meant: ids, or a filter ({', '.join(FIELDS)})", param="ids")
    _one_of("state", command.state, tuple(State))
    _one_of("class", command.service_class, CLASSES)
    return Selection(command.ids, **filters)


def _check(command: CommandBody) -> None:
    if command.command not in COMMANDS:
        raise InvalidRequest(f"command must be one of {', '.join(COMMANDS)}, not {command.command!r}", param="command")
    for name, needed in _NEEDED.items():
        if (getattr(command, name) is None) == (command.command == name):
            raise InvalidRequest(f"{name}, {needed}, goes with the command {name} and no other", param=name)
    if command.timeout_s is not None and command.command != "wait":
        raise InvalidRequest("timeout_s goes with the command wait only", param="timeout_s")
    if command.timeout_s is not None and not 0 <= command.timeout_s <= WAIT_S:
        raise InvalidRequest(f"timeout_s must be between 0 and {WAIT_S:.0f}", param="timeout_s")


def _action(command: CommandBody, caller: Caller) -> Action:
    match command.command:
        case "kill":
            return Kill(f"killed by {caller.user or 'command'}")
        case "nice":
            assert command.nice is not None
            return Nice(command.nice)
        case "suspend":
            return Suspend()
    return Resume()


def _one_of(name: str, value: str | None, allowed: tuple[str, ...]) -> None:
    if value is not None and value not in allowed:
        raise InvalidRequest(f"{name} must be one of {', '.join(allowed)}", param=name)
