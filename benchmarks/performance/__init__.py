"""Latency, throughput, memory and their ceilings."""
