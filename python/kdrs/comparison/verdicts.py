"""Better, worse or not clear: what the tests over queries and over seeds say together."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from kdrs.evaluation.significance import Difference

LEVEL = 0.05


@dataclass(frozen=True)
class Verdict:
    """A model against its baseline, by one metric."""

    word: str
    """``better``, ``worse`` or ``not clear``. With several seeds it takes both tests to say better or worse."""
    tests: tuple[str, ...]
    """Tests that found a difference: ``queries``, ``seeds``."""
    lacks: str | None = None
    """Why there is no test over seeds, if there is none: ``one seed``, or ``no common seeds``."""

    def __str__(self) -> str:
        said = list(self.tests)
        if self.lacks is not None:
            said = [self.lacks]
        elif self.word == "not clear" and self.tests:
            said = [f"{self.tests[0]} only" if len(self.tests) == 1 else "tests disagree"]
        return f"{self.word} ({', '.join(said)})" if said else self.word

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"tests": list(self.tests)}


def verdict_of(over_queries: Difference, over_seeds: Difference | None, seeds: int) -> Verdict:
    """The verdict of one comparison; ``seeds`` are those of the model or of its baseline, whichever has fewer.

    With one seed the test over queries decides, and the verdict says that it speaks about these weights alone.
    """
    found = {"queries": over_queries} if over_seeds is None else {"queries": over_queries, "seeds": over_seeds}
    spoke = {test: d.difference > 0 for test, d in found.items() if decisive_p(d) < LEVEL}
    if over_seeds is None:
        lacks = "one seed" if seeds < 2 else "no common seeds"
        # Several seeds that cannot be paired leave the question of another training open.
        agreed = bool(spoke) and seeds < 2
    else:
        lacks = None
        agreed = len(spoke) == 2 and len(set(spoke.values())) == 1
    word = "not clear" if not agreed else "better" if spoke["queries"] else "worse"
    return Verdict(word, tuple(spoke), lacks)


def decisive_p(d: Difference) -> float:
    """The p-value after Holm's correction, where the comparison is one of those corrected for."""
    return d.p if d.p_adjusted is None else d.p_adjusted
