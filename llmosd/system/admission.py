"""What is refused at the door: requests that make no sense, and those that could never run to their end."""

from __future__ import annotations

from llmosd.errors import ContextTooLong, InvalidRequest
from llmosd.system.limits import Limits
from llmosd.types import NICE_MAX, NICE_MIN, RequestSpec


def validate(spec: RequestSpec, limits: Limits) -> None:
    """Raise InvalidRequest, naming the parameter, unless prompt, n, max_tokens and nice are possible."""
    n, max_tokens = spec.sampling.n, spec.sampling.max_tokens
    if not spec.prompt:
        raise InvalidRequest("the prompt is empty", param="prompt")
    if not 1 <= n <= limits.slots:
        raise InvalidRequest(f"n must be 1 to {limits.slots} (the slots there are), not {n}", param="n")
    if max_tokens is not None and max_tokens < 1:
        raise InvalidRequest(f"max_tokens must be at least 1, not {max_tokens}", param="max_tokens")
    validate_nice(spec.nice)


def validate_nice(nice: int, param: str = "priority") -> None:
    if not NICE_MIN <= nice <= NICE_MAX:
        raise InvalidRequest(f"nice must be {NICE_MIN} to {NICE_MAX}, not {nice}", param=param)


def resolve_max_tokens(spec: RequestSpec, limits: Limits, pages: int) -> int:
    """What was asked for if it fits the context and, alone, the `pages` that its user may hold; all that fits if
    nothing was asked for.

    Raises ContextTooLong with what was asked for and what there is.
    """
    prompt, n, asked = len(spec.prompt), spec.sampling.n, spec.sampling.max_tokens
    longest = limits.longest(prompt, n, pages)
    room = min(limits.context, longest) - prompt
    if room >= (asked or 1):
        return asked or room
    wanted = f"the prompt has {prompt} tokens and {asked or 'at least 1'} are to be generated"
    if limits.context <= longest:
        raise ContextTooLong(f"{wanted}, but the context holds {limits.context} tokens", param="max_tokens")
    holder = "the page pool holds" if pages == limits.pages else f"the quota of user {spec.user!r} is {pages} pages,"
    raise ContextTooLong(
        f"{wanted} for each of n={n}, but {holder} {pages * limits.page_tokens} tokens", param="max_tokens"
    )
