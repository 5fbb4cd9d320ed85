"""An OpenAI-compatible server on a CPU: `edgeft serve`.

schemas (what may be asked) -> api (HTTP) -> jobs (one answer each) -> engine (a thread per model).
The engine computes, the event loop talks: they meet in `Job` and in one call per step.
"""
