"""Takes artifacts, gives an OpenAI-compatible HTTP server on a CPU: `edgeft serve`.

A request goes through these files: api (endpoints), bodies and schemas (what a body may hold), requests
(body -> generation requests), engine (queue and worker thread), batching_engine or sequential_engine
(tokens), responses and openai_objects (the answer, whole or streamed). Those of other APIs come by
other_apis and shims, which translate them there and back. The worker thread computes, the event loop
sends: they meet in `jobs.Job` and in one call per step.
"""

from edgeft.server.options import ServeOptions

__all__ = ["ServeOptions"]
