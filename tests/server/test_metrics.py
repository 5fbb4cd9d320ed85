"""The text of /metrics."""

from __future__ import annotations

from edgeft.server.metrics import Metrics


def test_counters_are_whole_numbers() -> None:
    metrics = Metrics()
    metrics.statuses[200] = 123_456_789
    assert 'edgeft_http_requests_total{status="200"} 123456789\n' in metrics.text(())
