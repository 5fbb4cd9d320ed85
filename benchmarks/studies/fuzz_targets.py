"""A work folder -> every reader of files from strangers, with valid files to begin from.

    for name, target in targets(Path("work")).items():
        target.read(target.seeds[0])            # succeeds
        target.read(damaged)                    # succeeds, or EdgeftError

A target owns one file in a folder of its own. `read` writes the bytes there and reads them as a command
would.
"""

from __future__ import annotations

import io
import json
import shutil
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from edgeft.benchmarks.studies.random_model import make_model
from edgeft.errors import require

SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
         "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 300}  # fmt: skip
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] "
    "+ '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>' }}{% endif %}"
)
TOML = """quant = ["q8_0", "f16"]
out = "out"
threads = 1
base = "base"
[merge-export]
adapter = ["adapter:0.5"]
max-size = "700M"
"""
YAML = """model_name_or_path: base
stage: sft
do_train: true
finetuning_type: lora
dataset: chats
learning_rate: 1.0e-4
lora_rank: 8
"""
ROWS = (
    b'{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}\n'
    b'{"messages": [{"role": "system", "content": "x"}, {"role": "user", "content": "a"}, '
    b'{"role": "assistant", "content": "b", "tool_calls": [{"function": {"name": "f", '
    b'"arguments": {"a": 1}}}]}], "tools": [{"type": "function", "function": {"name": "f"}}]}\n'
)
CSV = b'prompt,completion,label\n"a, b",c,1\n"x ""y""",z,2\n'


@dataclass(frozen=True)
class Target:
    """A reader of one file."""

    read: Callable[[bytes], Any]
    seeds: tuple[bytes, ...]
    """valid files"""
    kind: Literal["bytes", "json"] = "bytes"
    span: int | None = None
    """bytes of the first seed that are a header, where the rest are weights"""


def targets(work: Path) -> dict[str, Target]:
    """Name -> target. `work` is an empty folder, and EDGEFT_HOME is another one."""
    make_model(work, SHAPE)
    base, adapter = work / "base", work / "adapter"
    _edit(base / "tokenizer_config.json", chat_template=TEMPLATE)
    (base / "generation_config.json").write_text('{"eos_token_id": [0], "max_length": 16}')
    return {
        **_of_weights(work, base),
        **_of_a_base(work, base),
        **_of_an_adapter(work, base, adapter),
        **_of_gguf(work, base),
        **_of_onnx(work),
        **_of_data(work),
        **_of_settings(work, base),
    }


def _at(path: Path, read: Callable[[Path], Any], of: Path | None = None) -> Callable[[bytes], Any]:
    """Writes the bytes to `path`, then reads `of`."""
    path.parent.mkdir(parents=True, exist_ok=True)

    def run(data: bytes) -> Any:
        path.write_bytes(data)
        return read(of or path)

    return run


def _of_weights(work: Path, base: Path) -> dict[str, Target]:
    from edgeft.weights.checkpoint import Checkpoint, Spec, write_safetensors

    def read(path: Path) -> None:
        weights = Checkpoint(path)
        for name, info in weights.tensors.items():
            if info.dtype in ("F32", "F16", "BF16", "GPTQ", "AWQ"):
                weights.read(name)

    small = work / "small.safetensors"
    arrays = [np.ones((4, 2), np.float32), np.zeros(3, np.float32)]
    write_safetensors(small, [Spec("a", "F32", (4, 2)), Spec("b", "F16", (3,))], arrays)
    sharded = shutil.copytree(base, work / "sharded")
    (sharded / "model.safetensors").rename(sharded / "model-00001-of-00002.safetensors")
    shutil.copy(small, sharded / "model-00002-of-00002.safetensors")
    names = {"model.norm.weight": "model-00001-of-00002.safetensors",
             "a": "model-00002-of-00002.safetensors"}  # fmt: skip
    index = json.dumps({"metadata": {"total_size": 9}, "weight_map": names}).encode()
    result = {
        "safetensors": Target(_at(work / "st/x.safetensors", read), (small.read_bytes(),)),
        "bin": Target(_at(work / "bin/pytorch_model.bin", read), (torch_file(),)),
        "index": Target(
            _at(sharded / "model.safetensors.index.json", Checkpoint, sharded), (index,), "json"
        ),
    }
    for method, make in (("gptq", _gptq), ("awq", _awq)):
        folder = make(work / method)
        config = (folder / "config.json").read_bytes()
        whole = (folder / "model.safetensors").read_bytes()
        span = 8 + int.from_bytes(whole[:8], "little")
        result[f"{method}-config"] = Target(
            _at(folder / "config.json", read, folder), (config,), "json"
        )
        other = shutil.copytree(folder, work / f"{method}-weights")
        result[f"{method}-weights"] = Target(
            _at(other / "model.safetensors", read, other), (whole,), span=span
        )
    return result


def _gptq(folder: Path) -> Path:
    """A folder with one layer of GPTQ: 32 rows, 32 columns, 4 bits."""
    from edgeft.weights import gptq_layout

    codes = gptq_layout.Codes(
        np.ones((32, 32), np.uint8), np.ones((32, 1), np.float16), np.full((32, 1), 8, np.uint8),
        np.zeros(32, np.int32), 4,
    )  # fmt: skip
    arrays = gptq_layout.pack(codes)
    return _quantized(folder, arrays, gptq_layout.quantization_config(4, 32))


def _awq(folder: Path) -> Path:
    arrays = {"qweight": np.zeros((32, 4), np.int32), "qzeros": np.zeros((1, 4), np.int32),
              "scales": np.ones((1, 32), np.float16)}  # fmt: skip
    return _quantized(folder, arrays, {"quant_method": "awq", "bits": 4, "group_size": 32})


def _quantized(folder: Path, arrays: dict[str, Any], config: dict[str, Any]) -> Path:
    from edgeft.weights.checkpoint import Spec, write_safetensors

    folder.mkdir()
    specs = [Spec(f"layer.{part}", "F16" if array.dtype == np.float16 else "I32", array.shape)
             for part, array in arrays.items()]  # fmt: skip
    write_safetensors(folder / "model.safetensors", specs, arrays.values())
    (folder / "config.json").write_text(json.dumps({"quantization_config": config}))
    return folder


def torch_file() -> bytes:
    """What torch.save writes for {"w": two float32 values}."""
    program = (
        b"\x80\x02}q\x00X\x01\0\0\0wctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storage"
        b"ctorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x02tQK\x00K\x02\x85K\x01\x85\x89"
        b"ccollections\nOrderedDict\n)RtRs."
    )
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/data/0", bytes(8))
    return buffer.getvalue()


def read_base(path: Path) -> None:
    """What an export reads of a base before it writes anything."""
    from edgeft.converters.gguf.plan import make_plan
    from edgeft.converters.options import ConvertOptions
    from edgeft.merge.view import open_merged
    from edgeft.tokenizer.chat_template import ChatTemplate
    from edgeft.tokenizer.hf_files import encoder

    view = open_merged(path, None)
    ChatTemplate.from_folder(view.tokenizer)
    encoder(view.tokenizer)("The 12 h\u00e9 <|endoftext|>\n")
    make_plan(view, "f16", ConvertOptions())


def _of_a_base(work: Path, base: Path) -> dict[str, Target]:
    from edgeft.tokenizer import jinja_sandbox
    from edgeft.tokenizer.sentencepiece import SentencePiece

    result = {}
    for name in ("config", "tokenizer", "tokenizer_config", "generation_config"):
        folder = shutil.copytree(base, work / name)
        file = folder / f"{name}.json"
        result[name] = Target(_at(file, read_base, folder), (file.read_bytes(),), "json")

    def render(data: bytes) -> None:
        messages = [{"role": "user", "content": "hi"}]
        jinja_sandbox.render(data.decode("utf-8", "replace"), messages=messages, tools=None)

    result["template"] = Target(render, (TEMPLATE.encode(),))
    result["tokenizer.model"] = Target(
        _at(work / "sp/tokenizer.model", lambda path: SentencePiece.read(path).tokenizer_json()),
        (sentencepiece_file(),),
    )
    return result


def sentencepiece_file() -> bytes:
    """A tokenizer.model of five pieces."""

    def field(number: int, data: bytes) -> bytes:
        return bytes([number << 3 | 2, len(data)]) + data

    pieces = (
        field(1, text.encode()) + b"\x15" + struct.pack("<f", -i) + bytes([24, 1 if i else 2])
        for i, text in enumerate(["<unk>", "a", "b", "ab", "\u2581a"])
    )
    return (
        b"".join(field(1, piece) for piece in pieces)
        + field(2, b"\x18\x02")
        + field(3, b"\x18\x01")
    )


def _of_an_adapter(work: Path, base: Path, adapter: Path) -> dict[str, Target]:
    from edgeft.adapter.read import Weighted
    from edgeft.merge.view import open_merged

    def read(path: Path) -> None:
        open_merged(base, (Weighted(path),))

    other = shutil.copytree(adapter, work / "adapter_weights")
    config, weights = adapter / "adapter_config.json", other / "adapter_model.safetensors"
    whole = weights.read_bytes()
    return {
        "adapter_config": Target(_at(config, read, adapter), (config.read_bytes(),), "json"),
        "adapter_model": Target(
            _at(weights, read, other), (whole,), span=8 + int.from_bytes(whole[:8], "little")
        ),
    }


def _of_gguf(work: Path, base: Path) -> dict[str, Target]:
    from edgeft.base.gguf_import import import_gguf
    from edgeft.converters.gguf.convert import convert
    from edgeft.converters.gguf.plan import make_plan
    from edgeft.converters.options import ConvertOptions
    from edgeft.merge.landing import LandingProof
    from edgeft.merge.view import open_merged
    from edgeft.weights import gguf_reader, imatrix
    from edgeft.weights.gguf_check import problems

    view, out, options = open_merged(base, None), work / "tiny.gguf", ConvertOptions(threads=1)
    convert(view, make_plan(view, "f16", options), out, options, LandingProof(view))
    sums = imatrix.Sums(np.ones((1, 4), np.float32), np.ones(1, np.float32))
    matrix = work / "imatrix.gguf"
    imatrix.write(imatrix.Imatrix({"blk.0.attn_q.weight": sums}, ("a",), 16, 1), matrix)
    span = min(tensor.offset for tensor in gguf_reader.read(out).tensors.values())

    def check(path: Path) -> None:
        list(problems(gguf_reader.read(path), language_model=True))

    whole = out.read_bytes()
    return {
        "gguf": Target(_at(work / "gguf/x.gguf", check), (whole,), span=span),
        "gguf-base": Target(
            _at(work / "gguf-base/x.gguf", lambda path: import_gguf(path, "fuzzed")),
            (whole,), span=span,
        ),
        "imatrix": Target(_at(work / "imatrix/x.gguf", imatrix.read), (matrix.read_bytes(),)),
    }  # fmt: skip


def small_onnx(folder: Path) -> Path:
    """A graph with a cache of two heads of three columns, and its genai_config.json."""
    import onnx

    helper, float32 = onnx.helper, onnx.TensorProto.FLOAT
    outputs = [
        helper.make_tensor_value_info("logits", float32, ["batch", 1, 10]),
        helper.make_tensor_value_info("keys", float32, ["batch", 2, "tokens", 3]),
    ]
    table = onnx.numpy_helper.from_array(np.zeros((10, 4), np.float32), "table")
    nodes = [helper.make_node("Gather", ["table", "ids"], ["logits"], name="gather")]
    graph = helper.make_graph(nodes, "graph", [], outputs, [table])
    opset = [helper.make_opsetid("", 21)]
    onnx.save(helper.make_model(graph, opset_imports=opset), folder / "model.onnx")
    decoder = {"filename": "model.onnx", "head_size": 3, "num_key_value_heads": 2}
    model = {"decoder": decoder, "context_length": 16, "vocab_size": 10, "eos_token_id": 1}
    (folder / "genai_config.json").write_text(json.dumps({"model": model, "search": {}}))
    return folder


def read_onnx(folder: Path) -> None:
    from edgeft.weights.onnx_graph import ONNXGraph

    graph = ONNXGraph(folder)
    assert graph.opset and graph.size and graph.operators() and graph.bytes_per_token(8) >= 0


def _of_onnx(work: Path) -> dict[str, Target]:
    result = {}
    for name, file in (("onnx", "model.onnx"), ("genai_config", "genai_config.json")):
        (work / name).mkdir()
        folder = small_onnx(work / name)
        result[name] = Target(
            _at(folder / file, read_onnx, folder), ((folder / file).read_bytes(),),
            "json" if file.endswith("json") else "bytes",
        )  # fmt: skip
    return result


def _of_data(work: Path) -> dict[str, Target]:
    from edgeft.data.rows import read_examples

    def read(path: Path) -> None:
        read_examples(path, bad_rows="skip")

    pyarrow, parquet = require("pyarrow", "data"), require("pyarrow.parquet", "data")
    table = pyarrow.table({"prompt": ["a", "b"], "completion": ["c", "d"]})
    buffer = io.BytesIO()
    parquet.write_table(table, buffer)
    files = {"x.jsonl": ROWS, "x.csv": CSV, "x.parquet": buffer.getvalue()}
    return {
        name.partition(".")[2]: Target(_at(work / "data" / name, read), (data,))
        for name, data in files.items()
    }


def _of_settings(work: Path, base: Path) -> dict[str, Target]:
    from edgeft import files, store
    from edgeft.records import Release
    from edgeft.report import storage
    from edgeft.train.configs import convert

    result = work / "result"
    with store.writing(result, kind="base", options={"a": 1}, parents={"file": "0"}) as draft:
        (draft.path / "config.json").write_text("{}")

    def read_manifest(path: Path) -> None:
        store.find_complete(path, "base", {"a": 1}, {"file": "0"})
        store.identity(path)

    report = work / "report/report.json"
    release = Release("PASS", None, "r", {"name": "t", "items": 1}, (), {"cpu": "x"})
    seed = json.dumps(release.to_json()).encode()
    return {
        "toml": Target(_at(work / "toml/run.toml", files.read_toml), (TOML.encode(),)),
        "yaml": Target(
            _at(work / "yaml/run.yaml", lambda path: convert(path, Path("x.toml"), "train-qlora", {})),
            (YAML.encode(),),
        ),
        "manifest": Target(
            _at(result / "manifest.json", read_manifest, result),
            ((result / "manifest.json").read_bytes(),), "json",
        ),
        "report": Target(_at(report, storage.read), (seed,), "json"),
    }  # fmt: skip


def _edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
