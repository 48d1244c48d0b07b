"""What the kernel expects of whatever executes its plans: the real model, a cost model, a symbolic one in tests."""

from __future__ import annotations

from typing import Protocol

from llmosd.types import Plan, StepResult


class Executor(Protocol):
    def execute(self, plan: Plan) -> StepResult:
        """Run one step: results for exactly the plan's sequences, in its order.

        Raises StepError when the step failed as a whole; the same plan may then be executed again.
        """
        ...
