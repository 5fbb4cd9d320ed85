"""An artifact + its chat template -> TemplateError where the template changed since the export."""

from __future__ import annotations

from pathlib import Path

from edgeft import store
from edgeft.errors import InputError, TemplateError
from edgeft.tokenizer.chat_template import ChatTemplate


def check_template_lock(path: Path, chat: ChatTemplate, whole: bool = True) -> None:
    """TemplateError, with both shown, where template, stops or eos differ from the manifest's.

    Without a manifest there is nothing to compare. `whole` off: `chat` is from the header of a GGUF
    alone, without the tokens and stops that llama.cpp adds, so missing ones are no difference.
    """
    manifest = store.read_manifest(path)
    parity = manifest.facts.get("parity", {}) if manifest else {}
    hint = "export it again; without its manifest it runs as it is"
    try:
        recorded = dict(parity.get("chat") or {})
        eos = parity.get("eos") or chat.eos_token
        if recorded and not whole:
            tokens = {
                name: text for name, text in recorded["tokens"].items() if getattr(chat, name)
            }
            recorded |= {"tokens": tokens, "stops": []}
        if recorded:
            chat.check_matches(recorded, f"{path} was made with", hint)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{store.manifest_path(path)} is not a manifest: {error!r}",
            hint,
        ) from None
    if eos != chat.eos_token and (whole or chat.eos_token):
        raise TemplateError(
            f"{path} was made with the eos {eos!r}, now it is {chat.eos_token!r}", hint
        )
