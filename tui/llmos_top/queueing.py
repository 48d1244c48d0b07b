"""The queueing panel: M/M/1 and Amdahl's law beside what was measured."""

from __future__ import annotations

from collections.abc import Callable

from llmos_top.glyphs import Glyphs
from llmos_top.numbers import NONE, milliseconds, rate, seconds, signed_percent
from llmos_top.panels import ALARM, HIGH
from llmos_top.state import State
from llmos_top.text import Line, clean, fit, flow, line
from llmosd.wire import Frame


def panel(state: State, frame: Frame, width: int, glyphs: Glyphs) -> list[Line]:
    """M/M/1 beside what was measured, its error beside both, and Amdahl's law for this host."""
    q = frame.queueing
    column = max(11, min(16, (width - 50) // 4))

    def row(name: str, figures: tuple[str, ...], tail: str = "") -> Line:
        cells = "".join(fit(figure, column, ">") for figure in figures)
        return line((fit(name, 16), "label"), cells + tail)

    measured = (rate(q.measured_l), seconds(q.measured_w_s), seconds(q.measured_wq_s))
    rows = [
        line(
            (fit("", 16) + "".join(fit(t, column, ">") for t in ("L requests", "W response", "Wq wait")), "label"),
            ("   λ ", "label"),
            f"{rate(q.lambda_per_s)}/s",
            ("  μ ", "label"),
            f"{rate(q.mu_per_s)}/s",
        ),
        (*row("measured", measured), *line(("   L/λW ", "label"), rate(q.little))),
    ]
    return [*rows, *_mm1_lines(frame, row, glyphs), flow(amdahl(frame), width, gap=3)]


def title(frame: Frame) -> str:
    q = frame.queueing
    return f"Queueing, last {q.window_s:.0f} s: {q.arrivals} arrived, {q.completions} left"


def _mm1_lines(frame: Frame, row: Callable[..., Line], glyphs: Glyphs) -> list[Line]:
    q, model = frame.queueing, frame.queueing.mm1
    rho = (
        line(("   ρ ", "label"), rate(model.rho), " ", *_rho_bar(model.rho, glyphs))
        if model.rho is not None
        else line(("   ρ ", "label"), NONE)
    )
    if model.why:
        return [line((fit("M/M/1", 16), "label"), (clean(model.why), "warn"), *rho), row("", ())]
    errors = (
        signed_percent(_error(model.l, q.measured_l)),
        signed_percent(_error(model.w_s, q.measured_w_s)),
        signed_percent(_error(model.wq_s, q.measured_wq_s)),
    )
    predicted = (rate(model.l), seconds(model.w_s), seconds(model.wq_s))
    return [(*row("M/M/1 predicts", predicted), *rho), row("  its error", errors)]


def _rho_bar(rho: float, glyphs: Glyphs) -> Line:
    role = "bad" if rho >= ALARM else "warn" if rho >= HIGH else "good"
    word = f"{glyphs.alarm} unstable" if rho >= 1 else f"{glyphs.high} high" if rho >= HIGH else "ok"
    return line((glyphs.bar(rho, 10), role), " ", (word, role))


def _error(predicted: float | None, measured: float | None) -> float | None:
    """Relative to what was measured; None where either is missing or nothing was there to measure."""
    if predicted is None or measured is None or measured <= 0:
        return None
    return predicted / measured - 1


def amdahl(frame: Frame) -> list[Line]:
    """Speed-up at the host's cores from timed steps, with p's interval and the spread of the timings, in chunks."""
    law = frame.queueing.amdahl
    name = ("Amdahl ", "label")
    if law.p is None or law.speedup is None:
        return [line(name, (law.why or "not measured", "dim"))]
    interval = "" if law.p_low is None or law.p_high is None else f" ({law.p_low:.2f} to {law.p_high:.2f})"
    steps = zip(law.threads, law.step_ms, law.spread_ms, strict=False)
    timings = ", ".join(f"{n}: {milliseconds(t)} ±{milliseconds(s / 2)}" for n, t, s in steps)
    return [
        line(name, (f"{law.speedup:.2f}×", "value"), f" on {law.cores} cores"),
        line(("p ", "label"), f"{law.p:.2f}{interval}"),
        *([line((clean(law.why), "warn"))] if law.why else []),
        line(("step by threads ", "label"), timings),
    ]
