"""The bytes of an HTML page -> its Content-Security-Policy.

headers = {"Content-Security-Policy": content_policy(page)}
"""

from __future__ import annotations

import base64
import hashlib
import re


def content_policy(page: bytes) -> str:
    """The value of a Content-Security-Policy header (W3C, Content Security Policy Level 3).

    Only the page's own inline scripts and styles run, each allowed by its hash. So text of a model or
    a user never becomes a script. The page may connect to its own server only.
    """
    return (
        f"default-src 'none'; script-src {_hashes(b'script', page)}; "
        f"style-src {_hashes(b'style', page)}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )


def _hashes(tag: bytes, page: bytes) -> str:
    texts = re.findall(rb"<%b>(.*?)</%b>" % (tag, tag), page, re.DOTALL)
    digests = (base64.b64encode(hashlib.sha256(text).digest()).decode() for text in texts)
    return " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"
