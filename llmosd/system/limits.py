"""The sizes a kernel works within, and the arithmetic of what one request can need of them."""

from __future__ import annotations

from dataclasses import dataclass, fields

from llmosd.errors import ConfigError
from llmosd.types import Nanoseconds


@dataclass(frozen=True, slots=True)
class Limits:
    """Fixed for the life of a kernel; raises ConfigError when they contradict each other.

    `slots` sequences run at most; a step feeds at most `token_budget` tokens; `queue_limit` requests wait at most, not
    counting those that the free slots are for; one sequence holds at most `context` tokens; the pool has `pages` pages
    of `page_tokens` tokens each, the swap space has `swap_slots` slots of one page each.

    What waits has `queue_tokens` tokens at most, prompts and the most that may be generated, unless one request alone
    has more; none waits longer than `queue_timeout` for its first admission. 0 is no limit for both.
    """

    slots: int
    token_budget: int
    queue_limit: int
    context: int
    page_tokens: int
    pages: int
    swap_slots: int = 0
    queue_tokens: int = 0
    queue_timeout: Nanoseconds = 0

    def __post_init__(self) -> None:
        for item in fields(self):
            least = 0 if item.name in ("swap_slots", "queue_tokens", "queue_timeout") else 1
            if getattr(self, item.name) < least:
                given = getattr(self, item.name)
                raise ConfigError(f"{item.name} must be at least {least}, not {given}", param=item.name)
        if self.token_budget < self.slots:
            raise ConfigError(
                f"token_budget ({self.token_budget}) must be at least slots ({self.slots}): "
                "every running sequence needs a token of each step",
                param="token_budget",
            )

    @property
    def columns(self) -> int:
        """Pages of the longest sequence: the width of the page table."""
        return self.pages_for(self.context)

    def pages_for(self, tokens: int) -> int:
        return -(-tokens // self.page_tokens)

    def longest(self, prompt: int, n: int, pages: int) -> int:
        """Tokens that each of `n` sequences forked from one prompt can reach with so many pages to themselves.

        The full pages before the prompt's last token are held once, all later ones by each sequence.
        """
        shared = self.shared_pages(prompt)
        return (shared + (pages - shared) // n) * self.page_tokens

    def need(self, prompt: int, max_tokens: int, n: int) -> int:
        """Pages that `n` sequences forked from one prompt hold at their longest: with fewer they could not end."""
        shared = self.shared_pages(prompt)
        return shared + n * (self.pages_for(prompt + max_tokens) - shared)

    def shared_pages(self, prompt: int) -> int:
        """Full pages that sequences forked at the prompt's last token have in common for good."""
        return (prompt - 1) // self.page_tokens
