"""The comparison as a Hypothesis state machine; how a test runs a given number of operations."""

from __future__ import annotations

import random
from collections.abc import Sequence

import hypothesis
import hypothesis.errors
import hypothesis.stateful
from hypothesis import strategies as st

from tests.model.compare import Comparison, Disagreement
from tests.model.runs import Make, Rules, explain, plan

STEPS = 200


def run_machine(
    make: Sequence[Make], rules: Rules, operations: int, seed: int, steps: int = STEPS
) -> int:
    """Run random operations until at least `operations` are done; returns how many it were.

    A failing sequence is shortened by our own means, on the operations as they were drawn, rather
    than by Hypothesis, whose shorter choices would mean other operations.

    Raises:
        AssertionError: with the seed, the layers and the shortest failing sequence.
    """
    total = 0
    explained: dict[int, str] = {}

    class Machine(hypothesis.stateful.RuleBasedStateMachine):
        comparison: Comparison | None = None

        @hypothesis.stateful.initialize(run_seed=st.integers(0, (1 << 32) - 1))
        def mount(self, run_seed: int) -> None:
            self.plan = plan(run_seed, rules)
            self.comparison = self.plan.comparison(make)
            self.check()

        @hypothesis.stateful.rule(choice=st.integers(0, (1 << 32) - 1))
        def operation(self, choice: int) -> None:
            nonlocal total
            assert self.comparison is not None
            drawn = self.plan.draw(self.comparison.generator, random.Random(choice))
            try:
                total += self.comparison.run(drawn)
                self.plan.look(self.comparison, len(self.comparison.done))
            except Disagreement as disagreement:
                self.fail(disagreement)

        def check(self) -> None:
            assert self.comparison is not None
            try:
                self.comparison.check()
            except Disagreement as disagreement:
                self.fail(disagreement)

        def fail(self, disagreement: Disagreement) -> None:
            assert self.comparison is not None
            # Hypothesis comes here again when it repeats what failed; once is enough.
            if self.plan.seed not in explained:
                done = self.comparison.done
                explained[self.plan.seed] = explain(self.plan, list(make), done)
                # Said at once: if it fails only sometimes, Hypothesis reports that alone.
                print(f"{disagreement}\n{explained[self.plan.seed]}")
            text = explained[self.plan.seed]
            raise AssertionError(f"--hypothesis-seed={seed}: {disagreement}\n{text}")

        def teardown(self) -> None:
            if self.comparison is not None:
                try:
                    if self.comparison.healthy:
                        self.check()
                finally:
                    self.comparison.end()

    while total < operations:
        settings = hypothesis.settings(
            max_examples=-(-(operations - total) // steps),
            stateful_step_count=steps,
            deadline=None,
            database=None,
            phases=[hypothesis.Phase.generate],
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        seeded = hypothesis.seed(seed + total)(Machine)
        try:
            hypothesis.stateful.run_state_machine_as_test(seeded, settings=settings)
        except hypothesis.errors.FlakyStrategyDefinition:
            # Two runs with the same beginning went on differently, since what is drawn depends on clocks below. That
            # is no disagreement, unless one was seen before the repetition: then it stands.
            if explained:
                raise
    return total
