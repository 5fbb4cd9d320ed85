"""The text of /metrics."""

from __future__ import annotations

import pytest

from edgeft.server.keys import Key, Keys
from edgeft.server.metrics import Metrics

pytestmark = pytest.mark.unit


def test_counters_are_whole_numbers() -> None:
    metrics = Metrics()
    metrics.statuses[200] = 123_456_789
    assert 'edgeft_http_requests_total{status="200"} 123456789\n' in metrics.text(())


def test_what_a_key_has_used_is_counted_by_its_name() -> None:
    keys = Keys([Key("alice", "s3cret", rpm=1), Key("bob", "s3cret2")])
    for _ in range(2):
        keys.authorize({"method": "POST"}, b"s3cret")
    keys.add_tokens("alice", 7, 5)
    text = Metrics(keys).text(())
    for name, value in (("requests", 1), ("limited", 1), ("prompt_tokens", 7), ("new_tokens", 5)):
        assert f'edgeft_key_{name}_total{{key="alice"}} {value}\n' in text
        assert f'edgeft_key_{name}_total{{key="bob"}} 0\n' in text
    assert "s3cret" not in text
