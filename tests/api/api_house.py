"""A whole front end on a loopback socket: real kernel, engine, service, HTTP server; only the model's arithmetic is a
cost formula, on a clock that it alone moves, so that what is counted and timed can be asserted exactly."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import openai

from llmosd.application.access import Access
from llmosd.application.batch.batches import Batches
from llmosd.application.batch.files import DAY_S, Files
from llmosd.application.batch.ledger import Ledger
from llmosd.application.client import Client
from llmosd.application.engine import Batch, Command, ThreadEngine
from llmosd.application.eventlog import EventLog
from llmosd.application.flow import BackPressure
from llmosd.application.hibernation import Hibernation
from llmosd.application.http.app import create_app
from llmosd.application.http.generation import Backing
from llmosd.application.http.line_post import LinePost
from llmosd.application.http.metrics import Metrics
from llmosd.application.image import Numerics
from llmosd.application.models import ModelCard, Models, ServedModel
from llmosd.application.prompts import Prompts
from llmosd.application.server import HttpServer, listen
from llmosd.application.service import Phase, Service
from llmosd.application.store import Store
from llmosd.errors import NotFound, StepError
from llmosd.prediction.cost_executor import CostModel, CostModelExecutor, ManualClock
from llmosd.runtime.chat_template import ChatTemplate
from llmosd.runtime.geometry import Geometry
from llmosd.runtime.gguf_reader import TokenizerFacts
from llmosd.runtime.tokenizer import Tokenizer, tokenizer_json, tokenizer_meta
from llmosd.system.executor import nothing
from llmosd.system.kernel import Kernel, Limits
from llmosd.system.kernels import Kernels
from llmosd.system.policy import Priority
from llmosd.system.residency import ModelEntry, ModelSize, Residency
from llmosd.system.speculation import Speculation
from llmosd.types import (
    UNLIMITED,
    LoadDone,
    Plan,
    Quotas,
    RequestView,
    SequencePlan,
    SequenceResult,
    SequenceStart,
    StepResult,
    TokenLogprob,
)
from llmosd.wire import EventMessage

MODEL = "letters"
MS = 1_000_000
PATIENT = BackPressure(tokens=10**6)  # tests may leave streams unread
NO_OTHERS: Mapping[str, ModelEntry] = {}
PACE_S = 0.02  # a step that takes so long lets a test act while its request runs
LIMITS = Limits(slots=4, token_budget=64, queue_limit=3, context=512, page_tokens=16, pages=256)
COST = CostModel(step=1 * MS, prefill=1 * MS, decode=2 * MS, context=0)
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GEOMETRY = Geometry(1, 8, 1, 1, 8, 8, 258, 512, 1e4, 1e-5, None, (257,))
NUMERICS = Numerics(MODEL, {"source.gguf": "0" * 64}, GEOMETRY, "file", "native", "float16")
CONTROL = ("<|im_start|>", "<|im_end|>")


def byte_tokenizer() -> Tokenizer:
    """One token a byte, then the control tokens: every count in a test can be read off the text."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    alphabet = [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]
    tokens = (*alphabet, *CONTROL)
    kinds = (1,) * 256 + (3, 3)
    facts = TokenizerFacts("gpt2", "gpt-2", tokens, kinds, (), None, 257, False, CHATML)
    return Tokenizer(tokenizer_json(facts), tokenizer_meta(facts, (257,)))


class LettersExecutor:
    """The i-th token of choice c reads as the letter c + i of the alphabet; steps wait while `gate` is closed.

    A step takes `pause_s`, but ends at once when a command comes: acting on what runs slowly is no slower.
    """

    def __init__(self, length: Callable[[SequenceStart], int], clock: ManualClock) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.pause_s = 0.0
        self.commanded = threading.Event()
        self.wait: Callable[[], object] = nothing  # in each step
        self.poisoned: str | None = None  # steps with a sequence whose prompt contains this byte string fail
        self.started: dict[int, SequenceStart] = {}
        self.broken: dict[str, str] = {}  # models that cannot be loaded, and why
        self._inner = CostModelExecutor(COST, length, clock)

    def execute(self, plan: Plan, meanwhile: Callable[[], None] = nothing) -> StepResult:
        meanwhile()
        if not plan.model:
            loads = tuple(LoadDone(size.model, 1, self.broken.get(size.model)) for size in plan.loads)
            return StepResult(plan.step, (), loads=loads, unloads=tuple(LoadDone(name, 1) for name in plan.unloads))
        self.gate.wait()
        self.commanded.wait(self.pause_s)
        self.commanded.clear()
        self.wait()
        self.started.update((start.sequence, start) for start in plan.started)
        if self.poisoned is not None and any(self._is_poisoned(part.sequence) for part in plan.sequences):
            raise StepError("poisoned")
        result = self._inner.execute(replace(plan, sequences=tuple(map(self._counted, plan.sequences))))
        return replace(result, sequences=tuple(map(self._spelled, result.sequences)))

    def starts(self) -> list[SequenceStart]:
        return list(self.started.values())

    def _is_poisoned(self, sequence: int) -> bool:
        return bytes(token for token in self.started[sequence].prompt if token < 256).count(self.poisoned.encode()) > 0

    def _counted(self, part: SequencePlan) -> SequencePlan:
        """Guesses are letters; within the first alphabet they stand for one number each."""
        fed = len(part.tokens) - part.drafts
        choice = self.started[part.sequence].choice
        guesses = [(token - ord("a") - choice) % 26 for token in part.tokens[fed:]]
        return replace(part, tokens=[*part.tokens[:fed], *guesses])

    def _spelled(self, result: SequenceResult) -> SequenceResult:
        start = self.started[result.sequence]
        tokens = tuple(ord("a") + (start.choice + token) % 26 for token in result.tokens)
        text = "".join(chr(token) for token in tokens)
        wanted = start.sampling.logprobs
        logprobs = () if wanted is None else tuple(_chances(token, wanted) for token in tokens)
        return replace(result, tokens=tokens, text=text, logprobs=logprobs)


def _chances(token: int, wanted: int) -> TokenLogprob:
    return TokenLogprob(token, -0.5, tuple((token, -0.5 - rank) for rank in range(wanted)))


class HouseEngine(ThreadEngine):
    """Tells its executor of each command."""

    def __init__(self, executor: LettersExecutor, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._commanded = executor.commanded

    def post(self, command: Command) -> None:
        super().post(command)
        self._commanded.set()


@dataclass
class House:
    """What a test holds of it."""

    url: str
    service: Service
    hibernation: Hibernation
    access: Access
    executor: LettersExecutor
    clock: ManualClock
    metrics: Metrics
    recorded: list[RequestView]
    restored: list[RequestView]
    notes: list[EventMessage]
    batches: list[Batch]
    http: httpx.AsyncClient
    ai: openai.AsyncOpenAI
    jobs: Batches

    def client(self) -> Client:
        """Blocking: to be used from another thread."""
        return Client(self.url)

    def keep_step(self) -> None:
        """From now on each step lasts until the event loop has seen what the one before it gave."""
        loop = asyncio.get_running_loop()

        def seen() -> None:
            turn = threading.Event()
            loop.call_soon_threadsafe(turn.set)
            turn.wait(60)

        self.executor.wait = seen

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not condition():  # noqa: ASYNC110  what is waited for has no event to wait on
                await asyncio.sleep(0.002)

    async def until_async(self, condition: Callable[[], Awaitable[bool]]) -> None:
        async with asyncio.timeout(60):
            while not await condition():  # noqa: ASYNC110  as above
                await asyncio.sleep(0.002)

    def value(self, name: str, **labels: str) -> float:
        """Of one sample of the metrics registry; 0 where it is not there yet."""
        labels = {"model_name": MODEL, **labels} if not name.startswith("llmos_http") else labels
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


def make_batches(home: Path, store: Store | None, backing: Backing, events: EventLog) -> Batches:
    """Two lines at a time. Without a store nobody may use them."""
    ledger = Ledger(store, home / "llmos.db")  # type: ignore[arg-type]
    files, post = Files(home / "files", ledger, 30 * DAY_S), LinePost(backing)
    return Batches(files, ledger, backing.service, post, events, places=2, kept_s=30 * DAY_S)


@asynccontextmanager
async def open_house(
    length: Callable[[SequenceStart], int] = lambda start: 10**9,
    limits: Limits = LIMITS,
    log_prompts: bool = False,
    speculation: Speculation | None = None,
    prefixes: bool = False,
    home: Path | None = None,
    numerics: Numerics = NUMERICS,
    quotas: Quotas = UNLIMITED,
    others: Mapping[str, ModelEntry] = NO_OTHERS,
    back_pressure: BackPressure = PATIENT,
    readonly: bool = False,
) -> AsyncIterator[House]:
    """`length` says how many tokens a sequence generates, at most its max_tokens. What `home` has is restored."""
    with TemporaryDirectory() as scratch:
        store = await Store.open(home / "llmos.db") if home else None
        home = home or Path(scratch)
        try:
            async with _open_house(
                length,
                limits,
                log_prompts,
                speculation,
                prefixes,
                home,
                numerics,
                quotas,
                others,
                back_pressure,
                readonly,
                store,
            ) as house:
                yield house
        finally:
            if store:
                await store.close()


@asynccontextmanager
async def _open_house(
    length: Callable[[SequenceStart], int],
    limits: Limits,
    log_prompts: bool,
    speculation: Speculation | None,
    prefixes: bool,
    home: Path,
    numerics: Numerics,
    quotas: Quotas,
    others: Mapping[str, ModelEntry],
    back_pressure: BackPressure,
    readonly: bool,
    store: Store | None,
) -> AsyncIterator[House]:
    clock, loop = ManualClock(), asyncio.get_running_loop()
    executor = LettersExecutor(length, clock)
    recorded: list[RequestView] = []
    prefix_secret = b"a secret" if prefixes else None
    restored: list[RequestView] = []

    async def record(view: RequestView) -> None:
        await asyncio.sleep(0)
        recorded.append(view)

    async def record_restored(view: RequestView) -> None:
        restored.append(view)

    def deliver(batch: Batch) -> None:
        loop.call_soon_threadsafe(service.dispatch, batch)

    def build() -> tuple[Kernels, LettersExecutor]:
        kernel = Kernel(limits, Priority(), speculation, prefix_secret, model=numerics.model, quotas=quotas)
        residency = Residency(budget=100_000, process=500)
        residency.add(ModelEntry(kernel, ModelSize(weights=1000, workspace=200, page=64, least=1)))
        residency.start(numerics.model)
        return Kernels(residency=residency), executor

    engine = HouseEngine(executor, build, deliver, lambda: clock.now)
    service = Service(engine, on_accept=record, clock=lambda: clock.now, back_pressure=back_pressure)
    metrics, batches = Metrics(MODEL), list[Batch]()
    events, notes = EventLog("node"), list[EventMessage]()
    events.attach(notes.append)
    prompts = Prompts(byte_tokenizer(), ChatTemplate(CHATML))

    def open_other(name: str) -> tuple[ServedModel, ModelEntry]:
        if name not in others:
            raise NotFound(name)
        return ServedModel(ModelCard(name, 64, 2), prompts, replace(numerics, model=name)), others[name]

    first = ServedModel(ModelCard(numerics.model, 512, 1), prompts, numerics)
    models = Models(service, first, open=open_other, installed=lambda: [ModelCard(name, 64, 2) for name in others])
    hibernation = Hibernation(home / "hibernated", service, models, events, record_restored)
    service.subscribe(metrics.observe)
    service.subscribe(batches.append)
    access = Access(home, readonly=readonly)
    backing = Backing(service, hibernation, models, log_prompts)
    jobs = make_batches(home, store, backing, events)
    app = create_app(
        backing,
        jobs,
        access=access,
        host="127.0.0.1",
        registry=metrics.registry,
        status=lambda: {"state": str(service.phase), "model": MODEL},
        observe=metrics.count_http,
    )
    listener = listen("127.0.0.1", 0)
    server = HttpServer(app)
    engine.start()
    await hibernation.restore()
    service.phase = Phase.SERVING
    if store:
        await jobs.open()
    working = asyncio.create_task(jobs.run())
    serving = asyncio.create_task(server.run_on(listener))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        async with (
            httpx.AsyncClient(base_url=url, timeout=60, trust_env=False, verify=False) as http,
            openai.DefaultAsyncHttpxClient(trust_env=False, verify=False) as transport,
            openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", timeout=60, http_client=transport) as ai,
        ):
            house = House(
                url,
                service,
                hibernation,
                access,
                executor,
                clock,
                metrics,
                recorded,
                restored,
                notes,
                batches,
                http,
                ai,
                jobs,
            )
            await house.until(lambda: server.started)
            yield house
    finally:
        executor.gate.set()
        server.close()
        await serving
        service.stop()
        await asyncio.to_thread(engine.join, 60)
        await jobs.settled()
        working.cancel()
        await hibernation.settled()
        with suppress(OSError):
            listener.close()
