"""One verdict an example, whatever the stages do."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.evaluation.ledger import NO_STAGE, Ledger, SoundnessError
from harness.storage import names

EXAMPLES = 5
STAGES = ["clean", "attack", "ibp", "bab"]
DECIDING = [names.MISCLASSIFIED, names.FALSIFIED, names.CERTIFIED]
outcome = st.sampled_from([*DECIDING, names.TIMEOUT, "raises", "runs out", "says nothing"])


@pytest.fixture(autouse=True, scope="module")
def _memory_is_not_freed():
    """Which takes a tenth of a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("harness.evaluation.ledger.free_memory", lambda: None)
        yield


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(outcome, min_size=EXAMPLES, max_size=EXAMPLES), min_size=4, max_size=4))
def test_every_example_has_exactly_one_verdict_from_the_first_stage_that_can(outcomes):
    ledger = Ledger(EXAMPLES)
    for stage, each in zip(STAGES, outcomes, strict=True):

        def ask(examples, each=each):
            said = [each[example] for example in examples.tolist()]
            if "raises" in said:
                raise ValueError("no such number")
            if "runs out" in said:
                raise torch.OutOfMemoryError("64 GiB")
            return torch.ones(len(examples))

        asked = ledger.undecided.clone()
        answered = ledger.numbers(stage, ask, asked)
        for example, said in enumerate(each):
            assert bool(answered[example].isnan()) == (not asked[example] or said in ("raises", "runs out"))
            if said in DECIDING:
                ledger.decide(stage, said, torch.arange(EXAMPLES) == example)
            if said == names.TIMEOUT:
                ledger.note(stage, said, example)
    columns = ledger.columns()
    for example in range(EXAMPLES):
        said = [(stage, each[example]) for stage, each in zip(STAGES, outcomes, strict=True)]
        kinds = {"raises": names.FAILED, "runs out": names.OUT_OF_MEMORY}
        told = [(stage, kinds.get(word, word)) for stage, word in said if word != "says nothing"]
        expected = [pair for pair in told if pair[1] in DECIDING] + told + [(NO_STAGE, names.UNKNOWN)]
        assert (columns[names.STAGE][example], columns[names.VERDICT][example]) == expected[0]
        assert columns[names.VERDICT][example] in names.VERDICTS
        because = columns[names.VERDICT][example] in (names.FAILED, names.OUT_OF_MEMORY)
        assert bool(columns[names.REASON][example]) == because


def test_only_the_examples_that_raise_alone_are_without_an_answer_and_say_why():
    asked = []

    def ask(examples):
        asked.append(examples.tolist())
        if 2 in examples:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return examples.double()

    ledger = Ledger(4)
    found = ledger.numbers("crown", ask, torch.tensor([True, False, True, True]))
    assert asked == [[0, 2, 3], [0], [2], [3]]
    assert found[[0, 3]].tolist() == [0, 3] and found[[1, 2]].isnan().all()
    columns = ledger.columns()
    assert columns[names.VERDICT].tolist() == [names.UNKNOWN, names.UNKNOWN, names.OUT_OF_MEMORY, names.UNKNOWN]
    assert columns[names.STAGE][2] == "crown"
    assert columns[names.REASON][2] == "RuntimeError: DefaultCPUAllocator: can't allocate memory"
    assert ledger.seconds["crown"] > 0


def test_an_unsound_bound_is_no_verdict():
    def ask(examples):
        raise SoundnessError("certified and refuted")

    with pytest.raises(SoundnessError):
        Ledger(3).numbers("ibp", ask, torch.ones(3, dtype=torch.bool))
