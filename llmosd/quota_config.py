"""Quotas in `config.toml`: `[quota]` is for everybody, `[quota.users.NAME]` for one user, who keeps the rest of it.

[quota]
running = 4        # requests that run at once; 0 is no limit
pages = 0          # pages held at once; 0 is no limit
share = 0.5        # of the pool; the tighter of pages and share counts
weight = 2         # of the user's service under the policy `fair`
live = 100         # requests that wait, run or stand; 0 is no limit
tokens_per_s = 500 # of prompts and of what may be generated, on and on; 0 is no limit
burst = 20000      # of them at once; 0 is a minute's worth

[quota.users.batch]
running = 1
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from llmosd.errors import ConfigError
from llmosd.types import Quota, Quotas

TABLE, USERS = "quota", "users"
WEIGHTS = 0.01, 100
LIMITS = tuple(field.name for field in fields(Quota))


def parse(table: Any, source: str) -> tuple[Quotas, list[str]]:
    """The quotas and the dotted keys that were given. Raises ConfigError, naming the key and the source."""
    given = list[str]()
    default = _quota(table, Quota(), TABLE, (*LIMITS, USERS), source, given)
    users = table.get(USERS, {})
    _check_table(users, f"{TABLE}.{USERS}", source)
    return Quotas(
        default,
        {user: _quota(limits, default, _of_user(user), LIMITS, source, given) for user, limits in users.items()},
    ), given


def quota(limits: Mapping[str, Any], default: Quota, source: str) -> Quota:
    """One quota of limits that are given elsewhere. Raises ConfigError, naming the limit and the source."""
    return _quota(limits, default, TABLE, LIMITS, source, [])


def keys(quotas: Quotas) -> dict[str, int | float]:
    """Every limit by its dotted key: the default's, then those in which a user's differ or may differ."""
    named = [(TABLE, quotas.default), *((_of_user(user), quota) for user, quota in quotas.users.items())]
    return {f"{name}.{limit}": getattr(quota, limit) for name, quota in named for limit in LIMITS}


def _of_user(user: str) -> str:
    return f"{TABLE}.{USERS}.{user}"


def _quota(table: Any, default: Quota, name: str, known: tuple[str, ...], source: str, given: list[str]) -> Quota:
    _check_table(table, name, source)
    if unknown := sorted(set(table) - set(known)):
        raise ConfigError(
            f"{source}: unknown key {name}.{unknown[0]!r}; there are {', '.join(known)}", param=f"{name}.{unknown[0]}"
        )
    values: dict[str, Any] = {}
    for limit in LIMITS:
        if limit in table:
            values[limit] = _limit(limit, table[limit], f"{name}.{limit}", source)
            given.append(f"{name}.{limit}")
    return replace(default, **values)


def _limit(limit: str, raw: Any, key: str, source: str) -> int | float:
    number = isinstance(raw, (int, float)) and not isinstance(raw, bool)
    if limit == "share" and not (number and 0 < raw <= 1):
        raise _error(key, raw, source, "it must be above 0 and at most 1")
    if limit == "weight" and not (number and WEIGHTS[0] <= raw <= WEIGHTS[1]):
        raise _error(key, raw, source, f"it must be between {WEIGHTS[0]} and {WEIGHTS[1]}")
    whole = limit not in ("share", "weight")
    if whole and not (isinstance(raw, int) and number and 0 <= raw < 2**31):
        raise _error(key, raw, source, f"it must be a whole number between 0 (no limit) and {2**31 - 1}")
    return raw if whole else float(raw)


def _check_table(value: Any, key: str, source: str) -> None:
    if not isinstance(value, Mapping):
        raise _error(key, value, source, f"a table is needed, [{key}]")


def _error(key: str, raw: Any, source: str, remedy: str) -> ConfigError:
    return ConfigError(f"{key} = {raw!r} from {source} cannot be used: {remedy}", param=key)
