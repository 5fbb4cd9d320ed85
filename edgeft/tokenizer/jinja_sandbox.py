"""The jinja2 source of a chat template + its variables -> text, as transformers renders it.

Templates come from model files, so they run in jinja2's immutable sandbox (CVE-2024-34359 was the
same kind of template without one). Imported only when a template is rendered.
"""

from __future__ import annotations

import functools
import json
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from edgeft.errors import InputError


def render(source: str, **variables: Any) -> str:
    """InputError where the template does not compile, or refuses or fails on the variables."""
    try:
        return _compile(source).render(**variables)
    except (jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, MemoryError,
            RuntimeError, TypeError, ValueError) as error:  # fmt: skip
        raise InputError(
            f"the chat template refuses these messages: {error}",
            "it is in the model's tokenizer files",
        ) from None


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
    try:
        return environment.from_string(source)
    except jinja2.TemplateError as error:
        raise InputError(
            f"the chat template does not compile: {error}",
            "chat_template.jinja or tokenizer_config.json of the base",
        ) from None


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _tojson(value: Any, ensure_ascii: bool = False, indent: Any = None, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)
