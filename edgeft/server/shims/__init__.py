"""Takes requests of other APIs, gives requests of OpenAI's and their answers in the other form.

One file for each API: `responses_api` (OpenAI's /v1/responses), `anthropic` (/v1/messages) and `ollama`
(/api/chat, /api/generate). `shim` has what they share, `answer` cuts an answer into parts. The server
answers the request in OpenAI's form as any other; a shim only translates.
"""
