"""Web pages in one file: under which policy a browser may show them.

headers = {"Content-Security-Policy": content_policy(page)}
"""

from __future__ import annotations

import base64
import hashlib
import re


def content_policy(page: bytes) -> str:
    """A Content-Security-Policy: only the page's own script and style run, and it asks only its server.

    They are told by their hashes (W3C, Content Security Policy Level 3), so what a model or a user
    writes can never become a script.
    """

    def hashes(tag: bytes) -> str:
        found = re.findall(rb"<%b>(.*?)</%b>" % (tag, tag), page, re.DOTALL)
        digests = (base64.b64encode(hashlib.sha256(text).digest()).decode() for text in found)
        return " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"

    return (
        f"default-src 'none'; script-src {hashes(b'script')}; style-src {hashes(b'style')}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
