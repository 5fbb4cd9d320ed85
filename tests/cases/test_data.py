"""Data files as users have them: each is learned as it says, or refused with the remedy."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeft.benchmarks.options import EvalOptions
from edgeft.benchmarks.quality.evaluate import load_items
from edgeft.benchmarks.quality.refusals import load_refusals
from edgeft.data.encoding import calibration, encode_all
from edgeft.data.preview import marked, shortened
from edgeft.data.rows import load_examples, read_examples
from edgeft.data.splits import fingerprint
from edgeft.errors import DataError, InputError
from edgeft.records import Example, Message, ToolCall
from edgeft.tokenizer.chat_template import ChatTemplate
from edgeft.tokenizer.hf_files import encoder
from helpers.chats import talk
from helpers.tiny import make_tokenizer

pytestmark = pytest.mark.unit

ROW = {"instruction": "café", "input": "", "output": "naïve – ok"}
TALK = talk(("user", "café"), ("assistant", "naïve – ok"))
QA = talk(("user", "q"), ("assistant", "a"))
SQA = talk(("system", "s"), *((m.role, m.content) for m in QA))
USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
AREA = ToolCall("area", '{"a": 5}')
CALL = {"id": "", "type": "function", "function": {"name": "area", "arguments": '{"a": 5}'}}
TOOL = {"type": "function", "function": {"name": "area", "parameters": {}}}
ROUND = (
    Message("user", "q"), Message("assistant", "", (AREA,)), Message("tool", "15"),
    Message("assistant", "a"),
)  # fmt: skip
"""a question, a call, its result, an answer"""


def one(tmp_path: Path, row: Any) -> Example:
    """The example of a file with this row alone."""
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row) + "\n", encoding="utf-8")
    (example,) = load_examples(file)
    return example


SHAPES: dict[str, tuple[dict[str, Any], tuple[Message, ...]]] = {
    "sharegpt with a system column": (
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}],
         "system": "s"}, SQA),
    "messages with a system column": ({"messages": [USER, ANSWER], "system": "s"}, SQA),
    "the same system text twice": (
        {"messages": [{"role": "system", "content": "s"}, USER, ANSWER], "system": "s"}, SQA),
    "prompt and answer with a system column": (
        {"prompt": "q", "answer": "a", "system": "s"}, SQA),
    "OpenOrca": ({"system_prompt": "s", "question": "q", "response": "a"}, SQA),
    "prompt and completion": ({"prompt": "q", "completion": "a"}, QA),
    "trl's conversational prompt and completion": (
        {"prompt": [{"role": "system", "content": "s"}, USER], "completion": [ANSWER]}, SQA),
    "ms-swift": ({"query": "q", "response": "a", "system": "s", "history": []}, SQA),
    "ms-swift with a history": (
        {"query": "q", "response": "a", "history": [["q0", "a0"]]},
        talk(("user", "q0"), ("assistant", "a0"), ("user", "q"), ("assistant", "a"))),
    "ms-swift's pairs": ({"conversation": [{"human": "q", "assistant": "a"}], "system": "s"}, SQA),
    "XTuner": ({"conversation": [{"system": "s", "input": "q", "output": "a"}]}, SQA),
    "question and answer": ({"question": "q", "answer": "a"}, QA),
    "question and a single answer": ({"question": "q", "answers": ["a"]}, QA),
    "dolly": ({"instruction": "q", "context": "c", "response": "a", "category": "x"},
              talk(("user", "q\nc"), ("assistant", "a"))),
    "gpteacher": ({"instruction": "q", "input": "", "response": "a"}, QA),
    "metharme": ({"prompt": "q", "generation": "a"}, QA),
    "oasst in capitals": ({"INSTRUCTION": "q", "RESPONSE": "a"}, QA),
    "NuminaMath": ({"problem": "q", "solution": "a"}, QA),
    "LMFlow": ({"input": "q", "output": "a"}, QA),
    "PaLM": ({"input_text": "q", "output_text": "a"}, QA),
    "CAMEL": ({"message_1": "q", "message_2": "a"}, QA),
    "UltraChat": ({"id": "0", "data": ["q", "a"]}, QA),
    "LIMA": ({"conversations": ["q", "a"]}, QA),
    "Gemini": ({"systemInstruction": {"role": "system", "parts": [{"text": "s"}]}, "contents": [
        {"role": "user", "parts": [{"text": "q"}]}, {"role": "model", "parts": [{"text": "a"}]}]},
        SQA),
    "Bedrock": ({"system": [{"text": "s"}], "messages": [
        {"role": "user", "content": [{"text": "q"}]},
        {"role": "assistant", "content": [{"text": "a"}]}]}, SQA),
    "Cohere": ({"messages": [{"role": "System", "content": "s"}, {"role": "User", "content": "q"},
                             {"role": "Chatbot", "content": "a"}]}, SQA),
    "pygmalion": ({"conversations": [{"role": "prompter", "value": "q"},
                                     {"role": "assistant", "value": "a"}]}, QA),
    "FastChat's other assistants": ({"conversations": [
        {"from": "user", "value": "q"}, {"from": "bing", "value": "a"}]}, QA),
    "developer": ({"messages": [{"role": "developer", "content": "s"}, USER, ANSWER]}, SQA),
    "content parts": ({"messages": [
        {"role": "user", "content": [{"type": "text", "text": "q"}, {"type": "text", "text": "!"}]},
        ANSWER]}, talk(("user", "q!"), ("assistant", "a"))),
    "messages as JSON text": ({"messages": json.dumps([USER, ANSWER])}, QA),
    "messages beside their prompt": ({"prompt": "q", "messages": [USER, ANSWER]}, QA),
    "messages with a rejected answer": ({"messages": [USER, ANSWER], "rejected_response": "b"}, QA),
    "KTO's good answer": ({"prompt": "q", "completion": "a", "label": True}, QA),
    "a label of 0": ({"instruction": "q", "output": 0}, talk(("user", "q"), ("assistant", "0"))),
    "a label of false": (
        {"instruction": "q", "output": False}, talk(("user", "q"), ("assistant", "false"))),
    "a number": ({"prompt": "q", "answer": 1.5}, talk(("user", "q"), ("assistant", "1.5"))),
    "null where a table has nothing": (
        {"messages": [{**USER, "tool_calls": None, "weight": None}, ANSWER], "tools": None}, QA),
    "LLaMA-Factory's tools": ({"conversations": [
        {"from": "human", "value": "q"},
        {"from": "function_call", "value": '{"name": "area", "arguments": {"a": 5}}'},
        {"from": "observation", "value": "15"}, {"from": "gpt", "value": "a"}]}, ROUND),
    "OpenAI's tools": ({"messages": [
        USER, {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "15"}, ANSWER]}, ROUND),
    "ms-swift's tools": ({"messages": [
        USER, {"role": "tool_call", "content": '{"name": "area", "arguments": {"a": 5}}'},
        {"role": "tool_response", "content": "15"}, ANSWER]}, ROUND),
    "OpenAI's functions": ({"messages": [
        USER, {"role": "assistant", "content": None, "function_call": {
            "name": "area", "arguments": '{"a": 5}'}},
        {"role": "function", "content": "15"}, ANSWER]}, ROUND),
    "a content beside its call": (
        {"messages": [USER, {"role": "assistant", "content": "see", "tool_calls": [CALL]}]},
        (Message("user", "q"), Message("assistant", "see", (AREA,)))),
    "two calls at once": ({"conversations": [
        {"from": "human", "value": "q"},
        *[{"from": "function_call", "value": '{"name": "area", "arguments": {"a": 5}}'}] * 2]},
        (Message("user", "q"), Message("assistant", "", (AREA, AREA)))),
    "a tool's name and call": (
        {"messages": [USER, {"role": "assistant", "tool_calls": [{**CALL, "id": "7"}]},
                      {"role": "tool", "name": "area", "tool_call_id": "7", "content": {"m": 15}},
                      ANSWER]},
        (Message("user", "q"), Message("assistant", "", (ToolCall("area", '{"a": 5}', "7"),)),
         Message("tool", '{"m": 15}', name="area", tool_call_id="7"), Message("assistant", "a"))),
    "xLAM": ({"query": "q", "answers": '[{"name": "area", "arguments": {"a": 5}}]',
              "tools": json.dumps([TOOL])},
             (Message("user", "q"), Message("assistant", "", (AREA,)))),
    "reasoning": (
        {"messages": [USER, {**ANSWER, "reasoning_content": "hm"}]},
        (Message("user", "q"), Message("assistant", "a", reasoning="hm"))),
    "thinking parts": (
        {"messages": [USER, {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "a"}]}]},
        (Message("user", "q"), Message("assistant", "a", reasoning="hm"))),
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_a_row_is_read_as_its_program_means_it(tmp_path: Path, name: str) -> None:
    row, messages = SHAPES[name]
    assert one(tmp_path, row).messages == messages


@pytest.mark.parametrize("tools", [
    [TOOL], json.dumps([TOOL]), [{"name": "area", "parameters": {}}],
    [{"name": "area", "input_schema": {}}], [json.dumps(TOOL)],
])  # fmt: skip
def test_tools_become_openais(tmp_path: Path, tools: Any) -> None:
    for key in ("tools", "functions"):
        example = one(tmp_path, {"messages": [USER, ANSWER], key: tools})
        assert [json.loads(tool) for tool in example.tools] == [TOOL]


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"messages": [{"role": "system", "content": "t"}, USER, ANSWER], "system": "s"},
     "column system and another system turn"),
    ({"messages": [USER, {"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}]},
     "a call has no name"),
    ({"messages": [USER, {"role": "assistant", "tool_calls": [
        {"function": {"name": "f", "arguments": "5,"}}]}]}, "arguments of the call of f are not a"),
    ({"conversations": [{"from": "human", "value": "q"}, {"from": "function_call", "value": "hm"}]},
     "a call is not an object"),
    ({"messages": [{"role": "tool", "content": "15"}, USER, ANSWER]}, "a tool turn follows no turn"),
    ({"messages": [USER, {**ANSWER, "weight": 0}]}, "nothing is learned"),
    ({"messages": [USER, {**ANSWER, "weight": 0.5}]}, "weight 0.5.*0 or 1"),
    ({"messages": [USER, {**ANSWER, "weight": 0, "train": True}]}, "both that it is learned and"),
    ({"messages": [USER, {**ANSWER, "train_detail": [{"begin_offset": 0}]}]}, "train_detail.*split"),
    ({"messages": [USER, {**ANSWER, "mask": True}]}, "mask.*weight 0"),
    ({"messages": [{"role": "user", "content": [
        {"type": "text", "text": "q"}, {"type": "image_url", "image_url": {"url": "x"}}]}, ANSWER]},
     "image_url.*text only"),
    ({"messages": [USER, ANSWER], "images": ["a.png"]}, "images.*text only"),
    ({"prompt": "q", "chosen": "a", "rejected": "b"}, "preference pair.*chosen one"),
    ({"conversations": [{"from": "human", "value": "q"}], "chosen": {"from": "gpt", "value": "a"},
      "rejected": {"from": "gpt", "value": "b"}}, "preference pair"),
    ({"input": {"messages": [USER]}, "preferred_output": [ANSWER], "non_preferred_output": [ANSWER]},
     "preference pair"),
    ({"prompt": "q", "completion": "a", "label": False}, "label is false"),
    ({"question": "q", "answers": ["a", "b"]}, "2 answers.*one row for each"),
    ({"text": "### Human: q ### Assistant: a"}, "plain text.*prompt and completion"),
    ({"segments": [{"label": True, "text": "a"}]}, "segments.*prompt and completion"),
    ({"input_ids": [1, 2], "labels": [1, 2]}, "input_ids.*not tokens"),
    ({"messages": str([USER, ANSWER])}, r"messages is not JSON.*json\.dumps"),
    ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"},
                        {"from": "human", "value": "q2"}]}, "last turn is not an assistant's"),
    ({"prompt": "q", "completion": "a \ud83d"}, r"\\ud83d, half of a surrogate pair.*cut"),
    ({"messages": [USER, {"role": "assistant", "tool_calls": [
        {"function": {"name": "f", "arguments": '{"a": "\ud83d"}'}}]}]}, "half of a surrogate pair"),
    ({"instruction": "a", "output": float("nan")}, "output is nan"),
    ({"instruction": "a", "input": float("nan"), "output": "b"}, "input is float, not text"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "problem"), REFUSED)
def test_what_would_be_learned_wrongly_is_refused(
    tmp_path: Path, row: dict[str, Any], problem: str
) -> None:
    with pytest.raises(DataError, match=problem) as caught:
        one(tmp_path, row)
    assert str(caught.value).startswith(f"{tmp_path / 'rows.jsonl'}:1: ")


def text(*rows: Any, indent: int | None = None) -> str:
    return "\n".join(json.dumps(row, ensure_ascii=False, indent=indent) for row in rows)


CSV = 'instruction,output\ncafé,naïve – ok\n"café","naïve – ok"\n'
FILES: dict[str, bytes] = {
    "bom_crlf.jsonl": b"\xef\xbb\xbf" + text(ROW, ROW).replace("\n", "\r\n").encode(),
    "utf16.jsonl": text(ROW, ROW).encode("utf-16"),
    "utf16_without_bom.jsonl": text(ROW, ROW).encode("utf-16-le"),
    "utf32.json": text([ROW, ROW]).encode("utf-32"),
    "chats.jsonl.gz": gzip.compress(text(ROW, ROW).encode()),
    "chats.json.bz2": bz2.compress(text([ROW, ROW]).encode()),
    "chats.jsonl.xz": lzma.compress(text(ROW, ROW).encode()),
    "gz_by_content_alone": gzip.compress(text(ROW, ROW).encode()),
    "chats.csv": CSV.encode(),
    "chats.csv.gz": gzip.compress(CSV.encode()),
    "excel.csv": b"\xef\xbb\xbfsep=;\r\n" + CSV.replace(",", ";").replace("\n", "\r\n").encode(),
    "chats.tsv": CSV.replace(",", "\t").encode("utf-16"),
    "concatenated.json": text(ROW, ROW, indent=2).encode(),
    "data.json": text({"version": 1, "data": [ROW, ROW]}).encode(),
    "instances.json": text({"type": "text2text", "instances": [ROW, ROW]}, indent=1).encode(),
    "viewer.json": text({"features": [{"feature_idx": 0, "name": "x"}], "rows": [
        {"row_idx": i, "row": ROW, "truncated_cells": []} for i in range(2)]}).encode(),
    "pandas.json": text({"instruction": {"0": "café", "1": "café"},
                         "output": {"0": "naïve – ok", "1": "naïve – ok"}}).encode(),
    "columns.json": text({"instruction": ["café"] * 2, "output": ["naïve – ok"] * 2}).encode(),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_any_common_kind_is_read(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.write_bytes(FILES[name])
    assert [example.messages for example in load_examples(file)] == [TALK, TALK]


def test_a_single_object_may_be_the_row_itself(tmp_path: Path) -> None:
    row = {"messages": [USER, ANSWER], "tools": [{"name": "f", "parameters": {}}]}
    for indent in (None, 2):
        (tmp_path / "row.json").write_text(text(row, indent=indent))
        (example,) = load_examples(tmp_path / "row.json")
        assert example.messages == QA and example.tools
    pairs = {"prompt": [USER], "completion": [ANSWER]}
    (tmp_path / "pair.json").write_text(text(pairs, indent=2))
    assert load_examples(tmp_path / "pair.json")[0].messages == QA


def test_arrow_tables_are_read_without_the_nulls_of_other_rows(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    calls = [{"messages": [USER, {"role": "assistant", "tool_calls": [
        {"function": {"name": name, "arguments": {name: 1}}}]}]} for name in ("f", "g")]  # fmt: skip
    table = pa.Table.from_pylist([*calls, {"messages": [USER, ANSWER]}])
    parquet.write_table(table, tmp_path / "rows.parquet", row_group_size=1)
    with pa.ipc.new_stream(tmp_path / "stream.arrow", table.schema) as writer:
        writer.write_table(table)
    with pa.ipc.new_file(tmp_path / "file.feather", table.schema) as writer:
        writer.write_table(table)
    packed = pa.compress((tmp_path / "stream.arrow").read_bytes(), codec="zstd", asbytes=True)
    (tmp_path / "stream.arrow.zst").write_bytes(packed)
    for file in tmp_path.iterdir():
        first, second, third = load_examples(file)
        assert first.messages[1].tool_calls == (ToolCall("f", '{"f": 1}'),), file
        assert second.messages[1].tool_calls == (ToolCall("g", '{"g": 1}'),), file
        assert third.messages == QA


def test_a_folder_with_one_data_file_is_that_file(tmp_path: Path) -> None:
    (tmp_path / "dataset_info.json").write_text("{}")
    (tmp_path / "state.json").write_text("{}")
    (tmp_path / "README.md").write_text("about")
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "rows.jsonl").write_text(text(ROW))
    assert load_examples(tmp_path)[0].messages == TALK
    (tmp_path / "test.jsonl").write_text(text(ROW))
    with pytest.raises(InputError, match=r"2 data files: test.jsonl, train/rows.jsonl \(name one"):
        load_examples(tmp_path)


OTHER_KINDS = {
    "zip": (b"PK\x03\x04" + bytes(20), "a zip archive or an Office file.*CSV"),
    "pdf": (b"%PDF-1.7\n", "a PDF"),
    "pickle": (b"\x80\x02}q\x00.", "a pickle, which runs code"),
    "safetensors": (b"\x40\0\0\0\0\0\0\0" + b'{"a":', "a safetensors file"),
    "gguf": (b"GGUF\x03\0\0\0", "a GGUF model"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS.*git lfs pull"),
    "page": (b"<!DOCTYPE html>\n<html>", "a web page.*not the page about it"),
    "tar": (bytes(257) + b"ustar\x0000", "a tar archive.*unpack"),
    "zeros": (bytes(3000), "a binary file"),
    "noise": (bytes(range(256)), "is not UTF-16"),
    "cut.json": (text({"rows": [{"row": ROW, "truncated_cells": ["output"]}]}).encode(), "cut off"),
    "plain": (b"hello\nworld\n", "1: not JSON.*one JSON object per line"),
    "latin": ('{"instruction": "Grüße"}'.encode("latin-1"), "is not UTF-8.*save it as UTF-8"),
    "cut.gz": (gzip.compress(text(ROW).encode() * 99)[:-9], "cannot be read"),
    "lists.json": (
        text({"train": [ROW], "test": [ROW]}).encode(),
        "several lists of rows: 'train'",
    ),
    "broken.parquet": (b"PAR1" + bytes(40), "a broken Parquet file"),
    "two.csv": (b"prompt,prompt\na,b\n", "two columns of one name"),
}


def test_a_table_that_joins_shapes_is_read_by_what_each_row_holds(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text(
        "messages,instruction,input,response,prompt,completion\n"
        ',q,,a,,\n,,,,q,a\n"[{""role"": ""user"", ""content"": ""q""}, {""role"": ""assistant"", '
        '""content"": ""a""}]",,,,,\n,,q,a,,\n'
    )
    *examples, last = load_examples(tmp_path / "x.csv")
    assert [example.messages for example in examples] == [QA] * 3
    assert last.messages == talk(("user", "\nq"), ("assistant", "a"))


@pytest.mark.parametrize("name", OTHER_KINDS)
def test_another_kind_of_file_is_named_with_the_remedy(tmp_path: Path, name: str) -> None:
    content, problem = OTHER_KINDS[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=problem):
        load_examples(tmp_path / name)


def test_text_whose_ninth_character_opens_an_object_is_no_safetensors_file(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"data":{"instruction": ["q"], "output": ["a"]}}')
    with pytest.raises(DataError, match="unknown row with keys data"):
        load_examples(tmp_path / "x.json")


BAD_ROWS = [
    {"prompt": "q", "completion": "a", "id": 1, "source": ""}, {"prompt": "q", "completion": ""},
    {"prompt": "q", "completion": "a", "id": 2}, {"text": "x"},
    *[{"prompt": "q", "completion": " "}] * 9, {"prompt": "q", "completion": "b"},
]  # fmt: skip


def test_bad_rows_stop_with_a_list_or_are_skipped_with_a_note(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(text(*BAD_ROWS) + "\n{cut\n")
    with pytest.raises(DataError) as caught:
        load_examples(file)
    assert str(caught.value) == (
        f"{file}:2: the last turn is not an assistant's answer (also line 5, 6, 7, 8, 9, 10, 11, "
        "12); line 4: the row has a plain text and no answer to learn; 12 of 15 rows are bad "
        "(--bad-rows skip leaves bad rows out)"
    )
    data = read_examples(file, "skip")
    assert [example.line for example in data.examples] == [1, 3, 14]
    assert [row.line for row in data.bad] == [2, *range(4, 14), 15]
    assert data.ignored == {"id": 2}
    facts = data.to_json()
    assert facts["ignored"] == {"id": 2} and facts["skipped"]["count"] == 12
    assert facts["skipped"]["first"][1] == [4, "the row has a plain text and no answer to learn"]
    notes = capsys.readouterr().err
    assert f"12 of 15 rows of {file} are skipped: line 2: the last turn" in notes
    assert notes.count(f"{file}: keys that are not used: id (2 rows)") == 1
    read_examples(file, "skip")
    assert capsys.readouterr().err == "", "once per file"


def test_a_file_of_bad_rows_alone_is_an_error_either_way(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(text({"text": "x"}, {"text": "y"}))
    with pytest.raises(
        DataError, match=r"also line 2\); 2 of 2 rows are bad \(--objective pretrain"
    ):
        load_examples(file, "skip")


def test_hostile_rows_are_bad_rows(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    deep = '{"messages": ' + "[" * 100_000 + "]" * 100_000 + "}"
    nested = {"role": "tool", "content": [[[["x"]]]]}
    number = '{"prompt": "q", "answer": ' + "9" * 10_000 + "}"
    infinite = '{"prompt": "q", "answer": 1e999}'
    file.write_text("\n".join([text({"messages": [USER, ANSWER, nested, ANSWER]}), deep, number,
                               infinite, '{"messages": {"a": 1}}']))  # fmt: skip
    data = read_examples(file, "skip")
    assert [row.line for row in data.bad] == [2, 3, 4, 5]
    assert data.examples[0].messages[2].content == '[[[["x"]]]]'


def test_keys_of_turns_that_are_not_used_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "rows.jsonl"
    turns = [{**USER, "weight": 1, "name": "bob"}, {**ANSWER, "refusal": None, "rating": 5}]
    file.write_text(text({"messages": turns, "parallel_tool_calls": True}, {"messages": turns}))
    assert set(read_examples(file).ignored) == {
        "parallel_tool_calls", "weight or train of a user turn", "name of a user turn",
        "rating of an assistant turn",
    }  # fmt: skip
    assert "parallel_tool_calls (1 row)" in capsys.readouterr().err


def test_the_fingerprint_of_plain_conversations_is_as_before() -> None:
    """Written down: adapters and scores of earlier versions are compared by it."""
    plain = [Example(TALK, ("t",), 3), Example(QA, choices=("a", "b"))]
    assert fingerprint(plain) == "82b64d685d1c86fe706bd498609624ad42c831846b95201c66a30f80e206fcf2"
    others = [
        Example(QA), Example(QA, tools=("{}",)), Example((*QA[:1], Message("assistant", "a", (AREA,)))),
        Example((*QA[:1], Message("assistant", "a", reasoning="hm"))),
        Example((*QA[:1], Message("assistant", "a", learned=False))),
    ]  # fmt: skip
    assert len({fingerprint([example]) for example in others}) == len(others)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "model"
    make_tokenizer(folder)
    return folder


WEIGHTED: dict[str, dict[str, Any]] = {
    "weight": {"messages": [
        {"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "5", "weight": 0},
        {"role": "user", "content": "no"}, {"role": "assistant", "content": "4", "weight": 1}]},
    "train": {"conversations": [
        {"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "5", "train": False},
        {"from": "human", "value": "no"}, {"from": "gpt", "value": "4", "train": True}]},
    "loss": {"messages": [
        {"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "5", "loss": False},
        {"role": "user", "content": "no"}, {"role": "assistant", "content": "4"}]},
}  # fmt: skip


@pytest.mark.parametrize("key", WEIGHTED)
def test_a_turn_of_weight_0_is_not_learned(tmp_path: Path, model: Path, key: str) -> None:
    from tokenizers import Tokenizer

    example, chat = one(tmp_path, WEIGHTED[key]), ChatTemplate.from_folder(model)
    (encoded,), _ = encode_all([example], chat, encoder(model), cutoff=500)
    tokenizer: Any = Tokenizer.from_file(str(model / "tokenizer.json"))
    learned = [label for label in encoded.labels if label >= 0]
    assert tokenizer.decode(learned, skip_special_tokens=False) == "4<|im_end|>"
    text = marked(example, chat)
    assert text.endswith("assistant\n⟦4<|im_end|>⟧") and text.count("⟦") == 1
    _, left_out = encode_all([example], chat, encoder(model), 500, train_on_inputs=True)
    assert "--train-on-inputs" in left_out.refused[0].problem


def test_a_row_that_the_template_refuses_is_a_bad_row(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    make_tokenizer(folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    refuse = "{% if messages[0].content == 'no' %}{{ raise_exception('not this') }}{% endif %}"
    config["chat_template"] = refuse + config["chat_template"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    chat, tokenize = ChatTemplate.from_folder(folder), encoder(folder)
    examples = [
        Example(talk(("user", question), ("assistant", "a")), line=line)
        for line, question in enumerate(["yes", "no", "yes"], start=1)
    ]
    kept, left_out = encode_all(examples, chat, tokenize, cutoff=500)
    assert len(kept) == 2 and [row.line for row in left_out.refused] == [2]
    assert "not this" in left_out.refused[0].problem
    with pytest.raises(InputError, match="not this"):
        calibration(examples, chat, tokenize)


def test_the_preview_shows_what_is_learned_and_what_is_left_out(
    tmp_path: Path, tiny_base: Path, edgeft: Callable[..., Any]
) -> None:
    rows = [WEIGHTED["weight"] | {"id": 7}, {"prompt": "q\x1b[2J", "completion": 0}, {"text": "x"}]
    (tmp_path / "rows.jsonl").write_text(text(*rows))
    command = ("train-qlora", "--base", tiny_base, "--data", tmp_path / "rows.jsonl", "--output",
               tmp_path / "adapter", "--validation-size", 0, "--preview")  # fmt: skip
    stopped = edgeft(*command)
    assert stopped.code == 1 and "rows.jsonl:3: the row has a plain text" in stopped.err
    done = edgeft(*command, "--bad-rows", "skip")
    assert done.code == 0 and not (tmp_path / "adapter").exists()
    assert "line 1: " in done.out and "\n⟦4<|im_end|>⟧\n" in done.out
    assert "⟦0<|im_end|>⟧" in done.out and "\x1b" not in done.out and "q␛[2J" in done.out
    assert "rows.jsonl: 3 rows" in done.out and "not used: id (1 rows)" in done.out
    assert "skipped: line 3: the row has a plain text and no answer to learn" in done.out
    assert "2 examples to train on, 0 to validate" in done.out
    shown = json.loads(edgeft(*command, "--bad-rows", "skip", "--json").out)
    assert [example["learned"] for example in shown["examples"]] == [2, 2]


def test_a_long_example_is_shortened_in_the_log() -> None:
    lines = "\n".join(str(number) for number in range(100))
    assert shortened(lines).split("\n") == ["0", "1", "2", "3", "…", "96", "97", "98", "99"]
    assert len(shortened("x" * 10_000)) < 700 and shortened("short") == "short"


def test_items_follow_the_same_rule(tmp_path: Path) -> None:
    file = tmp_path / "items.jsonl"
    call = {"messages": [USER, {"role": "assistant", "tool_calls": [CALL]}]}
    file.write_text(text({"messages": [USER, ANSWER], "system": "s"}, call, {"text": "x"}))
    with pytest.raises(DataError, match=r"items.jsonl:3: the row has a plain text"):
        load_items(EvalOptions(str(file)))
    (item,) = load_items(EvalOptions(str(file), bad_rows="skip")).examples
    assert item.messages == SQA
    file.write_text(text({"messages": [USER, ANSWER]}, call))
    with pytest.raises(DataError, match=r":2: the answer calls a function.*--scorer tool-call"):
        load_items(EvalOptions(str(file)))
    assert len(load_items(EvalOptions(str(file), scorer="tool-call")).examples) == 2


def test_a_prompt_of_more_than_128_kib_is_a_cell(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text("prompt,label\n" + "x" * 200_000 + ",safe\n")
    (example,) = load_refusals(tmp_path / "r.csv").examples
    assert len(example.prompt[0].content) == 200_000 and example.answer == "safe"
