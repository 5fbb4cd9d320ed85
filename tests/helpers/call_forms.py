"""Chat templates with the calls of each family, and the same calls as their models write them."""

from __future__ import annotations

from edgeft.records import ToolCall
from edgeft.tokenizer.chat_template import ChatTemplate

_TURNS = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}<|{{ m.role }}|>{{ m.content or '' }}"
    "{% if m.tool_calls %}CALLS{% endif %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_EACH = "{% for c in m.tool_calls %}{% set f = c.function %}ONE{% endfor %}"
_COMMA = "{{ ', ' if not loop.last }}"
_JSON = '{"name": "{{ f.name }}", "arguments": {{ f.arguments | tojson }}}'
_TAGS = "{% for k, v in f.arguments.items() %}TAG{% endfor %}"
_VALUE = "{{ v if v is string else v | tojson }}"
_CALLS = {
    "hermes": _EACH.replace("ONE", f"{{{{ '\n' if not loop.first }}}}<tool_call>\n{_JSON}\n</tool_call>"),
    "llama": (
        "{% if m.tool_calls | length > 1 %}{{ raise_exception('single tool-calls only') }}{% endif %}"
        "{% set f = m.tool_calls[0].function %}"
        '{"name": "{{ f.name }}", "parameters": {{ f.arguments | tojson }}}'
    ),
    "mistral": _EACH.replace("ONE", "[TOOL_CALLS]{{ f.name }}[ARGS]{{ f.arguments | tojson }}"),
    "nemo": "[TOOL_CALLS][" + _EACH.replace("ONE", _JSON[:-1] + ', "id": "{{ c.id }}"}' + _COMMA) + "]",
    "deepseek": "<|calls|>" + _EACH.replace(
        "ONE", "{{ '\n' if not loop.first }}<|call|>function<|sep|>{{ f.name }}\n```json\n"
        "{{ f.arguments | tojson }}\n```<|/call|>") + "<|/calls|>",
    "kimi": "<|calls|>" + _EACH.replace(
        "ONE", "<|call|>functions.{{ f.name }}:{{ loop.index0 }}<|args|>{{ f.arguments | tojson }}"
        "<|/call|>") + "<|/calls|>",
    "glm": _EACH.replace("ONE", "\n<tool_call>{{ f.name }}" + _TAGS.replace(
        "TAG", "\n<arg_key>{{ k }}</arg_key>\n<arg_value>" + _VALUE + "</arg_value>") + "\n</tool_call>"),
    "glm on one line": _EACH.replace("ONE", "<tool_call>{{ f.name }}" + _TAGS.replace(
        "TAG", "<arg_key>{{ k }}</arg_key><arg_value>" + _VALUE + "</arg_value>") + "</tool_call>"),
    "qwen coder": _EACH.replace("ONE", "<tool_call>\n<function={{ f.name }}>\n" + _TAGS.replace(
        "TAG", "<parameter={{ k }}>\n" + _VALUE + "\n</parameter>\n") + "</function>\n</tool_call>\n"),
    "typed tags": _EACH.replace("ONE", '<invoke name="{{ f.name }}">' + _TAGS.replace(
        "TAG", '\n<arg name="{{ k }}" string="{{ (v is string) | tojson }}">' + _VALUE + "</arg>")
        + "\n</invoke>\n"),
    "gemma": "{% macro w(v) %}{% if v is string %}<|q|>{{ v }}<|q|>{% elif v is mapping %}{{ '{' }}"
        "{% for k, x in v.items() %}{{ k }}:{{ w(x) }}{{ ',' if not loop.last }}{% endfor %}{{ '}' }}"
        "{% elif v is sequence %}[{% for x in v %}{{ w(x) }}{{ ',' if not loop.last }}{% endfor %}]"
        "{% else %}{{ v | tojson }}{% endif %}{% endmacro %}"
        + _EACH.replace("ONE", "<|tool_call>call:{{ f.name }}{{ w(f.arguments) }}<tool_call|>"),
    "keywords": "<|calls|>[" + _EACH.replace("ONE", "{{ f.name }}(" + _TAGS.replace(
        "TAG", "{{ k }}={{ v | tojson }}" + _COMMA) + ")" + _COMMA) + "]<|/calls|>",
    "name as key": "<|calls|>[" + _EACH.replace(
        "ONE", '{"{{ f.name }}": {{ f.arguments | tojson }}}' + _COMMA) + "]<|/calls|>",
}  # fmt: skip
TEMPLATES = {
    name: ChatTemplate(_TURNS.replace("CALLS", calls), "", "<|end|>", ("<|end|>",))
    for name, calls in _CALLS.items()
}
PLAIN = ChatTemplate(_TURNS.replace("CALLS", "").replace("{{ tools | tojson }}", ""), "", "<|end|>",
                     ("<|end|>",))  # fmt: skip
"""it renders neither tools nor calls"""

TOOLS = {
    "weather": {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "unit": {"type": "string", "enum": ["c", "f"]},
        },
        "required": ["city"],
    },
    "note": {
        "type": "object",
        "properties": {
            "tags": {"type": "array", "items": {"type": "string"}},
            "where": {
                "type": "object",
                "properties": {"x": {"type": "number"}, "ok": {"type": ["boolean", "null"]}},
                "required": ["x"],
            },
        },
        "required": ["tags"],
    },
    "ping": {"type": "object", "properties": {}},
}
CALLS = {
    "one": (ToolCall("weather", '{"city": "Paris \\"x\\" é", "days": 3, "unit": "c"}'),),
    "nested": (ToolCall("note", '{"tags": ["a", "b c"], "where": {"x": 1.5, "ok": true}}'),),
    "no arguments": (ToolCall("ping", "{}"),),
    "three": (
        ToolCall("weather", '{"city": "12"}'),
        ToolCall("note", '{"tags": []}'),
        ToolCall("ping", "{}"),
    ),
}
