"""Ollama's Modelfile: the frame around the turns is the chat template's, or there is none."""

from __future__ import annotations

import re

import pytest

from edgeft.export.modelfile import frame_of, modelfile
from edgeft.records import Message
from edgeft.tokenizer.chat_template import ALPACA, ChatTemplate
from helpers.tiny import CHATML

pytestmark = pytest.mark.unit

NO_SYSTEM = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}"
    "{{ raise_exception('no system role') }}{% endif %}<{{ m.role }}>{{ m.content }}</turn>"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% else %}{{ eos_token }}{% endif %}"
)
DEFAULT_SYSTEM = (
    "{% if messages[0].role != 'system' %}<sys>I am a model.</sys>\n{% endif %}"
    "{% for m in messages %}{% if m.role == 'system' %}<sys>{{ m.content }}</sys>\n"
    "{% elif m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} {{ m.content }}</s>"
    "{% endif %}{% endfor %}"
)
COUNTS = (
    "{% for m in messages %}{{ loop.index }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}{{ messages | length + 1 }}: {% endif %}"
)


def chat(source: str) -> ChatTemplate:
    return ChatTemplate(source, "<s>", "</s>", ("</s>", "<|end|>"))


ACTION = re.compile(r'\{\{- ((?:"(?:[^"\\]|\\.)*"|[^}"])*?) ?\}\}')


def go(template: str, messages: list[Message]) -> str:
    """What Ollama makes of our templates: literals, fields, if, else if, else, range and end."""
    assert ACTION.sub("", template) == "", "text outside of actions"
    actions = ACTION.findall(template)
    system = "\n\n".join(m.content for m in messages if m.role == "system")

    def holds(condition: str, message: Message | None) -> bool:
        if condition == ".System":
            return bool(system)
        return not condition or (message is not None and f'"{message.role}"' in condition)

    def run(at: int, message: Message | None, live: bool) -> tuple[str, int]:
        """The text of the actions from `at` up to the end or else that closes them."""
        text = ""
        while at < len(actions) and not actions[at].startswith(("end", "else")):
            action, at = actions[at], at + 1
            more = ""
            if action.startswith('"'):
                more = action[1:-1].encode().decode("unicode_escape")
            elif action in (".System", ".Content"):
                more = system if action == ".System" else message.content if message else ""
            elif action == "range .Messages":
                turns = [run(at, entry, live) for entry in messages]
                more, at = "".join(turn for turn, _ in turns), turns[0][1] + 1
            else:
                chosen = False
                while action != "end":
                    condition = re.sub(r"^(else)? ?(if)? ?", "", action)
                    now = not chosen and holds(condition, message)
                    part, at = run(at, message, live and now)
                    more, chosen = more + part, chosen or now
                    action, at = actions[at], at + 1
            text += more if live else ""
        return text, at

    return run(0, None, True)[0]


TALKS = [
    [Message("user", "hi")],
    [Message("user", "hi"), Message("assistant", "yes?"), Message("user", 'a "b"')],
    [Message("system", "Short."), Message("user", "hi")],
]


@pytest.mark.parametrize("source", [CHATML, ALPACA, NO_SYSTEM, DEFAULT_SYSTEM])
def test_ollamas_prompt_equals_the_templates(source: str) -> None:
    template = chat(source)
    text = modelfile(template, "x.gguf", adds_bos=False)
    match = re.search(r'TEMPLATE """(.*?)"""', text, re.DOTALL)
    assert match
    for talk in TALKS:
        if source is NO_SYSTEM and talk[0].role == "system":
            continue
        assert go(match[1], talk) == template.render(talk)
    assert text.startswith("FROM ./x.gguf\n")
    stops = ["</s>", "<|end|>"]
    if source is CHATML:  # of a model without these tokens: Ollama stops at their text
        stops.append("<|im_end|>")
    assert re.findall(r'^PARAMETER stop "(.*)"$', text, re.MULTILINE) == stops


def test_the_template_omits_a_bos_that_the_tokenizer_adds() -> None:
    text = modelfile(chat(NO_SYSTEM), "x.gguf", adds_bos=True)
    match = re.search(r'TEMPLATE """(.*?)"""', text, re.DOTALL)
    assert match
    assert "<s>" + go(match[1], TALKS[1]) == chat(NO_SYSTEM).render(TALKS[1])


def test_a_template_beyond_frames_is_left_to_ollama() -> None:
    assert frame_of(chat(COUNTS)) is None
    text = modelfile(chat(COUNTS), "x.gguf", adds_bos=False)
    assert "TEMPLATE" not in text and "Ollama chooses" in text


def test_a_template_with_todays_date_is_left_to_ollama() -> None:
    dated = "{{ strftime_now('%d %b %Y') }}\n" + CHATML
    assert frame_of(chat(CHATML)) is not None and frame_of(chat(dated)) is None
    text = modelfile(chat(dated), "x.gguf", adds_bos=False)
    assert "TEMPLATE" not in text and "Ollama chooses" in text


def parameters(text: str) -> list[str]:
    """The values that Ollama reads (parser/parser.go: `ParseFile`, `unquote`)."""
    values, lines = [], text.removesuffix("\n").split("\n")
    while lines:
        name, _, value = lines.pop(0).partition(" stop ")
        if name != "PARAMETER":
            assert not name or name.startswith(("FROM ", "#", "TEMPLATE ")), name
            continue
        mark = '"""' if value.startswith('"""') else '"'
        while len(value) < 2 * len(mark) or not value.endswith(mark):
            value += "\n" + lines.pop(0)
        values.append(value[len(mark) : -len(mark)])
    return values


def test_stops_with_quotes_and_newlines_are_kept() -> None:
    stops = ("</s>", "\n\nUser:", '"', '""x', 'say "stop"', '"\n', 'a"\nFROM b', " x ", "\\n")
    template = ChatTemplate(ALPACA, "<s>", "</s>", stops)
    assert parameters(modelfile(template, "x.gguf", adds_bos=False)) == list(stops)
    three = ChatTemplate(ALPACA, "<s>", "</s>", ("</s>", '"""\nFROM other', "<|end|>"))
    text = modelfile(three, "x.gguf", adds_bos=False)
    assert parameters(text) == ["</s>", "<|end|>"] and "# One of the stops" in text
