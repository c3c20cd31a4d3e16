"""A state machine that fails says so soon: shrinking ends at a bound."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.internal.conjecture import engine
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test


def runs_after_a_failure() -> int:
    """How often a machine runs once more after it has failed."""
    runs = [0]

    class Machine(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.seen: set[int] = set()
            if runs[0]:
                runs[0] += 1

        @rule(number=st.integers(0, 2**64))
        def see(self, number: int) -> None:
            self.seen.add(number % 1_000)
            if len(self.seen) > 10:
                runs[0] = max(runs[0], 1)
                raise ValueError("ten were seen")

    with pytest.raises(ValueError, match="ten were seen"):
        run_state_machine_as_test(Machine, settings=settings(database=None, derandomize=True))
    return runs[0]


def test_a_machine_that_fails_is_shrunk_no_longer_than_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    assert engine.MAX_SHRINKING_SECONDS <= 30
    shrunk = runs_after_a_failure()
    monkeypatch.setattr(engine, "MAX_SHRINKING_SECONDS", 0)
    assert runs_after_a_failure() < 20 < shrunk
