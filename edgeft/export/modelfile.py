"""Chat template and GGUF name -> the text of an Ollama Modelfile: template and stops.

    text = modelfile(chat, "q4_k_m.gguf")       # ollama create mine -f q4_k_m.Modelfile

Ollama's templates are Go templates, a model's are jinja2. Rendered probes show the text around each
turn (`Frame`). The frame must reproduce the template on longer conversations; otherwise the Modelfile
leaves the template to Ollama, with a comment. The format: https://github.com/ollama/ollama/blob/main/docs/modelfile.mdx.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgeft.errors import InputError
from edgeft.records import Message
from edgeft.tokenizer.chat_template import ChatTemplate
from edgeft.tokenizer.message_form import MessageForm
from edgeft.tokenizer.stops import ending_text

SYSTEM, USER, ANSWER = "qSYSTEMq", "qUSERq", "qANSWERq"
"""contents of the turns of a probe"""


@dataclass(frozen=True)
class Frame:
    """The text that a template writes around each turn."""

    default: str
    """before the first turn of a conversation without a system prompt"""
    system: tuple[str, str] | None
    """before and after a system prompt; None where the template has no system role"""
    user: tuple[str, str]
    """before and after a user's turn, up to the beginning of the answer"""
    answer: tuple[str, str]
    """before an answer (beyond the end of the user's turn) and after it"""

    def render(self, messages: Sequence[Message]) -> str:
        """The prompt as Ollama writes it; the last message is the user's."""
        text = "" if messages[0].role == "system" else self.default
        for message in messages:
            frames = {"system": self.system or ("", ""), "user": self.user}
            before, after = frames.get(message.role, self.answer)
            text += before + message.content + after
        return text


def frame_of(chat: ChatTemplate, prefix: str = "") -> Frame | None:
    """The frame of a template; None where the template does more than frame turns.

    `prefix`: text to remove from the beginning of every rendered prompt.
    """
    if "strftime_now" in chat.source:
        return None  # a frame would keep today's date
    user, system, answer = (
        Message("user", USER),
        Message("system", SYSTEM),
        Message("assistant", ANSWER),
    )
    one_turn = _rendered(chat, [user], prefix)
    three_turns = _rendered(chat, [user, answer, user], prefix)
    with_system = _rendered(chat, [system, user], prefix)
    if one_turn is None or three_turns is None:
        return None
    start, _, after_user = one_turn.partition(USER)
    user_to_answer, _, rest = three_turns.partition(USER)[2].partition(ANSWER)
    answer_to_user = rest.partition(USER)[0]
    # The text before a user's turn is the common end of all that can stand before it.
    before_turns, before_system, system_to_user = [start, answer_to_user], "", ""
    if with_system is not None and SYSTEM in with_system:
        before_system, _, rest = with_system.partition(SYSTEM)
        system_to_user = rest.partition(USER)[0]
        before_turns.append(system_to_user)
    before_user = _common_end(before_turns)
    frame = Frame(
        default=start.removesuffix(before_user),
        system=(
            (before_system, system_to_user.removesuffix(before_user))
            if len(before_turns) > 2
            else None
        ),
        user=(before_user, after_user),
        answer=(
            user_to_answer.removeprefix(after_user),
            answer_to_user.removesuffix(before_user),
        ),
    )
    probes = _conversations(with_system=frame.system is not None)
    return frame if all(frame.render(p) == _rendered(chat, p, prefix) for p in probes) else None


def modelfile(chat: ChatTemplate, gguf: str, adds_bos: bool) -> str:
    """The text of the Modelfile.

    `gguf`: file name of the artifact, in the same folder. `adds_bos`: whether the tokenizer adds the
    bos token, so the template must not.
    """
    lines = [f"FROM ./{gguf}"]
    frame = frame_of(chat, prefix=chat.bos_token if adds_bos else "")
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
    lines += [_stop(stop) for stop in (*chat.stops, ending_text(chat) if frame else "") if stop]
    return "\n".join(lines) + "\n"


def _stop(text: str) -> str:
    """A stop parameter. Ollama has no escapes: a value ends with its quotes at the end of a line."""
    if '"""' in text:
        return "# One of the stops has three quotes, which a Modelfile cannot hold."
    quotes = '"""' if any(char in text for char in '"\r\n') else '"'
    return f"PARAMETER stop {quotes}{text}{quotes}"


def _go(text: str) -> str:
    """A literal as a Go template action, which neither trimming nor braces can change."""
    if not text:
        return ""
    quoted = (
        text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t")
    )
    return f'{{{{- "{quoted}" }}}}'


def _rendered(chat: ChatTemplate, messages: Sequence[Message], prefix: str) -> str | None:
    try:
        # The template as it is: Ollama does not join turns.
        return chat.render_form(messages, MessageForm()).removeprefix(prefix)
    except InputError:
        return None


def _conversations(with_system: bool) -> list[list[Message]]:
    def talk(*texts: str) -> list[Message]:
        roles = ("user", "assistant") * len(texts)
        return [Message(role, text) for role, text in zip(roles, texts, strict=False)]

    probes = [talk("hi there"), talk("one", "two", "three"), talk("a", "b\nc", "d", "e", "f")]
    system_probes = [[Message("system", "Be brief."), *probe] for probe in probes]
    return probes + system_probes if with_system else probes


def _common_end(texts: Sequence[str]) -> str:
    shortest = min(texts, key=len)
    for start in range(len(shortest) + 1):
        if all(text.endswith(shortest[start:]) for text in texts):
            return shortest[start:]
    return ""
