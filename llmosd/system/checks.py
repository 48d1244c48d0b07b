"""What must hold between steps, and what the result of a step must be like."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import astuple

from llmosd.system.accounts import Accounts
from llmosd.system.request import Request
from llmosd.types import Nanoseconds, Plan, SequencePlan, SequenceResult, StepResult


def check_requests(requests: Collection[Request], now: Nanoseconds) -> None:
    """Raises AssertionError."""
    for request in requests:
        assert all(len(s.tokens) < request.max_tokens for s in request.live), f"{request.id} exceeds max_tokens"
        times = request.times(now)
        assert times.total == now - request.spec.arrived, f"{request.id} lost time"
        assert times.queued_by.total == times.queued, f"{request.id} waited for nothing known"
        assert min(astuple(times.queued_by)) >= 0 and times.rest >= 0, f"{request.id} gained time"


def check_accounts(accounts: Accounts, requests: Collection[Request], running: Collection[Request]) -> None:
    """That users are charged for what their requests, of which some run, have. Raises AssertionError."""
    accounts.check()
    charged = Counter[str]()
    for request in running:
        charged[request.account.user] += request.pages + request.reserved
    for account in {request.account for request in requests}:
        assert account.charged == charged[account.user], f"{account.user!r} is charged for other pages"
        counts = tuple(sum(request.account is account for request in some) for some in (requests, running))
        assert (account.live, account.running) == counts, f"requests of {account.user!r} are miscounted"


def validate_result(plan: Plan, result: StepResult) -> None:
    """Raises ValueError unless it can be what came of this plan."""
    if result.step != plan.step or len(result.sequences) != len(plan.sequences):
        raise ValueError(f"the result is not that of step {plan.step}")
    for part, outcome in zip(plan.sequences, result.sequences, strict=True):
        if outcome.sequence != part.sequence:
            raise ValueError(f"a result of sequence {outcome.sequence} is not that of step {plan.step}")
        if part.sample and not outcome.tokens and outcome.finish is None and outcome.error is None:
            raise ValueError(f"sequence {part.sequence} was to be sampled, and neither grew nor ended")
        if len(outcome.tokens) > 1 and not _continues(part, outcome):
            raise ValueError(f"sequence {part.sequence} got tokens after one that it was not fed")


def _continues(part: SequencePlan, outcome: SequenceResult) -> bool:
    """Whether all its new tokens but the last are guesses it was fed, from the first one on."""
    first = len(part.tokens) - part.drafts
    return list(part.tokens[first:][: len(outcome.tokens) - 1]) == list(outcome.tokens[:-1])
