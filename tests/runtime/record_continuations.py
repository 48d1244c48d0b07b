"""Write continuations.json: greedy continuations in float32, found by the engine because it is quick.

That they are the numpy reference's own is tested. Run as `python -m tests.runtime.record_continuations` from the
checkout when the model or the prompts change.
"""

from __future__ import annotations

import json
from pathlib import Path

from llmosd.runtime.importer import ensure_graph
from llmosd.runtime.installed import find
from llmosd.runtime.paged_model import PagedModel
from tests.model_home import MODEL_ID, cached_home
from tests.runtime.stepping import Stream, step

PATH = Path(__file__).with_name("continuations.json")
TOKENS = 48
QUESTIONS = (
    "Why is the sky blue?",
    "Write a Python function that reverses a list.",
    "List the first ten prime numbers.",
    "Tell me a short story about a lighthouse keeper.",
    "Écris une phrase sur la mer.",
)
TEXTS = (
    "It was a bright cold day in April, and the clocks",
    "def quicksort(items):\n    if len(items) <= 1:\n",
    "Water boils at 100 degrees Celsius at sea level; on a mountain",
)


def greedy(engine: PagedModel, prompt: list[int]) -> list[int]:
    stream = Stream(list(prompt), range(engine.pages))
    while len(stream.tokens) < len(prompt) + TOKENS:
        logits = step(engine, [(stream, len(stream.tokens) - stream.past)])[0]
        stream.tokens.append(int(logits[-1].argmax()))
    return stream.tokens[len(prompt) :]


def record() -> None:
    model = find(cached_home(), MODEL_ID)
    tokenizer, template = model.load_tokenizer(), model.load_chat_template()
    chats = [template.render([{"role": "user", "content": question}]) for question in QUESTIONS]
    prompts = [tokenizer.encode(text, special=True) for text in (*chats, *TEXTS)]
    ensure_graph(model, "native", "float32", lambda stage, done, total: None)
    engine = PagedModel.load(
        model,
        backend="native",
        weights="float32",
        kv_format="float32",
        pages=4,
        page_tokens=64,
        threads=2,
        spin=False,
    )
    found = [{"prompt": prompt, "continuation": greedy(engine, prompt)} for prompt in prompts]
    PATH.write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    record()
