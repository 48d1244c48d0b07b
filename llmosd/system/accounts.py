"""What each user holds and has used: running requests, pages, page·nanoseconds. Every change costs O(1).

A page that several requests refer to is charged whole to each of them, so that what one user is charged depends on
nobody else. A promise of pages counts against the quota as pages do, but takes no part in page·nanoseconds. Idle pages
of the prefix cache, and pages on their way to or from disk, are nobody's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace

from llmosd.types import Nanoseconds, Quotas, UserUsage

KEPT_NAMES = 64
"""Users, beside those that have a quota of their own, whose totals are kept apart once they have no request left."""

_ADDED_UP = [item.name for item in fields(UserUsage) if item.name != "user"]


@dataclass(slots=True)
class PageMeter:
    """Pages held and the integral of it over time, in whole page·nanoseconds."""

    pages: int = 0
    _offset: int = 0  # of the integral from pages · now

    def change(self, pages: int, now: Nanoseconds) -> None:
        """`pages` more from now on, or fewer."""
        self.pages += pages
        self._offset += pages * now

    def total(self, now: Nanoseconds) -> int:
        return self.pages * now - self._offset


@dataclass(slots=True, eq=False)
class Account:
    """One user. `most_running` and `most_pages` are the quota, None without a limit."""

    user: str
    most_running: int | None = None
    most_pages: int | None = None
    weight: float = 1.0  # of the user, where shares are fair
    live: int = 0
    running: int = 0
    promised: int = 0
    parked_tokens: int = 0  # that requests have and may generate which wait for the quota
    held: PageMeter = field(default_factory=PageMeter)
    prefilled: int = 0
    reused: int = 0
    generated: int = 0

    @property
    def charged(self) -> int:
        """Pages that count against the quota."""
        return self.held.pages + self.promised

    @property
    def is_limited(self) -> bool:
        return self.most_running is not None or self.most_pages is not None

    def has_room(self, pages: int) -> bool:
        return self.most_pages is None or self.charged + pages <= self.most_pages

    def lacks(self, pages: int) -> str:
        """What the quota has too little of to let a request enter that needs `pages`, in words; empty if nothing.

        As with the pool, a spare page is kept for each request that runs, so that it grows before another enters.
        """
        if self.most_running is not None and self.running >= self.most_running:
            return f"running {self.running} of {self.most_running}"
        if self.has_room(pages + self.running):
            return ""
        return f"pages {self.charged} of {self.most_pages}, {pages} more needed"

    def usage(self, now: Nanoseconds) -> UserUsage:
        return UserUsage(
            self.user,
            live=self.live,
            running=self.running,
            pages=self.held.pages,
            page_ns=self.held.total(now),
            prefilled_tokens=self.prefilled,
            reused_tokens=self.reused,
            generated_tokens=self.generated,
        )


class Accounts:
    """The accounts by user: of all that have a live request, and of so many more that the number is bounded."""

    def __init__(self, quotas: Quotas, pool_pages: int) -> None:
        self.now: Nanoseconds = 0
        self._quotas = quotas
        self._pool_pages = pool_pages
        self._kept: dict[str, Account] = {user: self._new(user) for user in quotas.users}
        self._room_for_names = len(self._kept) + KEPT_NAMES
        self._passing: dict[str, Account] = {}  # kept only while they have a live request
        self._gone = UserUsage(None)  # what those used that are not kept any more
        self._eased: dict[Account, None] = {}
        self.live = 0  # requests of all of them

    def find(self, user: str) -> Account | None:
        return self._kept.get(user) or self._passing.get(user)

    def most_pages(self, user: str) -> int:
        """Pages that the user's requests may hold together."""
        account = self.find(user) or self._new(user)
        return self._pool_pages if account.most_pages is None else account.most_pages

    def open(self, user: str) -> Account:
        """For a request that enters the table."""
        account = self.find(user)
        if account is None:
            account = self._new(user)
            room = len(self._kept) < self._room_for_names
            (self._kept if room else self._passing)[user] = account
        account.live += 1
        self.live += 1
        return account

    def close(self, account: Account) -> None:
        """For a request that has left it."""
        account.live -= 1
        self.live -= 1
        if not account.live and self._passing.pop(account.user, None) is not None:
            self._gone = _add(self._gone, account.usage(self.now))
            self._eased.pop(account, None)

    # ---- what requests hold

    def enter(self, account: Account) -> None:
        """A request of the user runs from now on."""
        account.running += 1

    def leave(self, account: Account) -> None:
        account.running -= 1
        self._ease(account)

    def hold(self, account: Account, meter: PageMeter, pages: int) -> None:
        """A request, whose meter it is, holds so many pages from now on."""
        if change := pages - meter.pages:
            meter.change(change, self.now)
            account.held.change(change, self.now)
            if change < 0:
                self._ease(account)

    def promise(self, account: Account, pages: int) -> None:
        """`pages` more are promised to a request of the user, or fewer."""
        account.promised += pages
        if pages < 0:
            self._ease(account)

    def take_eased(self) -> Iterable[Account]:
        """Accounts under a quota that hold less than when this was asked last."""
        if not self._eased:
            return ()
        eased, self._eased = self._eased, {}
        return eased

    def ease(self, account: Account) -> None:
        """Something else has changed that may let another request of the user run."""
        self._ease(account)

    def _ease(self, account: Account) -> None:
        if account.is_limited:
            self._eased[account] = None

    # ---- inspection

    def usage(self) -> tuple[UserUsage, ...]:
        """The kept users, those that hold most first, then all others in one."""
        passing = (replace(account.usage(self.now), user=None) for account in self._passing.values())
        return by_user([self._gone, *(account.usage(self.now) for account in self._kept.values()), *passing])

    def check(self) -> None:
        assert len(self._kept) <= self._room_for_names, "too many users are kept"
        for account in (*self._kept.values(), *self._passing.values()):
            assert account.most_running is None or account.running <= account.most_running, "too many run of one user"
            assert account.has_room(0), f"{account.user} holds {account.charged} pages of {account.most_pages}"
            assert account.running <= account.live
        accounts = (*self._kept.values(), *self._passing.values())
        assert self.live == sum(account.live for account in accounts), "live requests are miscounted"
        assert all(account.live for account in self._passing.values()), "a user without requests is kept"

    # ---- small things

    def _new(self, user: str) -> Account:
        quota = self._quotas.of(user)
        pages = min(quota.pages or self._pool_pages, max(1, int(quota.share * self._pool_pages)))
        return Account(user, quota.running or None, pages if pages < self._pool_pages else None, quota.weight)


def by_user(usages: Iterable[UserUsage]) -> tuple[UserUsage, ...]:
    """One for each user that has used anything: those that hold most first, the one without a name last."""
    sums: dict[str | None, UserUsage] = {}
    for usage in usages:
        sums[usage.user] = _add(sums.get(usage.user, UserUsage(usage.user)), usage)
    used = [usage for user, usage in sums.items() if usage != UserUsage(user)]
    return tuple(sorted(used, key=lambda usage: (usage.user is None, -usage.pages, -usage.page_ns)))


def _add(one: UserUsage, other: UserUsage) -> UserUsage:
    return UserUsage(one.user, **{name: getattr(one, name) + getattr(other, name) for name in _ADDED_UP})
