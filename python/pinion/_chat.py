"""Conversations as chat templates expect them: parts of a content joined to one text, arguments of tool calls parsed."""
from __future__ import annotations

import json
from typing import Any, Sequence

ROLES = ("system", "user", "assistant", "tool", "function")


def template_messages(messages: Sequence[dict[str, Any]]) -> str:
    """The messages as JSON. Errors: ValueError, naming the message and the field."""
    if not messages:
        raise ValueError("messages: empty")
    return json.dumps([_message(message, f"messages[{i}]") for i, message in enumerate(messages)])


def _message(message: dict[str, Any], where: str) -> dict[str, Any]:
    out = dict(message)
    if out.get("role") == "developer":  # OpenAI's new name; the templates of open models know the old one
        out["role"] = "system"
    if out.get("role") not in ROLES:
        raise ValueError(f"{where}.role: {out.get('role')!r} is not one of {', '.join(ROLES)}")
    calls = out.get("tool_calls")
    if calls:
        out["tool_calls"] = [_tool_call(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(calls)]
    content = out.get("content")
    if isinstance(content, (list, tuple)):
        out["content"] = "\n".join(_part(part, f"{where}.content[{i}]") for i, part in enumerate(content))
    elif content is None and calls and out["role"] == "assistant":
        out["content"] = ""
    elif not isinstance(content, str):
        raise ValueError(f"{where}.content: expected a text or a list of parts, got {content!r}")
    return out


def _part(part: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = part.get("type") if isinstance(part, dict) else part
    raise ValueError(f'{where}: {kind!r} is not implemented, only {{"type": "text", "text": …}} is')


def _tool_call(call: Any, where: str) -> dict[str, Any]:
    """OpenAI sends a call's arguments as a string of JSON; templates want the object."""
    try:
        function = dict(call["function"])
        arguments = function.get("arguments") or {}
        function["arguments"] = json.loads(arguments) if isinstance(arguments, str) else arguments
        return {**call, "function": function}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f'{where}: expected a "function" with "name" and "arguments"') from error
