"""What the bundled grammar says: random draws of noun phrases, clauses and sentences, composed by ``syntax``.

Every choice is one that shows in English; French follows from it. Lists of choices repeat what should come often.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache

from attn_jax.data.grammar import closed, lexicon, syntax
from attn_jax.data.grammar.closed import Adverb, Determiner
from attn_jax.data.grammar.lexicon import BE, BE_AVOIR, IL, ILS, JE, NOUS, VOUS, Adjective, Complement, Noun, Verb
from attn_jax.data.grammar.syntax import AlignedPair, Nominal, Phrase, clause, gloss, join, prepositional

# What goes with what -------------------------------------------------------------------------------------------------

_DEFINITE = (
    [(closed.THE, False)] * 9
    + [(closed.THE, True)] * 4
    + [(closed.THIS, False)] * 2
    + [(closed.THIS, True)]
    + [(possessive, False) for possessive in closed.POSSESSIVES]
    + [(possessive, True) for possessive in closed.POSSESSIVES[::2]]
)
_DEFINITE_SINGULAR = [(determiner, plural) for determiner, plural in _DEFINITE if not plural]
_MANY = [(quantifier, True) for quantifier in (*closed.QUANTIFIERS, closed.MANY)]
DETERMINERS = {
    "definite": _DEFINITE,
    "subject": [*_DEFINITE, *[(closed.A, False)] * 4, *_MANY, (closed.EVERY, False), (closed.ALL, True)],
    "object": [*_DEFINITE, *[(closed.A, False)] * 7, *[(closed.BARE, True)] * 4, *_MANY, (closed.ALL, True)],
    "negated": [*_DEFINITE, *[(closed.NO_A, False)] * 7, *[(closed.NO_BARE, True)] * 5],
    "generic": [*_DEFINITE, *[(closed.GENERIC, True)] * 12],
    "existing": [*[(closed.A, False)] * 7, *[(closed.BARE, True)] * 3, *_MANY],
    "missing": [(closed.NO, False), (closed.NO, True)],
    "owner": _DEFINITE_SINGULAR,
    "place": [*_DEFINITE_SINGULAR * 2, *_DEFINITE],
}
"""Determiner and number by the role of a noun phrase."""
_MASS_DEFINITE = [(closed.THE, False)] * 3 + [(closed.THIS, False)]
MASS_DETERMINERS = {
    "definite": _MASS_DEFINITE,
    "subject": _MASS_DEFINITE,
    "object": [*_MASS_DEFINITE, *[(closed.PARTITIVE, False)] * 8],
    "negated": [*_MASS_DEFINITE, *[(closed.NO_BARE, False)] * 8],
    "generic": [*_MASS_DEFINITE, *[(closed.GENERIC, False)] * 8],
}

_PRESENT = ["present"] * 8 + ["progressive"] * 4 + ["can", "must", "want"]
_PAST = ["past"] * 8 + ["past progressive"] * 2
_FUTURE = ["future"] * 5
_TENSES = _PRESENT + _PAST + _FUTURE
_STATES = {"progressive": "present", "past progressive": "past"}
_PLACES = [
    (tag, place)
    for tag, weight in (("in", 6), ("on", 3), ("under", 1), ("by", 1))
    for place in closed.PLACES[tag] * weight
]
_OWN_GROUP = {JE: (JE, NOUS), NOUS: (JE, NOUS), VOUS: (VOUS,), IL: (), ILS: ()}
"""Persons that a subject's object pronoun does not stand for, because they would include the subject or its part."""
_PROFESSIONS = tuple(tuple(entry.split()) for entry in lexicon.PROFESSIONS.split(", "))


@cache
def _adjectives(kind: str, slot: str) -> tuple[Adjective, ...]:
    return tuple(adjective for adjective in lexicon.ADJECTIVES if kind in adjective.kinds and slot == adjective.slot)


@cache
def _predicates(kind: str, comparing: bool = False) -> tuple[Adjective, ...]:
    return tuple(a for a in lexicon.ADJECTIVES if kind in a.kinds and (a.compares or not comparing))


@cache
def _verbs(kind: str) -> tuple[Verb, ...]:
    """Verbs for a kind of subject."""
    return tuple(verb for verb in lexicon.VERBS if kind == "person" or "person" not in verb.flags)


@cache
def _verbs_somewhere(kind: str) -> tuple[Verb, ...]:
    """Verbs without an object, of which one can ask where it happens."""
    verbs = [verb for verb in _verbs(kind) if {"stative", "unplaced"}.isdisjoint(verb.flags)]
    return tuple(verb for verb in verbs if None in verb.complements)


@cache
def _verbs_with(kind: str) -> tuple[Verb, ...]:
    """Verbs with a bare object of this kind and no other complement, for relative clauses and "what"."""
    verbs = [verb for verb in lexicon.VERBS if "recipient" not in verb.flags]
    return tuple(v for v in verbs if any(c and c.direct and not c.en and kind in c.tags for c in v.complements))


# Noun phrases --------------------------------------------------------------------------------------------------------


def _noun(rng: random.Random, tags: Sequence[str], role: str, relative: float = 0.0) -> Nominal:
    """A noun phrase with one of the tags, in a role of ``DETERMINERS``; with a relative clause at the given rate."""
    noun = rng.choice(lexicon.NOUNS[rng.choice(tags)])
    determiner, plural = rng.choice((MASS_DETERMINERS if noun.mass else DETERMINERS)[role])
    owned = determiner is closed.THE and not noun.mass and rng.random() < 0.1
    owner = _noun(rng, ("kin",), "owner") if owned else None
    head = syntax.noun_phrase(determiner, noun, plural, _attributes(rng, noun, determiner), owner)
    return _relative(rng, head) if rng.random() < relative and determiner not in closed.NEGATED else head


def _attributes(rng: random.Random, noun: Noun, determiner: Determiner) -> list[Adjective]:
    """No, one or more adjectives, in the English order: size, quality, colour."""
    if noun.mass and determiner is not closed.THE:
        return []
    fitting = [_adjectives(noun.kind, slot) for slot in lexicon.SLOTS]
    return [rng.choice(adjectives) for adjectives in fitting if adjectives and rng.random() < 0.2]


def _relative(rng: random.Random, head: Nominal) -> Nominal:
    """Adds a relative clause: "who sleeps", "that he ate", "where we work"."""
    if head.kind in ("person", "animal") and rng.random() < 0.6:
        verbs = [v for v in _verbs(head.kind) if "unplaced" not in v.flags]  # a place may follow the relative clause
        return syntax.modify(head, _clause(rng, syntax.relative_subject(head), verbs=verbs, brief=True))
    subject = syntax.pronoun(rng.choice(closed.PRONOUNS)) if rng.random() < 0.6 else _noun(rng, ("person",), "definite")
    if head.kind == "place" and rng.random() < 0.5:
        inner = _action(rng, subject, rng.choice(_verbs_somewhere("person")), brief=True, placed=True)
        return syntax.modify(head, join(gloss("where", "où"), inner))
    verbs = _verbs_with(head.kind)
    if not verbs:
        return head
    inner = _action(rng, subject, rng.choice(verbs), brief=True, antecedent=head)
    return syntax.modify(head, join(gloss("whom" if head.kind == "person" else "that", "que"), inner))


def _subject(rng: random.Random, relative: float = 0.0) -> Nominal:
    """A pronoun, a noun phrase (with a relative clause at the given rate), or two of them."""
    if rng.random() < 0.4:
        return syntax.pronoun(rng.choice(closed.PRONOUNS))
    tags = ("person", "person", "animal")
    if rng.random() < 0.1:
        return syntax.both(_noun(rng, tags, "definite"), _noun(rng, tags, "definite"))
    return _noun(rng, tags, "subject", relative)


def _place(rng: random.Random) -> Phrase:
    tag, preposition = rng.choice(_PLACES)
    return join(gloss(*preposition), _noun(rng, (tag,), "place"))


# Clauses -------------------------------------------------------------------------------------------------------------


def _adverb(rng: random.Random, tense: str, subject: Nominal, question: bool) -> Adverb | None:
    """Negation, frequency, "still", "also" or nothing; "every cat does not" and "every cat never" are avoided."""
    chance = rng.random()
    total = subject.en and subject.en[0].text in ("every", "all")
    if chance < 0.14:
        return None if total or (question and chance > 0.07) else closed.NOT
    if chance < 0.17:
        return closed.ALSO
    if chance < 0.3 and "progressive" in tense:
        return closed.STILL
    if chance < 0.3 and tense in ("present", "past", "future"):
        return closed.NEVER if chance < 0.22 and not (question or total) else rng.choice(closed.FREQUENCIES)
    return None


def _time(rng: random.Random, tense: str, adverb: Adverb | None) -> Phrase | None:
    """When it happens, where tense and adverb leave that open."""
    settled = adverb in closed.FREQUENCIES or adverb is closed.NEVER or tense not in closed.TIMES
    return None if settled or rng.random() < 0.75 else gloss(*rng.choice(closed.TIMES[tense]))


def _front(rng: random.Random, time: Phrase | None, parts: dict, tail: list[Phrase], fronted: bool) -> Phrase:
    """Composes a clause with its time at the end or, for a main clause, at the front."""
    if time and fronted and rng.random() < 0.5:
        return join(time, gloss(",", ","), clause(**parts, tail=tail))
    return clause(**parts, tail=[*tail, time] if time else tail)


def _object_role(verb: Verb, complement: Complement, negative: bool, dative: bool) -> str:
    """The role, for its determiner, that verb and negation give an object."""
    if dative or not complement.direct:
        return "definite" if complement.direct or "person" in complement.tags else "place"
    if "generic" in verb.flags:
        return "generic"
    return "negated" if negative else "object"


def _action(
    rng: random.Random,
    subject: Nominal,
    verb: Verb,
    *,
    tenses: Sequence[str] = _TENSES,
    question: bool = False,
    brief: bool = False,
    fronted: bool = False,
    placed: bool = False,
    antecedent: Nominal | None = None,
) -> Phrase:
    """Somebody does something.

    Args:
      rng: where the choices come from.
      subject: who.
      verb: what.
      tenses: to choose from.
      question: whether it is asked.
      brief: whether time and relative clauses are left out.
      fronted: whether the time may come first.
      placed: whether the place is already said.
      antecedent: the object, if it came before.
    """
    tense = rng.choice(tenses)
    if "stative" in verb.flags:
        tense = _STATES.get(tense, tense)
    if "imparfait" in verb.flags and tense in ("can", "must", "want"):
        tense = "present"
    adverb = _adverb(rng, tense, subject, question)
    parts = {"subject": subject, "verb": verb, "tense": tense, "adverb": adverb, "question": question}
    tail = []
    complement = None
    if antecedent is not None:
        parts["antecedent"] = antecedent
    else:
        complement = parts["complement"] = rng.choice(verb.complements)
    if complement:
        pronouns = [p for p in closed.OBJECT_PRONOUNS if p.person not in _OWN_GROUP[subject.person]]
        dative = "recipient" in verb.flags and rng.random() < 0.4
        if dative or (complement.direct and "person" in complement.tags and rng.random() < 0.35):
            parts.update(clitic=rng.choice(pronouns), dative=dative)
        if dative or "clitic" not in parts:
            negative = adverb is not None and adverb.negative
            role = _object_role(verb, complement, negative, dative)
            parts["noun"] = _noun(rng, complement.tags, role, relative=0.0 if brief or dative else 0.12)
        if "recipient" in verb.flags and not dative:
            tail.append(prepositional("to", "à", _noun(rng, ("person",), "definite")))
    placed = placed or "stative" in verb.flags or (complement is not None and not complement.direct)
    unplaced = "unplaced" in verb.flags
    if complement is None and antecedent is None and not placed and rng.random() < 0.2:
        tail.append(gloss(*rng.choice([m for m in closed.MANNERS if not (unplaced and m is closed.HERE)])))
    elif not (placed or unplaced) and rng.random() < (0.12 if brief else 0.25):
        tail.append(_place(rng))
    if "for" in verb.flags and rng.random() < 0.15:
        tail.append(prepositional("for", "pour", _noun(rng, ("person",), "definite")))
    elif subject.kind == "person" and not placed and rng.random() < 0.08:
        tail.append(prepositional("with", "avec", _noun(rng, ("kin",), "definite")))
    time = None if brief or "imparfait" in verb.flags else _time(rng, tense, adverb)
    return _front(rng, time, parts, tail, fronted)


def _copula(
    rng: random.Random,
    subject: Nominal,
    *,
    tenses: Sequence[str] = _TENSES,
    question: bool = False,
    brief: bool = False,
    fronted: bool = False,
) -> Phrase:
    """Somebody is something: old, a doctor, in the garden, hungry, more famous than the king."""
    tense = rng.choice(tenses)
    tense = _STATES.get(tense, "present" if tense in ("can", "must", "want") else tense)
    adverb = _adverb(rng, tense, subject, question)
    chance = rng.random()
    verb = BE
    if chance < 0.2 and subject.kind == "person" and not brief:
        rest = syntax.profession(subject, rng.choice(_PROFESSIONS))
    elif chance < 0.35 and subject.kind in ("person", "animal"):
        verb, rest = BE_AVOIR, gloss(*rng.choice(closed.IDIOMS))
    elif chance < 0.5 and subject.kind in ("person", "animal", "thing", "vehicle"):
        rest = _place(rng)
    elif chance < 0.6 and _predicates(subject.kind, comparing=True):
        more, adjective = rng.choice(closed.COMPARISONS), rng.choice(_predicates(subject.kind, comparing=True))
        standard = _noun(rng, (subject.kind,), "definite")
        rest = join(syntax.predicate(subject, [adjective], more), gloss("than", "que"), standard)
    else:
        two = rng.random() < 0.15 and not (adverb and adverb.negative)
        adjectives = rng.sample(_predicates(subject.kind), 1 + two)
        intensified = rng.random() < 0.4 and all(adjective.intensifies for adjective in adjectives)
        rest = syntax.predicate(subject, adjectives, rng.choice(closed.INTENSIFIERS) if intensified else None)
    parts = {"subject": subject, "verb": verb, "tense": tense, "adverb": adverb, "question": question}
    return _front(rng, None if brief else _time(rng, tense, adverb), parts, [rest], fronted)


def _clause(rng: random.Random, subject: Nominal, verbs: Sequence[Verb] = (), **options: object) -> Phrase:
    """An action, with one of ``verbs`` if there are any, or a state."""
    if rng.random() < 0.22:
        return _copula(rng, subject, **options)
    return _action(rng, subject, rng.choice(verbs or _verbs(subject.kind)), **options)


def _existence(rng: random.Random, tense: str, question: bool = False) -> Phrase:
    """Something is somewhere: "there is a cat in the garden"."""
    tense = tense if tense in ("present", "past", "future") else "present"
    negative = not question and rng.random() < 0.2
    noun = _noun(rng, ("person", "animal", "thing"), "missing" if negative else "existing", relative=0.12)
    return join(syntax.existential(tense, noun, question=question, negative=negative), _place(rng))


def _statement(rng: random.Random, tenses: Sequence[str] = _TENSES, fronted: bool = False) -> Phrase:
    """Any statement."""
    chance = rng.random()
    if chance < 0.04:
        return _existence(rng, rng.choice(tenses))
    if chance < 0.12:
        tags = ("thing", "vehicle", "place", "furniture", "snack", "food", "work")
        return _copula(rng, _noun(rng, tags, "definite", relative=0.2), tenses=tenses, fronted=fronted)
    return _clause(rng, _subject(rng, relative=0.12), tenses=tenses, fronted=fronted)


# Sentences -----------------------------------------------------------------------------------------------------------


def _simple(rng: random.Random) -> Phrase:
    return _statement(rng, fronted=True)


def _coordinated(rng: random.Random) -> Phrase:
    tenses = rng.choice((_PRESENT, _PAST, _FUTURE, _TENSES))
    conjunction = gloss(*rng.choice((("and", "et"), ("but", "mais"))))
    return join(_statement(rng, tenses, fronted=True), gloss(",", ","), conjunction, _statement(rng, tenses))


def _subordinated(rng: random.Random) -> Phrase:
    """Two clauses: "because", "when" and "while" with tenses of one time, "if" with its future."""
    chance = rng.random()
    if chance < 0.55:
        tenses = rng.choice((_PRESENT, _PRESENT, _PAST, _PAST, _FUTURE))
        return join(_statement(rng, tenses, fronted=True), gloss("because", "parce que"), _statement(rng, tenses))
    if chance < 0.7:
        tense = rng.choice(("present", "past progressive"))
        conjunction, main, side = ("when", "quand"), [tense], ["past" if "past" in tense else tense]
    elif chance < 0.8:
        conjunction, main = ("while", "pendant que"), [rng.choice(("progressive", "past progressive"))]
        side = main
    else:
        conjunction, main, side = ("if", "si"), ["future"], ["present"]
    main_clause = _clause(rng, _subject(rng), tenses=main)
    side_clause = join(gloss(*conjunction), _clause(rng, _subject(rng), tenses=side))
    if rng.random() < 0.5:
        return join(side_clause, gloss(",", ","), main_clause)
    return join(main_clause, side_clause)


def _opinion(rng: random.Random) -> Phrase:
    subject = syntax.pronoun(rng.choice(closed.PRONOUNS)) if rng.random() < 0.6 else _noun(rng, ("person",), "subject")
    return join(clause(subject, rng.choice(lexicon.OPINIONS), "present"), gloss("that", "que"), _statement(rng))


def _polar_question(rng: random.Random) -> Phrase:
    if rng.random() < 0.08:
        return _existence(rng, rng.choice(_TENSES), question=True)
    return _clause(rng, _subject(rng), question=True)


def _open_question(rng: random.Random) -> Phrase:
    """Who, what, where, why, when."""
    word, fr = rng.choice((("who", "qui"), ("what", "que"), ("where", "où"), ("why", "pourquoi"), ("when", "quand")))
    ask = gloss(word, fr)
    if word == "who":
        return _clause(rng, Nominal(*ask))
    subject = _subject(rng)
    if word == "what":
        verb = rng.choice(_verbs_with(rng.choice(("thing", "snack", "work"))))
        what = Nominal([], [])
        return join(ask, _action(rng, subject, verb, question=True, brief=True, antecedent=what))
    if word == "where" and rng.random() < 0.4:
        noun = _noun(rng, ("person", "animal", "thing", "vehicle"), "definite")
        return join(ask, clause(Nominal([], [], noun.person), BE, rng.choice(("present", "past"))), noun)
    if word == "where":
        verb = rng.choice(_verbs_somewhere(subject.kind))
        return join(ask, _action(rng, subject, verb, question=True, brief=True, placed=True))
    return join(ask, _clause(rng, subject, question=True, brief=True))


_SENTENCES = [_simple] * 11 + [_coordinated] * 3 + [_subordinated] * 3 + [_opinion] + [_polar_question] * 2
_SENTENCES += [_open_question] * 2


def draw_sentence(rng: random.Random) -> AlignedPair:
    """Draws a sentence. Questions end with "?", two of three statements with ".".

    >>> pair = draw_sentence(random.Random(0))
    >>> pair == draw_sentence(random.Random(0))
    True
    """
    kind = rng.choice(_SENTENCES)
    phrase = kind(rng)
    if kind in (_polar_question, _open_question):
        phrase = join(phrase, gloss("?", "?"))
    elif rng.random() < 0.67:
        phrase = join(phrase, gloss(".", "."))
    return syntax.realize(phrase)
