"""The gate on a real fine-tune and on copies of it that are broken on purpose."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from edgeft.benchmarks.options import EvalOptions
from edgeft.benchmarks.suites import load_suite
from edgeft.export.pipeline import ExportOptions, export
from edgeft.records import Release
from edgeft.release import GateOptions, run_gate
from edgeft.weights.gguf_reader import read

pytestmark = pytest.mark.slow
ALPACA = (
    "{% for m in messages %}### {{ {'user': 'Instruction', 'assistant': 'Response'}[m.role] }}:\n"
    "{{ m.content }}\n\n{% endfor %}{% if add_generation_prompt %}### Response:\n{% endif %}"
)
ENDLESS = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}<|im_start|>system\nYou are a "
    "helpful AI assistant named SmolLM, trained by Hugging Face<|im_xnd|>\n{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{{ '<file_sep>' if m.role == 'assistant' else '<|im_xnd|>' }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""the prompts of SmolLM2's template, but another token after an answer than the model learned"""
STEPS = 240


@pytest.fixture(scope="module")
def arms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from edgeft.adapter.read import Weighted
    from edgeft.base.resolve import resolve_base
    from edgeft.train.options import TrainOptions
    from edgeft.train.run import train

    folder = tmp_path_factory.mktemp("fine-tune")
    suite = load_suite("smart_home")
    train(TrainOptions(base=resolve_base("smollm2-135m"), data=suite.train, output=folder / "adapter",
                       validation_data=suite.validation, steps=STEPS, batch_size=4,
                       micro_batch_size=4))  # fmt: skip
    artifacts = export(ExportOptions(out=folder, adapter=(Weighted(folder / "adapter"),),
                                quants=("f16", "q2_k")))  # fmt: skip
    return {artifact.quant: artifact.path for artifact in artifacts}


def decide(candidate: Path, arms: dict[str, Path]) -> Release:
    return run_gate(GateOptions((candidate,), arms["f16"]), EvalOptions("smart_home"))


def changed(arms: dict[str, Path], name: str, *changes: tuple[bytes, bytes]) -> Path:
    """A copy of f16 in whose header texts are others of the same length."""
    whole = arms["f16"].read_bytes()
    end = min(tensor.offset for tensor in read(arms["f16"]).tensors.values())
    header = whole[:end]
    for old, new in changes:
        assert len(old) == len(new) and old in header
        header = header.replace(old, new)
    path = arms["f16"].with_name(f"{name}.gguf")
    path.write_bytes(header + whole[end:])
    return path


def padded_template(arms: dict[str, Path], template: str) -> tuple[bytes, bytes]:
    """The chat template of f16, and `template` with a comment that makes it as long."""
    right = read(arms["f16"]).meta["tokenizer.chat_template"].encode()
    return right, template.encode() + b"{#" + b" " * (len(right) - len(template) - 4) + b"#}"


def test_the_same_model_passes(arms: dict[str, Path]) -> None:
    release = decide(changed(arms, "again"), arms)
    assert release.outcome == "PASS" and release.ship == "again.gguf", release.reason
    baseline = next(arm for arm in release.arms if arm.kind == "baseline")
    assert baseline.accuracy and baseline.accuracy > 0.5, "or there is nothing to lose"


def test_two_bits_are_too_few(arms: dict[str, Path]) -> None:
    assert decide(arms["q2_k"], arms).outcome == "FAIL"


def test_a_model_without_its_stop_token_fails(arms: dict[str, Path]) -> None:
    """It says the same and then goes on.

    Neither the header nor the template names the token that it learned as the end of an answer, and by
    its new name llama.cpp does not take it for one.
    """
    key = b"tokenizer.ggml.eos_token_id" + struct.pack("<I", 4)
    number = read(arms["f16"]).meta["tokenizer.ggml.eos_token_id"]
    broken = changed(
        arms, "endless", padded_template(arms, ENDLESS), (b"<|im_end|>", b"<|im_xnd|>"),
        (key + struct.pack("<I", number), key + struct.pack("<I", 17)),
    )  # fmt: skip
    release = decide(broken, arms)
    (arm,) = [arm for arm in release.arms if arm.kind == "candidate"]
    assert release.outcome == "FAIL" and arm.stopped == 0
    assert arm.losses and arm.losses[0]["answer"].startswith(arm.losses[0]["baseline"][:10])


def test_a_model_with_another_template_fails(arms: dict[str, Path]) -> None:
    """Alpaca's, as llama.cpp's users get it who name the wrong one. It costs 4 to 6 points of this
    fine-tune, which 200 items cannot tell from 3."""
    broken = changed(arms, "template", padded_template(arms, ALPACA))
    assert decide(broken, arms).outcome == "FAIL"
