"""A hostile template must reach nothing; a broken one is an error of one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from html import unescape
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
    # the same by other names of the same things
    "{{ lipsum['__globals__'].os.popen(CMD).read() }}",
    "{{ lipsum[['__', 'globals', '__']|join].os.system(CMD) }}",
    "{{ lipsum['__slabolg__'[::-1]].os.system(CMD) }}",
    "{{ lipsum['__GLOBALS__'|lower].os.system(CMD) }}",
    "{{ lipsum['--globals--'|replace('-', '_')].os.system(CMD) }}",
    "{{ lipsum['%sglobals%s'|format('__', '__')].os.system(CMD) }}",
    "{{ lipsum[dict(__globals__=1)|first].os.system(CMD) }}",
    "{{ lipsum[dict(__glo=1, bals__=2)|join].os.system(CMD) }}",
    "{{ (lipsum|attr(['__glo', 'bals__']|join)).os.system(CMD) }}",
    "{% set g = '__globals__' %}{{ lipsum[g].os.system(CMD) }}",
    "{% set o = lipsum.__globals__ %}{{ o.os.system(CMD) }}",
    "{% with o = lipsum.__globals__ %}{{ o['os'].system(CMD) }}{% endwith %}",
    "{% if lipsum.__globals__.os.system(CMD) %}{% endif %}",
    "{% for x in [lipsum.__globals__.os.system(CMD)] %}{% endfor %}",
    "{% filter upper %}{{ lipsum.__globals__.os.system(CMD) }}{% endfilter %}",
    "{% macro m(x=lipsum.__globals__.os.system(CMD)) %}{% endmacro %}{{ m() }}",
    "{% set x %}{{ lipsum.__globals__.os.system(CMD) }}{% endset %}{{ x }}",
    "{{ lipsum.__globals__.__builtins__.open('/etc/passwd').__class__ }}",
    "{{ lipsum.__globals__.__builtins__['__import__']('os').system(CMD) }}",
    "{{ lipsum.__globals__['__builtins__'].__import__('subprocess').run(['sh', '-c', CMD]) }}",
    "{{ cycler.next.__globals__.os.system(CMD) }}",
    "{{ cycler('a').reset.__func__.__globals__.os.system(CMD) }}",
    "{{ joiner().__call__.__globals__.os.system(CMD) }}",
    "{{ namespace().__class__.__init__.__globals__.os.system(CMD) }}",
    "{{ nothing.__class__.__init__.__globals__.sys.modules.os.system(CMD) }}",
    "{% for m in messages %}{{ loop.__init__.__globals__.sys.modules.os.system(CMD) }}{% endfor %}",
    "{% macro m() %}{% endmacro %}{{ m.__init__.__globals__.sys.modules.os.system(CMD) }}",
    "{% macro m() %}{% endmacro %}{{ m._func.__globals__.environment.__class__ }}",
    "{{ self._TemplateReference__context.environment.__class__ }}",
    "{{ self._TemplateReference__context.environment.from_string.__globals__.os.system(CMD) }}",
    "{{ self.__class__.__init__.__globals__.sys.modules.os.system(CMD) }}",
    # by classes, frames and code
    SUBCLASS.replace("OBJECT", "().__class__.__bases__[0]"),
    SUBCLASS.replace("OBJECT", "{}.__class__.__mro__[-1]"),
    SUBCLASS.replace("OBJECT", "dict.__base__"),
    SUBCLASS.replace("OBJECT", "messages[0].__class__.__base__"),
    SUBCLASS.replace("OBJECT", "(1).__class__.mro()[1]"),
    SUBCLASS.replace("OBJECT", "''['__class__']['__base__']"),
    SUBCLASS.replace("OBJECT", "(''|attr('__class__')|attr('__base__'))"),
    "{{ ('a'|map('upper')).gi_frame.f_globals.__class__ }}",
    "{{ ('a'|map('upper')).gi_code }}",
    "{{ (['a']|select).gi_frame.f_code }}",
    "{{ lipsum.__code__ }}",
    "{{ raise_exception.__code__ }}",
    "{{ raise_exception.__class__ }}",
    "{{ dict.mro() }}",
    # by filters
    "{{ [lipsum]|join(attribute='__globals__') }}",
    "{{ [lipsum]|join(attribute='__class__') }}",
    "{{ [lipsum]|map('attr', '__class__')|first }}",
    "{{ [lipsum]|map('attr', '__globals__')|map(attribute='os')|list }}",
    "{{ (messages|map(attribute='__class__')|list)[0] }}",
    "{{ [lipsum]|unique(attribute='__class__')|map(attribute='__class__')|first }}",
    # by formats
    "{{ '{0.__class__.__mro__}'.format(1) }}",
    "{{ '{a.__globals__[os]}'.format(a=lipsum) }}",
    "{{ '{0[0].__class__}'.format(messages) }}",
    "{{ ''.__class__.format('{0.__globals__[os]}', lipsum) }}",
    "{{ ''['format'].__self__.__class__ }}",
    "{{ ('{0.__class__}'|string).format(lipsum) }}",
    "{{ ('{0.__class__}' ~ '').format(lipsum) }}",
    "{% set s = '{0.__class__}' %}{{ s.format(lipsum) }}",
    "{{ (['{0.__class__}']|first).format(lipsum) }}",
    "{{ ('{0.__class__}'|safe).format(lipsum) }}",
    "{{ ('{0.__class__}'|e).format(lipsum) }}",
    "{{ ('{x.__class__}'|safe).format_map({'x': lipsum}) }}",
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
    marks = ("<module 'os'", "<class", "<code object", "<function")
    assert owned.exists() or any(mark in unescape(shown) for mark in marks), "a dead attack"
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
