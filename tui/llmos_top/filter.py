"""Which requests the table shows: words, and `field=value` in the fields by which commands select requests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from llmosd.types import State
from llmosd.wire import RequestRow

FIELDS: dict[str, Callable[[RequestRow], str]] = {
    "user": lambda row: row.user,
    "session": lambda row: row.session,
    "state": lambda row: row.state,
    "model": lambda row: row.model,
    "class": lambda row: row.service_class,
}


@dataclass(frozen=True, slots=True)
class Filter:
    """What a request must have: each field just so, and each word somewhere in its id, user, session or text."""

    fields: Mapping[str, str] = field(default_factory=dict)
    words: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Filter:
        """Of terms with spaces between; empty for none. Raises ValueError, saying what there is instead."""
        fields, words = dict[str, str](), list[str]()
        for term in text.split():
            name, equals, value = term.partition("=")
            if not equals:
                words.append(term.lower())
            elif name not in FIELDS:
                raise ValueError(f"no field {name}: there are {', '.join(FIELDS)}")
            elif name == "state" and value not in set(State):
                raise ValueError(f"no state {value}: there are {', '.join(State)}")
            else:
                fields[name] = value
        return cls(fields, tuple(words))

    def __str__(self) -> str:
        return " ".join((*(f"{name}={value}" for name, value in self.fields.items()), *self.words))

    def matches(self, row: RequestRow) -> bool:
        if any(FIELDS[name](row) != value for name, value in self.fields.items()):
            return False
        text = " ".join((row.id, row.user, row.session, row.label)).lower()
        return all(word in text for word in self.words)
