"""Word alignments: read off the attention of a model that is forced to write the target, or given to guide it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from attn_jax.data.batching import Sequences, inference_batches, next_length
from attn_jax.data.parallel import REASONS, Lines, ParallelText, read_lines
from attn_jax.data.vocabulary import SPECIAL_TOKENS, Vocabulary, WordVocabulary
from attn_jax.data.words import TokenLinks, word_sizes
from attn_jax.decoding.ensemble import Ensemble
from attn_jax.decoding.unknown import replace_unknown_words
from attn_jax.metrics.alignment import GoldAlignment, Links, merge_tokens, parse_pharaoh, weights_to_links
from attn_jax.models.posterior import posterior_attention
from attn_jax.models.protocol import BOS_ID, EOS_ID, PAD_ID, UNK_ID, Batch
from attn_jax.models.seq2seq import Seq2Seq


def align_words(
    translator: Any,
    src: Sequence[str],
    tgt: Sequence[str],
    *,
    weights: str | None = None,
    method: str = "argmax",
    threshold: float = 0.0,
    batch_tokens: int = 4096,
) -> list[Links]:
    """Links the words of given pairs; words are what white space separates, whatever the vocabulary makes of them.

    The attention that predicts a word says where that word is expected to come from; its posterior, where it does once
    it is known. Either is summed over the tokens of a source word, averaged over those of a target word, and turned
    into links by `attn_jax.metrics.alignment.weights_to_links`. There is no null word: the end of the sentence is left
    out, and a threshold leaves words without a link.

    Args:
      translator: an `attn_jax.hub.Translator` with attention.
      src: source sentences.
      tgt: as many target sentences.
      weights: ``posterior``, of recurrent encoder-decoders, see `attn_jax.models.posterior`; or ``attention``. None:
        the posterior where there is one.
      method: ``argmax`` or ``threshold``, see `attn_jax.metrics.alignment.weights_to_links`.
      threshold: the least weight of a link.
      batch_tokens: source tokens that are aligned at once.

    Returns:
      The links ``(source word, target word)`` of each pair, in the order given; none where a side is blank or longer
      than ``translator.max_src_len`` tokens, or its words, each encoded alone, do not give its tokens.

    Raises:
      ValueError: if the numbers of sentences differ, for an ensemble, or a model without attention.
    """
    if len(src) != len(tgt):
        raise ValueError(f"expected as many targets as sources, found {len(src)} and {len(tgt)} sentences")
    if weights not in ("posterior", "attention", None):
        raise ValueError(f"weights must be 'posterior' or 'attention', found {weights!r}")
    if isinstance(translator.model, Ensemble):
        raise ValueError("an ensemble cannot align; align with one of its models")
    if getattr(translator.model.config, "attention", "") is None:
        raise ValueError("this model was trained without attention, so it cannot align; train one with attention")
    recurrent = isinstance(translator.model, Seq2Seq)
    if weights == "posterior" and not recurrent:
        raise ValueError("the posterior is that of recurrent encoder-decoders, and this is none; leave weights out")
    posterior = recurrent and weights != "attention"
    sources, targets = Sequences.from_texts(src, translator.src_vocab), Sequences.from_texts(tgt, translator.tgt_vocab)
    src_sizes, src_fits = _sizes_and_fits(src, translator.src_vocab, sources)
    tgt_sizes, tgt_fits = _sizes_and_fits(tgt, translator.tgt_vocab, targets)
    filled = np.minimum(sources.lengths, targets.lengths) > 1
    short = np.maximum(sources.lengths, targets.lengths) <= translator.max_src_len
    usable = np.flatnonzero(filled & short & src_fits & tgt_fits)
    links: list[Links] = [frozenset()] * len(src)
    used = Sequences.from_ids([sources[i][:-1].tolist() for i in usable])
    for rows, sentences in inference_batches(used, batch_tokens):
        pairs = usable[rows]
        empty = np.full(sentences.src.shape[0] - len(rows), -1)
        tgt_ids, tgt_mask = targets.padded(
            np.concatenate([pairs, empty]), next_length(int(targets.lengths[pairs].max()))
        )
        batch = sentences.replace(tgt=tgt_ids, tgt_mask=tgt_mask)
        found = jax.device_get(_weights(translator.model, posterior, translator.params, batch))
        for row, pair in enumerate(pairs):
            words = merge_tokens(found[row], src_sizes[pair], tgt_sizes[pair])
            links[pair] = weights_to_links(words, method, threshold)
    return links


def _sizes_and_fits(
    texts: Sequence[str], vocabulary: Vocabulary, encoded: Sequences
) -> tuple[list[np.ndarray], np.ndarray]:
    """The tokens of each word of each sentence, and ``[n]`` whether together they are as many as the sentence has."""
    sizes = word_sizes(texts, vocabulary)
    counts = np.array([words.sum() for words in sizes], int)
    return sizes, counts == np.asarray(encoded.lengths) - 1


@partial(jax.jit, static_argnums=(0, 1))
def _weights(model: Any, posterior: bool, params: Any, batch: Batch) -> jax.Array:
    """``[batch, tgt_len, src_len]``, averaged over heads."""
    if posterior:
        return posterior_attention(model, params, batch)
    _, weights = model.apply({"params": params}, batch, method="features")
    return weights.mean(axis=1) if weights.ndim == 4 else weights


def read_alignments(path: str | Path) -> tuple[list[GoldAlignment], Lines]:
    """Reads a Pharaoh file, and gives its lines too. What cannot be read is an error: no line means no links.

    Args:
      path: the file, see `attn_jax.metrics.alignment.parse_pharaoh`.

    Raises:
      ValueError: for a malformed link, and a line that is too long or has NUL characters.
    """
    read = read_lines(path)
    for reason, lines in read.report.skipped.items():
        raise ValueError(f"{path}:{lines.first_lines[0]}: expected links such as 3-4, found a line {REASONS[reason]}")
    return parse_pharaoh(read.lines, str(path)), read


def read_links(path: str | Path, text: ParallelText) -> ParallelText:
    """Reads the word alignments of a parallel text from a Pharaoh file with a line for each line of the text.

    Args:
      path: the file; links ``i?j`` that are only possible are left out.
      text: as `attn_jax.data.parallel.read_parallel` gave it.

    Returns:
      The text with the links of each pair that it kept, and the file among those of its report.

    Raises:
      ValueError: as `read_alignments`, if the numbers of lines differ, or a link points behind the end of its sentence.
    """
    alignments, read = read_alignments(path)
    file = text.report.files[0]
    if len(alignments) != file.lines:
        raise ValueError(f"{path} has {len(alignments):,} lines and {file.path} {file.lines:,}; they must correspond")
    links = [alignments[line - 1].sure for line in text.lines]
    for line, pair, src, tgt in zip(text.lines, links, text.src, text.tgt, strict=True):
        words = len(src.split()), len(tgt.split())
        if any(i >= words[0] or j >= words[1] for i, j in pair):
            raise ValueError(
                f"{path}:{line}: a link points behind the end of a pair of {words[0]} and {words[1]} words; links are "
                "source-target, words are counted from 0 and separated by spaces"
            )
    report = dataclasses.replace(text.report, files=(*text.report.files, *read.report.files))
    return dataclasses.replace(text, links=links, report=report)


def token_links(
    text: ParallelText, vocabularies: tuple[Vocabulary, Vocabulary], sequences: tuple[Sequences, Sequences]
) -> TokenLinks:
    """The word links of a text as links of tokens, for guided training.

    A pair whose words, each encoded alone, do not give the tokens of the sentence gets no links.

    Args:
      text: with links.
      vocabularies: of source and target.
      sequences: the text encoded by them.

    Raises:
      ValueError: if the text comes without links.
    """
    if text.links is None:
        raise ValueError("guided alignment needs the word alignments of the training text; give alignments")
    sizes, fits = zip(*map(_sizes_and_fits, (text.src, text.tgt), vocabularies, sequences), strict=True)
    links = [pair if fit else () for pair, fit in zip(text.links, fits[0] & fits[1], strict=True)]
    return TokenLinks.from_words(links, *sizes)


def check_replaces_unknown(translator: Any) -> None:
    """Refuses a translator whose unknown words cannot be replaced.

    Raises:
      ValueError: for subwords, and for a model without attention.
    """
    if not isinstance(translator.tgt_vocab, WordVocabulary):
        raise ValueError("replace_unknown needs a vocabulary of words; subwords write every word, so leave it out")
    if getattr(translator.model.config, "attention", "") is None:
        raise ValueError("replace_unknown needs attention, and this model was trained without; leave it out")


def replace_unknown(translator: Any, sentence: str, found: Any, dictionary: Mapping[str, str]) -> Any:
    """A translation whose text has source words, or what a dictionary makes of them, for its unknown words.

    That of a sentence whose words, each encoded alone, do not give its tokens stays as it is.

    Args:
      translator: an `attn_jax.hub.Translator` that wrote it.
      sentence: of the source.
      found: the `attn_jax.translation.Translation`; its tokens stay as they are.
      dictionary: see `attn_jax.decoding.unknown.replace_unknown_words`.
    """
    if SPECIAL_TOKENS[UNK_ID] not in found.tokens:
        return found
    words = (sentence.lower() if translator.src_vocab.lowercase else sentence).split()
    (sizes,) = word_sizes([sentence], translator.src_vocab)
    if sizes.sum() != len(found.src_tokens) - 1:
        return found
    weights = merge_tokens(found.attention, sizes, np.ones(len(found.tokens), int))
    written = replace_unknown_words(found.tokens, weights, words, dictionary)
    silent = {SPECIAL_TOKENS[special] for special in (PAD_ID, BOS_ID, EOS_ID)}
    return found._replace(text=" ".join(word for word in written if word not in silent))
