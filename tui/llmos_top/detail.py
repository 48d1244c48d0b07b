"""One request in full, with where its time went, as Lines: a pure function of what the daemon says and a width."""

from __future__ import annotations

from collections.abc import Iterator
from textwrap import wrap

from llmos_top.glyphs import LETTERS, Glyphs
from llmos_top.numbers import NONE, count, seconds
from llmos_top.text import Line, clean, fit, flow, line
from llmosd.application.explain import PHASES, Latency, span
from llmosd.application.listing import RequestDetail
from llmosd.types import WaitReason

NAME, TEXT_LINES = 12, 4


def detail(request: RequestDetail, width: int, glyphs: Glyphs) -> list[Line]:
    """Who it is, what it holds, where its time went, what would shorten it, and how its text ends if that is open."""
    return [
        *_facts(request, width, glyphs),
        line(""),
        *_latency(request.latency, width, glyphs),
        line(""),
        *(line((text, "accent")) for text in wrap(request.latency.advice, width)),
        *_text(request, width),
    ]


def _facts(request: RequestDetail, width: int, glyphs: Glyphs) -> Iterator[Line]:
    end = clean(request.error or request.finish or "")
    state = f"{LETTERS.get(request.state, '?')}{glyphs.state.get(request.state, '?')} {request.state}"
    waits = f"waits for {clean(request.waits_for)}" if request.waits_for else ""
    rows: list[list[tuple[str, str]]] = [
        [
            ("state", f"{state} {waits or end}".rstrip()),
            ("position", NONE if request.position is None else str(request.position)),
        ],
        [("user", clean(request.user) or NONE), ("session", clean(request.session)), ("class", request.service_class)],
        [("model", clean(request.model)), ("nice", str(request.nice)), ("choices", str(request.n))],
        [
            ("prompt", f"{count(request.prompt_tokens)} tokens"),
            ("reused", count(request.reused_tokens)),
            ("written", f"{count(request.completion_tokens)} of {count(request.max_tokens * request.n)}"),
        ],
        [
            ("pages", count(request.pages)),
            ("swapped", count(request.swapped_pages)),
            ("preempted", str(request.preemptions)),
        ],
    ]
    for row in rows:
        yield flow([line((f"{name} ", "label"), value) for name, value in row], width)


def _latency(latency: Latency, width: int, glyphs: Glyphs) -> Iterator[Line]:
    first = NONE if latency.ttft_ns is None else seconds(latency.ttft_ns / 1e9)
    yield line(("time ", "label"), seconds(latency.total_ns / 1e9), ("  first token ", "label"), first)
    yield line((_timeline(latency, width), "graph"))
    bar = max(0, width - NAME - 17)
    for phase in PHASES:
        if time := latency.phase(phase):
            yield _part(phase, time, latency.total_ns, bar, glyphs, "value")
        if phase == "queued" and time:
            for reason in WaitReason:
                if time := getattr(latency.queued_by, reason):
                    yield _part(f"  {reason}", time, latency.total_ns, bar, glyphs, "")


def _part(name: str, time: int, total: int, bar: int, glyphs: Glyphs, role: str) -> Line:
    share = time / total if total else 0.0
    figures = fit(span(time), 10, ">") + fit(f"{100 * share:.0f}%", 5, ">")
    return line((fit(name, NAME), "label"), (figures, role), "  ", (glyphs.bar(share, bar), "graph"))


def _timeline(latency: Latency, width: int) -> str:
    """The letter of its state for each moment, from its arrival to now or its end."""
    cells = []
    for cell in range(width if latency.total_ns else 0):
        at = latency.total_ns * cell // width
        states = [state for state, began in latency.timeline if began <= at]
        cells.append(LETTERS.get(states[-1], "?") if states else ".")
    return "".join(cells)


def _text(request: RequestDetail, width: int) -> Iterator[Line]:
    for choice in request.choices or ():
        yield line("")
        yield line((f"text of choice {choice.index}", "label"))
        for text in wrap(clean(choice.text), width)[-TEXT_LINES:]:
            yield line(text)
