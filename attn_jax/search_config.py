"""How to search, as one set of options for Python and the command line. It imports no JAX, so that --help is quick."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

STOPS = ("safe", "current", "full")
OF_BEAMS = ("beam", "n_best", "groups", "diversity", "stop")
OF_SAMPLES = ("num_samples", "temperature", "top_k", "top_p", "min_p", "seed")


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """What to look for: the best hypotheses of a beam, or with ``sample`` random ones.

    `check` says what is out of range; every search calls it, and the command line does so before it reads anything.
    """

    beam: int = 5
    """Hypotheses that the search keeps; 1 is greedy."""
    n_best: int = 1
    """Hypotheses to return, at most as many as the beam."""
    length_penalty: float | Literal["average"] = 0.6
    """GNMT's alpha, larger favours longer translations; or average: log-probability a token, which is alpha 1 with
    offset 0."""
    length_offset: float = 5.0
    """GNMT's 5: scores are divided by ((offset + length) / (offset + 1)) ** alpha; 0: by length ** alpha."""
    coverage_penalty: float = 0.0
    """GNMT's beta, against source words that are not looked at; 0: off."""
    no_repeat_ngram: int = 0
    """No sequence of so many tokens occurs twice; 0: off."""
    groups: int = 1
    """Diverse groups that share the beam and the n-best."""
    diversity: float = 0.5
    """What a group's token loses for each hypothesis of the groups before it that takes it too, in nats."""
    min_len: int = 1
    """Least tokens of a translation, with end of sentence."""
    max_len: int = 0
    """Most tokens of a translation; 0: twice the source and eight more."""
    stop: Literal["safe", "current", "full"] = "safe"
    """When a beam is done: safe when nothing can still be better; full with as many ends as hypotheses are kept;
    current when moreover the best that goes on, were it to end now, is no better than the worst of these."""
    forced_end: bool = False
    """At its limit a translation ends, at no cost; otherwise it is cut."""
    renormalize: bool = False
    """The probabilities of what constraints leave possible sum to 1 again."""
    sample: bool = False
    """Draw translations instead of looking for the best."""
    num_samples: int = 1
    """Translations to draw of each sentence."""
    temperature: float = 1.0
    """Of sampling: below 1 sharpens, above 1 flattens."""
    top_k: int = 0
    """Draw from so many most likely tokens; 0: all."""
    top_p: float = 1.0
    """Draw from the fewest most likely tokens with so much probability together."""
    min_p: float = 0.0
    """Draw from tokens with at least this share of the probability of the most likely one."""
    seed: int = 1
    """Of the draws; a sentence's draws depend on it and on the number of the sentence."""

    def check(self) -> None:
        """Raises ValueError for numbers out of range, or that do not go together."""
        for field in dataclasses.fields(self):
            if field.type == "int" and not hasattr(getattr(self, field.name), "__index__"):
                raise ValueError(f"{field.name} must be a whole number, found {getattr(self, field.name)!r}")
        if self.sample:
            check_truncation(self.temperature, self.top_k or None, self.top_p, self.min_p)
        else:
            check_beam(self.beam, self.n_best, self.groups, self.diversity)
        if isinstance(self.length_penalty, str) and self.length_penalty != "average":
            raise ValueError(f"length_penalty must be a number (alpha) or 'average', found {self.length_penalty!r}")
        check_stop(self.stop)
        for name in ("length_penalty", "length_offset", "coverage_penalty", "diversity", "temperature"):
            value = getattr(self, name)
            if not isinstance(value, str) and not math.isfinite(value):
                raise ValueError(f"{name} must be a finite number, found {value}")
        counts = ("no_repeat_ngram", "max_len", "min_len", "top_k", "num_samples")
        for name in ("length_offset", "coverage_penalty", *counts):
            least = int(name in ("min_len", "num_samples"))
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, found {getattr(self, name)}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must be within [0, 2 ** 32), found {self.seed}")
        if 0 < self.max_len < self.min_len:
            raise ValueError(f"min_len must be at most max_len = {self.max_len}, found {self.min_len}")

    def updated(self, **given: Any) -> SearchConfig:
        """This config with the options given, each of which must matter.

        Raises:
          ValueError: for options of sampling where it is off, and options of a beam where it is on.

        >>> SearchConfig(sample=True).updated(top_k=5).top_k
        5
        """
        config = dataclasses.replace(self, **given)
        for name in filter(given.__contains__, OF_BEAMS if config.sample else OF_SAMPLES):
            how = "with sample; give one of them" if config.sample else "without sample; give both or neither"
            raise ValueError(f"{name} does nothing {how}")
        if "diversity" in given and config.groups == 1:
            raise ValueError("diversity does nothing in one group; give groups too")
        return config

    @property
    def count(self) -> int:
        """How many hypotheses a sentence gets."""
        return self.num_samples if self.sample else self.n_best


def check_beam(beam: int, n_best: int, groups: int, diversity: Any) -> None:
    """Raises ValueError for what ``beam_search`` cannot do.

    >>> check_beam(beam=4, n_best=2, groups=2, diversity=0.5)
    """
    if beam < 1:
        raise ValueError(f"beam must be at least 1, found {beam}")
    if not 1 <= n_best <= beam:
        raise ValueError(f"n_best must be between 1 and beam = {beam}, found {n_best}; widen the beam")
    if groups < 1 or beam % groups or n_best % groups:
        raise ValueError(f"groups must divide beam = {beam} and n_best = {n_best}, found {groups}")
    if isinstance(diversity, int | float) and diversity < 0:
        raise ValueError(f"diversity must not be negative, found {diversity}")


def check_stop(stop: str) -> None:
    """Raises ValueError for what does not say when a beam is done.

    >>> check_stop("safe")
    """
    if stop not in STOPS:
        raise ValueError(f"stop must be one of {', '.join(STOPS)}, found {stop!r}")


def check_truncation(temperature: Any, top_k: int | None, top_p: Any, min_p: Any) -> None:
    """Raises ValueError for what ``sample`` cannot do.

    >>> check_truncation(temperature=0.7, top_k=None, top_p=0.9, min_p=None)
    """
    if isinstance(temperature, int | float) and temperature <= 0:
        raise ValueError(f"temperature must be above 0, found {temperature}; for the most likely token use greedy")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, found {top_k}; None keeps all tokens")
    if isinstance(top_p, int | float) and not 0 < top_p <= 1:
        raise ValueError(f"top_p must be within (0, 1], found {top_p}; None keeps all tokens")
    if isinstance(min_p, int | float) and not 0 <= min_p <= 1:
        raise ValueError(f"min_p must be within [0, 1], found {min_p}; None keeps all tokens")
