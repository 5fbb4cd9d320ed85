"""An artifact and a server with an OpenAI-style API -> the share of items that both answer alike, greedily.

    python -m edgeft.benchmarks.studies.greedy_answers out/hf --url http://127.0.0.1:8000/v1 --model hf \\
        --items smart_home --limit 50

For a server of another engine, such as vLLM, that serves the merged or the GPTQ folder. Engines add up in other
orders, so that a near tie may fall the other way: every difference is printed with both answers. Exit code 1
where fewer than `--least` of the answers are the same. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from edgeft.benchmarks.options import EvalOptions
from edgeft.benchmarks.quality.evaluate import load_items, measure
from edgeft.errors import EdgeftError
from edgeft.feedback.chat_api import ChatAPI

TIMEOUT_S = 300


def compare(
    artifact: Path, url: str, model: str, options: EvalOptions, key: str = ""
) -> list[tuple[str, str]]:
    """(answer of the artifact, answer of the server) of every item."""
    api = ChatAPI(url, key, TIMEOUT_S, model)
    items = load_items(options)
    replies = measure(artifact, items, options).replies
    pairs = []
    for example, reply in zip(items.examples, replies, strict=True):
        messages = [{"role": turn.role, "content": turn.content} for turn in example.prompt]
        pairs.append((reply, api.answer(messages, items.max_tokens)))
    return pairs


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "artifact", type=Path, help="the folder that the server has, or another artifact"
    )
    parser.add_argument("--url", required=True, help="of the API, as http://127.0.0.1:8000/v1")
    parser.add_argument("--model", required=True, help="its name there")
    parser.add_argument("--items", default="smart_home", help="suite or data file")
    parser.add_argument("--limit", type=int, default=50)
    parser.add_argument("--max-tokens", type=int, help="of an answer; default: the items'")
    parser.add_argument(
        "--least", type=float, default=0.95, help="share of same answers to exit with 0"
    )
    parser.add_argument("--api-key-env", help="variable that holds the API key")
    chosen = parser.parse_args(words)
    options = EvalOptions(items=chosen.items, limit=chosen.limit, max_tokens=chosen.max_tokens)
    key = os.environ.get(chosen.api_key_env, "") if chosen.api_key_env else ""
    if chosen.api_key_env and not key:
        sys.exit(f"error: {chosen.api_key_env} is not set")
    try:
        pairs = compare(chosen.artifact, chosen.url, chosen.model, options, key)
    except EdgeftError as error:
        sys.exit(f"error: {error}")
    differing = [pair for pair in pairs if pair[0].strip() != pair[1].strip()]
    for here, there in differing:
        print(f"artifact: {here!r}\nserver:   {there!r}\n", file=sys.stderr)
    same = 1 - len(differing) / len(pairs)
    print(json.dumps({"items": len(pairs), "same": round(same, 4)}))
    sys.exit(int(same < chosen.least))


if __name__ == "__main__":
    main()
