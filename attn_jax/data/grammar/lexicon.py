"""Nouns, adjectives and verbs of the bundled grammar: tables to extend, and the inflection that completes them.

Every table keeps to one rule: what French needs to know (gender, agreement, tense, place of the adjective) follows from
the English word, so that an English sentence has one translation. No English form stands in two tables.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

JE, IL, NOUS, VOUS, ILS = range(5)
"""French persons, which index every conjugation. "You" is always the singular, polite "vous"."""


@dataclass(frozen=True)
class Noun:
    """A noun; ``en`` and ``fr`` hold singular and plural; ``tags`` say what it is and where it can stand."""

    en: tuple[str, str]
    fr: tuple[str, str]
    feminine: bool
    tags: tuple[str, ...]

    @cached_property
    def kind(self) -> str:
        """The first tag, which selects adjectives: person, animal, thing, place, snack (countable food), ..."""
        return self.tags[0]

    @cached_property
    def mass(self) -> bool:
        """Uncountable: "bread" is "du pain"."""
        return self.kind in ("food", "drink")


@dataclass(frozen=True)
class Adjective:
    """An adjective; ``fr`` is indexed by :func:`form`. Sizes precede the French noun; qualities, colours follow it."""

    en: str
    fr: tuple[str, str, str, str]
    slot: str
    kinds: tuple[str, ...]
    before_vowel: str = ""
    compares: bool = False
    intensifies: bool = True

    @property
    def precedes(self) -> bool:
        """Whether it stands before the French noun."""
        return self.slot == "size"


@dataclass(frozen=True)
class Complement:
    """What a verb takes: nouns with one of ``tags``, after an English and a French preposition ("" for none)."""

    en: str
    fr: str
    tags: tuple[str, ...]

    @property
    def direct(self) -> bool:
        """A French direct object: it becomes "de" under negation and agrees with the participle when it precedes."""
        return not self.fr


@dataclass(frozen=True, eq=False)
class Verb:
    """A verb: English base, third person, past, gerund; French forms indexed by person; complements and flags."""

    en: tuple[str, str, str, str]
    infinitive: str
    present: tuple[str, ...]
    imperfect: tuple[str, ...]
    future: tuple[str, ...]
    participle: str
    complements: tuple[Complement | None, ...] = (None,)
    flags: tuple[str, ...] = ()


SLOTS = ("size", "quality", "colour")
"""Kinds of adjectives, in the English order."""


def form(feminine: bool, plural: bool) -> int:
    """Index of an agreeing form: masculine and feminine singular, then masculine and feminine plural."""
    return feminine + 2 * plural


# Inflection ----------------------------------------------------------------------------------------------------------


def english_plural(noun: str) -> str:
    """Regular English plural.

    >>> [english_plural(noun) for noun in ("cat", "box", "city", "boy")]
    ['cats', 'boxes', 'cities', 'boys']
    """
    if noun.endswith(("s", "x", "ch", "sh")):
        return noun + "es"
    return noun[:-1] + "ies" if noun.endswith("y") and noun[-2] not in "aeiou" else noun + "s"


def french_plural(word: str) -> str:
    """Regular French plural of a noun or adjective.

    >>> [french_plural(word) for word in ("chat", "souris", "bateau", "cheval")]
    ['chats', 'souris', 'bateaux', 'chevaux']
    """
    if word.endswith(("s", "x")):
        return word
    if word.endswith("eau"):
        return word + "x"
    return word[:-1] + "ux" if word.endswith("al") else word + "s"


def french_feminine(word: str) -> str:
    """Regular French feminine of an adjective or participle.

    >>> [french_feminine(word) for word in ("petit", "rouge", "heureux", "étudiant")]
    ['petite', 'rouge', 'heureuse', 'étudiante']
    """
    if word.endswith("eux"):
        return word[:-1] + "se"
    return word if word.endswith("e") else word + "e"


def agreeing_forms(masculine: str, feminine: str = "") -> tuple[str, str, str, str]:
    """The four forms of an adjective or participle.

    >>> agreeing_forms("gris")
    ('gris', 'grise', 'gris', 'grises')
    """
    feminine = feminine or french_feminine(masculine)
    return masculine, feminine, french_plural(masculine), french_plural(feminine)


def conjugate(principal_parts: str) -> Verb:
    """Conjugates a French verb from its principal parts.

    Args:
      principal_parts: the infinitive of a regular verb in -er; or infinitive, the five forms of the present, participle
        and, where it is not the infinitive (less a final e), the stem of the future with a hyphen.

    Returns:
      A verb without English forms.

    >>> verb = conjugate("voir vois voit voyons voyez voient vu verr-")
    >>> verb.imperfect[NOUS], verb.future[ILS], conjugate("manger").present[NOUS], conjugate("manger").imperfect[NOUS]
    ('voyions', 'verront', 'mangeons', 'mangions')
    """
    infinitive, *parts = principal_parts.split()
    future = parts.pop()[:-1] if parts and parts[-1].endswith("-") else infinitive.removesuffix("e")
    if parts:
        *present, participle = parts
    else:
        stem = infinitive.removesuffix("er")
        soft = stem + "e" if stem.endswith("g") else stem
        present, participle = [stem + "e", stem + "e", soft + "ons", stem + "ez", stem + "ent"], stem + "é"
    past = present[NOUS].removesuffix("ons")
    hard = past.removesuffix("e")  # "mangeons" gives "mangeais", but "mangions"
    return Verb(
        en=("", "", "", ""),
        infinitive=infinitive,
        present=tuple(present),
        imperfect=(past + "ais", past + "ait", hard + "ions", hard + "iez", past + "aient"),
        future=tuple(future + ending for ending in ("ai", "a", "ons", "ez", "ont")),
        participle=participle,
    )


# Nouns: tags, then "english french gender", with irregular plurals after a colon -------------------------------------

_NOUNS = {
    "person by": "man:men homme m, woman:women femme f, boy garçon m, girl fille f, child:children enfant m, "
    "king roi m, queen reine f, hero:heroes héros m",
    "person by kin": "father père m, mother mère f, brother frère m, sister sœur f, uncle oncle m, friend ami m, "
    "grandmother grand-mère:grands-mères f",
    "animal by over": "cat chat m, dog chien m, fox renard m, horse cheval m, bird oiseau m, mouse:mice souris f, "
    "wolf:wolves loup m, rabbit lapin m, elephant éléphant m, owl hibou:hiboux m, frog grenouille f",
    "thing": "key clé f, hat chapeau m, shoe chaussure f, umbrella parapluie m, phone téléphone m, ball ballon m, "
    "flower fleur f",
    "thing open": "bottle bouteille f",
    "thing open in over": "box boîte f",
    "thing open written": "letter lettre f, book livre m",
    "thing on under by over": "table table f, chair chaise f",
    "furniture on under": "bed lit m",
    "furniture by open": "door porte f, window fenêtre f",
    "furniture under by": "tree arbre m",
    "vehicle in by": "car voiture f, train train m, boat bateau m",
    "work written": "song chanson f, story histoire f",
    "snack": "apple pomme f, egg œuf m, cake gâteau:gâteaux m",
    "food": "bread pain m, meat viande f, cheese fromage m",
    "drink": "water eau f, milk lait m, coffee café m",
    "place in by home": "house maison f",
    "place in by home to": "city ville f",
    "place in by": "garden jardin m, kitchen cuisine f",
    "place in by to": "school école f, church église f, hotel hôtel m, hospital hôpital m, market marché m, "
    "park parc m, station gare f",
    "place on by to": "beach plage f",
    "place on by under": "bridge pont m",
    "place by over": "river rivière f",
}

PROFESSIONS = (
    "student étudiant étudiante, teacher professeur professeure, doctor médecin médecin, "
    "engineer ingénieur ingénieure, artist artiste artiste, writer écrivain écrivaine, lawyer avocat avocate, "
    "farmer fermier fermière, singer chanteur chanteuse"
)
"""English, French masculine, French feminine. As a noun ("the doctor") masculine; as a predicate it agrees."""


def _read_nouns() -> dict[str, tuple[Noun, ...]]:
    """Reads the noun tables; the result maps each tag to its nouns."""
    nouns = []
    for tags, entries in _NOUNS.items():
        for entry in entries.split(", "):
            english, french, gender = entry.split()
            en, _, en_plural = english.partition(":")
            fr, _, fr_plural = french.partition(":")
            plurals = en_plural or english_plural(en), fr_plural or french_plural(fr)
            nouns.append(Noun((en, plurals[0]), (fr, plurals[1]), gender == "f", tuple(tags.split())))
    for entry in PROFESSIONS.split(", "):
        english, french, _ = entry.split()
        en, fr = (english, english_plural(english)), (french, french_plural(french))
        nouns.append(Noun(en, fr, False, ("person", "by", "kin", "profession")))
    tags = sorted({tag for noun in nouns for tag in noun.tags})
    return {tag: tuple(noun for noun in nouns if tag in noun.tags) for tag in tags}


NOUNS = _read_nouns()
"""Nouns by tag: what they are (person, animal, ...) and what they can be (in, on, under, by: places; written; ...)."""

# Adjectives -----------------------------------------------------------------------------------------------------------
# Slot | kinds of noun : English and the French forms that are not regular; "+" compares with "more" and "less", "!"
# takes no "very" and no "too".

_ADJECTIVES = """
size    | person animal thing vehicle furniture place snack : big grand, small petit
size    | person animal : young jeune
size    | person animal thing vehicle furniture place : old vieux vieille vieil, beautiful+ beau belle bel
size    | thing vehicle furniture place : new nouveau nouvelle nouvel
size    | person work food drink snack : good bon bonne, bad mauvais
quality | person animal : lazy paresseux, intelligent+ intelligent, happy heureux, sad triste
quality | person animal : tired+ fatigué, brave courageux
quality | person : famous+ célèbre
quality | animal vehicle : quick rapide, dangerous+ dangereux
quality | thing vehicle furniture : expensive+ cher chère
quality | place vehicle : modern+ moderne
quality | place : quiet calme
quality | work : funny drôle, interesting+ intéressant
quality | food drink snack : fresh frais fraîche, delicious! délicieux
colour  | animal thing vehicle furniture : black noir, white blanc blanche, brown brun
colour  | thing vehicle furniture : red rouge, blue bleu
"""


def _read_adjectives() -> tuple[Adjective, ...]:
    """Reads the adjective table."""
    adjectives = []
    for line in _ADJECTIVES.strip().splitlines():
        head, entries = line.split(" : ")
        slot, kinds = head.split("|")
        for entry in entries.split(", "):
            en, masculine, feminine, before_vowel = [*entry.split(), "", ""][:4]
            adjectives.append(
                Adjective(
                    en=en.rstrip("+!"),
                    fr=agreeing_forms(masculine, feminine),
                    slot=slot.strip(),
                    kinds=tuple(kinds.split()),
                    before_vowel=before_vowel or masculine,
                    compares=en.endswith("+"),
                    intensifies=not en.endswith("!"),
                )
            )
    return tuple(adjectives)


ADJECTIVES = _read_adjectives()

# Verbs: English forms | French principal parts | complements | flags -------------------------------------------------
# Complements: "-" none, ": tags" a direct object, "english/french: tags" after prepositions; alternatives after ";".
# Flags: person (subjects are people), être (the auxiliary), stative (no progressive), imparfait (its simple past),
# unplaced (no place but a complement: "leaves here" is not "part ici"), generic ("i love cats" is "j' aime les chats"),
# recipient ("gives the book to the girl"), for ("sings for the queen").

_VERBS = """
sleep sleeps slept sleeping | dormir dors dort dormons dormez dorment dormi | -
run runs ran running | courir cours court courons courez courent couru courr- | -
jump jumps jumped jumping | sauter | - ; over/par-dessus: over
swim swims swam swimming | nager | -
walk walks walked walking | marcher | -
work works worked working | travailler | - | person for
sing sings sang singing | chanter | - | person for
arrive arrives arrived arriving | arriver | - ; in/dans: home | être unplaced
leave leaves left leaving | partir pars part partons partez partent parti | - | être unplaced
fall falls fell falling | tomber | - | être
come comes came coming | venir viens vient venons venez viennent venu viendr- | from/de: to | être
go goes went going | aller vais va allons allez vont allé ir- | to/à: to | être
live lives lived living | habiter | in/dans: home; near/près_de: to | person imparfait stative
talk talks talked talking | parler | to/à: person | person
look looks looked looking | regarder | at/: person animal thing vehicle
wait waits waited waiting | attendre attends attend attendons attendez attendent attendu | for/: person vehicle
answer answers answered answering | répondre réponds répond répondons répondez répondent répondu | /à: person | person
eat eats ate eating | manger | : food snack
drink drinks drank drinking | boire bois boit buvons buvez boivent bu | : drink
see sees saw seeing | voir vois voit voyons voyez voient vu verr- | : person animal thing vehicle place | stative
find finds found finding | trouver | : thing animal snack | stative
love loves loved loving | aimer | : person animal food drink snack | stative imparfait generic
know knows knew knowing | connaître connais connaît connaissons connaissez connaissent connu | : person work place | \
stative imparfait person
have has had having | avoir ai a avons avez ont eu aur- | : animal thing vehicle | stative imparfait person
buy buys bought buying | acheter achète achète achetons achetez achètent acheté achèter- | : thing vehicle snack food \
| person for
open opens opened opening | ouvrir ouvre ouvre ouvrons ouvrez ouvrent ouvert | : open | person
write writes wrote writing | écrire écris écrit écrivons écrivez écrivent écrit | : written | person for
take takes took taking | prendre prends prend prenons prenez prennent pris | : thing | person
help helps helped helping | aider | : person | person
forget forgets forgot forgetting | oublier | : person thing work | person stative
give gives gave giving | donner | : thing snack | person recipient
"""


def _read_complement(text: str) -> Complement | None:
    """Reads one complement of the verb table."""
    if text.strip() == "-":
        return None
    prepositions, tags = text.split(":")
    en, _, fr = prepositions.strip().partition("/")
    return Complement(en, fr.replace("_", " "), tuple(tags.split()))


def _read_verbs() -> tuple[Verb, ...]:
    """Reads the verb table."""
    verbs = []
    for line in _VERBS.replace("\\\n", "").strip().splitlines():
        english, french, complements, flags = [*(column.strip() for column in line.split("|")), ""][:4]
        verbs.append(
            replace(
                conjugate(french),
                en=tuple(english.split()),
                complements=tuple(_read_complement(text) for text in complements.split(";")),
                flags=tuple(flags.split()),
            )
        )
    return tuple(verbs)


VERBS = _read_verbs()
AVOIR = next(verb for verb in VERBS if verb.infinitive == "avoir")
_ETRE = conjugate("être suis est sommes êtes sont été ser-")
BE = replace(
    _ETRE,
    en=("be", "", "", ""),
    imperfect=tuple("ét" + ending for ending in ("ais", "ait", "ions", "iez", "aient")),
    flags=("stative", "imparfait"),
)
BE_AVOIR = replace(AVOIR, en=BE.en, flags=BE.flags)
"""To be, said with "avoir": "i am hungry" is "j' ai faim"."""

OPINIONS = tuple(
    replace(conjugate(fr), en=tuple(en.split()))
    for en, fr in (
        ("think thinks thought thinking", "penser"),
        ("believe believes believed believing", "croire crois croit croyons croyez croient cru"),
        ("hope hopes hoped hoping", "espérer espère espère espérons espérez espèrent espéré"),
        ("say says said saying", "dire dis dit disons dites disent dit"),
        ("know knows knew knowing", "savoir sais sait savons savez savent su saur-"),
    )
)
"""Verbs before "that", used in the present only: then French keeps the indicative and the tense of the other clause."""
