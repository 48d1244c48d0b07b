"""How many guesses of the next tokens are worth a step's time.

Guesses (`lookup`) are fed behind a sequence's last token, and as many of them count as the sampler draws itself: they
change how many tokens a step yields, never which. One is made where it adds clearly more tokens per nanosecond than the
step has without it. How likely it is right and what it costs are both learnt from what steps bring.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llmosd.system.lookup import Lookup
from llmosd.system.request import Sequence as Continuation
from llmosd.types import Nanoseconds, Plan, SequenceId, StepResult

MOST = 16  # guesses of one sequence in one step
_LOOKS = 2  # sequences without guesses that are looked at in a step, in turn: looking takes time too
_MARGIN = 1.2  # a guess has to bring so much more than it costs, for both are known roughly
_KEEP = 0.95  # of what was learnt, with each step of another size than the one before it
_FORGET = 0.995  # likewise, with each other step: a cost once found too high is tried again
_FIXED_TOKENS = 3  # until it is known a step is taken to cost as much as its tokens and so many more
_PRIOR_TOKENS = 8.0  # weight of that


class StepCost:
    """What a decode step costs and what each further token in it, both in nanoseconds.

    Learnt from differences between neighbouring steps of equally many sequences: what these have in common (weights,
    contexts, a busy machine) cancels out.
    """

    def __init__(self) -> None:
        self._sequences = 0
        self._tokens = 0
        self._took: float = 0.0
        self._base: float = 0.0  # a step of one token for each of `_sequences`
        self._changes = 0.0  # Σ |change in tokens|, decaying
        self._differences = 0.0  # Σ change in time that went with it

    @property
    def token(self) -> float:
        """0 until a step was seen."""
        expected = _PRIOR_TOKENS * self._expected
        return (self._differences + expected) / (self._changes + _PRIOR_TOKENS)

    def step(self, sequences: int) -> float:
        """With one token for each."""
        return self._base + (sequences - self._sequences) * self.token

    def observe(self, sequences: int, tokens: int, took: Nanoseconds) -> None:
        """A step of `tokens` tokens, at least one for each of so many sequences in decode, none in prefill."""
        same = sequences == self._sequences
        if same and tokens != self._tokens:
            self._learn(tokens - self._tokens, took - self._took)
        else:
            self._changes *= _FORGET
            self._differences *= _FORGET
        self._sequences, self._tokens, self._took = sequences, tokens, took
        base = max(took - (tokens - sequences) * self.token, 0.0)
        self._base = (3 * self._base + base) / 4 if same else base

    def _learn(self, tokens: int, took: float) -> None:
        """A pause of the machine counts as at most four times what is expected."""
        change = abs(tokens)
        difference = took if tokens > 0 else -took
        self._changes = _KEEP * self._changes + change
        self._differences = _KEEP * self._differences + min(max(difference, 0.0), 4 * self._expected * change)

    @property
    def _expected(self) -> float:
        return self._took / (self._tokens + _FIXED_TOKENS)


class Speculation:
    """Makes the guesses of a step and keeps count of what became of them."""

    def __init__(self) -> None:
        self.drafted = 0
        self.accepted = 0
        self._cost = StepCost()
        self._turn = 0
        self._guessing = set[SequenceId]()  # those with guesses in the last step

    def guesses(
        self, decoding: Sequence[Continuation], room: Callable[[Continuation], int], left: int
    ) -> list[list[int]]:
        """For each sequence in decode the tokens to feed behind its last one, in rank order while `left` lasts.

        `room` tells how many a sequence has place for.
        """
        token, took, gained = _MARGIN * self._cost.token, self._cost.step(len(decoding)), float(len(decoding))
        made = [list[int]() for _ in decoding]
        self._turn, apart = self._turn + 1, max(1, len(decoding) // _LOOKS)
        for place, (guess, sequence) in enumerate(zip(made, decoding, strict=True)):
            if token * gained >= took:  # not even one that is certain would pay
                break
            if (place + self._turn) % apart and sequence.id not in self._guessing:
                continue
            lookup, most, chance = _lookup(sequence), min(room(sequence), left, MOST), 1.0
            count = 0
            while count < most and (chance := chance * lookup.chance(count)) * took > token * gained:
                count, gained, took = count + 1, gained + chance, took + token
            guess += lookup.guess(count)
            left -= count
        self._guessing = {sequence.id for guess, sequence in zip(made, decoding, strict=True) if guess}
        return made

    def observe(self, plan: Plan, result: StepResult) -> None:
        """What came of a step; one in which not all sequences decode teaches nothing about decoding."""
        sequences, tokens, drafts = len(plan.sequences), plan.query_tokens, plan.drafts
        if drafts:
            self.drafted += drafts
            self.accepted += sum(max(0, len(outcome.tokens) - 1) for outcome in result.sequences)
        if tokens == drafts + sequences and result.execute_ns and all(part.sample for part in plan.sequences):
            self._cost.observe(sequences, tokens, result.execute_ns)


def _lookup(sequence: Continuation) -> Lookup:
    """The sequence's own, brought up to date."""
    if sequence.lookup is None:
        sequence.lookup = Lookup(sequence.request.spec.prompt)
    lookup = sequence.lookup
    lookup.follow(sequence.history(len(lookup), sequence.length))
    return lookup
