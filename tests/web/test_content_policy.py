"""The Content-Security-Policy of a page."""

from __future__ import annotations

import pytest

from edgeft.web.content_policy import content_policy

pytestmark = pytest.mark.unit


def test_policy_names_each_script_and_style() -> None:
    policy = content_policy(b"<style>a</style><script>b</script><script>c</script>")
    assert "'sha256-PiPoFgA5WUoziU9lZOGxNIu9egCI1CxKy3PurtWcAJ0='" in policy  # of b
    assert policy.count("'sha256-") == 3 and "unsafe" not in policy
