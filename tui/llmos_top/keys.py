"""Every key of the monitor, in one table: bindings, footer, help screen and README come from it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Key:
    """`keys` by Textual's names; `footer` is the short word there, empty for keys that only the help screen lists."""

    keys: str
    shown: str
    action: str
    help: str
    footer: str = ""


KEYS = (
    Key("q,ctrl+c", "q", "quit", "quit", "quit"),
    Key("question_mark,f1", "? F1", "help", "this help", "help"),
    Key("up,k", "↑ k", "move(-1)", "select the request above"),
    Key("down,j", "↓ j", "move(1)", "select the request below"),
    Key("pageup", "PgUp", "page(-1)", "one page up"),
    Key("pagedown", "PgDn", "page(1)", "one page down"),
    Key("home,g", "Home g", "move(-1000000)", "first request"),
    Key("end,G", "End G", "move(1000000)", "last request"),
    Key("enter", "Enter", "detail", "the selected request in full, and where its time went", "detail"),
    Key("t", "t", "tree", "requests as a tree: user, session, request; keys act on all below", "tree"),
    Key("slash", "/", "filter", "show only some requests", "filter"),
    Key("x", "x", "cancel", "cancel what is selected, after asking", "cancel"),
    Key("left_square_bracket,f7", "[ F7", "renice(-1)", "lower the nice value: it runs earlier", "sooner"),
    Key("right_square_bracket,f8", "] F8", "renice(1)", "raise the nice value: it runs later", "later"),
    Key("z", "z", "suspend", "suspend what is selected, or let it go on", "suspend"),
    Key("o", "o", "policy", "let another policy order the requests", "policy"),
    Key("s", "s", "sort", "sort by the next column", "sort"),
    Key("f", "f", "freeze", "freeze the order of rows; values go on", "freeze"),
    Key("p", "p", "pause", "pause painting; collecting goes on", "pause"),
    Key("ctrl+r", "Ctrl+R", "retry", "connect again now instead of waiting"),
)
