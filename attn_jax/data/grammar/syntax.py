"""Composition of English and French at once: noun phrases, clauses, and the spelling where words meet.

A phrase carries two token lists. An English token is a :class:`Word`, compared by identity; a French token names the
words that it translates, so composition is list concatenation and the alignment falls out at the end. French stays
abstract ("le", "de", "ne", "que") until :func:`realize` elides and contracts it.

Alignment follows the habits of human annotators: every French token that English accounts for is linked. "Not" is "ne"
and "pas"; an article without an English counterpart belongs to its noun; "will eat" is "mangera"; "did eat" is "a
mangé"; a fronted auxiliary is "est-ce que". Left unlinked are the "do" of a negation, the "to" of an infinitive, the
"a" before a profession, and particles ("look at").
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from attn_jax.data.grammar.closed import NOT, Adverb, Determiner, ObjectPronoun
from attn_jax.data.grammar.lexicon import (
    AVOIR,
    BE,
    IL,
    ILS,
    Adjective,
    Complement,
    Noun,
    Verb,
    agreeing_forms,
    form,
)


@dataclass(frozen=True)
class AlignedPair:
    """A sentence pair, tokenised, with links ``(source index, target index)`` sorted by source."""

    src: tuple[str, ...]
    tgt: tuple[str, ...]
    alignment: tuple[tuple[int, int], ...]


class Word:
    """One English token of one sentence."""

    __slots__ = ("text",)

    def __init__(self, text: str):
        self.text = text


English = list[Word]
French = list[tuple[str, tuple[Word, ...]]]


class Phrase(NamedTuple):
    """An English and a French token list."""

    en: English
    fr: French


class Nominal(NamedTuple):
    """A noun phrase or pronoun with the features that others agree with."""

    en: English
    fr: French
    person: int = IL
    feminine: bool = False
    plural: bool = False
    kind: str = "person"


_MODALS = {
    "can": ("peux", "peut", "pouvons", "pouvez", "peuvent"),
    "must": ("dois", "doit", "devons", "devez", "doivent"),
    "want": ("veux", "veut", "voulons", "voulez", "veulent"),
}
_BE_PRESENT = ("am", "is", "are", "are", "are")
_BE_PAST = ("was", "was", "were", "were", "were")

# Phrases -------------------------------------------------------------------------------------------------------------


@cache
def _gloss_template(en: str, fr: str, links: str) -> tuple[tuple[str, ...], tuple[tuple[str, tuple[int, ...]], ...]]:
    """English words, and French words with the positions of their English sources."""
    words, french = tuple(en.split()), fr.split()
    if links:
        sources = [tuple(map(int, digits)) for digits in links.split()]
    elif len(words) == len(french):
        sources = [(position,) for position in range(len(words))]
    else:
        sources = [tuple(range(len(words)))] * len(french)
    return words, tuple(zip(french, sources, strict=True))


def gloss(en: str, fr: str, links: str = "") -> Phrase:
    """A fixed expression.

    Args:
      en: English words.
      fr: French words.
      links: for each French word, the digits of the English words that it translates. By default one to one where the
        two sides are equally long, else all to all.

    >>> realize(gloss("last week", "la semaine dernière", "1 1 0")).alignment
    ((0, 2), (1, 0), (1, 1))
    """
    texts, template = _gloss_template(en, fr, links)
    words = [Word(text) for text in texts]
    if len(words) == 1:  # most often
        return Phrase(words, [(text, (words[0],)) for text, _ in template])
    return Phrase(words, [(text, tuple([words[source] for source in sources])) for text, sources in template])


def _words(text: str) -> English:
    return [Word(word) for word in text.split()]


def join(*phrases: Phrase | Nominal) -> Phrase:
    """Concatenates phrases on both sides."""
    return Phrase(
        [word for phrase in phrases for word in phrase.en], [token for phrase in phrases for token in phrase.fr]
    )


def pronoun(row: tuple[str, str, int, bool, bool]) -> Nominal:
    """A subject pronoun from a row of ``PRONOUNS``."""
    en, fr, *features = row
    return Nominal(*gloss(en, fr), *features)


def noun_phrase(
    determiner: Determiner,
    noun: Noun,
    plural: bool = False,
    adjectives: Sequence[Adjective] = (),
    owner: Nominal | None = None,
) -> Nominal:
    """Determiner, adjectives and noun; or, with an owner, "the king 's old dog" / "le vieux chien de le roi".

    Args:
      determiner: ``THE``, ``A``, ...; with an owner only its French article shows.
      noun: the head.
      plural: its number.
      adjectives: in English order; those after the French noun appear there in reverse.
      owner: who has it.
    """
    head = Word(noun.en[plural])
    index = form(noun.feminine, plural)
    words, before, after = [], [], []
    for adjective in adjectives:
        word = Word(adjective.en)
        words.append(word)
        if adjective.precedes:
            prevocalic = index == 0 and starts_with_vowel(noun.fr[0])
            before.append((adjective.before_vowel if prevocalic else adjective.fr[index], (word,)))
        else:
            after.insert(0, (adjective.fr[index], (word,)))
    article = determiner.fr[index]
    if article == "des" and before:
        article = "de"
    body = [*before, (noun.fr[plural], (head,)), *after]
    if owner is not None:
        possessive = Word("'s")
        en = [*owner.en, possessive, *words, head]
        fr = [(article, (head,)), *body, ("de", (possessive,)), *owner.fr]
    else:
        en, fr = gloss(determiner.en[plural], article)
        fr = fr if en else [(text, (head,)) for text in article.split()]
        en, fr = [*en, *words, head], [*fr, *body]
    return Nominal(en, fr, ILS if plural else IL, noun.feminine, plural, noun.kind)


def both(first: Nominal, second: Nominal) -> Nominal:
    """Two coordinated subjects: plural, feminine only if both are."""
    en, fr = join(first, gloss("and", "et"), second)
    kind = "animal" if "animal" in (first.kind, second.kind) else first.kind
    return Nominal(en, fr, ILS, first.feminine and second.feminine, True, kind)


def relative_subject(head: Nominal) -> Nominal:
    """The pronoun "who" or "that" / "qui", which agrees as its head does."""
    return head._replace(**gloss("who" if head.kind == "person" else "that", "qui")._asdict())


def modify(head: Nominal, phrase: Phrase) -> Nominal:
    """Appends a relative clause to a noun phrase."""
    return head._replace(**join(head, phrase)._asdict())


def prepositional(en: str, fr: str, noun: Nominal) -> Phrase:
    """A prepositional phrase."""
    return join(gloss(en, fr), noun)


def predicate(subject: Nominal, adjectives: Iterable[Adjective], intensifier: tuple[str, str] | None = None) -> Phrase:
    """Predicate adjectives that agree with the subject: "is [very] small and black"."""
    parts = [gloss(*intensifier)] if intensifier else []
    for number, adjective in enumerate(adjectives):
        parts += [gloss("and", "et")] if number else []
        parts.append(gloss(adjective.en, adjective.fr[form(subject.feminine, subject.plural)]))
    return join(*parts)


def profession(subject: Nominal, table_row: tuple[str, str, str]) -> Phrase:
    """A profession after "to be", without an article in French: "a doctor" / "médecin"."""
    en, masculine, feminine = table_row
    fr = agreeing_forms(masculine, feminine)[form(subject.feminine, subject.plural)]
    en_plural, article = (en + "s", []) if subject.plural else (en, [Word("a")])
    en_words, fr_words = gloss(en_plural, fr)
    return Phrase(article + en_words, fr_words)


# Clauses -------------------------------------------------------------------------------------------------------------


def _english_verb(verb: Verb, tense: str, person: int, support: bool) -> tuple[str, str]:
    """Auxiliary ("" for none) and main verb; ``support`` asks for an auxiliary where there is none."""
    base, third, past, gerund = verb.en
    singular = person == IL
    if tense == "progressive":
        return _BE_PRESENT[person], gerund
    if tense == "past progressive":
        return _BE_PAST[person], gerund
    if tense in ("can", "must"):
        return tense, base
    if tense == "future":
        return "will", base
    if tense == "want":
        return ("does" if singular else "do", f"want to {base}") if support else ("", f"want{'s' * singular} to {base}")
    if base == "be":
        return (_BE_PRESENT if tense == "present" else _BE_PAST)[person], ""
    if tense == "past":
        return ("did", base) if support else ("", past)
    return ("does" if singular else "do", base) if support else ("", third if singular else base)


@cache
def _french_verb(verb: Verb, tense: str, person: int, agreement: int) -> tuple[str, str]:
    """Finite verb, and participle or infinitive ("" for none); the participle takes the form ``agreement``."""
    if tense in _MODALS:
        return _MODALS[tense][person], verb.infinitive
    if tense == "future":
        return verb.future[person], ""
    if tense == "past progressive" or (tense == "past" and "imparfait" in verb.flags):
        return verb.imperfect[person], ""
    if tense == "past":
        auxiliary = BE if "être" in verb.flags else AVOIR
        return auxiliary.present[person], agreeing_forms(verb.participle)[agreement]
    return verb.present[person], ""


def clause(
    subject: Nominal,
    verb: Verb,
    tense: str,
    *,
    adverb: Adverb | None = None,
    question: bool = False,
    complement: Complement | None = None,
    noun: Nominal | None = None,
    clitic: ObjectPronoun | None = None,
    dative: bool = False,
    antecedent: Nominal | None = None,
    tail: Sequence[Phrase] = (),
) -> Phrase:
    """A clause: the place where the two languages part.

    English: [auxiliary] subject [auxiliary] [adverb] verb [pronoun] [preposition] [object] tail.
    French: [est-ce que] subject [ne] [pronoun] verb [pas, adverb] [participle; or pronoun, infinitive] [object] tail.

    Args:
      subject: what the verb agrees with.
      verb: what happens.
      tense: present, past, future, progressive, past progressive, can, must, want.
      adverb: "often", "never", ...; ``NOT`` makes English support it with "do".
      question: whether English inverts and French asks "est-ce que".
      complement: which preposition each side takes before the object.
      noun: the object.
      clitic: an object pronoun, which French puts before the verb.
      dative: whether the pronoun is the recipient ("gives him the book").
      antecedent: in a relative clause, the object that precedes and with which a participle agrees.
      tail: phrases at the end, in the same order in both languages.
    """
    aux_text, main_text = _english_verb(verb, tense, subject.person, question or adverb is NOT)
    aux, main = _words(aux_text), _words(main_text)
    mid = _words(adverb.en if adverb else "")
    preposition = _words(complement.en if complement else "")
    pronoun_word = _words(clitic.en if clitic else "")

    preceding = subject if "être" in verb.flags else (clitic if clitic and not dative else antecedent)
    agreement = form(preceding.feminine, preceding.plural) if preceding else 0
    finite_text, rest_text = _french_verb(verb, tense, subject.person, agreement)
    meaning = [] if aux_text in ("do", "does") else aux  # "did" and "will" are tense; "do" says nothing in French
    finite: French = [(finite_text, tuple(meaning or main[:1]) if rest_text else (*meaning, *main))]
    rest: French = [(rest_text, (main[-1],))] if rest_text else []
    clitics: French = [(clitic.dative if dative else clitic.direct, (*pronoun_word,))] if clitic else []
    ne: French = [("ne", (*mid,))] if adverb and adverb.negative else []
    particle: French = [(adverb.fr, (*mid,))] if adverb else []
    asked: French = [("est-ce", (*aux,)), ("que", (*aux,))] if question else []

    en = [*aux, *subject.en, *mid, *main] if question else [*subject.en, *aux, *mid, *main]
    en += pronoun_word + preposition if dative else preposition + pronoun_word
    if tense in _MODALS:
        fr = [*asked, *subject.fr, *ne, *finite, *particle, *clitics, *rest]
    else:
        fr = [*asked, *subject.fr, *ne, *clitics, *finite, *particle, *rest]
    if noun is not None:
        fr += [(text, (*preposition,) or (main[-1],)) for text in complement.fr.split()]
        tail = [noun, *tail]
    for phrase in tail:
        en += phrase.en
        fr += phrase.fr
    return Phrase(en, fr)


def existential(tense: str, noun: Nominal, *, question: bool = False, negative: bool = False) -> Phrase:
    """The phrase "there is" / "il y a"; negative, its noun has the determiner ``NO``, which is "ne", "pas" and "de"."""
    be, avoir = {
        "present": (_BE_PRESENT[noun.person], AVOIR.present[IL]),
        "past": (_BE_PAST[noun.person], AVOIR.imperfect[IL]),
        "future": ("will be", AVOIR.future[IL]),
    }[tense]
    there, verb = Word("there"), _words(be)
    en = [verb[0], there, *verb[1:]] if question else [there, *verb]
    fr: French = [("est-ce", (verb[0],)), ("que", (verb[0],))] if question else []
    fr += [("il", (there,)), *([("ne", (noun.en[0],))] if negative else []), ("y", (there,)), (avoir, (*verb,))]
    fr += [("pas", (noun.en[0],))] if negative else []
    return join(Phrase(en, fr), noun)


# Spelling ------------------------------------------------------------------------------------------------------------

_ASPIRATED = ("hibou", "héros")
_BEFORE_VOWEL = {
    "le": "l'",
    "la": "l'",
    "je": "j'",
    "me": "m'",
    "ne": "n'",
    "de": "d'",
    "que": "qu'",
    "ce": "cet",
    "ma": "mon",
    "sa": "son",
}
_CONTRACTED = {("à", "le"): "au", ("à", "les"): "aux", ("de", "le"): "du", ("de", "les"): "des"}


def starts_with_vowel(word: str) -> bool:
    """Whether a French word starts with a vowel sound, so that others elide before it.

    >>> [starts_with_vowel(word) for word in ("œuf", "hôpital", "hibou", "chat", "y")]
    [True, True, False, False, True]
    """
    return word[0] in "aeiouyhàâéèêîôœ" and not word.startswith(_ASPIRATED)


def spell(french: French) -> French:
    """Elides, contracts: "le" + "homme" is "l' homme", "à le chat" is "au chat", but "à l' homme".

    >>> [text for text, _ in spell([(text, ()) for text in "je aime le chat de le roi et de la amie".split()])]
    ["j'", 'aime', 'le', 'chat', 'du', 'roi', 'et', 'de', "l'", 'amie']
    """
    spelled: French = []
    following = ""
    for text, words in reversed(french):
        short = _BEFORE_VOWEL.get(text)
        if short and following and starts_with_vowel(following):
            text = short  # noqa: PLW2901
        elif text == "si" and following in ("il", "ils"):
            text = "s'"  # noqa: PLW2901
        contracted = _CONTRACTED.get((text, following))
        if contracted:
            spelled[-1] = (contracted, words + spelled[-1][1])
            following = contracted
        else:
            spelled.append((text, words))
            following = text
    return spelled[::-1]


def realize(phrase: Phrase | Nominal) -> AlignedPair:
    """Spells a phrase out and numbers its links.

    >>> realize(gloss("the man", "le homme"))
    AlignedPair(src=('the', 'man'), tgt=("l'", 'homme'), alignment=((0, 0), (1, 1)))
    """
    en = [word.text for word in phrase.en]
    for position, text in enumerate(en[:-1]):
        if text == "a" and en[position + 1][0] in "aeiou":
            en[position] = "an"
    index = {word: position for position, word in enumerate(phrase.en)}
    fr = spell(phrase.fr)
    links = {(index[word], position) for position, (_, words) in enumerate(fr) for word in words}
    return AlignedPair(tuple(en), tuple(text for text, _ in fr), tuple(sorted(links)))
