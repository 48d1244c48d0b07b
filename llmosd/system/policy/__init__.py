"""Who goes first, who gives way: one small file for each policy, all behind `Policy`."""

from __future__ import annotations

from collections.abc import Callable

from llmosd.errors import InvalidRequest
from llmosd.system.policy.dynamic import Dynamic
from llmosd.system.policy.edf import Edf
from llmosd.system.policy.fair import Fair
from llmosd.system.policy.fcfs import Fcfs
from llmosd.system.policy.hrrn import Hrrn
from llmosd.system.policy.mlfq import Mlfq
from llmosd.system.policy.policy import Policy, Rules
from llmosd.system.policy.priority import Priority
from llmosd.system.policy.sjf import Sjf

__all__ = ["POLICIES", "Policy", "Rules", "named"]

POLICIES: dict[str, Callable[..., Policy]] = {
    policy.name: policy for policy in (Fcfs, Priority, Fair, Dynamic, Sjf, Hrrn, Edf, Mlfq)
}


def named(name: str, rules: Rules) -> Policy:
    """Raises InvalidRequest, naming all there are, where there is none of that name."""
    if name not in POLICIES:
        raise InvalidRequest(f"there is no policy {name!r}; use one of {', '.join(POLICIES)}", param="policy")
    return POLICIES[name](rules)
