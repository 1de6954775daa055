"""The bundled English-French corpus: French checked by hand, alignments, size, separation, no giveaway."""

import itertools
import random
from collections import Counter

import pytest
import sacrebleu

from attn_jax.data import grammar
from attn_jax.data.grammar import closed, corpus, lexicon, sentences, syntax
from attn_jax.data.grammar.lexicon import BE, BE_AVOIR, NOUNS
from attn_jax.data.grammar.syntax import clause, gloss, join, noun_phrase, prepositional, realize


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


HAND_CHECKED = {
    # gender, number, place of adjectives
    "colour and quality follow": (
        lambda: one(THE, "fox", "quick", "brown"),
        "the quick brown fox | le renard brun rapide",
    ),
    "size precedes": (lambda: one(THE, "car", "small", "red"), "the small red car | la petite voiture rouge"),
    "feminine plural": (lambda: many(THE, "door", "white"), "the white doors | les portes blanches"),
    "old before a vowel": (lambda: one(A, "uncle", "old"), "an old uncle | un vieil oncle"),
    "beautiful before a mute h": (lambda: one(A, "hotel", "beautiful"), "a beautiful hotel | un bel hôtel"),
    "new before a vowel, plural": (lambda: many(THE, "tree", "new"), "the new trees | les nouveaux arbres"),
    "new before an aspirated h": (lambda: one(A, "owl", "old"), "an old owl | un vieux hibou"),
    "eux": (lambda: many(THE, "girl", "happy"), "the happy girls | les filles heureuses"),
    # determiners, elision, contraction
    "elision": (lambda: one(THE, "story"), "the story | l' histoire"),
    "aspirated h": (lambda: one(THE, "hero"), "the hero | le héros"),
    "plural in x": (lambda: many(THE, "horse", "brown"), "the brown horses | les chevaux bruns"),
    "this before a vowel": (lambda: one(closed.THIS, "tree"), "this tree | cet arbre"),
    "my before a feminine vowel": (lambda: one(my("my"), "school"), "my school | mon école"),
    "my before a feminine consonant": (lambda: one(my("my"), "school", "small"), "my small school | ma petite école"),
    "his mother": (lambda: one(my("his"), "mother"), "his mother | sa mère"),
    "indefinite plural": (lambda: many(closed.BARE, "cat", "black"), "black cats | des chats noirs"),
    "des becomes de": (lambda: many(closed.BARE, "cat", "small"), "small cats | de petits chats"),
    "partitive feminine": (lambda: one(closed.PARTITIVE, "meat"), "meat | de la viande"),
    "partitive masculine": (lambda: one(closed.PARTITIVE, "bread"), "bread | du pain"),
    "partitive vowel": (lambda: one(closed.PARTITIVE, "water"), "water | de l' eau"),
    "many before a vowel": (lambda: many(closed.MANY, "tree"), "many trees | beaucoup d' arbres"),
    "many before an aspirated h": (lambda: many(closed.MANY, "owl"), "many owls | beaucoup de hiboux"),
    "all feminine": (lambda: many(closed.ALL, "girl"), "all the girls | toutes les filles"),
    "owner": (
        lambda: one(THE, "dog", "old", owner=one(THE, "king")),
        "the king 's old dog | le vieux chien du roi",
    ),
    "owner with elision": (
        lambda: one(THE, "car", owner=one(THE, "man", "happy")),
        "the happy man 's car | la voiture de l' homme heureux",
    ),
    "near the plural": (
        lambda: prepositional("near", "près de", many(THE, "house")),
        "near the houses | près des maisons",
    ),
    # tenses
    "present": (lambda: do(who("i"), "love", obj=many(closed.GENERIC, "cat")), "i love cats | j' aime les chats"),
    "irregular plural person": (lambda: do(who("they"), "sleep", complement=0), "they sleep | ils dorment"),
    "passé composé": (
        lambda: do(who("she"), "eat", "past", obj=one(A, "apple")),
        "she ate an apple | elle a mangé une pomme",
    ),
    "être agrees": (
        lambda: do(many(THE, "girl"), "arrive", "past"),
        "the girls arrived | les filles sont arrivées",
    ),
    "vous is one man": (lambda: do(who("you"), "fall", "past"), "you fell | vous êtes tombé"),
    "imparfait of states": (
        lambda: do(who("we"), "know", "past", obj=one(THE, "queen")),
        "we knew the queen | nous connaissions la reine",
    ),
    "progressive past": (lambda: do(who("i"), "swim", "past progressive"), "i was swimming | je nageais"),
    "progressive": (
        lambda: do(who("you"), "write", "progressive", obj=one(A, "letter")),
        "you are writing a letter | vous écrivez une lettre",
    ),
    "future": (
        lambda: do(who("he"), "see", "future", obj=one(THE, "child")),
        "he will see the child | il verra l' enfant",
    ),
    "modal": (lambda: do(who("they"), "swim", "can"), "they can swim | ils peuvent nager"),
    "want": (
        lambda: do(who("he"), "sleep", "want", "not"),
        "he does not want to sleep | il ne veut pas dormir",
    ),
    # negation and adverbs
    "not": (
        lambda: do(who("i"), "drink", "present", "not", obj=one(THE, "milk")),
        "i do not drink the milk | je ne bois pas le lait",
    ),
    "not, elided, past": (
        lambda: do(who("he"), "buy", "past", "not", obj=one(closed.NO_A, "book")),
        "he did not buy a book | il n' a pas acheté de livre",
    ),
    "de elided": (
        lambda: do(who("she"), "have", "present", "not", obj=many(closed.NO_BARE, "umbrella")),
        "she does not have umbrellas | elle n' a pas de parapluies",
    ),
    "never": (lambda: do(who("we"), "arrive", "past", "never"), "we never arrived | nous ne sommes jamais arrivés"),
    "often": (
        lambda: do(one(THE, "woman"), "sing", "past", "often"),
        "the woman often sang | la femme a souvent chanté",
    ),
    # object pronouns
    "clitic": (lambda: do(who("i"), "help", pronoun="her"), "i help her | je l' aide"),
    "clitic agrees": (
        lambda: do(who("he"), "see", "past", "not", pronoun="them"),
        "he did not see them | il ne les a pas vus",
    ),
    "clitic feminine": (
        lambda: do(who("you"), "forget", "past", pronoun="her"),
        "you forgot her | vous l' avez oubliée",
    ),
    "clitic before the infinitive": (
        lambda: do(who("she"), "help", "can", "not", pronoun="us"),
        "she can not help us | elle ne peut pas nous aider",
    ),
    "dative": (
        lambda: do(who("they"), "give", "past", pronoun="her", dative=True, obj=one(THE, "key")),
        "they gave her the key | ils lui ont donné la clé",
    ),
    "clitic after a particle": (lambda: do(who("he"), "look", pronoun="me"), "he looks at me | il me regarde"),
    # verbs that govern otherwise
    "waits for": (
        lambda: do(who("she"), "wait", obj=one(THE, "train")),
        "she waits for the train | elle attend le train",
    ),
    "answers": (
        lambda: do(who("i"), "answer", obj=one(THE, "teacher")),
        "i answer the teacher | je réponds au professeur",
    ),
    "goes to": (lambda: do(who("we"), "go", obj=one(THE, "school")), "we go to the school | nous allons à l' école"),
    "comes from": (
        lambda: do(who("he"), "come", "past", obj=one(THE, "market")),
        "he came from the market | il est venu du marché",
    ),
    "aux": (lambda: do(who("he"), "talk", obj=many(THE, "child")), "he talks to the children | il parle aux enfants"),
    "hungry": (
        lambda: clause(who("i"), BE_AVOIR, "present", adverb=closed.NOT, tail=[gloss("hungry", "faim")]),
        "i am not hungry | je n' ai pas faim",
    ),
    # being
    "predicate agrees": (
        lambda: be(many(THE, "house"), rest=syntax.predicate(many(THE, "house"), adjectives("big", "old"))),
        "the houses are big and old | les maisons sont grandes et vieilles",
    ),
    "two, one of them a man": (
        lambda: be(
            syntax.both(one(THE, "girl"), one(my("her"), "brother")),
            rest=syntax.predicate(syntax.both(one(THE, "girl"), one(THE, "boy")), adjectives("happy")),
        ),
        "the girl and her brother are happy | la fille et son frère sont heureux",
    ),
    "there is not": (
        lambda: join(
            syntax.existential("past", many(closed.NO, "cat", "small"), negative=True),
            prepositional("in", "dans", one(THE, "garden")),
        ),
        "there were no small cats in the garden | il n' y avait pas de petits chats dans le jardin",
    ),
    # questions
    "question": (
        lambda: do(who("he"), "sleep", question=True),
        "does he sleep | est-ce qu' il dort",
    ),
    "question, past": (
        lambda: do(one(THE, "cat"), "eat", "past", question=True, obj=one(closed.PARTITIVE, "cheese")),
        "did the cat eat cheese | est-ce que le chat a mangé du fromage",
    ),
    "what": (
        lambda: join(gloss("what", "que"), do(who("they"), "write", "future", question=True)),
        "what will they write | qu' est-ce qu' ils écriront",
    ),
    # relative clauses
    "participle agrees with what precedes": (
        lambda: relative(
            many(THE, "apple"), ("that", "que"), do(who("they"), "eat", "past", antecedent=many(THE, "apple"))
        ),
        "the apples that they ate | les pommes qu' ils ont mangées",
    ),
    "who": (
        lambda: syntax.modify(many(THE, "woman"), do(syntax.relative_subject(many(THE, "woman")), "leave", "past")),
        "the women who left | les femmes qui sont parties",
    ),
    "if he": (lambda: join(gloss("if", "si"), do(who("he"), "sing")), "if he sings | s' il chante"),
    "if she": (lambda: join(gloss("if", "si"), do(who("she"), "sing")), "if she sings | si elle chante"),
}


@pytest.mark.parametrize("phenomenon", HAND_CHECKED)
def test_french_checked_by_hand(phenomenon):
    build, expected = HAND_CHECKED[phenomenon]
    pair = realize(build())
    assert f"{' '.join(pair.src)} | {' '.join(pair.tgt)}" == expected


# Alignments ----------------------------------------------------------------------------------------------------------


def links(pair):
    return {(pair.src[source], pair.tgt[target]) for source, target in pair.alignment}


ALIGNED = {
    "reordered, one to one": (lambda: one(THE, "fox", "quick", "brown"), "the-le quick-rapide brown-brun fox-renard"),
    "not is two words, do is none": (
        lambda: do(who("i"), "sleep", "present", "not", complement=0),
        "i-je not-ne not-pas sleep-dors",
    ),
    "did is the auxiliary": (
        lambda: do(who("he"), "eat", "past", "not", obj=one(closed.NO_A, "cake")),
        "he-il not-n' not-pas did-a eat-mangé a-de cake-gâteau",
    ),
    "a past form is two words": (
        lambda: do(who("she"), "see", "past", pronoun="him"),
        "she-elle saw-a saw-vu him-l'",
    ),
    "will is in the ending": (
        lambda: do(who("we"), "go", "future", obj=one(THE, "park")),
        "we-nous will-irons go-irons to-au the-au park-parc",
    ),
    "the auxiliary asks": (
        lambda: do(who("you"), "walk", question=True, complement=0),
        "do-est-ce do-que you-vous walk-marchez",
    ),
    "an article without counterpart": (lambda: many(closed.BARE, "cat"), "cats-des cats-chats"),
    "'s is de, and the article is its noun's": (
        lambda: one(THE, "dog", owner=one(THE, "king")),
        "dog-le dog-chien 's-du the-du king-roi",
    ),
    "a profession has no article": (
        lambda: be(who("she"), rest=syntax.profession(who("she"), ("doctor", "médecin", "médecin"))),
        "she-elle is-est doctor-médecin",
    ),
    "want to": (lambda: do(who("i"), "run", "want"), "i-je want-veux run-courir"),
    "no": (
        lambda: syntax.existential("present", one(closed.NO, "cat"), negative=True),
        "there-il no-n' there-y is-a no-pas no-de cat-chat",
    ),
}


@pytest.mark.parametrize("phenomenon", ALIGNED)
def test_links_checked_by_hand(phenomenon):
    build, expected = ALIGNED[phenomenon]
    assert links(realize(build())) == {tuple(link.split("-", 1)) for link in expected.split()}


def test_links_are_positions_not_words():
    subject, obj = one(THE, "cat"), one(THE, "dog", "small")
    pair = realize(do(subject, "see", obj=obj))
    assert pair.src == ("the", "cat", "sees", "the", "small", "dog")
    assert pair.alignment == ((0, 0), (1, 1), (2, 2), (3, 3), (4, 4), (5, 5))


# The corpus ----------------------------------------------------------------------------------------------------------

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
    assert len({word for pair in pairs for word in pair.src}) > 450
    assert len({word for pair in pairs for word in pair.tgt}) > 900


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
