"""Check that an artifact renders chats as it did when it was made."""

from __future__ import annotations

from pathlib import Path

from edgeft import store
from edgeft.errors import InputError, TemplateError
from edgeft.tokenizer.chat_template import ChatTemplate


def check_as_made(path: Path, chat: ChatTemplate, whole: bool = True) -> None:
    """TemplateError, with both shown, where an artifact's template or stops are not those that its
    manifest names.

    `whole` off: `chat` is only what a header says itself, without what llama.cpp adds to it.
    """
    manifest = store.read_manifest(path)
    parity = manifest.facts.get("parity", {}) if manifest else {}
    hint = "export it again; without its manifest it runs as it is"
    try:
        recorded = dict(parity.get("chat") or {})
        eos = parity.get("eos") or chat.eos_token
        if recorded and not whole:
            said = {name: text for name, text in recorded["tokens"].items() if getattr(chat, name)}
            recorded |= {"tokens": said, "stops": []}
        if recorded:
            chat.check_is(recorded, f"{path} was made with", hint)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{store.manifest_path(path)} is not a manifest: {error!r}",
            hint,
        ) from None
    if eos != chat.eos_token and (whole or chat.eos_token):
        raise TemplateError(
            f"{path} was made with the eos {eos!r}, now it is {chat.eos_token!r}", hint
        )
