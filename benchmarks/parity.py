"""Is the artifact the same model? Checks on the finished file, before it gets its name.

    check_tokens(model, folder)                   same ids, same stops as the Hugging Face folder
    check_greedy(model, reference)                same first greedy tokens on fixed prompts

Each raises ProofError with the first difference, and returns facts for the manifest.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from edgeft.errors import ProofError
from edgeft.records import Limits, Message
from edgeft.runtimes import Runtime
from edgeft.template import ChatTemplate, encoder, id_to_token

PROMPTS = (
    "What is the capital of France?",
    "turn off the bedroom lamp",
    "Write a haiku about the sea.",
    "List three prime numbers above 100.",
    "Explain in one sentence why the sky is blue.",
    "Translate to German: good morning",
    "What is 17 + 25?",
    "def fibonacci(n):",
)
GREEDY_TOKENS = 12
TIE = 0.05
"""logits; where the reference itself is this undecided, half-precision rounding may choose"""

TORTURE = (
    "Hello, World! I'm sure they've seen it's o'clock.",
    "  leading, trailing   and    runs of spaces  ",
    "tabs\tand\t\tmore\n\nnew lines\r\n\r\nand \n mixed \t\n",
    "1 12 123 1234 12345 3.14159 1,000,000 0x1F 1e-10 ½ ²",
    "def f(x: int) -> list[str]:\n    return [f'{x!r}' for _ in range(10)]  # ok\n",
    '{"action":"set","device":"lamp","value":30}',
    "Zażółć gęślą jaźń. Ünïcödé façade naïve Straße",
    "Привет, как дела? Ελληνικά עברית العربية हिन्दी",
    "今天天气很好。日本語のテキスト、한국어 문장",
    "emoji 😀👍🏽👩‍👩‍👧‍👦🇩🇪 and ☃ ✓",
    "zero\u200bwidth, nbsp\u00a0here, combining e\u0301, \ufeffbom",
    "CamelCaseWords snake_case_words kebab-case-words SHOUTING!!!???...",
    "<|not_a_token|> <b>html</b> &amp; http://example.org/a?b=c#d",
    "",
    "a",
)


def check_tokens(model: Runtime, folder: Path) -> dict[str, Any]:
    """Every torture text and every added token gives the tokenizer's ids; the stops are there."""
    wanted, added = encoder(folder), list(id_to_token(folder).values())
    texts = [*TORTURE, *added, *(f"a{token}b" for token in added), " ".join(added)]
    for text in texts:
        expected, got = wanted(text), model.encode(text)
        if expected != got:
            raise ProofError(
                f"the artifact cuts {text[:60]!r} into {got[:12]}, the tokenizer into "
                f"{expected[:12]}",
                "the tokenizer is of a kind that the export does not know",
            )
    chat = ChatTemplate.from_folder(folder)
    lost = [stop for stop in chat.stops if stop not in model.chat.stops]
    if lost:
        raise ProofError(f"the artifact does not stop at {', '.join(lost)}")
    if model.chat.source != chat.source:
        raise ProofError("the artifact carries another chat template")
    return {"texts": len(texts), "stops": list(chat.stops), "template": chat.fingerprint}


def check_greedy(
    model: Runtime, reference: Runtime, prompts: Iterable[str] = PROMPTS
) -> dict[str, Any]:
    """The artifact chooses the tokens that the float32 model chooses, near-ties apart."""
    same = ties = 0
    limits = Limits(max_tokens=GREEDY_TOKENS, past_stops=True)
    for prompt in prompts:
        text = reference.chat.render([Message("user", prompt)])
        ids = reference.encode(text)
        wanted = [token.id for token in reference.stream(ids, limits)]
        got = [token.id for token in model.stream(ids, limits)]
        at = next((i for i, (a, b) in enumerate(zip(wanted, got, strict=True)) if a != b), None)
        if at is None:
            same += len(wanted)
            continue
        row = reference.logits([*ids, *wanted[:at]])[-1]
        margin = float(row[wanted[at]] - row[got[at]])
        if margin > TIE:
            raise ProofError(
                f"the artifact answers {prompt!r} differently from the merged model at token {at}: "
                f"{got[at]} for {wanted[at]}, {margin:.2f} logits apart",
            )
        same, ties = same + at, ties + 1
    return {"tokens": same, "near_ties": ties}
