"""OpenAI's fields that are not implemented, and for each the values that ask for nothing and are therefore accepted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Table = Mapping[str, tuple[Any, ...]]

_COMMON: Table = {
    "logit_bias": (None, {}),
    "prompt_cache_key": (None,),
    "safety_identifier": (None,),
    "service_tier": (None, "auto", "default"),
}
CHAT_UNIMPLEMENTED: Table = {
    **_COMMON,
    "audio": (None,),
    "function_call": (None, "none"),
    "functions": (None, []),
    "modalities": (None, ["text"]),
    "moderation": (None,),
    "parallel_tool_calls": (None, True),
    "prediction": (None,),
    "prompt_cache_options": (None,),
    "prompt_cache_retention": (None, "in_memory"),
    "reasoning_effort": (None, "none"),
    "response_format": (None, {"type": "text"}),
    "store": (None, False),
    "tool_choice": (None, "none"),
    "tools": (None, []),
    "verbosity": (None, "medium"),
    "web_search_options": (None,),
}
COMPLETION_UNIMPLEMENTED: Table = {
    **_COMMON,
    "best_of": (None, 1),
    "echo": (None, False),
    "suffix": (None,),
}
STREAM_UNIMPLEMENTED: Table = {"include_obfuscation": (None, False)}
MESSAGE_UNIMPLEMENTED: Table = {
    "annotations": (None, []),
    "audio": (None,),
    "function_call": (None,),
    "name": (None,),
    "refusal": (None,),
    "tool_calls": (None, []),
}
