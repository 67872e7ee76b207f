#!/usr/bin/env python3
"""Writes DIR/jinja_cases.json: templates and what the real jinja2 renders, in the environment that transformers sets up
for chat templates. Needs jinja2 (made with 3.1.6):

    python3 make_jinja_cases.py DIR && ./pack DIR jinja.tar.xz
"""
import json
import pathlib
import sys

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

OUT = pathlib.Path(sys.argv[1]) / "jinja_cases.json"


class Generation(Extension):
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_run"), [], [], body).set_lineno(line)

    def _run(self, caller):
        return caller()


def environment():
    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = lambda f: "26 Jul 2024"
    return env


ENV = environment()
DIALOG = {
    "messages": [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1, "é": "<ü>"}}}]},
    ],
    "tools": None,
}


def case(template, context=None):
    context = DIALOG if context is None else context
    entry = {"template": template}
    if context is not DIALOG:
        entry["context"] = context
    try:
        entry["expected"] = ENV.from_string(template).render(**json.loads(json.dumps(context)))
    except Exception as e:  # whatever Python raises is an error here too
        entry["error"] = str(e)
    return entry


def main():
    from jinja_templates import EXPRESSIONS, STATEMENTS, chat_cases

    cases = [case("{{ " + e + " }}") for e in EXPRESSIONS]
    cases += [case(s) for s in STATEMENTS]
    # The long templates are written once; their cases name them.
    templates = {}
    for name, template, context in chat_cases():
        templates[name] = template
        cases.append({**case(template, context), "template": "@" + name})
    OUT.parent.mkdir(exist_ok=True)
    lines = [json.dumps(c, ensure_ascii=False) for c in cases]
    OUT.write_text('{"templates": ' + json.dumps(templates, ensure_ascii=False, indent=0) + ',\n"cases": [\n'
                   + ",\n".join(lines) + "\n]}\n")
    print(len(cases), "cases,", sum("error" in c for c in cases), "of them errors,", OUT.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
