"""Corpora drawn from the bundled grammar, its size, and the word-for-word baseline that a model has to beat."""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from attn_jax.data.grammar import lexicon, sentences
from attn_jax.data.grammar.lexicon import Noun
from attn_jax.data.grammar.syntax import AlignedPair

MIN_LENGTH, MAX_LENGTH = 3, 25
"""Bounds on the number of tokens, of either side."""


def generate(num: int, seed: int = 0) -> list[AlignedPair]:
    """Draws distinct sentence pairs: no English and no French sentence comes twice, final full stops aside.

    Args:
      num: how many.
      seed: the pairs are a pure function of it, and ``generate(n, seed)`` begins ``generate(n + 1, seed)``.

    Returns:
      ``num`` pairs of 3 to 25 tokens a side.

    Raises:
      ValueError: ``num`` is negative.

    >>> pair = generate(9, seed=0)[8]
    >>> print(" ".join(pair.src), "|", " ".join(pair.tgt))
    the cakes are not fresh . | les gâteaux ne sont pas frais .
    """
    if num < 0:
        raise ValueError(f"expected a number of pairs >= 0, found {num}")
    rng = random.Random(seed)
    pairs: list[AlignedPair] = []
    seen: tuple[set[tuple[str, ...]], set[tuple[str, ...]]] = set(), set()
    while len(pairs) < num:
        pair = sentences.draw_sentence(rng)
        if not all(MIN_LENGTH <= len(side) <= MAX_LENGTH for side in (pair.src, pair.tgt)):
            continue
        src, tgt = (side[:-1] if side[-1] == "." else side for side in (pair.src, pair.tgt))
        if src not in seen[0] and tgt not in seen[1]:
            seen[0].add(src)
            seen[1].add(tgt)
            pairs.append(pair)
    return pairs


def split(
    num_train: int, num_valid: int, num_test: int, seed: int = 0
) -> tuple[list[AlignedPair], list[AlignedPair], list[AlignedPair]]:
    """Draws a corpus in three parts; no sentence of either language occurs in two of them.

    Args:
      num_train: pairs to train on.
      num_valid: pairs to choose by.
      num_test: pairs to report on.
      seed: of the draws.

    Returns:
      The three parts, shuffled together before the cut, so that all have one distribution.

    >>> train, valid, test = split(80, 10, 10)
    >>> len(train), len(valid), len(test), {pair.tgt for pair in train} & {pair.tgt for pair in test}
    (80, 10, 10, set())
    """
    pairs = generate(num_train + num_valid + num_test, seed)
    random.Random(seed).shuffle(pairs)
    return pairs[:num_train], pairs[num_train : num_train + num_valid], pairs[num_train + num_valid :]


def detokenize(tokens: Iterable[str]) -> str:
    """Tokens as running text.

    >>> detokenize("est-ce que l' homme dort ?".split()), detokenize("the king 's dog sleeps .".split())
    ("est-ce que l'homme dort?", "the king's dog sleeps.")
    """
    text = " ".join(tokens)
    for spaced, tight in (("' ", "'"), (" '", "'"), (" ,", ","), (" .", "."), (" ?", "?")):
        text = text.replace(spaced, tight)
    return text


def _count_noun_phrases(noun: Noun, role: str) -> int:
    """Number of English noun phrases with this head and no relative clause or owner."""
    roles = sentences.MASS_DETERMINERS if noun.mass else sentences.DETERMINERS
    articles = {(determiner.en[plural], plural) for determiner, plural in roles[role]}
    slots = [sum(noun.kind in a.kinds and a.slot == slot for a in lexicon.ADJECTIVES) for slot in lexicon.SLOTS]
    described = math.prod(1 + size for size in slots)
    if noun.mass:  # only "the" takes adjectives
        return described + len(articles) - 1
    return described * len(articles)


def count_sentences() -> int:
    """Counts exactly the statements "people + simple past + object": a lower bound on all that the grammar can say.

    Past tense forms occur in no noun phrase and no two verbs share one, so each choice of subject, verb and object is
    another English sentence.

    >>> count_sentences() > 10**9
    True
    """
    subjects = sum(_count_noun_phrases(noun, "subject") for noun in lexicon.NOUNS["person"])
    objects = 0
    for verb in lexicon.VERBS:
        if {"recipient", "generic"}.isdisjoint(verb.flags):
            tags = {tag for c in verb.complements if c and c.direct and not c.en for tag in c.tags}
            heads = {noun for tag in tags for noun in lexicon.NOUNS[tag]}
            objects += sum(_count_noun_phrases(noun, "object") for noun in heads)
    return subjects * objects


def dictionary_baseline(train: Sequence[AlignedPair], test: Sequence[AlignedPair]) -> list[str]:
    """Translates word for word with the best dictionary that gold alignments can give.

    Each English word becomes the French word that it is linked with most often in ``train``, or nothing where it is
    unlinked more often; unknown words are copied.

    Args:
      train: pairs to learn from.
      test: pairs whose ``src`` to translate.

    Returns:
      French sentences, tokens joined by spaces.

    >>> pair = AlignedPair(("a", "cat"), ("un", "chat"), ((0, 0), (1, 1)))
    >>> dictionary_baseline([pair], [AlignedPair(("cat", "a", "dog"), (), ())])
    ['chat un dog']
    """
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for pair in train:
        linked = {source for source, _ in pair.alignment}
        for source, target in pair.alignment:
            counts[pair.src[source]][pair.tgt[target]] += 1
        for source in set(range(len(pair.src))) - linked:
            counts[pair.src[source]][""] += 1
    dictionary = {word: translations.most_common(1)[0][0] for word, translations in counts.items()}
    return [" ".join(filter(None, (dictionary.get(word, word) for word in pair.src))) for pair in test]
