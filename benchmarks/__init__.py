"""Artifacts -> what the product measures of them: speed, memory, fidelity and accuracy.

`bench.run_bench` measures several artifacts at once, for `edgeft bench`. The folders:

- `performance`: latency, memory and their ceilings, each artifact in a process of its own
- `fidelity`: how far an artifact's next-token distributions are from a reference's
- `quality`: answers to items, and their scores
- `statistics`: scores -> verdicts; plain numbers, no model
- `suites`: embedded tasks
- `studies`: developers' comparisons with other tools; in no wheel
"""
