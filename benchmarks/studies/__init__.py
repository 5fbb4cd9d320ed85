"""Developers' comparisons of edgeft with other tools and of its own variants; in no wheel.

Each program is run as `python -m edgeft.benchmarks.studies.NAME`, prints a table and ends with one JSON
line: `one_pass` (export against the usual chain), `four_bit` (4-bit types), `onnx_rows` (ONNX against GGUF
and torch), `gptq_cost` (time and memory of GPTQ), `training` (speed beside trl and peft), `training_methods`
(every method on one task), `alignment`
(every objective of alignment on one task), `baseline` (its word beside what a training brings), `gpu` (training on a GPU
beside the CPU), `servers` (edgeft serve against other servers), `soak` (the server under badly behaved
clients), `fuzz` (damaged files for every reader). `tasks` writes tasks of our own. The other files are shared by them. LOG.md holds results,
negative ones included.
"""
