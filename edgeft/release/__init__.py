"""Measurements -> Verdict: the release gate and the search for the smallest artifact that passes."""
