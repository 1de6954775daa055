"""Corpora of the bundled grammar: distinct, held out, countable; and what the grammar can say."""

import itertools
import random
import re
from collections import Counter

import pytest
import sacrebleu

from attn_jax.data import grammar
from attn_jax.data.grammar import closed, corpus, lexicon, sentences, syntax
from attn_jax.data.grammar.lexicon import BE, NOUNS
from attn_jax.data.grammar.syntax import noun_phrase, realize
from tests.grammar_words import THE, Wishful, adjectives, my, noun, verb, whom

NUM_TRAIN, NUM_TEST = 20_000, 500


@pytest.fixture(scope="module")
def parts():
    return grammar.split(NUM_TRAIN, 100, NUM_TEST, seed=3)


@pytest.fixture(scope="module")
def pairs(parts):
    return list(itertools.chain(*parts))


def test_alignments_are_in_range_sorted_and_cover_the_french(pairs):
    for pair in pairs:
        assert list(pair.alignment) == sorted(set(pair.alignment))
        assert {target for _, target in pair.alignment} == set(range(len(pair.tgt)))
        assert all(0 <= source < len(pair.src) for source, _ in pair.alignment)


def test_links_of_every_shape_occur_often(pairs):
    fan_out = Counter(count > 1 for pair in pairs for count in Counter(source for source, _ in pair.alignment).values())
    fan_in = Counter(count > 1 for pair in pairs for count in Counter(t for _, t in pair.alignment).values())
    crossing = sum(any(a > b for (_, a), (_, b) in itertools.pairwise(pair.alignment)) for pair in pairs)
    assert fan_out[True] > 0.05 * fan_out[False]
    assert fan_in[True] > 0.03 * fan_in[False]
    assert crossing > 0.5 * len(pairs)


def test_french_is_a_function_of_english():
    rng = random.Random(11)
    french = {}
    for _ in range(12_000):
        pair = sentences.draw_sentence(rng)
        assert french.setdefault(pair.src, pair.tgt) == pair.tgt


def test_french_is_a_function_of_english_where_sentences_collide():
    """With few words, the same English comes about in many ways."""
    wishes = [noun(en) for en in ("man", "cat", "house", "key", "bread")]
    wishes += [verb(base) for base in ("sleep", "see", "give")]
    wishes += [
        (THE, False),
        (my("her"), False),
        "present",
        "past",
        whom("her"),
        *closed.PRONOUNS[2:3],
        *closed.IDIOMS[:1],
    ]
    wishes += [sentences._simple, sentences._polar_question, "person", "thing"]
    rng = Wishful([*wishes, *adjectives("big", "black")], seed=2)
    french, repeated = {}, 0
    for _ in range(3000):
        pair = sentences.draw_sentence(rng)
        repeated += pair.src in french
        assert french.setdefault(pair.src, pair.tgt) == pair.tgt
    assert repeated > 300


def test_no_english_word_has_two_entries():
    """What makes the function hold: a form belongs to one entry, and closed words to none of the tables."""
    nouns = {noun for nouns in NOUNS.values() for noun in nouns}
    entries = [noun.en[:1] if noun.mass else noun.en for noun in nouns]
    entries += [v.en for v in lexicon.VERBS] + [(a.en,) for a in lexicon.ADJECTIVES]
    entries += [tuple(en.split()) for en, _ in (*closed.IDIOMS, *closed.MANNERS)]
    repeated = [form for form, count in Counter(itertools.chain(*entries)).items() if count > 1]
    assert repeated == []


def test_pairs_are_distinct_on_both_sides_without_their_full_stops(pairs):
    for side in ("src", "tgt"):
        bare = {tuple(token for token in getattr(pair, side) if token != ".") for pair in pairs}
        assert len(bare) == len(pairs)


def test_draws_rarely_repeat():
    rng = random.Random(5)
    assert len({sentences.draw_sentence(rng).src for _ in range(5000)}) > 4950


def test_lengths_spread_from_3_to_25(pairs):
    lengths = Counter(len(pair.src) for pair in pairs)
    assert set(lengths) == set(range(3, 26))
    assert 10 < sum(length * count for length, count in lengths.items()) / len(pairs) < 12
    assert all(3 <= len(pair.tgt) <= 25 for pair in pairs)


def test_more_than_300_words_a_side(pairs):
    assert len({word for pair in pairs for word in pair.src}) > 350
    assert len({word for pair in pairs for word in pair.tgt}) > 700


def test_words_are_lower_case_and_spelled_out(pairs):
    french = {word for pair in pairs for word in pair.tgt}
    assert not {"le homme", "à le", "de le"} & {" ".join(two) for p in pairs for two in itertools.pairwise(p.tgt)}
    assert all(word == word.lower() for word in french)
    elided = {"l'", "j'", "m'", "n'", "d'", "qu'", "s'"}
    assert {word for word in french if word.endswith("'")} == elided
    for pair in pairs:
        for first, second in itertools.pairwise(pair.tgt):
            assert (first in elided) <= (syntax.starts_with_vowel(second) or second == "est-ce")
            assert not (first in ("le", "la", "je", "me", "ne", "de", "que") and syntax.starts_with_vowel(second))


LEAVE = r"(?:par[st]|part(?:ons|ez|ent|i|ie|is|ies|ir\w*|ais|ait|ions|iez|aient))"
ARRIVE = r"arriv\w+"
IN_CLAUSE = "(?:(?!(?:parce|quand|pendant|si|s'|et|mais) )[^ ,|]+ )"
UNDER_PAS_DE = r"\bn(?:e|') (?:[^ ,]+ ){0,3}(?:pas|jamais) (?:[^ ,]+ ){0,2}d(?:e|') "
NOUN_OR_ADJECTIVE = "|".join(
    {word for tagged in NOUNS.values() for noun in tagged for word in noun.fr}
    | {word for adjective in lexicon.ADJECTIVES for word in (*adjective.fr, adjective.before_vowel)}
)
FORBIDDEN = {
    "one acts on a group that one belongs to": (
        r"(?:\bj(?:e|')|\bnous) (?:n(?:e|') )?(?:(?:peu|doi|veu|pouv|dev|voul)\w+ (?:[^ ,]+ )?)?(?:me|m'|nous) "
        r"|\bvous (?:ne )?(?:(?:pouv|dev|voul)ez (?:[^ ,]+ )?)?vous ",
        ["we saw me | nous m' avons vu", "i forget us | je nous oublie", "| je ne veux pas nous aider"],
    ),
    "leave at a place": (
        rf"\b{LEAVE} (?:[^ ,]+ )?(?:ici|dans|sur|sous|près|derrière|devant|à côté)\b",
        ["you leave here | vous partez ici", "you leave on the chair | vous partez sur la chaise"],
    ),
    "the place where one leaves": (
        rf"\boù {IN_CLAUSE}*{LEAVE}\b",
        ["| où est-ce que vous partez ?", "| la maison où les pères sont toujours partis"],
    ),
    "arrive on, under, near, behind": (
        rf"\b{ARRIVE} (?:[^ ,]+ )?(?:sur|sous|près|derrière|devant|à côté)\b",
        ["he arrives under the chair | il arrive sous la chaise", "| il est arrivé hier sur le lit"],
    ),
    "an indicative about what is not there": (
        rf"{UNDER_PAS_DE}(?:(?:{NOUN_OR_ADJECTIVE}) )+(?:qui|qu'|que|où) ",
        ["| il n' y a pas de lapins noirs qui sautent", "| je ne veux jamais lui donner d' œuf que vous mangez"],
    ),
    "more than delicious": (r"\b(?:très|trop) délicieu", ["it is very delicious | il est très délicieux"]),
}


@pytest.mark.parametrize("fault", FORBIDDEN)
def test_what_nobody_says(pairs, fault):
    pattern, faulty = FORBIDDEN[fault]
    pattern = re.compile(pattern)
    assert all(pattern.search(line) for line in faulty)
    lines = (f"{' '.join(pair.src)} | {' '.join(pair.tgt)}" for pair in pairs)
    assert [line for line in lines if pattern.search(line)][:5] == []


def test_word_for_word_is_not_enough(parts):
    train, _, test = parts
    hypotheses = grammar.dictionary_baseline(train, test)
    references = [" ".join(pair.tgt) for pair in test]
    score = sacrebleu.corpus_bleu(hypotheses, [references], force=True).score
    assert 10 < score < 50
    assert sacrebleu.corpus_bleu(references, [references], force=True).score > 99.9


def test_dictionary_takes_the_most_frequent_translation():
    pair = grammar.AlignedPair
    train = [
        pair(("the", "do"), ("la",), ((0, 0),)),
        pair(("the", "do"), ("le",), ((0, 0),)),
        pair(("the", "do"), ("le", "fais"), ((0, 0), (1, 1))),
    ]
    assert grammar.dictionary_baseline(train, [pair(("do", "the", "new"), (), ())]) == ["le new"]


def test_held_out_sentences_are_unseen_in_both_languages(parts):
    train, valid, test = parts
    assert (len(train), len(valid), len(test)) == (NUM_TRAIN, 100, NUM_TEST)
    for side in ("src", "tgt"):
        seen, held_out = ({getattr(pair, side) for pair in part} for part in (train, [*valid, *test]))
        assert not seen & held_out


def test_parts_have_one_distribution(parts):
    train, _, test = parts
    mean = [sum(len(pair.src) for pair in part) / len(part) for part in (train, test)]
    assert abs(mean[0] - mean[1]) < 1


def test_a_pure_function_of_the_seed():
    assert grammar.generate(50, seed=1) == grammar.generate(60, seed=1)[:50]
    assert grammar.generate(50, seed=1) != grammar.generate(50, seed=2)
    assert grammar.split(20, 5, 5, seed=4) == grammar.split(20, 5, 5, seed=4)


def test_a_negative_number_of_pairs():
    with pytest.raises(ValueError, match="expected a number of pairs >= 0, found -1"):
        grammar.generate(-1)


def test_more_than_a_million_pairs():
    assert grammar.count_sentences() > 10**9


@pytest.mark.parametrize(("head", "role"), [("apple", "object"), ("bread", "object"), ("friend", "subject")])
def test_noun_phrases_are_counted_exactly(head, role):
    head = noun(head)
    slots = [[None, *(a for a in lexicon.ADJECTIVES if head.kind in a.kinds and a.slot == s)] for s in lexicon.SLOTS]
    roles = sentences.MASS_DETERMINERS if head.mass else sentences.DETERMINERS
    phrases = {
        realize(noun_phrase(determiner, head, plural, [a for a in chosen if a])).src
        for determiner, plural in roles[role]
        for chosen in itertools.product(*slots)
        if not head.mass or determiner is THE or not any(chosen)
    }
    assert corpus._count_noun_phrases(head, role) == len(phrases)


# What the grammar can say --------------------------------------------------------------------------------------------


def draws(src, tgt, wishes, seed=0, attempts=30_000):
    """Whether the generator draws this pair when it chooses what is wished for wherever it is offered."""
    rng = Wishful([sentences._simple, "present", *wishes], seed)
    wanted = tuple(src.split()), tuple(tgt.split())
    return any((pair.src, pair.tgt) == wanted for pair in (sentences.draw_sentence(rng) for _ in range(attempts)))


def test_the_quick_brown_fox():
    jump = verb("jump")
    wishes = [jump, jump.complements[1], (THE, False), noun("fox"), noun("dog"), *adjectives("quick", "brown", "lazy")]
    src = "the quick brown fox jumps over the lazy dog"
    tgt = "le renard brun rapide saute par-dessus le chien paresseux"
    assert draws(src, tgt, [*wishes, "animal", "over"], seed=35)  # drawn soon with this seed, later with others


@pytest.mark.parametrize(
    ("src", "tgt"),
    [
        ("i am a student", "je suis étudiant"),
        ("he is a teacher", "il est professeur"),
        ("she is a doctor", "elle est médecin"),
        ("we are engineers", "nous sommes ingénieurs"),
        ("they are artists", "ils sont artistes"),
    ],
)
def test_the_tutorial_pairs(src, tgt):
    rows = [row for row in sentences._PROFESSIONS if row[0] in src]
    assert draws(src, tgt, [*rows, *(row for row in closed.PRONOUNS if row[0] == src.split()[0])])


def test_every_verb_of_the_lexicon_is_conjugated_in_full():
    for action in (*lexicon.VERBS, BE):
        assert all(len(forms) == 5 for forms in (action.present, action.imperfect, action.future))
    assert (BE.imperfect[2], BE.future[4], verb("go").future[0]) == ("étions", "seront", "irai")
    assert (verb("eat").present[2], verb("eat").imperfect[2]) == ("mangeons", "mangions")
    assert verb("buy").future == ("achèterai", "achètera", "achèterons", "achèterez", "achèteront")


def test_running_text():
    assert grammar.detokenize(("l'", "ami", "du", "roi", ",", "il", "dort", ".")) == "l'ami du roi, il dort."
