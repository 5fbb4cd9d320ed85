"""The jinja2 source of a chat template + its variables -> text, as transformers renders it.

Templates come from model files. They run in jinja2's immutable sandbox (CVE-2024-34359 was the same
kind of template without one). A template can also loop without end, double a text or compute a power
of powers, which no sandbox within a process stops. So `render` asks a process with limits of time and
memory (`edgeft.child_process`). It loads this file by its path, without the package around it.
"""

from __future__ import annotations

import functools
import json
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from edgeft.child_process import Ended, Limits, Pool
from edgeft.errors import InputError, TemplateLimitError

RENDERING = Limits(cpu_s=1, memory=64_000_000, memory_per_byte=16)
"""of one rendering; a long conversation takes some milliseconds"""
RENDERERS = 4
"""processes at most; a server renders in several threads"""

_renderers = Pool(Path(__file__), "answer", RENDERING, RENDERERS)


def render(source: str, **variables: Any) -> str:
    """`variables`: JSON values. InputError where the template does not compile, refuses or fails on
    the variables, TemplateLimitError where it takes more time or memory than `RENDERING`."""
    try:
        text = _renderers.ask([source, variables])
    except Ended as end:
        raise TemplateLimitError(f"{REFUSES}: {end}", WHERE) from None
    if isinstance(text, str):
        return text
    if text[0] == TOO_LONG:
        raise TemplateLimitError(*text)
    raise InputError(*text)


REFUSES = "the chat template refuses these messages"
WHERE = "it is in the model's tokenizer files"
MAX_TEXT_CHARS = 10_000_000
"""of a rendered text; ten times the largest request"""
TOO_LONG = f"{REFUSES}: it writes more than {MAX_TEXT_CHARS:,} characters"


COMPILE_HINT = "chat_template.jinja or tokenizer_config.json of the base"


def answer(request: tuple[str, dict[str, Any]]) -> str | tuple[str, str]:
    """(source, variables) -> the text, or (problem, hint). Runs in the process with limits, where every
    exception is the template's."""
    source, variables = request
    try:
        template = _compile(source)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001
        return f"the chat template does not compile: {_line(error)}", COMPILE_HINT
    try:
        text = template.render(**variables)
        return text if len(text) <= MAX_TEXT_CHARS else (TOO_LONG, WHERE)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001
        return f"{REFUSES}: {_line(error)}", WHERE


def _line(error: Exception) -> str:
    """An error's text; its class where it has none."""
    return str(error) or type(error).__name__


def variables(source: str) -> set[str]:
    """Names that a template reads, its own ones among them. It is parsed, not compiled or run."""
    environment = jinja2.Environment(extensions=EXTENSIONS)
    try:
        names = environment.parse(source).find_all(jinja2.nodes.Name)
        return {name.name for name in names if name.ctx == "load"}
    except (jinja2.TemplateError, RecursionError) as error:
        raise InputError(f"the chat template does not compile: {error}") from None


class Generation(jinja2.ext.Extension):
    """{% generation %} … {% endgeneration %}, transformers' mark of an answer: renders its body."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_body")
        return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _body(self, caller: Any) -> Any:
        return caller()


EXTENSIONS = (Generation, "jinja2.ext.loopcontrols")


@functools.lru_cache(maxsize=8)
def _compile(source: str) -> jinja2.Template:
    """Compile with transformers' whitespace rules, filters and functions."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=EXTENSIONS
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment.from_string(source)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _tojson(value: Any, ensure_ascii: bool = False, indent: Any = None, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)
