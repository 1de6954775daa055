"""The bundled English-French corpus: French checked by hand, alignments, size, separation, no giveaway."""

import pytest

from attn_jax.data.grammar import closed, syntax
from attn_jax.data.grammar.lexicon import BE_AVOIR
from attn_jax.data.grammar.syntax import clause, gloss, join, prepositional, realize
from tests.grammar_words import THE, A, adjectives, be, do, many, my, one, relative, who

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
        lambda: do(many(THE, "girl"), "arrive", "past", complement=0),
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
    "never": (lambda: do(who("we"), "leave", "past", "never"), "we never left | nous ne sommes jamais partis"),
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
    "arrives in": (
        lambda: do(who("she"), "arrive", "future", obj=one(THE, "city")),
        "she will arrive in the city | elle arrivera dans la ville",
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
