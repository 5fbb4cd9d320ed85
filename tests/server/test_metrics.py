"""The text of /metrics."""

from __future__ import annotations

import pytest

from edgeft.server.metrics import Metrics

pytestmark = pytest.mark.unit


def test_counters_are_whole_numbers() -> None:
    metrics = Metrics()
    metrics.statuses[200] = 123_456_789
    assert 'edgeft_http_requests_total{status="200"} 123456789\n' in metrics.text(())
