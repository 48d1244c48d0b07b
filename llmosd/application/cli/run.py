"""`llmosd run`: one answer, or a conversation."""

from __future__ import annotations

import argparse
import contextlib
import sys
from typing import Any

import msgspec

from llmosd.application import instance
from llmosd.application.cli import daemon, models, options, output
from llmosd.application.cli.answer import stream_answer
from llmosd.application.client import Client
from llmosd.config import Config
from llmosd.errors import InvalidRequest, LlmosError, Unavailable
from llmosd.runtime import catalogue

FIRST_PROMPT = "In one sentence: what does an operating system do?"

Messages = list[dict[str, str]]


def add(commands: Any) -> None:
    parser = commands.add_parser("run", help="ask the model once, or talk to it; starts a daemon if none runs")
    parser.add_argument("prompt", nargs="*", help="what to ask; without it, a conversation")
    parser.add_argument("--system", help="instructions that come before the conversation")
    parser.add_argument("--max-tokens", type=int, help="the longest answer")
    parser.add_argument("--temperature", type=float, help="0 is greedy; default: what suits the model in a chat")
    parser.add_argument("--top-p", type=float, help="sample from the likeliest tokens that make up this probability")
    parser.add_argument("--seed", type=int, help="the same seed gives the same answer")
    parser.add_argument("--serve", action="store_true", help="without a terminal: answer once, then stay as the daemon")
    options.add_config(parser)
    parser.set_defaults(handler=_run)


def _run(args: argparse.Namespace) -> int:
    settings = options.load(args)
    prompt = " ".join(args.prompt)
    if args.serve and not _on_terminal() and instance.running(settings.home) is None:
        return _serve(settings, args, prompt or FIRST_PROMPT)
    with Client(_ready_daemon(settings)) as client:
        if args.serve:
            print(f"API: {client.url}/v1", file=sys.stderr)
        conversation = Conversation(client, args)
        if args.serve and not prompt:
            conversation.show(FIRST_PROMPT)
        if not prompt and sys.stdin.isatty():
            return conversation.talk()
        if prompt or not args.serve:
            conversation.ask(prompt or _piped())
        return 0


class Conversation:
    """Messages so far, and the model that answers them."""

    def __init__(self, client: Client, args: argparse.Namespace) -> None:
        self._client = client
        self._model = client.models()[0]
        self._messages: Messages = [{"role": "system", "content": args.system}] if args.system else []
        wanted = {name: getattr(args, name) for name in ("max_tokens", "temperature", "top_p", "seed")}
        self._sampling = _recommended(self._model) | {name: to for name, to in wanted.items() if to is not None}

    def ask(self, text: str) -> None:
        """Stream the answer to stdout; what was answered until an interrupt stays in the history."""
        asked = {"role": "user", "content": text}
        pieces = self._client.chat_stream([*self._messages, asked], self._model, **self._sampling)
        answer = stream_answer(pieces)
        self._messages += [asked, {"role": "assistant", "content": answer}]

    def show(self, prompt: str) -> None:
        """Ask as if it had been typed."""
        print(f">>> {prompt}", flush=True)
        self.ask(prompt)

    def talk(self) -> int:
        """Until end of file or `/bye`. An interrupt stops the answer, not the conversation."""
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (line editing and history for input())
        print(f"{self._model} at {self._client.url}. Ctrl-C stops an answer; /bye or Ctrl-D ends.", file=sys.stderr)
        while True:
            try:
                text = input(">>> ")
            except EOFError:
                print()
                return 0
            except KeyboardInterrupt:
                print()
                continue
            if text.strip() == "/bye":
                return 0
            if text.strip():
                self._answer(text)

    def _answer(self, text: str) -> None:
        try:
            self.ask(text)
        except Unavailable:
            raise
        except LlmosError as exc:
            output.error(exc.message)


def _piped() -> str:
    if text := sys.stdin.read().strip():
        return text
    raise InvalidRequest("nothing to ask: give a prompt, or text on standard input")


def _recommended(model: str) -> dict[str, float]:
    """How to sample from a model of the catalogue in a conversation; nothing for others."""
    known = catalogue.manifests().get(model)
    return msgspec.structs.asdict(known.chat) if known else {}


def _ready_daemon(settings: Config) -> str:
    """The address of a daemon that answers: started, and its model fetched, where that is still to do."""
    url = options.http_url(settings)
    try:
        with Client(url) as client:
            client.status()
    except Unavailable:
        if pid := instance.running(settings.home):
            raise Unavailable(f"the daemon (pid {pid}) does not answer at {url}: `llmosd status` says why") from None
        models.pull(settings, settings.model)
        print("no daemon runs; starting one (`llmosd stop` ends it)", file=sys.stderr)
        return daemon.detach(settings).http
    return url


def _serve(settings: Config, args: argparse.Namespace, prompt: str) -> int:
    """Be the daemon, and ask it the first question as soon as it serves."""
    from llmosd.application.daemon import run

    def greet(url: str) -> None:
        print(f"API: {url}/v1", flush=True)
        with Client(url) as client:
            Conversation(client, args).show(prompt)
        print("serving until SIGTERM or Ctrl-C", flush=True)

    return run(settings, on_serving=greet)


def _on_terminal() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty()
