"""What is refused at the door: requests that make no sense, those that could never run to their end, and too many."""

from __future__ import annotations

from math import ceil

from llmosd.errors import ContextTooLong, DeadlineExceeded, InvalidRequest, QueueFull, RateLimited
from llmosd.system.accounts import Accounts
from llmosd.system.departures import Departures
from llmosd.system.limits import Limits
from llmosd.system.quotas import QuotaQueue
from llmosd.system.request import Request
from llmosd.system.token_bucket import TokenBuckets
from llmosd.types import NICE_MAX, NICE_MIN, Nanoseconds, Quotas, RequestSpec, State

LONGEST_RETRY_S = 3600.0


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


def validate_deadline(spec: RequestSpec, now: Nanoseconds) -> None:
    """Raise InvalidRequest where it was over before the request came, DeadlineExceeded where it is over now."""
    if spec.deadline is None or spec.deadline > now:
        return
    if spec.deadline <= spec.arrived:
        raise InvalidRequest("the deadline is in the past", param="deadline_ms")
    raise DeadlineExceeded("the deadline passed before the request could be queued", param="deadline_ms")


class Admission:
    """Bounds the queue by requests and tokens, and users by live requests and token rates.

    Who is refused is told when coming back may be worth while: from the bucket where it is a token rate, else from the
    rate at which requests finish.
    """

    def __init__(self, limits: Limits, queue: QuotaQueue, accounts: Accounts, quotas: Quotas) -> None:
        self.departures = Departures()
        self._limits = limits
        self._queue = queue
        self._accounts = accounts
        self._quotas = quotas
        self._buckets = TokenBuckets(quotas)

    def admit(self, spec: RequestSpec, tokens: int, free_slots: int, now: Nanoseconds) -> int:
        """Let a request in that has, and may generate, so many tokens: how many were taken from its user's bucket.

        Raises QueueFull, RateLimited; then nothing has changed.
        """
        self._check_queue(spec.user, tokens, free_slots, now)
        self._check_live(spec.user, now)
        return self._take_tokens(spec.user, tokens, now)

    def ended(self, request: Request, now: Nanoseconds) -> None:
        """Give back what was taken for tokens that were never generated."""
        if request.state is State.FINISHED:
            self.departures.add(now)
        used = request.prompt_tokens + sum(len(sequence.tokens) for sequence in request.sequences)
        if request.paid > used and (bucket := self._buckets.of(request.spec.user, now)):
            bucket.give_back(request.paid - used, now)

    def retry_after_s(self, now: Nanoseconds) -> float:
        """Until the queue that is there now has been served, at the rate at which requests finish."""
        return _bounded(max(1, len(self._queue)) / self.departures.per_s(now))

    def _check_queue(self, user: str, tokens: int, free_slots: int, now: Nanoseconds) -> None:
        """Who finds a slot does not wait."""
        requests, waiting = self._queue.backlog(user)
        if requests >= self._limits.queue_limit + free_slots:
            full = f"{requests} requests are waiting already"
        elif requests >= free_slots and waiting and waiting + tokens > self._limits.queue_tokens > 0:
            full = f"{waiting} tokens are waiting already, {tokens} more exceed {self._limits.queue_tokens}"
        else:
            return
        raise QueueFull(f"{full}; try again later", retry_after_s=self.retry_after_s(now))

    def _check_live(self, user: str, now: Nanoseconds) -> None:
        """One of the user's has to end first: of all that are live, so many are."""
        account, most = self._accounts.find(user), self._quotas.of(user).live
        if account is not None and account.live >= most > 0:
            share = account.live / self._accounts.live
            raise RateLimited(
                f"user {user!r} has {account.live} requests already, and may have {most}; wait for one to end",
                retry_after_s=_bounded(1 / (share * self.departures.per_s(now))),
            )

    def _take_tokens(self, user: str, tokens: int, now: Nanoseconds) -> int:
        bucket = self._buckets.of(user, now)
        if bucket is None:
            return 0
        if wait := bucket.take(tokens, now):
            raise RateLimited(
                f"user {user!r} may spend {bucket.rate} tokens a second, {bucket.burst} at once; "
                f"{tokens} can be had in {ceil(wait / 1e9)} s",
                retry_after_s=wait / 1e9,
                tokens=(bucket.burst, bucket.left(now), bucket.full_in(now) / 1e9),
            )
        return tokens


def _bounded(seconds: float) -> float:
    return min(LONGEST_RETRY_S, max(1.0, seconds))
