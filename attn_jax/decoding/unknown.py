"""Unknown words of a translation, replaced through the attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike


def replace_unknown_words(
    tokens: Sequence[str],
    attention: ArrayLike,
    src_words: Sequence[str],
    dictionary: Mapping[str, str] | None = None,
    unknown: str = "<unk>",
) -> tuple[str, ...]:
    """Replaces each unknown word by the translation of the source word that it looked at most, or by that word itself.

    Names and numbers are mostly copied, so this helps without a dictionary too.

    Args:
      tokens: the words of a translation.
      attention: ``[len(tokens), len(src_words)]``, where each of them looked.
      src_words: the words of the source sentence, as they were read.
      dictionary: translations of source words; words that it lacks are copied.
      unknown: how an unknown word is written.

    Returns:
      As many words.

    Raises:
      ValueError: if the attention does not fit the words.

    References:
      Luong, Sutskever, Le, Vinyals and Zaremba 2015, "Addressing the rare word problem in neural machine translation",
      arXiv:1410.8206; through the attention: Luong, Pham and Manning 2015, arXiv:1508.04025, section 4.1; Jean, Cho,
      Memisevic and Bengio 2015, arXiv:1412.2007.

    >>> attention = [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]]
    >>> replace_unknown_words(["<unk>", "saw", "<unk>"], attention, ["Zoé", "vit"], {"vit": "saw"})
    ('Zoé', 'saw', 'Zoé')
    """
    attention = np.asarray(attention)
    if attention.shape != (len(tokens), len(src_words)):
        raise ValueError(
            f"replace unknown words: expected attention of shape [{len(tokens)}, {len(src_words)}], a row a target and "
            f"a column a source word, found {list(attention.shape)}"
        )
    if not len(src_words):
        return tuple(tokens)
    sources = (src_words[position] for position in attention.argmax(axis=1))
    known = dictionary or {}
    pairs = zip(tokens, sources, strict=True)
    return tuple(known.get(source, source) if token == unknown else token for token, source in pairs)
