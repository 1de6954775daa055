"""From a sentence to its picture: a search, all the attention of what it found, the alternatives at each step."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from attn_jax.data.batching import Sequences, next_length
from attn_jax.data.vocabulary import Vocabulary
from attn_jax.decoding.hypotheses import IMPOSSIBLE
from attn_jax.hub import EOS_TOKEN, Translator
from attn_jax.metrics.alignment import GoldAlignment
from attn_jax.models.protocol import Batch
from attn_jax.search_config import SearchConfig
from attn_jax.translation import Scored, TreeNode
from attn_jax.viz.examples import AttentionExample, AttentionHypothesis, SearchTree, word_numbers

ALTERNATIVES = 5
"""Tokens shown for each step."""


class Target(NamedTuple):
    """A target sentence to look at: its tokens and text, what a search ranked it by, and what it is if none did."""

    tokens: tuple[str, ...]
    text: str
    score: float | None = None
    label: str = ""


def attention_of(
    translator: Translator,
    sentence: str,
    config: SearchConfig | None = None,
    *,
    prefix: Sequence[str] = (),
    reference: str | None = None,
    gold: GoldAlignment | None = None,
    name: str = "",
) -> AttentionExample:
    """Translates a sentence and gives all there is to see of it; a notebook shows the result as the interactive page.

    Args:
      translator: the model.
      sentence: one sentence.
      config: how to search, and how many hypotheses to show. None: as the translator does, and all of its beam.
      prefix: tokens that every hypothesis begins with. If ``</s>`` is among them, they are the only hypothesis.
      reference: what a person wrote. It is shown as a further hypothesis: where the model looks while it is made to
        write it.
      gold: links between the words of the sentence and those of the reference.
      name: of the model.

    Raises:
      ValueError: for a sentence that is blank or too long, a model without attention, an unknown token in the prefix,
        or gold links without a reference or out of range.
    """
    if not sentence.strip():
        raise ValueError("expected a sentence to translate, found nothing")
    if gold is not None and reference is None:
        raise ValueError("gold links are between the sentence and its reference; give the reference too")
    targets, tree = _search(translator, sentence, config or _whole_beam(translator.search), tuple(prefix))
    written = None if reference is None else _reference(translator.tgt_vocab, reference)
    if written and written.tokens not in [target.tokens for target in targets]:
        targets.append(written)
    src_tokens, encoder, seen = _look(translator, sentence, targets)
    for target, fields in zip(targets, seen, strict=True):
        fields["forced"] = 0 if target.label else len(prefix)
        if gold is not None and target.tokens == written.tokens:
            fields["gold"] = list(piece_links(gold.sure, src_tokens, target.tokens))
            fields["possible"] = list(piece_links(gold.possible, src_tokens, target.tokens))
    return AttentionExample(
        src_tokens=src_tokens,
        hypotheses=[AttentionHypothesis(**fields) for fields in seen],
        src_text=sentence.strip(),
        reference=reference,
        encoder=encoder,
        tree=None if tree is None else _tree(tree, targets),
        name=name,
    )


def _whole_beam(config: SearchConfig) -> SearchConfig:
    return dataclasses.replace(config, n_best=config.beam)


def piece_links(
    links: Iterable[tuple[int, int]], src_tokens: Sequence[str], tgt_tokens: Sequence[str]
) -> Iterator[tuple[int, int]]:
    """Links between words as links between all of their pieces.

    Args:
      links: ``(source word, target word)``, from 0.
      src_tokens: the source's pieces, ``</s>`` last.
      tgt_tokens: the target's.

    Raises:
      ValueError: for a word that a sentence does not have.

    >>> list(piece_links([(0, 1)], ["▁un", "do", "</s>"], ["▁ne", "▁défais", "</s>"]))
    [(0, 1), (1, 1)]
    """
    numbers = word_numbers(src_tokens), word_numbers(tgt_tokens)
    src_words, tgt_words = (max(side) for side in numbers)  # without the end of sentence
    for source, target in links:
        if source >= src_words or target >= tgt_words:
            raise ValueError(
                f"gold link {source}-{target} (source-target, from 0) is out of range for {src_words} source and "
                f"{tgt_words} target words; give both sides in the words that the alignment counts"
            )
        for i, src_word in enumerate(numbers[0]):
            for j, tgt_word in enumerate(numbers[1]):
                if (src_word, tgt_word) == (source, target):
                    yield i, j


def _search(
    translator: Translator, sentence: str, config: SearchConfig, prefix: tuple[str, ...]
) -> tuple[list[Target], Sequence[TreeNode] | None]:
    """What is found, each target once, and what the search went through."""
    if EOS_TOKEN in prefix:
        tokens = prefix[: prefix.index(EOS_TOKEN) + 1]
        return [Target(tokens, translator.tgt_vocab.decode(translator._target_ids(tokens)))], None
    found = translator(sentence, config, prefix=prefix or None, tree=not config.sample)
    if not found[0].src_tokens:
        raise ValueError(f"this sentence is longer than {translator.max_src_len} tokens; give a shorter one")
    targets: dict[tuple[str, ...], Target] = {}
    for one in found:
        if one.tokens:
            targets.setdefault(one.tokens, Target(one.tokens, one.text, one.score))  # samples may be equal
    return list(targets.values()), found[0].tree


def _reference(vocabulary: Vocabulary, text: str) -> Target:
    tokens = (*vocabulary.pieces(vocabulary.encode(text)), EOS_TOKEN)
    return Target(tokens, text, None, "reference")


def _look(
    translator: Translator, sentence: str, targets: Sequence[Target]
) -> tuple[tuple[str, ...], np.ndarray | None, list[dict[str, Any]]]:
    """Forced decoding of all targets: the source's tokens, the encoder's maps, and the fields of each hypothesis."""
    scored = translator.score([sentence] * len(targets), [target.tokens for target in targets], top_k=ALTERNATIVES)
    if scored[0].attention is None:
        raise ValueError("this model was trained without attention, so there is nothing to draw")
    maps = _maps(translator, sentence, scored)
    src_len = len(scored[0].src_tokens)
    seen = []
    for row, (target, found) in enumerate(zip(targets, scored, strict=True)):
        tgt_len = len(target.tokens)  # one that met its limit has no end of sentence, which scoring added
        cross = maps["cross"][row] if maps else found.attention[None, None]
        seen.append(
            {
                "tokens": target.tokens,
                "text": target.text,
                "label": target.label,
                "score": target.score,
                "log_probs": [float(p) for p in found.log_probs[:tgt_len]],
                "alternatives": [_possible(step) for step in found.alternatives[:tgt_len]],
                "weights": cross[..., :tgt_len, :src_len],
                "decoder": maps["decoder"][row][..., :tgt_len, :tgt_len] if "decoder" in maps else None,
                "softmax": is_softmax(translator.model),
            }
        )
    encoder = maps["encoder"][0][..., :src_len, :src_len] if "encoder" in maps else None
    return scored[0].src_tokens, encoder, seen


def _possible(step: Sequence[tuple[str, float]]) -> list[tuple[str, float]]:
    """Without padding and begin of sentence, which fill up the alternatives of a tiny vocabulary."""
    return [(token, log_prob) for token, log_prob in step if log_prob > IMPOSSIBLE / 2]


def _maps(translator: Translator, sentence: str, scored: Sequence[Scored]) -> dict[str, np.ndarray]:
    """All maps of all layers and heads, ``[targets, layers, heads, ...]`` each; nothing for an ensemble."""
    if not hasattr(translator.model, "attention_maps"):
        return {}
    src, src_mask = _rows(Sequences.from_texts([sentence] * len(scored), translator.src_vocab))
    tgt, tgt_mask = _rows(Sequences.from_ids([translator._target_ids(found.tokens) for found in scored]))
    return jax.device_get(_all_maps(translator.model, translator.params, Batch(src, src_mask, tgt, tgt_mask)))


@partial(jax.jit, static_argnames="model")
def _all_maps(model: Any, params: Any, batch: Batch) -> dict[str, jax.Array]:
    return model.apply({"params": params}, batch, method="attention_maps")


def _rows(sequences: Sequences) -> tuple[np.ndarray, np.ndarray]:
    """Padded ids and their mask, in few shapes: as many rows as a power of two, those without a sequence empty."""
    rows = np.full(1 << (len(sequences) - 1).bit_length(), -1)
    rows[: len(sequences)] = np.arange(len(sequences))
    return sequences.padded(rows, next_length(int(sequences.lengths.max())))


def reported(model: Any, weights: np.ndarray) -> np.ndarray:
    """The one map ``[tgt_len, src_len]`` that a search reports, of all ``[layers, heads, tgt_len, src_len]``."""
    layer = getattr(getattr(model, "config", None), "alignment_layer", None)
    return weights.mean((0, 1)) if layer is None else weights[layer].mean(0)


def maps_bytes(model: Any, targets: int, src_len: int, tgt_len: int) -> int:
    """How large all maps of ``targets`` targets of one sentence are [bytes], in float32 and without padding."""
    config = getattr(model, "config", None)
    if not hasattr(config, "num_heads"):  # recurrent: one layer of cross-attention
        heads = getattr(config, "attention_options", {}).get("num_heads", 1)
        return 4 * targets * heads * tgt_len * src_len
    encoder = config.encoder_layers * config.num_heads * src_len**2
    decoder = config.decoder_layers * (config.decoder_num_heads or config.num_heads) * tgt_len * (tgt_len + src_len)
    return 4 * targets * (encoder + decoder)


def is_softmax(model: Any) -> bool:
    """Whether each of a model's maps is one softmax of scores: no other normaliser, no mean, nothing cut off it."""
    if not hasattr(model, "attention_maps"):  # an ensemble
        return False
    options = getattr(model.config, "attention_options", {})
    cut = getattr(model.config, "attention", None) == "local" or options.get("over_padding", False)
    return options.get("normalizer", "softmax") == "softmax" and not cut


def _tree(nodes: Sequence[TreeNode], targets: Sequence[Target]) -> SearchTree:
    """The nodes of a beam search, and where in it each target ends."""
    paths: list[tuple[str, ...]] = []
    for node in nodes:
        paths.append((*(paths[node.parent] if node.parent >= 0 else ()), node.token))
    last = {path: number for number, path in reversed(list(enumerate(paths)))}
    return SearchTree(
        tokens=[node.token for node in nodes],
        parents=[node.parent for node in nodes],
        log_probs=[node.log_prob for node in nodes],
        leaves=[None if target.label else last.get(target.tokens) for target in targets],
    )
