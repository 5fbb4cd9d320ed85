"""A finished artifact and the model that it was made from -> proof that they are the same model.

    check_tokens(model, folder)                   same ids and stops as the Hugging Face folder
    check_runs(model)                             finite logits that are not all equal
    check_greedy(model, reference)                same first greedy tokens on fixed prompts
    check_live(model, expect(live, …), exact)     same logits as the base with the live adapter

Each raises ProofError with the first difference. All but `check_runs` return facts for the manifest.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgeft import models
from edgeft.benchmarks.fidelity.compare import divergence, ratio
from edgeft.errors import ProofError
from edgeft.files import read_json
from edgeft.records import Limits, Message
from edgeft.runtimes.protocol import Runtime
from edgeft.runtimes.reference import ReferenceRuntime
from edgeft.tokenizer.chat_template import ChatTemplate
from edgeft.tokenizer.hf_files import encoder, id_to_token, special_tokens, tokenizer_json
from edgeft.tokenizer.sentencepiece import SPACE

Logits = npt.NDArray[np.float32]

LOGIT_POSITIONS = 4
"""last positions of a prompt whose logits are compared"""
PROMPT_TOKENS = 256
"""tokens of a prompt at most; longer ones lose their beginning"""
LANDING_BOUNDS = (0.5, 1.5)
"""accepted landing coefficients in the logits, before the tolerance for rounding"""
LANDING_TOLERANCE = 3
"""standard errors (over the prompts) by which the bounds are widened"""
EXACT_KL_NATS = 1e-3
"""largest mean divergence of an f16 or f32 artifact from the live model"""

PROMPTS = (
    "What is the capital of France?",
    "turn off the bedroom lamp",
    "Write a haiku about the sea.",
    "List three prime numbers above 100.",
    "Explain in one sentence why the sky is blue.",
    "Translate to German: good morning",
    "What is 17 + 25?",
    "def fibonacci(n):",
    "Summarize: the meeting was moved from Monday to Thursday at ten.",
    "Give me three names for a black cat.",
    "Fix the grammar: he go to school yesterday",
    "What does HTTP 404 mean?",
    "Write one line of SQL that counts the rows of the table users.",
    "Name the largest planet.",
    "Is 91 a prime number? Answer yes or no.",
    "Convert 5 miles to kilometres.",
    "Rewrite politely: send me the file now",
    "What comes next: 2, 4, 8, 16?",
    "List the colours of the rainbow.",
    "Wie heißt die Hauptstadt von Österreich?",
    "¿Cuántos días tiene una semana?",
    "今天天气怎么样？",
    "Antworte mit JSON: Name Anna, Alter 31",
    "Explain recursion to a child.",
    "set the thermostat in the hall to 21 degrees",
    "Who wrote Hamlet?",
    "Sort these words: pear, apple, fig",
    "What is the boiling point of water in Fahrenheit?",
    "Write a regular expression for a date like 2024-05-17.",
    "Tell me a joke about computers.",
    "Classify the sentiment: the food was cold and late.",
    "Complete: to be or not to",
)
GREEDY_PROMPTS = PROMPTS[:8]
GREEDY_TOKENS = 12
NEAR_TIE_LOGITS = 0.05
"""margin of the reference's choice up to which half-precision rounding may choose otherwise"""

TORTURE = (
    "",
    "a",
    " ",
    "  ",
    "\n",
    " \n",
    "\n ",
    "\t",
    "\r\n",
    "Hello, World! I'm sure they've seen it's o'clock. HE'LL, WE'D, YOU'RE",
    "  leading, trailing   and    runs of spaces  ",
    "tabs\tand\t\tmore\n\nnew lines\r\n\r\nand \n mixed \t\n   \n\n\n  x \r y\n\r\n\t\n z\n",
    "".join(" " * n + "x" for n in range(1, 21)),
    "".join(" " * n + "x" for n in range(21, 41)),
    "".join("\t" * n + "y" for n in range(1, 13)) + "".join("\n" * n + "z" for n in range(1, 13)),
    "1 12 123 1234 12345 3.14159 1,000,000 0x1F 1e-10 ½ ² Ⅷ ٣٤٥ १२३ 四五 ①",
    "0123456789" * 7 + " 2026-11-24T10:59:45Z +49 (0)30 123-4567",
    "def f(x: int) -> list[str]:\n    return [f'{x!r}' for _ in range(10)]  # ok\n",
    '#include <stdio.h>\nint main(void) {\n\tprintf("%d\\n", a[i++] && !b || ~c ^ 0xFF);\n}\n',
    '{"action":"set","device":"lamp","value":30}',
    "SELECT * FROM `t` WHERE a<>1 AND b LIKE '%x_' -- $1; | awk '{print $2}' && cd ~/ || exit",
    "Zażółć gęślą jaźń. Ünïcödé façade naïve Straße ẞ İstanbul ıI ǅ ŉ ﬁne",
    "Привет, как дела? приветМИР Ελληνικά ΣΊΣΥΦΟΣ עברית שָׁלוֹם العربية مُحَمَّد فارسی‌ها",
    "हिन्दी क्षत्रिय বাংলা தமிழ் తెలుగు ไทยก็ได้ ລາວ မြန်မာ ខ្មែរ සිංහල བོད་ ქართული Հայերեն አማርኛ",
    "今天天气很好。「日本語」のテキスト、カタカナ ﾊﾝｶｸ 한국어 문장 𠮷野家 ㄅㄆㄇ ㍿ ！？：（）",
    "emoji 😀👍🏽👩‍👩‍👧‍👦🇩🇪🇫🇷 🏴‍☠️ ❤️‍🔥 1️⃣ and ☃ ✓ ™ ∑∞≠ ─│┼ ♔♕ ⠿ 🦙",
    "rare 𐍈𐌰 𓀀𓂀 𒀀 𝔘𝔫𝔦 𝟙𝟚 ꙮ ᚠᚢ ⴰⵣ ᏣᎳᎩ ᓀᐦ ʰə ˈ 〆 ︴ \ue000 \U0001f9ff",
    "combining e\u0301 a\u0308o\u0328\u0304 n\u0303 \u1100\u1161\u11a8 Z\u0351\u036b\u0343\u0329x",
    "zero\u200bwidth\u200d \u2060, nbsp\u00a0here\u00a0\u00a0, \ufeffbom, em\u2003sp, \u3000wide\u2028ls",
    "control \x01\x02\x07\x08 \x0b\x0c \x1b[0m \x1f\x7f \x00end",
    "▁underscored ▁▁ text▁ <0x0A> <unk0> Ġword Ċ",
    "CamelCaseWords snake_case_words kebab-case-words SHOUTING!!!???... ...---___***",
    "<|not_a_token|> <b>html</b> &amp; http://example.org/a?b=c#d user@example.org",
    "a" * 70 + " " + "ab" * 30 + " " + "!" * 40 + "=" * 33 + "äöü" * 9,
)
ADDED_PER_TEXT = 24
"""added tokens that one text joins"""


class Tokenizing(Protocol):
    """The part of a runtime that `check_tokens` uses."""

    chat: ChatTemplate
    vocab_size: int

    def encode(self, text: str) -> list[int]: ...


class Folder:
    """The tokenizer of a Hugging Face folder as a `Tokenizing`; needs no torch."""

    def __init__(self, path: Path) -> None:
        self.chat = ChatTemplate.from_folder(path)
        self.encode = encoder(path)
        self.vocab_size = int(read_json(path / "config.json")["vocab_size"])


def check_tokens(model: Tokenizing, folder: Path) -> dict[str, Any]:
    """Check ids of all torture texts and added tokens, the stops and the chat template."""
    encode, (in_prompt, conditions) = encoder(folder), _prompt_form(folder)
    added = [text for i, text in id_to_token(folder).items() if i < model.vocab_size]
    packs = [added[i : i + ADDED_PER_TEXT] for i in range(0, len(added), ADDED_PER_TEXT)]
    texts = [*TORTURE, *added]
    for pack in packs:
        texts += [" ".join(pack), "".join(f"a{token}b\n{token}" for token in pack), "".join(pack)]

    def differs(text: str) -> bool:
        return encode(in_prompt(text)) != model.encode(in_prompt(text))

    for text in filter(differs, texts):
        text = in_prompt(_shortest(text, differs))
        raise ProofError(
            f"the artifact cuts {text[:80]!r} into {model.encode(text)[:12]}, the tokenizer "
            f"into {encode(text)[:12]}",
            "the tokenizer is of a kind that llama.cpp cannot follow",
        )
    chat = ChatTemplate.from_folder(folder)
    lost = [stop for stop in chat.stops if stop not in model.chat.stops]
    if lost:
        raise ProofError(f"the artifact does not stop at {', '.join(lost)}")
    if model.chat.source != chat.source:
        raise ProofError("the artifact carries another chat template")
    rendered = chat.render([Message("user", PROMPTS[0])])
    if model.chat.render([Message("user", PROMPTS[0])]) != rendered:
        raise ProofError(
            "the artifact's chat template renders another text",
            "does it use a token that the file does not name?",
        )
    if model.encode(rendered) != encode(rendered):
        raise ProofError(f"the artifact cuts the prompt {rendered[:80]!r} differently")
    facts = {
        "texts": len(texts),
        "stops": list(chat.stops),
        "template": chat.fingerprint,
        "chat": chat.to_json(),
        "eos": model.chat.eos_token,
        "adds_bos": getattr(model, "adds_bos", False),
    }
    return {**facts, **({"only_for": conditions} if conditions else {})}


def _prompt_form(folder: Path) -> tuple[Callable[[str], str], list[str]]:
    """(a function that puts texts into a form that llama.cpp can tokenize, its conditions in words).

    llama.cpp does not normalize, so texts are compared in NFC. It adds a space before every run of
    text or before none; where the tokenizer adds one before the first word only, the text begins
    with the bos, as chats do. It cannot tell U+2581 from the space that it stands for.
    """
    tokenizer = tokenizer_json(folder)
    normalizers = models.flat_parts(tokenizer.get("normalizer"))
    cuts = models.flat_parts(tokenizer.get("pre_tokenizer"))
    nfc = any(part["type"] == "NFC" for part in normalizers)
    first = any(cut.get("prepend_scheme") == "first" for cut in cuts)
    bos = special_tokens(folder).get("bos_token", "") if first else ""
    runs = tokenizer["model"].get("byte_fallback") and any(
        SPACE in token["content"] for token in tokenizer.get("added_tokens", [])
    )

    def form(text: str) -> str:
        text = text.replace(SPACE, " ") if runs else text
        return bos + (unicodedata.normalize("NFC", text) if nfc else text)

    conditions = {
        "texts in NFC": nfc,
        f"texts after {bos}": bool(bos),
        "texts without U+2581": bool(runs),
    }
    return form, [words for words, needed in conditions.items() if needed]


def _shortest(text: str, fails: Callable[[str], bool]) -> str:
    """A shorter piece of `text` for which `fails` still holds, cut from both ends."""
    size = len(text) // 2
    while size:
        for part in (text[size:], text[:-size]):
            if fails(part):
                text = part
                break
        else:
            size //= 2
        size = min(size, len(text) // 2)
    return text


def check_runs(model: Runtime) -> None:
    """ProofError unless the logits are finite and not all equal."""
    ids = model.encode(model.chat.render([Message("user", PROMPTS[0])]))
    row = model.logits(ids[:8], last=1)[-1]
    if not np.isfinite(row).all() or row.max() == row.min():
        raise ProofError("the artifact computes no logits", "are the base's weights whole?")


def check_greedy(
    model: Runtime, reference: Runtime, prompts: Iterable[str] = GREEDY_PROMPTS
) -> dict[str, Any]:
    """The artifact chooses the same greedy tokens as the float32 model, except at near-ties."""
    same = ties = 0
    limits = Limits(max_tokens=GREEDY_TOKENS, ignore_eos=True)
    for prompt in prompts:
        text = reference.chat.render([Message("user", prompt)])
        ids = reference.encode(text)
        expected = [token.id for token in reference.stream(ids, limits)]
        got = [token.id for token in model.stream(ids, limits)]
        at = next((i for i, (a, b) in enumerate(zip(expected, got, strict=True)) if a != b), None)
        if at is None:
            same += len(expected)
            continue
        row = reference.logits([*ids, *expected[:at]], last=1)[-1]
        margin = float(row[expected[at]] - row[got[at]])
        if margin > NEAR_TIE_LOGITS:
            raise ProofError(
                f"the artifact answers {prompt!r} differently from the merged model at token {at}: "
                f"{got[at]} for {expected[at]}, {margin:.2f} logits apart",
            )
        same, ties = same + at, ties + 1
    return {"tokens": same, "near_ties": ties}


@dataclass(frozen=True)
class Expected:
    """Logits of the live model at the last positions of each prompt, with and without the adapter."""

    prompts: list[list[int]]
    live: list[Logits]
    """each (LOGIT_POSITIONS, vocabulary)"""
    base: list[Logits]


def expect(reference: ReferenceRuntime, texts: Iterable[str], context: int) -> Expected:
    """Logits of a reference with a live adapter.

    `texts`: prompts as the template renders them. `context`: tokens that the artifact can read.
    """
    longest = min(PROMPT_TOKENS, context, reference.context)
    prompts = [reference.encode(text)[-longest:] for text in texts]
    live = [reference.logits(ids, last=LOGIT_POSITIONS) for ids in prompts]
    if not reference.adapted:
        return Expected(prompts, live, live)
    with reference.without_adapter():
        base = [reference.logits(ids, last=LOGIT_POSITIONS) for ids in prompts]
    return Expected(prompts, live, base)


def check_live(model: Runtime, expected: Expected, exact: bool) -> dict[str, Any]:
    """Compare the artifact's logits with the live adapter's: divergence, agreement and landing.

    The landing coefficient is that of the merge, computed on logits: the share of the adapter's change
    that the artifact has (0 = lost, 1 = landed, 2 = about doubled). ProofError if it lies outside the
    bounds by more than its jackknife error over the prompts allows. An `exact` artifact must also have
    the live model's distribution.
    """
    pairs: list[tuple[float, float]] = []
    kl: list[float] = []
    largest, agree = 0.0, 0
    for ids, live, base in zip(expected.prompts, expected.live, expected.base, strict=True):
        got = model.logits(ids, last=LOGIT_POSITIONS)[:, : live.shape[1]]
        if not np.isfinite(got).all():
            raise ProofError("the artifact computes logits that are no numbers")
        width = got.shape[1]  # one of the two may have padding in its vocabulary
        live, base = live[:, :width], base[:, :width]
        change, kept = _centred(live - base), _centred(got - base)
        pairs.append((float(np.vdot(change, kept)), float(np.vdot(change, change))))
        kl += divergence(live.astype(np.float64), got.astype(np.float64)).tolist()
        largest = max(largest, float(np.abs(_centred(got - live)).max()))
        agree += int((got.argmax(1) == live.argmax(1)).sum())
    beta, error = ratio(pairs)
    mean = float(np.mean(kl))
    facts = {
        "prompts": len(expected.prompts),
        "beta": None if beta is None else round(beta, 4),
        "beta_error": None if beta is None else round(error, 4),
        "kl": float(f"{mean:.3g}"),
        "max_dlogit": float(f"{largest:.3g}"),
        "same_top": round(agree / len(kl), 4),
    }
    (low, high), slack = LANDING_BOUNDS, LANDING_TOLERANCE * error
    if beta is not None and not low - slack < beta < high + slack:
        raise ProofError(
            f"the artifact does not answer as the live adapter does: of the adapter's change in "
            f"the logits it has {beta:.2f} ± {error:.2f} (1 = landed, 0 = lost, 2 = twice)",
            "a finer --quant, if it is a coarse one",
        )
    if exact and not mean <= EXACT_KL_NATS:
        raise ProofError(
            f"the artifact does not answer as the live adapter does: {mean:.2g} nats apart on "
            f"{len(expected.prompts)} prompts, at most {EXACT_KL_NATS:g} are rounding"
        )
    return facts


def _centred(rows: Logits) -> Logits:
    """Rows minus their means: a constant added to all logits of a row changes no probability."""
    centred: Logits = rows - rows.mean(axis=1, keepdims=True)
    return centred
