"""The smart_home suite keeps its promises: counts, hold-outs, schema, and no leak.

To run it alone:

    pytest tests/benchmarks/suites/test_smart_home.py
"""

import json
import re
from collections import Counter

import pytest

from edgeft.benchmarks.suites import Suite, load_suite, suite_names
from edgeft.benchmarks.suites.smart_home.grammar import (
    HELD_OUT_ACTIONS,
    HELD_OUT_ROOMS,
    SPLITS,
    WORDS,
    Answer,
    Row,
    capabilities_of,
    generate,
    normalise,
    spell,
    to_jsonl,
)

pytestmark = pytest.mark.unit

SUITE = load_suite("smart_home")
ROWS: dict[str, list[Row]] = {
    split: [json.loads(line) for line in (SUITE.folder / f"{split}.jsonl").open(encoding="utf-8")]
    for split in SPLITS
}
EVERY_ROW = [row for rows in ROWS.values() for row in rows]


def user_text(row: Row) -> str:
    return row["messages"][0]["content"]


def answer_of(row: Row) -> Answer:
    answer: Answer = json.loads(row["messages"][1]["content"])
    return answer


def commands(*splits: str, tag: str | None = None) -> list[Answer]:
    """In-scope answers of some splits, or of one tag in them."""
    rows = [row for split in splits for row in ROWS[split]]
    return [
        answer_of(row)
        for row in rows
        if row["tags"][1] != "out_of_scope" and tag in (None, row["tags"][1])
    ]


def holds_held_out_pair(answer: Answer) -> bool:
    action = (answer["action"], answer["device"]) in HELD_OUT_ACTIONS
    return action or (answer["device"], answer.get("room")) in HELD_OUT_ROOMS


def test_suite_is_found_by_name() -> None:
    assert "smart_home" in suite_names()
    assert isinstance(SUITE, Suite)
    assert (SUITE.scorer, SUITE.max_tokens) == ("json", 48)
    assert all(path.is_file() for path in (SUITE.train, SUITE.validation, SUITE.test))
    with pytest.raises(KeyError, match="no_such_suite"):
        load_suite("no_such_suite")


def test_instructions_are_short_and_name_the_whole_schema() -> None:
    assert len(SUITE.instructions.split()) <= 120
    actions = {action for kind in WORDS["kinds"].values() for action in kind["actions"]}
    for word in {*actions, "none", *WORDS["devices"], *WORDS["rooms"]}:
        assert word in SUITE.instructions


@pytest.mark.parametrize(("split", "count"), [("train", 1000), ("validation", 100), ("test", 400)])
def test_counts(split: str, count: int) -> None:
    assert len(ROWS[split]) == count
    assert Counter(row["tags"][1] for row in ROWS[split]) == SPLITS[split]
    assert 0.12 <= SPLITS[split]["out_of_scope"] / count <= 0.15


def test_shares_of_the_test_split() -> None:
    counts = SPLITS["test"]
    in_scope = sum(counts.values()) - counts["out_of_scope"]
    assert counts["new_combination"] / in_scope == pytest.approx(0.40, abs=0.01)
    assert counts["new_phrasing"] / in_scope == pytest.approx(0.25, abs=0.01)
    assert min(Counter(tag for row in ROWS["test"] for tag in row["tags"]).values()) >= 30


def test_generator_reproduces_the_files_byte_for_byte() -> None:
    for split, rows in generate().items():
        assert (SUITE.folder / f"{split}.jsonl").read_bytes() == to_jsonl(rows).encode()


def test_another_seed_gives_other_rows() -> None:
    assert generate(seed=1)["test"] != ROWS["test"]


def test_no_text_occurs_twice() -> None:
    counts = Counter(normalise(user_text(row)) for row in EVERY_ROW)
    assert [text for text, count in counts.items() if count > 1] == []


def test_normalising_ignores_case_marks_and_space() -> None:
    assert normalise(" Hey,  set the LAMP to 30%. ") == normalise("hey set the lamp to 30 percent")


def test_held_out_pairs_are_only_in_new_combination_rows() -> None:
    assert not any(map(holds_held_out_pair, commands("train", "validation")))
    for tag in ("seen", "new_phrasing"):
        assert not any(map(holds_held_out_pair, commands("test", tag=tag)))
    assert all(map(holds_held_out_pair, commands("test", tag="new_combination")))


def test_each_part_of_a_held_out_pair_is_trained_on() -> None:
    trained: Counter[tuple[str, object]] = Counter(
        part for answer in commands("train") for part in answer.items()
    )
    parts = [("action", action) for action, _ in HELD_OUT_ACTIONS]
    parts += [("device", device) for _, device in HELD_OUT_ACTIONS if device]
    parts += [("device", device) for device, _ in HELD_OUT_ROOMS]
    parts += [("room", room) for _, room in HELD_OUT_ROOMS if room]
    assert min(trained[part] for part in parts) >= 20


def test_new_phrasing_uses_words_that_training_lacks() -> None:
    seen, new = WORDS["seen"], WORDS["new"]
    for action, phrases in new["phrases"].items():
        assert not set(phrases) & set(seen["phrases"][action])
    for mood, wrappers in new["wrappers"].items():
        assert not set(wrappers) & set(seen["wrappers"][mood])


@pytest.mark.parametrize("slot", ["when", "city", "animal", "adj", "kin", "color", "gadget", "box"])
def test_test_remarks_have_fillers_of_their_own(slot: str) -> None:
    assert not set(WORDS["new"]["remarks"][slot]) & set(WORDS["seen"]["remarks"][slot])


def test_every_row_obeys_the_schema() -> None:
    for row in EVERY_ROW:
        answer, text = answer_of(row), row["messages"][1]["content"]
        assert [message["role"] for message in row["messages"]] == ["user", "assistant"]
        assert text == json.dumps(answer, separators=(",", ":"), ensure_ascii=False)
        assert len(user_text(row)) <= 120
        assert row["tags"][0] == answer["action"]
        if row["tags"][1] == "out_of_scope":
            assert answer == {"action": "none"}
            continue
        capabilities = capabilities_of(str(answer["device"]))
        order = ("action", "device", "room", "value")
        assert list(answer) == [key for key in order if key in answer]
        assert answer["action"] in capabilities["actions"]
        assert answer.get("room", "kitchen") in WORDS["rooms"]
        assert ("value" in answer) == (answer["action"] == "set")
        assert "value" not in answer or answer["value"] in range(*capabilities["values"])


def test_answers_can_be_read_off_the_text() -> None:
    for row in EVERY_ROW:
        answer, words = answer_of(row), f" {normalise(user_text(row))} "
        if answer["action"] == "none":
            continue
        nouns = WORDS["devices"][answer["device"]]["nouns"]
        assert any(noun.lower().rstrip("s") in words for noun in nouns)
        spoken = {
            room
            for room, names in WORDS["rooms"].items()
            if any(f" {normalise(name)} " in words for name in names)
        }
        assert spoken == ({answer["room"]} if "room" in answer else set())
        if value := int(answer.get("value", 0)):
            assert f" {value} " in words or f" {spell(value)} " in words


def test_readme_shows_ten_real_rows() -> None:
    readme = (SUITE.folder / "README.md").read_text(encoding="utf-8")
    shown = re.findall(r"^\| (.+) \| `(\{.+\})` \| (\w+) \|$", readme, re.MULTILINE)
    assert len(shown) == 10
    rows = [(user_text(row), row["messages"][1]["content"], row["tags"][1]) for row in EVERY_ROW]
    assert set(shown) <= set(rows)


@pytest.mark.parametrize(
    ("number", "words"),
    [(5, "five"), (15, "fifteen"), (20, "twenty"), (35, "thirty five"), (100, "one hundred")],
)
def test_spelling_numbers(number: int, words: str) -> None:
    assert spell(number) == words


def test_no_name_means_two_things() -> None:
    nouns = [noun for device in WORDS["devices"].values() for noun in device["nouns"]]
    names = [name for names in WORDS["rooms"].values() for name in names]
    assert len(set(nouns + names)) == len(nouns + names)
