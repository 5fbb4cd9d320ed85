"""An Ollama Modelfile for a GGUF: the chat template in Ollama's language, and the stops.

    text = modelfile(chat, "q4_k_m.gguf")       # ollama create mine -f q4_k_m.Modelfile

Ollama's templates are Go's, a model's are jinja2. What a template writes around the turns is found
by rendering probes; the result is used only if it reproduces the template on longer conversations,
otherwise the Modelfile leaves the choice to Ollama and says so.
The format: https://github.com/ollama/ollama/blob/main/docs/modelfile.mdx.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgeft.errors import InputError
from edgeft.records import Message
from edgeft.tokenizer.chat_template import ChatTemplate

SYSTEM, USER, ANSWER = "qSYSTEMq", "qUSERq", "qANSWERq"


@dataclass(frozen=True)
class Frame:
    """What a template writes around the turns."""

    default: str
    """before the first turn where nobody gave a system prompt"""
    system: tuple[str, str] | None
    """before and after a system prompt; None: the template knows none"""
    user: tuple[str, str]
    """before and after a user's turn, up to where the answer begins"""
    answer: tuple[str, str]
    """before (where that is more than the end of the user's turn) and after an answer"""

    def render(self, messages: Sequence[Message]) -> str:
        """The prompt as Ollama will write it; the last message is the user's."""
        text = "" if messages[0].role == "system" else self.default
        for message in messages:
            around = {"system": self.system or ("", ""), "user": self.user}
            before, after = around.get(message.role, self.answer)
            text += before + message.content + after
        return text


def frame_of(chat: ChatTemplate, without: str = "") -> Frame | None:
    """None where the template does more than to frame turns; `without`: a beginning to leave out."""
    if "strftime_now" in chat.source:
        return None  # a frame would keep the date of today
    user, system, answer = (
        Message("user", USER),
        Message("system", SYSTEM),
        Message("assistant", ANSWER),
    )
    plain = _rendered(chat, [user], without)
    talk = _rendered(chat, [user, answer, user], without)
    told = _rendered(chat, [system, user], without)
    if plain is None or talk is None:
        return None
    start, _, after_user = plain.partition(USER)
    joint, _, rest = talk.partition(USER)[2].partition(ANSWER)
    middle = rest.partition(USER)[0]
    # A user's turn begins alike at the start, after an answer and after a system prompt.
    beginnings, around = [start, middle], ("", "")
    if told is not None and SYSTEM in told:
        before, _, rest = told.partition(SYSTEM)
        around = before, rest.partition(USER)[0]
        beginnings.append(around[1])
    before_user = _common_end(beginnings)
    frame = Frame(
        default=start.removesuffix(before_user),
        system=(around[0], around[1].removesuffix(before_user)) if len(beginnings) > 2 else None,
        user=(before_user, after_user),
        answer=(joint.removeprefix(after_user), middle.removesuffix(before_user)),
    )
    probes = _conversations(with_system=frame.system is not None)
    return frame if all(frame.render(p) == _rendered(chat, p, without) for p in probes) else None


def modelfile(chat: ChatTemplate, gguf: str, adds_bos: bool) -> str:
    """The file's text. `gguf` is the artifact's name, in the same folder.

    `adds_bos`: the tokenizer writes the bos itself, so the template must not.
    """
    lines = [f"FROM ./{gguf}"]
    frame = frame_of(chat, without=chat.bos_token if adds_bos else "")
    if frame is None:
        lines.append(
            "# The chat template does more than to frame turns: Ollama chooses one itself."
        )
    else:
        default = _go(frame.default)
        if frame.system:
            before, after = frame.system
            system = f"{_go(before)}{{{{- .System }}}}{_go(after)}"
            default = f"{{{{- if .System }}}}{system}{{{{- else }}}}{default}{{{{- end }}}}"
        turns = (
            f'{{{{- if eq .Role "user" }}}}{_go(frame.user[0])}{{{{- .Content }}}}{_go(frame.user[1])}'
            f'{{{{- else if eq .Role "assistant" }}}}'
            f"{_go(frame.answer[0])}{{{{- .Content }}}}{_go(frame.answer[1])}{{{{- end }}}}"
        )
        lines.append(f'TEMPLATE """{default}{{{{- range .Messages }}}}{turns}{{{{- end }}}}"""')
    lines += [_stop(stop) for stop in chat.stops]
    return "\n".join(lines) + "\n"


def _stop(text: str) -> str:
    """Ollama knows no escapes: a value ends where its quotes do at the end of a line."""
    if '"""' in text:
        return "# One of the stops has three quotes, which a Modelfile cannot hold."
    quotes = '"""' if any(char in text for char in '"\r\n') else '"'
    return f"PARAMETER stop {quotes}{text}{quotes}"


def _go(text: str) -> str:
    """A literal as a Go template action, so that trimming and braces cannot change it."""
    if not text:
        return ""
    quoted = (
        text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t")
    )
    return f'{{{{- "{quoted}" }}}}'


def _rendered(chat: ChatTemplate, messages: Sequence[Message], without: str) -> str | None:
    try:
        return chat.render(messages).removeprefix(without)
    except InputError:
        return None


def _conversations(with_system: bool) -> list[list[Message]]:
    def talk(*texts: str) -> list[Message]:
        roles = ("user", "assistant") * len(texts)
        return [Message(role, text) for role, text in zip(roles, texts, strict=False)]

    probes = [talk("hi there"), talk("one", "two", "three"), talk("a", "b\nc", "d", "e", "f")]
    told = [[Message("system", "Be brief."), *probe] for probe in probes]
    return probes + told if with_system else probes


def _common_end(texts: Sequence[str]) -> str:
    shortest = min(texts, key=len)
    for start in range(len(shortest) + 1):
        if all(text.endswith(shortest[start:]) for text in texts):
            return shortest[start:]
    return ""
