"""The closed classes of the bundled grammar: determiners, pronouns, adverbs, prepositions, times, set phrases."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from attn_jax.data.grammar.lexicon import IL, ILS, JE, NOUS, VOUS


@dataclass(frozen=True)
class Determiner:
    """A determiner; ``en`` holds singular and plural, ``fr`` is indexed by :func:`form`; words are split by spaces."""

    en: tuple[str, str]
    fr: tuple[str, str, str, str]


@dataclass(frozen=True)
class ObjectPronoun:
    """An object pronoun: French direct and dative clitic, the person it stands for, and its gender and number."""

    en: str
    direct: str
    dative: str
    person: int
    feminine: bool = False
    plural: bool = False


class Adverb(NamedTuple):
    """An adverb beside the verb: "often" / "souvent". A negative one brings "ne"."""

    en: str
    fr: str
    negative: bool = False


# Determiners ---------------------------------------------------------------------------------------------------------

THE = Determiner(("the", "the"), ("le", "la", "les", "les"))
A = Determiner(("a", ""), ("un", "une", "", ""))
BARE = Determiner(("", ""), ("", "", "des", "des"))
"""No article in English: "he sees cats" / "il voit des chats"."""
PARTITIVE = Determiner(("", ""), ("de le", "de la", "", ""))
"""No article: "he eats bread" / "il mange du pain"."""
GENERIC = Determiner(("", ""), ("le", "la", "les", "les"))
"""No article: "he loves cats" / "il aime les chats"."""
NO_A = Determiner(("a", ""), ("de", "de", "", ""))
NO_BARE = Determiner(("", ""), ("de", "de", "de", "de"))
"""Objects under negation: "does not see a cat" / "ne voit pas de chat"."""
NO = Determiner(("no", "no"), ("de", "de", "de", "de"))
NEGATED = (NO_A, NO_BARE, NO)
"""A relative clause after these would need the subjunctive."""
THIS = Determiner(("this", "these"), ("ce", "cette", "ces", "ces"))
EVERY = Determiner(("every", ""), ("chaque", "chaque", "", ""))
ALL = Determiner(("", "all the"), ("", "", "tous les", "toutes les"))
MANY = Determiner(("", "many"), ("", "", "beaucoup de", "beaucoup de"))
QUANTIFIERS = tuple(
    Determiner(("", en), ("", "", fr, fr))
    for en, fr in (
        ("some", "quelques"),
        ("several", "plusieurs"),
        ("two", "deux"),
        ("three", "trois"),
        ("four", "quatre"),
        ("five", "cinq"),
    )
)
POSSESSIVES = tuple(
    Determiner((en, en), tuple(fr.split()))
    for en, fr in (
        ("my", "mon ma mes mes"),
        ("his", "son sa ses ses"),
        ("her", "son sa ses ses"),
        ("our", "notre notre nos nos"),
        ("your", "votre votre vos vos"),
        ("their", "leur leur leurs leurs"),
    )
)

# Pronouns ------------------------------------------------------------------------------------------------------------

PRONOUNS = (
    ("i", "je", JE, False, False),
    ("he", "il", IL, False, False),
    ("she", "elle", IL, True, False),
    ("we", "nous", NOUS, False, True),
    ("you", "vous", VOUS, False, False),
    ("they", "ils", ILS, False, True),
)
"""Subject pronouns: English, French, person, feminine, plural."""

OBJECT_PRONOUNS = (
    ObjectPronoun("me", "me", "me", JE),
    ObjectPronoun("him", "le", "lui", IL),
    ObjectPronoun("her", "la", "lui", IL, feminine=True),
    ObjectPronoun("us", "nous", "nous", NOUS, plural=True),
    ObjectPronoun("you", "vous", "vous", VOUS),
    ObjectPronoun("them", "les", "leur", ILS, plural=True),
)


# Adverbs -------------------------------------------------------------------------------------------------------------

NOT, NEVER = Adverb("not", "pas", True), Adverb("never", "jamais", True)
STILL, ALSO = Adverb("still", "encore"), Adverb("also", "aussi")
FREQUENCIES = tuple(
    Adverb(*pair)
    for pair in (("often", "souvent"), ("always", "toujours"), ("sometimes", "parfois"), ("rarely", "rarement"))
)
HERE = ("here", "ici")
MANNERS = (("slowly", "lentement"), ("quickly", "rapidement"), ("quietly", "silencieusement"), HERE)
TIMES = {
    "present": (
        ("today", "aujourd'hui"),
        ("now", "maintenant"),
        ("every day", "tous les jours", "0 0 1"),
        ("in the morning", "le matin", "1 2"),
    ),
    "progressive": (("today", "aujourd'hui"), ("now", "maintenant")),
    "past": (
        ("yesterday", "hier"),
        ("last week", "la semaine dernière", "1 1 0"),
        ("last year", "la année dernière", "1 1 0"),
    ),
    "past progressive": (("yesterday", "hier"),),
    "future": (
        ("tomorrow", "demain"),
        ("next week", "la semaine prochaine", "1 1 0"),
        ("next year", "la année prochaine", "1 1 0"),
    ),
}
"""By tense. A third entry, here and below, names the English words behind each French one (see ``syntax.gloss``)."""

# Prepositions and set phrases ----------------------------------------------------------------------------------------

PLACES = {
    "in": (("in", "dans"),),
    "on": (("on", "sur"),),
    "under": (("under", "sous"),),
    "by": (
        ("near", "près de", "0 0"),
        ("behind", "derrière"),
        ("in front of", "devant"),
        ("next to", "à côté de", "0 0 1"),
    ),
}
"""By the tag of the nouns that follow."""
IDIOMS = (
    ("hungry", "faim"),
    ("thirsty", "soif"),
    ("cold", "froid"),
    ("hot", "chaud"),
    ("afraid", "peur"),
    ("right", "raison"),
    ("wrong", "tort"),
)
"""English "to be", French "avoir"."""
INTENSIFIERS = (("very", "très"), ("too", "trop"))
COMPARISONS = (("more", "plus"), ("less", "moins"))
