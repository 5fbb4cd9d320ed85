"""What is guessed from an n-gram that occurred before, and when nothing is."""

from __future__ import annotations

from edgeft.runtimes.speculation import FIRST_PROPOSAL_TOKENS, PAUSE_TOKENS, NgramDraft


def test_what_followed_the_same_tokens_is_proposed() -> None:
    draft = NgramDraft([1, 2, 3, 4, 5, 6, 7, 9, 1, 2, 3])
    assert draft.propose(7) == [4, 5, 6]
    assert draft.propose(2) == [4, 5]
    draft.append(4)
    assert draft.propose(7) == [5, 6, 7]
    draft.append(0)
    assert draft.propose(7) == []


def test_the_longest_ending_and_its_last_occurrence_decide() -> None:
    four, three = [8, 1, 2, 3, 40], [7, 1, 2, 3, 30]
    assert NgramDraft([*four, *three, 8, 1, 2, 3]).propose(1) == [40]
    assert NgramDraft([*four, *three, 6, 1, 2, 3]).propose(1) == [30]


def test_short_and_new_texts_have_no_proposal() -> None:
    assert NgramDraft([]).propose(7) == NgramDraft([1, 1]).propose(7) == []
    assert NgramDraft(range(50)).propose(7) == []
    assert NgramDraft([5, 5, 5, 5, 5]).propose(0) == []


def test_a_text_that_repeats_itself_is_proposed_up_to_its_end() -> None:
    assert NgramDraft([5, 5, 5, 5, 5]).propose(7) == [5]


def test_proposals_grow_where_they_are_right_and_pause_where_they_are_wrong() -> None:
    draft = NgramDraft([*range(40), 0, 1, 2])
    draft.verified(FIRST_PROPOSAL_TOKENS, FIRST_PROPOSAL_TOKENS)
    assert len(draft.propose(100)) == 2 * FIRST_PROPOSAL_TOKENS
    draft.verified(6, 0)
    for token in range(3, 3 + PAUSE_TOKENS):
        assert draft.propose(100) == []
        draft.append(token)
    assert len(draft.propose(100)) == FIRST_PROPOSAL_TOKENS
    draft.verified(3, 2)
    assert draft.propose(100)
    draft.verified(3, 1)
    assert not draft.propose(100)
