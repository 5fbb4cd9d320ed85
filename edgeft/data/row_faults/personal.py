"""A row -> secrets and personal data by their form."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator

from edgeft.data.items import Item

SECRETS = re.compile(
    r"\bsk-(?:proj-|ant-)?[A-Za-z0-9_-]{20,}|\bAKIA[0-9A-Z]{16}\b|\bgh[pousr]_[A-Za-z0-9]{36}\b|"
    r"\bgithub_pat_\w{22,}|\bxox[abprs]-[\w-]{10,}|\bAIza[\w-]{35}\b|\bhf_[A-Za-z0-9]{30,}\b|"
    r"-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----|\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}|"
    r"\b[a-z][a-z0-9+]{2,12}://[^\s:/@<>]{1,40}:[^\s:/@<>]{3,}@[\w.-]+"
)
SECRET_MARKS = ("sk-", "AKIA", "gh", "xox", "AIza", "hf_", "PRIVATE KEY", "eyJ", "://")
"""one of these is in every secret: looking for them is quicker than the pattern"""
EMAIL = re.compile(r"(?<![\w.+:/-])[\w.+-]{1,64}@(?!example\.)[\w-]{1,63}(?:\.[\w-]{2,63})+\b")
PHONE = re.compile(
    r"(?<![\w.+-])(?:\+\d{1,3}[ .-]?)?(?:\(\d{2,4}\)|\d{2,4})[ .-]\d{3,4}[ .-]\d{3,5}(?![\w-]|\.\d)"
)
CARD = re.compile(
    r"(?<![\w.-])(?:[3-6]\d{3}([ -])\d{4}\1\d{4}\1\d{4}|[3-6]\d{12,15})(?![\w-]|\.\d)"
)
IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){3,7}(?: ?[A-Z0-9]{1,3})?\b")
SSN = re.compile(r"(?<![\w-])(?!000|666|9\d\d)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\w-])")
IPV4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w.])")


def personal_spans(text: str) -> list[tuple[int, int, str]]:
    """(start, end, what) of addresses and numbers of persons in a text; none overlaps another."""
    matches: list[tuple[str, Iterator[re.Match[str]]]] = []
    if "@" in text:
        matches.append(("email address", EMAIL.finditer(text)))
    if re.search(r"\d{2}", text):
        matches += [
            ("IBAN", (m for m in IBAN.finditer(text) if _mod_97(m[0]))),
            ("card number", (m for m in CARD.finditer(text) if _luhn(m[0]))),
            ("social security number", SSN.finditer(text)),
            ("phone number", (m for m in PHONE.finditer(text) if _has_nine_digits(m[0]))),
            ("IP address", (m for m in IPV4.finditer(text) if _public(m[0]))),
        ]
    spans: list[tuple[int, int, str]] = []
    for what, found in matches:
        for start, end in (match.span() for match in found):
            if all(end <= other[0] or start >= other[1] for other in spans):
                spans.append((start, end, what))
    return spans


def _has_nine_digits(number: str) -> bool:
    return sum(map(str.isdigit, number)) >= 9


def _luhn(number: str) -> bool:
    """Whether the check digit of a card number is right (ISO/IEC 7812-1, annex B)."""
    digits = [int(c) for c in number if c.isdigit()][::-1]
    doubled = (sum(divmod(2 * d, 10)) for d in digits[1::2])
    return len(set(digits)) > 1 and (sum(digits[::2]) + sum(doubled)) % 10 == 0


def _mod_97(iban: str) -> bool:
    """Whether the check digits of an IBAN are right (ISO 13616)."""
    plain = iban.replace(" ", "")
    return int("".join(str(int(c, 36)) for c in plain[4:] + plain[:4])) % 97 == 1


def _public(address: str) -> bool:
    """Whether four numbers are an address of the open network, and not a version such as 1.2.3.4."""
    try:
        return ipaddress.ip_address(address).is_global and int(address.partition(".")[0]) > 9
    except ValueError:
        return False


def secret(item: Item) -> str:
    if not any(mark in item.text for mark in SECRET_MARKS):
        return ""
    match = SECRETS.search(item.text)
    return f"{match[0][:8]}… ({len(match[0])} characters)" if match else ""


def personal(item: Item) -> str:
    """The kind only: the evidence must not repeat the data."""
    spans = personal_spans(item.text)
    return ", ".join(sorted({what for _, _, what in spans}))
