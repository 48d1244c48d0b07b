"""The daemon against llama-server on the same traces: a burst, and Poisson loads around llama-server's capacity.

    python bench/peers/install.py DIRECTORY     (once; takes minutes)
    python bench/serving.py DIRECTORY

Prompts are 100 to 300 random tokens, answers 64 tokens. Capacity is what a server completes while 32 clients, twice as
many as llama-server has slots, send one request after the other; ours is printed as well. One server runs at a time;
each is given the same requests at the same moments.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from facts import machine_facts
from servers import Server, llama_server, llmosd

from llmosd.config import default_home

PROMPT, ANSWER, BURST, SLOTS, SLOT_CONTEXT = (100, 300), 64, 36, 16, 512
SHARES = (0.5, 0.8, 1.2)  # of llama-server's capacity
FORMATS = ("q4_0", "q8_0")


@dataclass(frozen=True, slots=True)
class Arrival:
    at: float  # seconds
    prompt: list[int]


@dataclass(frozen=True, slots=True)
class Answer:
    """Seconds since the trace began: asked, and each piece of text. `failure` is empty where all went well."""

    asked: float
    pieces: list[float]
    failure: str = ""


@dataclass(frozen=True, slots=True)
class Summary:
    """Latencies in milliseconds, of the answers that did not fail."""

    requests: int
    failures: int
    seconds: float
    tokens_per_s: float
    requests_per_s: float
    ttft_p50: float
    ttft_p99: float
    itl_p50: float
    itl_p99: float
    e2e_p50: float
    e2e_p99: float


Start = Callable[[], AbstractContextManager[Server]]


def prompts(seed: int) -> list[list[int]]:
    """The same endless supply for each server, cut to what any trace here needs."""
    draw = random.Random(seed)
    return [[draw.randrange(1000, 40000) for _ in range(draw.randint(*PROMPT))] for _ in range(2000)]


def burst() -> list[Arrival]:
    return [Arrival(0.0, prompt) for prompt in prompts(1)[:BURST]]


def poisson(rate: float, seconds: float) -> list[Arrival]:
    """Arrivals of a Poisson process; the trace scales with the rate, so that its shape is the same at each."""
    draw = random.Random(2)
    count = max(20, round(rate * seconds))
    moments = itertools.accumulate(draw.expovariate(rate) for _ in range(count))
    return [Arrival(at, prompt) for at, prompt in zip(moments, prompts(3), strict=False)]


# ---------------------------------------------------------------- client


async def replay(server: Server, trace: list[Arrival]) -> list[Answer]:
    async with _client(server) as http:
        began = time.perf_counter()

        async def one(arrival: Arrival) -> Answer:
            await asyncio.sleep(arrival.at)
            return await ask(http, server.model, arrival.prompt, began)

        return await asyncio.gather(*(one(arrival) for arrival in trace))


async def saturate(server: Server, seconds: float) -> list[Answer]:
    """Twice as many clients as llama-server has slots, each with one request after the other."""
    supply, answers = iter(prompts(4)), list[Answer]()
    async with _client(server) as http:
        began = time.perf_counter()

        async def one() -> None:
            while time.perf_counter() - began < seconds:
                answers.append(await ask(http, server.model, next(supply), began))

        await asyncio.gather(*(one() for _ in range(2 * SLOTS)))
    return answers


async def ask(http: httpx.AsyncClient, model: str, prompt: list[int], began: float) -> Answer:
    body = {"model": model, "prompt": prompt, "max_tokens": ANSWER, "temperature": 0, "ignore_eos": True}
    asked, pieces, finish = time.perf_counter() - began, list[float](), None
    try:
        async with http.stream("POST", "/v1/completions", json=body | {"stream": True}) as response:
            response.raise_for_status()
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    choice = (json.loads(line[6:]).get("choices") or [{}])[0]
                    finish = choice.get("finish_reason") or finish
                    if choice.get("text"):
                        pieces.append(time.perf_counter() - began)
    except httpx.HTTPError as error:
        return Answer(asked, pieces, repr(error))
    return Answer(asked, pieces, "" if finish == "length" and pieces else f"finished by {finish}")


def _client(server: Server) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    return httpx.AsyncClient(base_url=server.url, timeout=None, limits=limits, trust_env=False)


# ---------------------------------------------------------------- measures


def summary(answers: list[Answer]) -> Summary:
    good = [answer for answer in answers if not answer.failure]
    seconds = max(answer.pieces[-1] for answer in good) - min(answer.asked for answer in answers)
    first = [1e3 * (answer.pieces[0] - answer.asked) for answer in good]
    gaps = [1e3 * (b - a) for answer in good for a, b in itertools.pairwise(answer.pieces)]
    whole = [1e3 * (answer.pieces[-1] - answer.asked) for answer in good]
    return Summary(
        requests=len(answers),
        failures=len(answers) - len(good),
        seconds=seconds,
        tokens_per_s=len(good) * ANSWER / seconds,
        requests_per_s=len(good) / seconds,
        ttft_p50=statistics.median(first),
        ttft_p99=percentile_99(first),
        itl_p50=statistics.median(gaps),
        itl_p99=percentile_99(gaps),
        e2e_p50=statistics.median(whole),
        e2e_p99=percentile_99(whole),
    )


def percentile_99(values: list[float]) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[98] if len(values) > 1 else values[0]


def replayed(server: Server, trace: list[Arrival]) -> Summary:
    return summary(asyncio.run(replay(server, trace)))


def capacity(answers: list[Answer], seconds: float) -> float:
    """Requests a second completed between a quarter of the time and its end: without the first wave's common start."""
    ends = [answer.pieces[-1] for answer in answers if not answer.failure]
    return sum(seconds / 4 < end <= seconds for end in ends) / (seconds * 3 / 4)


def measure(start: Start, work: Callable[[Server], Any], say: str) -> Any:
    """Run one server, warm it up, and give it some work."""
    with start() as server:
        asyncio.run(replay(server, [Arrival(0.0, prompt) for prompt in prompts(5)[:2]]))
        result = work(server)
    print(f"{say}: {_line(result) if isinstance(result, Summary) else f'{result:.2f} requests/s'}", flush=True)
    return result


def _line(s: Summary) -> str:
    return (
        f"{s.requests} requests, {s.failures} failed, {s.tokens_per_s:.0f} tokens/s, "
        f"TTFT {s.ttft_p50:.0f}/{s.ttft_p99:.0f} ms, ITL {s.itl_p50:.0f}/{s.itl_p99:.0f} ms, "
        f"E2E {s.e2e_p50 / 1e3:.1f}/{s.e2e_p99 / 1e3:.1f} s (p50/p99)"
    )


def run(us: Start, theirs: dict[str, Start], seconds: float) -> dict[str, Any]:
    """All measurements, one server at a time; the capacity that loads refer to is each format's own."""
    everyone = {"llmosd": us, **theirs}
    saturated = {
        name: measure(
            start, lambda server: capacity(asyncio.run(saturate(server, seconds)), seconds), f"{name} capacity"
        )
        for name, start in everyone.items()
    }
    bursts = {
        name: measure(start, partial(replayed, trace=burst()), f"{name} burst of {BURST}")
        for name, start in everyone.items()
    }
    loads = []
    for name, share in itertools.product(theirs, SHARES):
        trace = poisson(share * saturated[name], seconds)
        pair = {
            who: measure(everyone[who], partial(replayed, trace=trace), f"{share:.0%} of {name}'s capacity, {who}")
            for who in ("llmosd", name)
        }
        loads.append({"peer": name, "share": share, "rate": share * saturated[name], **_judged(pair, name)})
    ratios = {name: bursts["llmosd"].tokens_per_s / bursts[name].tokens_per_s for name in theirs}
    return {
        "capacity": saturated,
        "burst": {name: asdict(one) for name, one in bursts.items()},
        "burst_ratio": ratios,
        "loads": loads,
    }


def _judged(pair: dict[str, Summary], name: str) -> dict[str, Any]:
    us, them = pair["llmosd"], pair[name]
    better = [key for key in ("ttft_p50", "ttft_p99", "itl_p99") if getattr(us, key) < getattr(them, key)]
    met = us.failures == 0 and len(better) == 3
    return {"llmosd": asdict(us), "theirs": asdict(them), "better": better, "met": met}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="where install.py put the peers")
    parser.add_argument("--home", type=Path, default=default_home(), help="data directory with the model")
    parser.add_argument("--threads", type=int, default=machine_facts().cores)
    parser.add_argument("--seconds", type=float, default=60, help="of each load")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()

    def llama(form: str) -> Start:
        program, weights = options.directory / "llama/bin/llama-server", options.directory / f"gguf/{form}.gguf"
        return lambda: llama_server(program, weights, SLOTS, options.threads, SLOT_CONTEXT)

    facts = machine_facts()
    theirs = {f"llama-server {form}": llama(form) for form in FORMATS}
    report = run(lambda: llmosd(options.home / "models"), theirs, options.seconds)
    for name, ratio in report["burst_ratio"].items():
        print(f"burst: {ratio:.2f} × {name} (goal 2) {'met' if ratio >= 2 else 'missed'}")
    for load in report["loads"]:
        verdict = "met" if load["met"] else f"missed: better only in {load['better']}"
        print(f"{load['share']:.0%} of {load['peer']}'s capacity ({load['rate']:.2f}/s): {verdict}")
    if options.json:
        options.json.write_text(json.dumps({"machine": asdict(facts), **report}, indent=2) + "\n")


if __name__ == "__main__":
    main()
