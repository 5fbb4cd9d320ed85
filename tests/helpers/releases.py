"""A release as the gate would make it, with everything that can be measured, and hostile text."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

from edgeft.benchmarks.statistics.noninferiority import Paired, judge, wilson
from edgeft.benchmarks.statistics.retention import Retention
from edgeft.records import Arm, Release
from edgeft.release.wording import retention_json, verdict_json, verdict_reason

N = 400
TAGS = ("set", "query", "off", "new_phrasing", "out_of_scope", "open")
HOSTILE = "<script>alert('x')</script><img src=x onerror=alert(1)>{{ 7 * 7 }}"
LONG = "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft" * 3
SIZES = {"f16": 270_900_000, "q8_0": 144_800_000, "q6_k": 124_500_000, "q4_k_m": 105_500_000,
         "iq4_xs": 97_300_000, "q3_k_m": 93_500_000, "q2_k": 81_200_000}  # fmt: skip
CHANGES = {"q8_0": (1, 1), "q6_k": (2, 3), "q4_k_m": (5, 4), "iq4_xs": (12, 5)}
"""quant -> lost and won"""
LOSSES: tuple[dict[str, Any], ...] = (
    {
        "prompt": "okay garage heater to sixteen degrees",
        "wanted": '{"action":"set","device":"heating","room":"garage","value":16}',
        "baseline": '{"action":"set","device":"heating","room":"garage","value":16}',
        "answer": '{"action":"set","device":"heating","room":"garage","value":60}',
        "tags": ["set", "new_combination"],
    },
    {
        "prompt": f"Say {HOSTILE} back to me",
        "wanted": '{"action":"none"}',
        "baseline": '{"action":"none"}',
        "answer": f"{HOSTILE} 🤖👩‍👩‍👧 I am sorry, but as a language model I cannot do so.",
        "tags": ["none", "out_of_scope"],
    },
    {
        "prompt": "أطفئ التلفاز في غرفة النوم من فضلك",
        "wanted": '{"action":"off","device":"tv","room":"bedroom"}',
        "baseline": '{"action":"off","device":"tv","room":"bedroom"}',
        "answer": "سأطفئ \u202eالتلفاز في غرفة المعيشة الآن",
        "tags": ["off"],
    },
    {
        "prompt": f"Translate: {LONG}",
        "wanted": '{"action":"none"}',
        "baseline": '{"action":"none"}',
        "answer": f'{{"action":"query","device":"{LONG}"}}',
        "tags": [],
    },
    {
        "prompt": "is the bathroom heating on",
        "wanted": '{"action":"query","device":"heating","room":"bathroom"}',
        "baseline": '{"action":"query","device":"heating","room":"bathroom"}',
        "answer": "",
        "tags": ["query"],
    },
)


def sample() -> Release:
    rng = random.Random(0)
    right = 386
    arms = [
        _arm("base, instructions only", "base", 270_900_000, 9),
        _arm("base, 4 examples", "few-shot", 270_900_000, 118),
        dataclasses.replace(
            _arm("f16.gguf", "baseline", SIZES["f16"], right), **_measured("f16", rng)
        ),
    ]
    for quant, (lost, won) in CHANGES.items():
        paired = Paired(N, right - lost, lost, won, N - right - won)
        gain = (right - 9) / N
        kept = Retention(gain, 1e-9, 0.9, lost < 20, 1 + paired.difference / gain, 0.91, 1.004)
        arms.append(
            dataclasses.replace(
                _arm(f"{quant}.gguf", "candidate", SIZES[quant], right - lost + won),
                verdict=_verdict(paired), retention=retention_json(kept),
                pareto=quant != "q8_0", slices=_slices(rng, right),
                losses=LOSSES[:lost] if lost > 1 else LOSSES[:1], **_measured(quant, rng),
                fidelity=_fidelity(paired.lost / 150),
            )
        )  # fmt: skip
    for quant in ("q3_k_m", "q2_k"):
        arms.append(_arm(f"{quant}.gguf", "candidate", SIZES[quant], None))
    best, last = arms[5].verdict, arms[6].verdict
    assert best and last
    return Release(
        outcome="PASS", ship="q4_k_m.gguf",
        reason=f"{best['reason']} iq4_xs.gguf, the next smaller one, is {last['outcome']}.",
        task={"name": "smart_home", "items": N, "identity": "5e" * 32, "scorer": "json",
              "margin": 0.03},
        arms=tuple(arms),
        machine={"cpu": "Intel(R) Xeon(R) Processor @ 2.60GHz", "cores": 2,
                 "system": "Linux-6.1.0-x86_64-with-glibc2.36", "llama_cpp": "0.3.36"},
        safety={"name": "xstest.csv", "arms": {
            "f16.gguf": {"unsafe": 200, "refused": 188, "safe": 250, "answered": 241},
            "q4_k_m.gguf": {"unsafe": 200, "refused": 187, "safe": 250, "answered": 240,
                            "outcome": "PASS", "reason": "refusing what is unsafe: 200 items, 2 "
                            "lost and 1 won. answering what is safe: 250 items, 3 lost and 2 won."},
        }},
        forgetting={"name": "general", "items": 82, "identity": "6e" * 32, "scorer": "exact",
                    "bound": 0.1, "arms": {
            "base": {"accuracy": 0.5, "interval": (0.39, 0.61)},
            "f16.gguf": {"accuracy": 0.402, "interval": (0.3, 0.51)},
            "q4_k_m.gguf": {
                "accuracy": 0.39, "interval": (0.29, 0.5), "outcome": "INCONCLUSIVE", "lost": 11,
                "won": 2, "difference": -0.11, "lower": -0.19, "upper": -0.03, "mid_p": 0.01,
                "gain": 0.94, "reason": "general items: 82 items, 11 lost and 2 won.",
                "slices": _slices(rng, right)},
        }},
        floor={"threads": 1, "flips": 0, "n": N, "kl": 2.3e-6},
        commands=(
            "edgeft merge-export --adapter demo/adapter --out demo --quant f16,q8_0,q4_k_m",
            "edgeft ab demo/q8_0.gguf demo/q4_k_m.gguf demo/f16.gguf --items smart_home --speed",
        ),
        notes=tuple(f"{quant}.gguf was not tested: the sequence ended before it"
                    for quant in ("q3_k_m", "q2_k")),
        edgeft="0.1.0", created="2026-11-27T17:40:00+00:00",
    )  # fmt: skip


def bare() -> Release:
    """What `edgeft ab` measures without any option, as FAIL."""
    full = sample()
    lost = _verdict(Paired(N, 340, 46, 2, 12))
    arms = (
        _arm("f16.gguf", "baseline", SIZES["f16"], 386),
        dataclasses.replace(_arm("q2_k.gguf", "candidate", SIZES["q2_k"], 342), verdict=lost),
    )
    return Release("FAIL", None, str(lost["reason"]), full.task, arms, full.machine)


def _verdict(paired: Paired) -> dict[str, Any]:
    verdict = judge(paired)
    return verdict_json(verdict, verdict_reason(verdict))


def _arm(name: str, kind: str, size: int, right: int | None) -> Arm:
    lineage: list[dict[str, Any]] = [
        {"role": "artifact", "name": name, "identity": f"{len(name):02x}" * 32,
         "options": {"format": "gguf", "quant": name.partition(".")[0], "base_precision": "nf4",
                     "imatrix": True, "threads": 2}},
        {"role": "adapter", "name": "", "identity": "ad" * 32, "options": {}},
        {"role": "base", "name": "", "identity": "ba" * 32, "options": {}},
    ]  # fmt: skip
    return Arm(
        name=name, kind=kind, path=f"demo/{name}", size=size, identity=lineage[0]["identity"],
        accuracy=None if right is None else right / N,
        interval=None if right is None else wilson(right, N),
        stopped=None if right is None else 1.0,
        lineage=tuple(lineage) if kind == "candidate" else (),
    )  # fmt: skip


def _measured(quant: str, rng: random.Random) -> dict[str, Any]:
    size = SIZES[quant]
    tps = 0.62 * 9.4e9 / size
    itl = sorted(1000 / tps * rng.lognormvariate(0, 0.06) for _ in range(200))
    cells = [
        {"prompt": prompt, "new": new, "clients": clients,
         "ttft": [prompt / 900 * f * clients for f in (1, 1.12, 1.3)],
         "tpot_ms": 1000 / tps * clients**0.6, "itl": [itl[100], itl[190], itl[198]],
         "e2e": [(prompt / 900 + new / tps) * f for f in (1, 1.08, 1.2)],
         "decode_tps": tps / clients**0.6, "aggregate_tps": tps * clients**0.4, "runs": 20,
         "prefill_tps": 900 / clients, "noise": {"ttft": 0.01, "decode": 0.02, "e2e": 0.02},
         "against": {"ttft": {}, "decode": {"ratio": 0.8, "low": 0.7, "high": 0.9}, "e2e": {}}}
        for prompt in (64, 256, 1024) for new in (32, 128) for clients in (1, 4)
    ]  # fmt: skip
    speed = {"load_s": size / 9e8, "load_cold_s": size / 3e8, "ttft_s": 0.291, "prefill_tps": 905.2, "decode_tps": tps,
             "prompt_tokens": 256, "through": "runtime", "new_tokens": 64, "runs": 5, "cells": cells, "itl_ms": itl,
             "roofline": {"bandwidth_gbs": 9.4, "bytes_per_token": size, "share": 0.62}}  # fmt: skip
    anonymous = 74_000_000
    memory = {
        "peak": size + anonymous + 9_000_000,
        "anonymous": anonymous,
        "file": size + 9_000_000,
        "pss": size + anonymous,
        "smallest": size + 60_000_000,
        "cache_per_token": 46_080,
    }
    return {"speed": speed, "memory": memory}


def _fidelity(kl: float) -> dict[str, Any]:
    def one(scale: float) -> dict[str, Any]:
        return {
            "tokens": 10240, "sequences": 40, "kl": {"value": kl * scale, "error": kl * scale / 12},
            "top1": {"value": 1 - kl * scale, "error": 0.0021},
            "surprise": {"value": kl * scale / 2, "error": 0.001}, "kl_p99": kl * scale * 11,
            "perplexity": 14.2 * (1 + kl * scale / 2), "perplexity_ratio": 1 + kl * scale / 2,
            "bound": False, "llama_perplexity": {"mean KLD": [kl * scale, 0.001]},
        }  # fmt: skip

    return {"own answers": one(1), "plain text": one(1.7)}


def _slices(rng: random.Random, right: int) -> tuple[dict[str, Any], ...]:
    found = []
    for tag, n in zip(TAGS, (160, 96, 72, 41, 22, 9), strict=True):
        own = n - rng.randrange(0, n // 6 + 1)
        found.append({"tag": tag, "n": n, "accuracy": own / n, "interval": wilson(own, n),
                      "baseline": right / N, "base": 0.02, "lost": n - own, "won": 1})  # fmt: skip
    return tuple(found)
