"""Every example gets one verdict, whatever the stages answer."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cerdeq.equilibrium import NotConvergedError
from cerdeq.errors import UnsupportedOperator
from harness.common import names
from harness.evaluation.ledger import NO_STAGE, Ledger, SoundnessError

EXAMPLES = 5
STAGES = ["clean", "attack", "ibp", "bab"]
DECISIONS = [names.MISCLASSIFIED, names.FALSIFIED, names.CERTIFIED]
ERRORS = {names.FAILED: NotConvergedError("no equilibrium"), names.OUT_OF_MEMORY: torch.OutOfMemoryError("64 GiB")}
NOTHING = "no answer"
outcome = st.sampled_from([*DECISIONS, *ERRORS, names.TIMEOUT, NOTHING])


@pytest.fixture(autouse=True, scope="module")
def _memory_is_not_freed():
    """Skip what takes a tenth of a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("harness.evaluation.ledger.free_memory", lambda: None)
        yield


@settings(max_examples=60)
@given(st.lists(st.lists(outcome, min_size=EXAMPLES, max_size=EXAMPLES), min_size=4, max_size=4))
def test_every_example_has_exactly_one_verdict_from_the_first_stage_that_decides_it(outcomes):
    ledger = Ledger(EXAMPLES)
    for stage, row in zip(STAGES, outcomes, strict=True):

        def ask(examples, row=row):
            for example in examples.tolist():
                if row[example] in ERRORS:
                    raise ERRORS[row[example]]

        asked = ledger.undecided.nonzero()[:, 0]
        answered = {int(example) for part, _ in ledger.answers(stage, ask, asked) for example in part}
        assert answered == {example for example in asked.tolist() if row[example] not in ERRORS}
        for example, kind in enumerate(row):
            if kind in DECISIONS or kind == names.TIMEOUT:
                ledger.record(stage, {example: kind})
    columns = ledger.columns()
    for example in range(EXAMPLES):
        answers = [(stage, row[example]) for stage, row in zip(STAGES, outcomes, strict=True)]
        answers = [answer for answer in answers if answer[1] != NOTHING]
        decisions = [answer for answer in answers if answer[1] in DECISIONS]
        expected = [*decisions, *answers, (NO_STAGE, names.UNKNOWN)][0]
        assert (columns[names.STAGE][example], columns[names.VERDICT][example]) == expected
        assert bool(columns[names.REASON][example]) == (expected[1] in ERRORS)
        kinds = {answer[1] for answer in decisions}
        assert (example in ledger.contradicted) == (names.CERTIFIED in kinds and len(kinds) > 1)


def test_only_examples_that_raise_an_error_alone_have_no_answer():
    calls = []

    def ask(examples):
        calls.append(examples.tolist())
        if 2 in examples:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return examples

    ledger = Ledger(4)
    answers = ledger.answers("crown", ask, torch.tensor([0, 2, 3]))
    assert calls == [[0, 2, 3], [0], [2], [3]]
    assert [(part.tolist(), answer.tolist()) for part, answer in answers] == [([0], [0]), ([3], [3])]
    row = [ledger.columns()[name][2] for name in (names.VERDICT, names.STAGE, names.REASON)]
    assert row == [names.OUT_OF_MEMORY, "crown", "RuntimeError: DefaultCPUAllocator: can't allocate memory"]
    assert ledger.seconds["crown"] > 0


@pytest.mark.parametrize("kind", [NotConvergedError, UnsupportedOperator])
def test_an_example_without_an_equilibrium_or_a_rule_has_failed(kind):
    def ask(examples):
        if 1 in examples:
            raise kind("of this image")

    ledger = Ledger(3)
    assert [int(part) for part, _ in ledger.answers("crown", ask, torch.arange(3))] == [0, 2]
    row = [ledger.columns()[name][1] for name in (names.VERDICT, names.STAGE, names.REASON)]
    assert row == [names.FAILED, "crown", f"{kind.__name__}: of this image"]


@pytest.mark.parametrize("error", [ValueError, TypeError, KeyError, RuntimeError, AssertionError, SoundnessError])
def test_any_other_error_is_no_verdict_but_ends_the_evaluation(error):
    calls = []

    def ask(examples):
        calls.append(examples.tolist())
        raise error("a fault of the program")

    ledger = Ledger(3)
    with pytest.raises(error, match="a fault of the program"):
        ledger.answers("crown", ask, torch.arange(3))
    assert calls == ([[0, 1, 2]] if error is SoundnessError else [[0, 1, 2], [0]]) and ledger.seconds["crown"] > 0


def test_what_only_several_examples_together_raise_is_answered_one_by_one():
    """Some kernels refuse a large batch in words that do not say so."""

    def ask(examples):
        if len(examples) > 1:
            raise RuntimeError("canUse32BitIndexMath")
        return int(examples)

    assert [answer for _, answer in Ledger(3).answers("crown", ask, torch.arange(3))] == [0, 1, 2]
