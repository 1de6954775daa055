"""Short names for what the tests of the grammar put into its sentences."""

import random

from attn_jax.data.grammar import closed, lexicon, syntax
from attn_jax.data.grammar.lexicon import BE, NOUNS
from attn_jax.data.grammar.syntax import clause, gloss, join, noun_phrase


def noun(en):
    return next(n for nouns in NOUNS.values() for n in nouns if n.en[0] == en)


def adjectives(*en):
    return [next(a for a in lexicon.ADJECTIVES if a.en == word) for word in en]


def verb(base):
    return next(v for v in lexicon.VERBS if v.en[0] == base)


def who(en):
    return syntax.pronoun(next(row for row in closed.PRONOUNS if row[0] == en))


def whom(en):
    return next(p for p in closed.OBJECT_PRONOUNS if p.en == en)


def adverb(en):
    return next(a for a in (closed.NOT, closed.NEVER, closed.STILL, *closed.FREQUENCIES) if a.en == en)


def my(en):
    return next(d for d in closed.POSSESSIVES if d.en[0] == en)


def one(determiner, en, *adjs, owner=None):
    return noun_phrase(determiner, noun(en), False, adjectives(*adjs), owner)


def many(determiner, en, *adjs):
    return noun_phrase(determiner, noun(en), True, adjectives(*adjs))


def do(subject, base, tense="present", en_not=None, *, obj=None, pronoun=None, complement=-1, **options):
    """A clause by the words of its parts."""
    action = verb(base)
    options |= {"adverb": adverb(en_not) if en_not else None, "clitic": whom(pronoun) if pronoun else None}
    return clause(subject, action, tense, noun=obj, complement=action.complements[complement], **options)


def be(subject, tense="present", en_not=None, *, rest, **options):
    return clause(subject, BE, tense, adverb=adverb(en_not) if en_not else None, tail=[rest], **options)


THE, A = closed.THE, closed.A


def relative(head, link, inner):
    return syntax.modify(head, join(gloss(*link), inner))


class Wishful:
    """Draws as the grammar does, but prefers what is wished for among the choices that the grammar offers.

    With three values for all rates, what is rare comes often enough to wait for; the rarest additions never come.
    """

    def __init__(self, wishes, seed=0):
        self.wishes = wishes
        self.rng = random.Random(seed)
        self.sample = self.rng.sample

    def random(self):
        return self.rng.choice((0.15, 0.5, 0.9))

    def choice(self, seq):
        return self.rng.choice([item for item in seq if item in self.wishes] or seq)
