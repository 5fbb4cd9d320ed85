"""A hostile template must reach nothing; a broken one is an error of one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeft.errors import InputError
from edgeft.records import Message
from edgeft.tokenizer.chat_template import ChatTemplate

pytestmark = pytest.mark.unit


def chat(source: str) -> ChatTemplate:
    return ChatTemplate(source, bos_token="<s>", eos_token="<|im_end|>", stops=("<|im_end|>",))


SUBCLASS = (
    "{% for c in OBJECT.__subclasses__() if c.__name__ == '_wrap_close' %}"
    "{{ c.__init__.__globals__['system'](CMD) }}{% endfor %}"
)
# Each reaches os.system or shows an object's insides in a plain environment; the test checks that.
ATTACKS = [
    "{{ cycler.__init__.__globals__.os.system(CMD) }}",
    "{{ joiner.__init__.__globals__['os'].system(CMD) }}",
    "{{ namespace.__init__.__globals__.os.system(CMD) }}",
    "{{ lipsum.__globals__.os.system(CMD) }}",
    "{{ lipsum['__globals__']['os']['system'](CMD) }}",
    "{{ (lipsum|attr('__globals__'))['os'].system(CMD) }}",
    "{{ (lipsum|attr('__glo' ~ 'bals__'))['os'].system(CMD) }}",
    "{{ (lipsum|attr('\\x5f\\x5fglobals\\x5f\\x5f')).os.system(CMD) }}",
    "{{ self.__init__.__globals__.__builtins__.__import__('os').system(CMD) }}",
    "{{ self._TemplateReference__context.cycler.__init__.__globals__.os.system(CMD) }}",
    "{{ raise_exception.__globals__.__builtins__.__import__('os').system(CMD) }}",
    "{{ (strftime_now.__globals__.__builtins__).eval('__import__(\"os\")').system(CMD) }}",
    SUBCLASS.replace("OBJECT", "''.__class__.__mro__[1]"),
    SUBCLASS.replace("OBJECT", "[].__class__.__base__"),
    "{{ ([lipsum]|map(attribute='__globals__')|map(attribute='os')|first).system(CMD) }}",
    "{{ messages.__class__.__mro__ }}",
    "{{ '{0.__globals__[os]}'.format(lipsum) }}",
    "{{ '{x.__globals__[os]}'.format_map({'x': lipsum}) }}",
    "{% set f = '{0.__globals__[os]}'.format %}{{ f(lipsum) }}",
    "{{ ('{0.__globals__[os]}'|attr('format'))(lipsum) }}",
]


def globals_of_ours() -> dict[str, Callable[..., Any]]:
    def anything(*_: Any) -> None: ...

    return {"raise_exception": anything, "strftime_now": anything}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_hostile_template_reaches_nothing(tmp_path: Path, attack: str) -> None:
    import jinja2

    owned = tmp_path / "owned"
    source = attack.replace("CMD", json.dumps(f"touch {owned}"))
    plain = jinja2.Environment()
    plain.globals.update(globals_of_ours())
    shown = plain.from_string(source).render(messages=[{"role": "user", "content": "hi"}])
    assert owned.exists() or "<module 'os'" in shown or "<class" in shown, "a dead attack"
    owned.unlink(missing_ok=True)

    try:
        text = chat(source).render([Message("user", "hi")])
    except InputError as error:
        assert "the chat template refuses these messages" in str(error)
    else:
        assert text.strip() == ""
    assert not owned.exists()


@pytest.mark.parametrize(
    "mutation",
    ["messages.append(messages[0])", "messages.clear()", "messages[0].update(role='system')",
     "messages[0].pop('role')", "messages.sort()", "messages[0].setdefault('x', 1)"],
)  # fmt: skip
def test_messages_cannot_be_changed(mutation: str) -> None:
    with pytest.raises(
        InputError, match="the chat template refuses these messages: access to .* is unsafe"
    ):
        chat(f"{{{{ {mutation} }}}}").render([Message("user", "hi")])


@pytest.mark.parametrize(
    "source",
    ["{{ 1 / 0 }}", "{{ messages[0].content + 1 }}", "{{ nothing.at.all }}", "{{ nothing() }}",
     "{{ range(10 ** 9) }}", "{{ '%d' % 'x' }}", "{{ '{0} {1}'.format(1) }}", "{{ 'x'.index('y') }}",
     "{% include 'other' %}", "{{ messages | map('nope') | list }}", "{{ 10.0 ** 400 }}",
     "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "{{ 'x' * (10 ** 15) }}"],
)  # fmt: skip
def test_a_template_that_fails_while_it_runs(source: str) -> None:
    with pytest.raises(InputError, match="the chat template refuses these messages: "):
        chat(source).render([Message("user", "hi")])


@pytest.mark.parametrize("source", ["{% for", "{{ x | nofilter }}", "{% endif %}", "{% nothing %}"])
def test_a_template_that_does_not_compile(source: str) -> None:
    with pytest.raises(InputError, match="the chat template does not compile: "):
        chat(source).render([Message("user", "hi")])
