"""The bundled English-French corpus: a grammar that draws correct sentence pairs with gold word alignments.

Lower case, tokens split by spaces; elided words and "'s" are tokens of their own ("j' aime le chien du roi", "the king
's dog"). The French is a function of the English: "you" is the polite singular "vous", "they" is "ils", the simple past
is the passé composé or, for states, the imparfait. Five rooms: ``lexicon`` (nouns, adjectives, verbs), ``closed``
(determiners, pronouns, adverbs), ``syntax`` (how they combine), ``sentences`` (what is said), ``corpus`` (sets of
pairs).
"""

from attn_jax.data.grammar.corpus import (
    MAX_LENGTH,
    MIN_LENGTH,
    count_sentences,
    detokenize,
    dictionary_baseline,
    generate,
    split,
)
from attn_jax.data.grammar.syntax import AlignedPair

__all__ = [
    "MAX_LENGTH",
    "MIN_LENGTH",
    "AlignedPair",
    "count_sentences",
    "detokenize",
    "dictionary_baseline",
    "generate",
    "split",
]
