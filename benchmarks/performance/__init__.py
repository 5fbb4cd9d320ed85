"""Artifacts -> latency, throughput, memory, and the ceiling that memory bandwidth sets.

- `latency.compare`, `latency.measure`: times of several artifacts by turns, or of one quickly
- `memory.measure`, `memory.smallest_limit`: memory of a process that only answers one prompt
- `roofline.ceiling`: the decoding speed that reading all weights once per token allows
- `process.RuntimeProcess`, `http.ServerProcess`: one artifact in a process of its own, timed from outside
- `http.HTTPServer`: start a server program, wait until it answers, stop it

Nothing is imported here, because `process` is also the program whose memory is measured.
"""
