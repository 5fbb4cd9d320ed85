"""Bad model folders and adapters: the tiny base with one file that is not what it should be."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from helpers.bad_models.case import Case, Write, with_header
from helpers.bad_models.weights import TB, bomb, deep, entry, pickled, torch_zip

Change = Callable[[Path], Any]
"""changes a copy of the tiny base"""


class Folders:
    """Cases of a copy of `base` and of adapters for it."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.config = json.loads((base / "config.json").read_text())
        self.tokenizer = json.loads((base / "tokenizer.json").read_text())

    def copy(self, folder: Path) -> Path:
        return Path(shutil.copytree(self.base, folder / "model"))

    def changed(self, change: Change) -> Write:
        def write(folder: Path) -> Path:
            model = self.copy(folder)
            change(model)
            return model

        return write

    def with_json(self, name: str, value: Any) -> Write:
        """The file `name` has this value; a dict is added to what it has."""

        def change(model: Path) -> None:
            path = model / name
            known = json.loads(path.read_text()) if path.is_file() else {}
            path.write_text(json.dumps(known | value if isinstance(value, dict) else value))

        return self.changed(change)

    def with_bytes(self, name: str, data: bytes) -> Write:
        return self.changed(lambda model: (model / name).write_bytes(data))

    def with_index(self, names: list[Any]) -> Write:
        """The weights are in shards of these names, if one believes the index."""
        weights = {f"w{i}": name for i, name in enumerate(names)}
        return self.with_index_text(json.dumps({"weight_map": weights}).encode())

    def with_index_text(self, data: bytes) -> Write:
        def change(model: Path) -> None:
            (model / "model.safetensors").unlink()
            (model / "model.safetensors.index.json").write_bytes(data)

        return self.changed(change)

    def with_special(self, name: str, make: Callable[[Path], Any]) -> Write:
        """The file `name` is no plain file: `make` makes it."""

        def change(model: Path) -> None:
            (model / name).unlink(missing_ok=True)
            make(model / name)

        return self.changed(change)

    def adapter(self, config: dict[str, Any] | bytes, weights: bytes | None = None) -> Write:
        """An adapter whose one matrix pair is of q_proj in layer 0, of rank 2."""
        stem = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
        plain = with_header(
            {
                f"{stem}A.weight": entry(0, 512, [2, 64]),
                f"{stem}B.weight": entry(512, 1024, [64, 2]),
            },
            1024,
        )
        known = {
            "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 4,
            "target_modules": ["q_proj"], "layers_to_transform": [0],
        }  # fmt: skip

        def write(folder: Path) -> Path:
            out = folder / "adapter"
            out.mkdir()
            text = json.dumps(known | config).encode() if isinstance(config, dict) else config
            (out / "adapter_config.json").write_bytes(text)
            (out / "adapter_model.safetensors").write_bytes(weights or plain)
            return out

        return write

    def cases(self) -> dict[str, Case]:
        return {**self.indices(), **self.configs(), **self.files(), **self.tokenizers(),
                **self.quantized(), **self.adapters()}  # fmt: skip

    def indices(self) -> dict[str, Case]:
        outside = ["../model.safetensors", "/etc/passwd", "/dev/zero", "/dev/stdin", "..", ".",
                   "a/b.safetensors", "./x/../../y", "//x", "~root/x", "x/", "", "C:\\x\\..\\y",
                   "..\\x", "file:///etc/passwd", "x\0y", "x" * 300, "x" * 100_000, "\ud800"]  # fmt: skip
        texts: dict[str, bytes] = {
            "no weight_map": b"{}", "a list": b"[]", "a number": b"3", "half": b'{"weight_map":',
            "a weight_map of a list": b'{"weight_map": ["a"]}',
            "a weight_map of null": b'{"weight_map": null}',
            "names of numbers": b'{"weight_map": {"a": 1}}', "names of lists": b'{"weight_map": {"a": []}}',
            "a file of null": b'{"weight_map": {"a": null}}', "5,000 brackets": b"[" * 5000,
            "5,000 objects in each other": deep(5000), "bytes that are no UTF-8": b'{"weight_map": "\xff"}',
            "nothing": b"", "a number of 5,000 digits": b'{"weight_map": ' + b"9" * 5000 + b"}",
        }  # fmt: skip
        result = {
            f"index: a shard {name[:20]!r}": Case(
                "base", self.with_index([name]), "index.json|lacks"
            )
            for name in outside
        }
        result |= {
            f"index: {name}": Case("base", self.with_index_text(text), "index.json")
            for name, text in texts.items()
        }

        def twice(model: Path) -> None:
            shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
            shutil.copy(model / "model.safetensors", model / shards[0])
            (model / "model.safetensors").rename(model / shards[1])
            weights = dict(zip(("a", "b"), shards, strict=True))
            text = json.dumps({"weight_map": weights})
            (model / "model.safetensors.index.json").write_text(text)

        def half(model: Path) -> None:
            (model / "model.safetensors").rename(model / "model-00001-of-00002.safetensors")

        return result | {
            "index: a tensor in two files": Case("base", self.changed(twice), "in two files"),
            "index: half of the shards": Case("base", self.changed(half), "has 1 of the"),
        }

    def configs(self) -> dict[str, Case]:
        values: dict[str, list[Any]] = {
            "num_hidden_layers": [0, -1, 10**9, 2**63, 10**400, "2", 2.0, True, [2], {}],
            "hidden_size": [0, -64, 2**40, "64", 64.5, {"x": 1}],
            "num_attention_heads": [0, -4, 10**6, "4", 3],
            "num_key_value_heads": [0, -2, 3, 10**6, "2"],
            "head_dim": [0, -16, 2**40, "16"],
            "intermediate_size": [0, -128, 10**400, "128"],
            "vocab_size": [0, -1, 2**40, "265"],
            "max_position_embeddings": [0, -1, 2**40, "512"],
            "rms_norm_eps": [-1, float("nan"), float("inf"), "1e-5", 10**400],
            "rope_parameters": [[1], {"rope_type": 3}, {"rope_theta": 0}, {"rope_theta": float("nan")},
                                {"rope_type": "llama3", "factor": -1}],
            "architectures": [["../../x"], ["A" * 10_000], [], {"a": 1}, ["os.system"]],
        }  # fmt: skip
        result: dict[str, Case] = {}
        for key, bad in values.items():
            for value in bad:
                shown = repr(value) if len(repr(value)) < 30 else repr(value)[:20] + "…"
                says = {"architectures": "architecture|config.json"}.get(key, key)
                if key == "num_attention_heads" and value == 3:
                    says = "num_key_value_heads"
                write = self.with_json("config.json", {key: value})
                if value == []:  # read by its model_type, which is wrong as well
                    write = self.with_json("config.json", {key: value, "model_type": "x" * 9999})
                result[f"config: {key} {shown}"] = Case("base", write, says)
        shape = (
            {"num_attention_heads": 8, "num_key_value_heads": 8},
            {"hidden_size": 128},
            {"intermediate_size": 999},
        )
        return result | {
            f"config: {next(iter(change))} of other weights": Case(
                "base", self.with_json("config.json", change), "shape|rows|columns|has|is"
            )
            for change in shape
        }

    def files(self) -> dict[str, Case]:
        """Every JSON file and template of a folder, as what it should not be."""
        result: dict[str, Case] = {}
        texts = {
            "5,000 brackets": b"[" * 5000, "5,000 objects in each other": deep(5000),
            "a list": b"[]", "half": b'{"a":', "bytes that are no UTF-8": b'{"a": "\xff"}',
            "a pickle": pickled(4), "a bomb": bomb(8)[:400_000],
            "a number of 5,000 digits": b'{"a": ' + b"9" * 5000 + b"}",
        }  # fmt: skip
        names = ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json")
        for name in names:
            for what, data in texts.items():
                result[f"{name}: {what}"] = Case("base", self.with_bytes(name, data), name)
        special: dict[str, Callable[[Path], Any]] = {
            "1 TB": lambda path: _sparse(path, TB),
            "a link to /dev/zero": lambda path: path.symlink_to("/dev/zero"),
            "a named pipe": os.mkfifo,
            "a folder": Path.mkdir,
        }
        for name in (
            *names,
            "chat_template.jinja",
            "quantize_config.json",
            "special_tokens_map.json",
        ):
            for what, make in special.items():
                result[f"{name}: {what}"] = Case("base", self.with_special(name, make), name)
        template = {
            "a number": {"chat_template": 3}, "an object of lists": {"chat_template": {"default": []}},
            "a list of numbers": {"chat_template": [1]}, "a list of nothing": {"chat_template": [{}]},
        }  # fmt: skip
        for what, change in template.items():
            write = self.with_json("tokenizer_config.json", change)
            result[f"template: {what}"] = Case("base", write, "chat_template")
        manifests: dict[str, Any] = {
            "a list": [], "files of a list": {"files": []}, "a schema of 10^400": {"schema": 10**400},
            "files outside": {"files": {"../../x": {"sha256": "0", "size": -1}}},
        }  # fmt: skip
        for what, value in manifests.items():
            write = self.with_json("manifest.json", value)
            result[f"manifest: {what}"] = Case("manifest", write, "manifest.json")
        for what, make in special.items():
            write = self.with_special("manifest.json", make)
            result[f"manifest: {what}"] = Case("manifest", write, "manifest.json")
        return result

    def tokenizers(self) -> dict[str, Case]:
        model = self.tokenizer["model"]
        added = self.tokenizer["added_tokens"]
        vocab = model["vocab"]
        changes: dict[str, dict[str, Any]] = {
            "no model": {"model": None}, "a model of a text": {"model": "BPE"},
            "an unknown kind": {"model": model | {"type": "Evil"}},
            "ids of texts": {"model": model | {"vocab": {t: str(i) for t, i in vocab.items()}}},
            "negative ids": {"model": model | {"vocab": {t: -1 - i for t, i in vocab.items()}}},
            "ids beyond 32 bits": {"model": model | {"vocab": vocab | {"x": 2**40}}},
            "a vocabulary of a number": {"model": model | {"vocab": 3}},
            "merges of unknown tokens": {"model": model | {"merges": [["no", "where"]]}},
            "merges of numbers": {"model": model | {"merges": [1, 2]}},
            "merges in each other": {"model": model | {"merges": [[[["o"]], "n"]]}},
            "added tokens of a text": {"added_tokens": "x"}, "added tokens of numbers": {"added_tokens": [1]},
            "an added token without a text": {"added_tokens": [{"id": 1}]},
            "an added id of a text": {"added_tokens": [{**added[0], "id": "x"}]},
            "an added id below 0": {"added_tokens": [{**added[0], "id": -1}]},
            "an added id of 2^63": {"added_tokens": [{**added[0], "id": 2**63}]},
            "a normalizer that is none": {"normalizer": {"type": "Evil"}},
            "normalizers in each other": {"normalizer": json.loads(_nested("normalizers", 200))},
            "a compiled table that is none": {
                "normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
            "a pattern that is none": {"pre_tokenizer": _split("(")},
            "a decoder that is none": {"decoder": {"type": "Evil"}},
            "padding of a text": {"padding": "x"},
        }  # fmt: skip
        return {
            f"tokenizer.json: {name}": Case(
                "base", self.with_json("tokenizer.json", change), "tokenizer.json"
            )
            for name, change in changes.items()
        }

    def quantized(self) -> dict[str, Case]:
        """Settings of quantized weights that are nonsense, beside weights that are not quantized."""
        methods: dict[str, dict[str, Any]] = {
            "gptq": {"bits": 4, "group_size": 32}, "awq": {"bits": 4, "group_size": 128},
            "bitsandbytes": {"load_in_4bit": True}, "fp8": {}, "compressed-tensors": {"format": "x"},
        }  # fmt: skip
        nonsense: dict[str, dict[str, Any]] = {
            "0 bits": {"quant_method": "gptq", "bits": 0},
            "-4 bits": {"quant_method": "gptq", "bits": -4}, "bits of a text": {"quant_method": "gptq", "bits": "4"},
            "bits of a list": {"quant_method": "gptq", "bits": [4]},
            "10^400 bits": {"quant_method": "gptq", "bits": 10**400},
            "an unknown layout": {"quant_method": "gptq", "bits": 4, "checkpoint_format": "../x"},
            "words of a path": {"quant_method": "gptq", "bits": 4, "pack_dtype": "/etc/passwd"},
            "5 bits of AWQ": {"quant_method": "awq", "bits": 5},
            "another layout of AWQ": {"quant_method": "awq", "bits": 4, "version": "gemv"},
        }  # fmt: skip
        result = {
            f"quantization_config: {name}": Case(
                "base",
                self.with_json("config.json", {"quantization_config": config}),
                "model|quant|AWQ",
            )
            for name, config in nonsense.items()
        }
        for method, config in methods.items():

            def change(model: Path, method: str = method, config: dict[str, Any] = config) -> None:
                _set(model / "config.json", quantization_config={"quant_method": method, **config})
                stem = "model.layers.0.self_attn.q_proj."
                parts = {"qweight": "I32", "qzeros": "I32", "scales": "F16", "g_idx": "I32",
                         "weight": "U8", "weight_packed": "I32", "weight_scale": "F32"}  # fmt: skip
                sizes = {"I32": 4, "F16": 2, "F32": 4, "U8": 1}
                header, at = {}, 0
                for part, dtype in parts.items():
                    end = at + 15 * sizes[dtype]
                    header[stem + part] = entry(at, end, [3, 5], dtype)
                    at = end
                (model / "model.safetensors").write_bytes(with_header(header, at))

            result[f"quantized: tensors of {method} that do not fit"] = Case(
                "base", self.changed(change), "model|q_proj|format"
            )
        return result

    def adapters(self) -> dict[str, Case]:
        configs: dict[str, tuple[dict[str, Any] | bytes, str]] = {
            "an unknown kind": ({"peft_type": "EVIL"}, "EVIL"), "a kind of a list": ({"peft_type": []}, "peft_type"),
            "no kind": (b"{}", "adapter"), "half": (b'{"r":', "adapter_config.json"),
            "5,000 brackets": (b"[" * 5000, "adapter_config.json"), "a list": (b"[]", "adapter_config.json"),
            "rank 0": ({"r": 0}, "r is 0"), "rank -1": ({"r": -1}, "r is -1"), "rank 10^400": ({"r": 10**400}, "r is"),
            "a rank of a text": ({"r": "2"}, "r is"), "another rank": ({"r": 3}, "rank 2"),
            "alpha NaN": (b'{"peft_type":"LORA","r":2,"lora_alpha":NaN}', "lora_alpha"),
            "alpha 10^400": ({"lora_alpha": 10**400}, "lora_alpha"), "alpha of a list": ({"lora_alpha": [4]}, "lora_alpha"),
            "alpha 1e308": ({"lora_alpha": 1e308}, "lora_alpha"),
            "a pattern without end": ({"rank_pattern": {"(a*)*(.*)*(.*)*x": 2}, "layers_to_transform": None,
                                       "target_modules": "(.*)*(.*)*(.*)*(.*)*(.*)*x"}, "takes over|adapter"),
            "a pattern that is none": ({"target_modules": "("}, "no pattern"),
            "a pattern of 10^5 brackets": ({"target_modules": "(" * 100_000}, "no pattern"),
            "ranks of texts": ({"rank_pattern": {"q_proj": "x"}}, "rank_pattern"),
            "tokens of texts": ({"trainable_token_indices": ["x"]}, "trainable_token_indices"),
            "a token of 2^63": ({"trainable_token_indices": [2**63]}, "trainable_token_indices"),
            "code of its own": ({"auto_mapping": {"a": "b"}, "evil_module": "os.system"}, "evil_module"),
            "half a surrogate pair": ({"base_model_name_or_path": "\ud800"}, "surrogate"),
        }  # fmt: skip
        stem = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
        a, b = f"{stem}A.weight", f"{stem}B.weight"
        nan = struct.pack("<f", float("nan"))
        pair = {a: entry(0, 512, [2, 64]), b: entry(512, 1024, [64, 2])}
        weights: dict[str, tuple[bytes, str]] = {
            "NaN": (with_header(pair) + nan * 256, "NaN or infinite"),
            "infinity": (with_header(pair) + struct.pack("<f", float("inf")) * 256, "NaN or infinite"),
            "columns of another base": (
                with_header({a: entry(0, 504, [2, 63]), b: entry(504, 1016, [64, 2])}, 1016), "q_proj"),
            "B without A": (with_header({b: entry(0, 512, [64, 2])}, 512), "adapter"),
            "no tensors": (with_header({}), "adapter"),
            "a layer that the base lacks": (
                with_header({a.replace("layers.0", "layers.99"): pair[a],
                             b.replace("layers.0", "layers.99"): pair[b]}, 1024), "99"),
            "a module outside the model": (
                with_header({"base_model.model.../../../x.lora_A.weight": pair[a],
                             "base_model.model.../../../x.lora_B.weight": pair[b]}, 1024), "adapter"),
            "a pickle": (pickled(4), "safetensors"), "torch's archive": (torch_zip(pickled(2)), "safetensors"),
            "overlapping matrices": (with_header({a: pair[a], b: entry(0, 512, [64, 2])}, 512), "broken safetensors"),
            "three dimensions": (
                with_header({a: entry(0, 512, [2, 64, 1]), b: pair[b]}, 1024), "adapter|q_proj"),
            "whole numbers": (
                with_header({a: entry(0, 512, [2, 64], "I32"), b: pair[b]}, 1024), "I32"),
        }  # fmt: skip
        result = {
            f"adapter: {name}": Case("adapter", self.adapter(config), says)
            for name, (config, says) in configs.items()
        }
        slow = "adapter: a pattern without end"  # its process reads Python's modules
        result[slow] = replace(result[slow], reads=10_000_000)
        return result | {
            f"adapter: {name}": Case("adapter", self.adapter({}, data), says)
            for name, (data, says) in weights.items()
        }


def _set(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def _sparse(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.truncate(size)


def _nested(key: str, count: int) -> str:
    return f'{{"type": "Sequence", "{key}": [' * count + "]}" * count


def _split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
