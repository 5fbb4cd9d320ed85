"""A running server -> the table of clients and features in docs/serve.md.

    edgeft serve model.gguf --port 8080 &
    python tests/server/clients/matrix.py http://127.0.0.1:8080 MODEL --environment /tmp/clients \\
        --update docs/serve.md

The clients are installed from the package indexes into an environment of their own, which is kept.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PACKAGES = (
    "openai", "anthropic", "ollama", "langchain-openai", "llama-index-llms-openai-like", "litellm",
    "instructor", "pydantic-ai-slim[openai]", "smolagents[openai]", "llm",
)  # fmt: skip
ALSO = ("mcp",)
"""what a client imports and does not ask for: litellm, for tools"""
NPM_PACKAGES = ("openai", "ai", "@ai-sdk/openai-compatible", "@ai-sdk/openai")
FEATURES = ("chat", "stream", "schema", "tools", "embeddings", "responses")
BEGIN, END = "<!-- clients: tests/server/clients/matrix.py writes this -->", "<!-- /clients -->"
RUN_TIMEOUT_S = 1800


def install(environment: Path) -> Path:
    """The folder with the clients; what is there already is not installed again."""
    python = environment / "bin" / "python"
    if not python.exists():
        venv.create(environment, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *PACKAGES, *ALSO], check=True)
    if shutil.which("npm") and not (environment / "node_modules").exists():
        npm = ["npm", "install", "--silent", "--no-audit", "--no-fund", *NPM_PACKAGES]
        subprocess.run(npm, cwd=environment, check=True)
    return environment


def outcomes(environment: Path, url: str, model: str) -> list[dict[str, Any]]:
    """What `python_clients.py` and `js_clients.mjs` print."""
    python = environment / "bin" / "python"
    commands: list[list[str | Path]] = [[python, HERE / "python_clients.py", url, model]]
    if (environment / "node_modules").exists():
        # Node looks for packages beside the script.
        shutil.copy(HERE / "js_clients.mjs", environment)
        commands.append(["node", "js_clients.mjs", url, model])
    lines = []
    for command in commands:
        done = subprocess.run(
            command, cwd=environment, stdout=subprocess.PIPE, text=True, timeout=RUN_TIMEOUT_S,
            check=True,
        )  # fmt: skip
        lines += [line for line in done.stdout.splitlines() if line.startswith('{"client"')]
    return [json.loads(line) for line in lines]


def table(found: list[dict[str, Any]]) -> str:
    """Markdown: a row for each client; what failed is told below."""
    rows = [f"| client | version | {' | '.join(FEATURES)} |", "|---|---|" + ":-:|" * len(FEATURES)]
    notes: list[str] = []
    for client in dict.fromkeys(one["client"] for one in found):
        by_feature = {one["feature"]: one for one in found if one["client"] == client}
        cells = []
        for feature in FEATURES:
            one = by_feature.get(feature)
            cells.append("–" if one is None else "fails" if one["error"] else "yes")
            if one and one["error"]:
                notes.append(f"- {client}, {feature}: `{one['error'][:160]}`")
        version = next(iter(by_feature.values()))["version"]
        rows.append(f"| {client} | {version} | {' | '.join(cells)} |")
    return "\n".join([*rows, *([""] if notes else []), *notes])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url")
    parser.add_argument("model")
    parser.add_argument("--environment", type=Path, required=True, help="folder for the clients")
    parser.add_argument("--update", type=Path, help="page whose table is replaced")
    options = parser.parse_args()
    found = outcomes(install(options.environment), options.url, options.model)
    text = table(found)
    print(text)
    if options.update:
        page = options.update.read_text(encoding="utf-8")
        head, _, rest = page.partition(BEGIN)
        tail = rest.partition(END)[2]
        if not tail:
            sys.exit(f"{options.update} lacks {BEGIN} and {END}")
        options.update.write_text(f"{head}{BEGIN}\n\n{text}\n\n{END}{tail}", encoding="utf-8")


if __name__ == "__main__":
    main()
