"""Text in, text and attention out: a model with its vocabularies, and its folder on disk."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from attn_jax import aligner
from attn_jax.data.batching import Sequences, inference_batches, next_length
from attn_jax.data.vocabulary import SPECIAL_TOKENS, Vocabulary, split_language_token
from attn_jax.decoding.ensemble import Ensemble, ensemble_params
from attn_jax.decoding.forced import forced_decode
from attn_jax.decoding.history import beam_nodes
from attn_jax.decoding.search import search, split
from attn_jax.loading import Parts, load_parts, save_parts
from attn_jax.models.protocol import BOS_ID, EOS_ID, PAD_ID, Batch, search_variables
from attn_jax.search_config import SearchConfig
from attn_jax.translation import Scored, Translation, TreeNode

EOS_TOKEN = SPECIAL_TOKENS[EOS_ID]
MAX_SRC_LEN = 1024
"""Tokens of the longest sentence that is translated: a search keeps its attention, which grows with the square."""


class Translator:
    """A trained model with its vocabularies.

    A search that was compiled for one model serves every translator of an equal one, and is kept as long as the
    process; ``jax.clear_caches()`` frees them all.

    Attributes:
      model: a linen module of one of `attn_jax.models.families.FAMILIES`.
      params: its parameters; to change them assign others. What searches fold of them (see
        `attn_jax.models.protocol.Decoder`; up to 256 MB for a recurrent model) is kept with them.
      src_vocab, tgt_vocab: its vocabularies.
      search: how it searches unless told otherwise.
    """

    def __init__(
        self,
        model: Any,
        params: Any,
        src_vocab: Vocabulary,
        tgt_vocab: Vocabulary,
        search: SearchConfig | None = None,
    ):
        for side, vocabulary in (("src", src_vocab), ("tgt", tgt_vocab)):
            size = getattr(model.config, f"{side}_vocab_size")
            if len(vocabulary) != size:
                raise ValueError(
                    f"the model has {size} {side} ids and the vocabulary {len(vocabulary)}; they must agree"
                )
        self.model, self.params, self.src_vocab, self.tgt_vocab = model, params, src_vocab, tgt_vocab
        self.search = search or SearchConfig()

    # ------------------------------------------------------------------------------------------------------- on disk

    @classmethod
    def load(cls, path: str | Path, *more: str | Path, precision: str = "float32") -> Translator:
        """Loads a model folder, or the best model of a run folder; of several folders an ensemble.

        Args:
          path: the folder.
          *more: folders of further models with the same vocabularies; their log-probabilities are averaged.
          precision: ``float32``, or ``bfloat16`` for faster decoding whose results may differ in rare words.

        Raises:
          ModelFolderError: if a file is missing or is not what was written.
          ValueError: for vocabularies that differ.
        """
        first = load_parts(Path(path), precision)
        if not more:
            return cls(*first)
        models, params = [first.model], [first.params]
        for folder in more:
            model, its_params, *vocabularies, _ = load_parts(Path(folder), precision)
            for side, one, other in zip(("source", "target"), first[2:4], vocabularies, strict=True):
                if one != other:
                    raise ValueError(
                        f"{folder}: its {side} vocabulary is not that of {path}; the models of an ensemble share their "
                        "vocabularies, train this one with --init-from or from the same text and settings"
                    )
            models.append(model)
            params.append(its_params)
        return cls(Ensemble(tuple(models)), ensemble_params(params), *first[2:])

    def save(self, path: str | Path, *, card: str = "", overwrite: bool = False) -> Path:
        """Writes a model folder: configuration, parameters, vocabularies, a card, and a manifest of their hashes.

        Args:
          path: the folder to write.
          card: the text of ``MODEL_CARD.md``.
          overwrite: replaces a model folder that is there.

        Raises:
          ValueError: for an ensemble.
        """
        if isinstance(self.model, Ensemble):
            raise ValueError("an ensemble has no folder of its own; load it from those of its members")
        parts = Parts(self.model, self.params, self.src_vocab, self.tgt_vocab, self.search)
        return save_parts(parts, path, card=card or "# A translation model\n", overwrite=overwrite)

    # --------------------------------------------------------------------------------------------------- translating

    def __call__(
        self,
        text: str | Sequence[str],
        config: SearchConfig | None = None,
        *,
        prefix: Any = None,
        tree: bool = False,
        replace_unknown: Mapping[str, str] | None = None,
        batch_tokens: int = 2048,
        **options: Any,
    ) -> list:
        """Translates a sentence, or a list of them.

        Args:
          text: a sentence, or a list of sentences.
          config: how to search; None: as `search` says.
          prefix: how the translation must begin: a text, or tokens as they stand in ``Translation.tokens``. For a list
            of sentences as many of them, each of which may be empty.
          tree: keeps all that a beam search went through, in ``Translation.tree``.
          replace_unknown: a dictionary, which may be empty: each unknown word in ``text`` becomes what it says of the
            source word that was looked at most, or that word itself. None: they stay ``<unk>``, as in ``tokens``.
          batch_tokens: source tokens that are searched at once.
          **options: take the place of those of ``config``, as in ``translator(text, beam=8, n_best=3)``.

        Returns:
          For a sentence a list of `Translation`, best first (samples: as they were drawn); for a list of sentences a
          list of such lists, in the order given. A blank sentence has one blank translation, of probability 1. One that
          is longer than `max_src_len` tokens is not translated: its one translation is blank, with a score of minus
          infinity. The ``src_tokens`` of both are empty.

        Raises:
          ValueError: for options out of range or that do nothing, an unknown language token, or a prefix that cannot be
            or leaves no room.
        """
        config = (config or self.search).updated(**options)
        config.check()
        if batch_tokens < 1:
            raise ValueError(f"batch_tokens must be at least 1, found {batch_tokens}")
        if isinstance(text, str):
            given = None if prefix is None else [prefix]
            more = {"prefix": given, "tree": tree, "replace_unknown": replace_unknown, "batch_tokens": batch_tokens}
            return self([text], config, **more)[0]
        if replace_unknown is not None:
            aligner.check_replaces_unknown(self)
        if tree and config.sample:
            raise ValueError("samples have no tree; leave sample or tree off")
        untold = [-math.inf if sentence.strip() else 0.0 for sentence in text]
        results = [[Translation("", log_prob, (), None, (), log_prob)] for log_prob in untold]
        self.check_language_tokens(text)
        prefixes = self._prefixes(prefix, text, config.max_len)
        encoded = Sequences.from_texts(text, self.src_vocab)
        filled = [i for i, sentence in enumerate(text) if sentence.strip() and encoded.lengths[i] <= self.max_src_len]
        sequences = Sequences.from_ids([encoded[index][:-1] for index in filled])
        compiled, numbers = split(config)
        for rows, batch in inference_batches(sequences, batch_tokens):
            numbers_of_rows = np.zeros(batch.src.shape[0], np.int32)
            numbers_of_rows[: len(rows)] = [filled[row] for row in rows]
            forced = _padded([prefixes[filled[row]] for row in rows], batch.src.shape[0])
            in_prefix = 0 if forced is None else np.count_nonzero(forced, axis=1)
            src_len = np.asarray(batch.src_mask).sum(-1)
            limits = np.maximum(config.max_len or 2 * src_len + 8 + in_prefix, config.min_len)
            room = max(2 * batch.src.shape[1] + 8 + (0 if forced is None else forced.shape[1]), config.min_len)
            max_len = config.max_len or room
            found = None
            while found is None or not found.settled.all():  # few translations are as long as they may be
                room = min(room, max_len)
                found = _search_batch(
                    self.model,
                    self._variables,
                    batch,
                    np.where(src_len > 0, limits, 0).astype(np.int32),
                    numbers,
                    numbers_of_rows,
                    forced,
                    config=compiled,
                    max_len=max_len,
                    room=room,
                    tree=tree,
                )
                found, room = jax.device_get(found), 2 * room
            for row, index in enumerate(rows):
                ids = sequences[index]
                there = np.flatnonzero(found.lengths[row]).tolist() or [0]  # a small vocabulary cannot fill a wide beam
                results[filled[index]] = [self._translation(found, row, k, ids) for k in there]
        if replace_unknown is not None:
            for sentence, hypotheses in zip(text, results, strict=True):
                hypotheses[:] = [aligner.replace_unknown(self, sentence, each, replace_unknown) for each in hypotheses]
        return results

    @property
    def params(self) -> Any:
        """The parameters."""
        return self._params

    @params.setter
    def params(self, params: Any) -> None:
        self._params = params
        self.__dict__.pop("_variables", None)

    @cached_property
    def _variables(self) -> dict[str, Any]:
        """What a search reads."""
        return search_variables(self.model, self.params)

    @property
    def max_src_len(self) -> int:
        """Tokens of the longest sentence that is translated: `MAX_SRC_LEN`, or what location attention can see."""
        members = self.model.members if isinstance(self.model, Ensemble) else (self.model,)
        return min(MAX_SRC_LEN, *(member.config.max_src_len or MAX_SRC_LEN for member in members))

    def fits(self, text: Sequence[str]) -> list[bool]:
        """Whether each sentence has at most `max_src_len` tokens."""
        return (Sequences.from_texts(text, self.src_vocab).lengths <= self.max_src_len).tolist()

    def check_language_tokens(self, text: Sequence[str]) -> None:
        """A sentence may begin with ``>>xx<<`` only if the source vocabulary has that very piece.

        Raises:
          ValueError: for the first other one.
        """
        for number, sentence in enumerate(text, 1):
            token, _ = split_language_token(sentence)
            token = token.lower() if self.src_vocab.lowercase else token
            if token and token not in self.src_vocab.pieces(self.src_vocab.encode(token)):
                raise ValueError(
                    f"sentence {number} ({sentence:.40}): unknown language token {token}; this model was not trained "
                    "with it, remove it"
                )

    @cached_property
    def _id_of(self) -> dict[str, int]:
        """The id of each target token."""
        return {token: number for number, token in enumerate(self.tgt_vocab.pieces(range(len(self.tgt_vocab))))}

    def _target_ids(self, target: str | Sequence[str]) -> list[int]:
        """The ids of a text, or of tokens; without the end of sentence."""
        if isinstance(target, str):
            return self.tgt_vocab.encode(target)
        unknown = [token for token in target if token not in self._id_of]
        if unknown:
            raise ValueError(f"the target vocabulary has no token {unknown[0]!r}; give it as text")
        ids = [self._id_of[token] for token in target]
        ids = ids[:-1] if ids[-1:] == [EOS_ID] else ids
        if special := {PAD_ID, BOS_ID, EOS_ID}.intersection(ids):
            raise ValueError(f"a target has no {SPECIAL_TOKENS[min(special)]} before its end; leave it out")
        return ids

    def _prefixes(self, prefix: Any, text: Sequence[str], max_len: int) -> list[list[int]]:
        """The ids that each translation must begin with."""
        if prefix is None:
            return [[]] * len(text)
        if isinstance(prefix, str) or len(prefix) != len(text):
            found = "a text" if isinstance(prefix, str) else f"{len(prefix)}"
            raise ValueError(f"expected a prefix for each of the {len(text)} sentences, found {found}")
        prefixes = [self._target_ids(each) for each in prefix]
        for number, (sentence, ids) in enumerate(zip(text, prefixes, strict=True), 1):
            if ids and not sentence.strip():
                raise ValueError(f"sentence {number} is blank and has a prefix; its translation is blank, give it none")
        longest = max(map(len, prefixes), default=0)
        if 0 < max_len <= longest:
            raise ValueError(f"a prefix of {longest} tokens leaves no room in max_len {max_len}; raise max_len")
        return prefixes

    def _translation(self, found: Any, row: int, rank: int, src_ids: np.ndarray) -> Translation:
        length = int(found.lengths[row, rank])
        ids = found.tokens[row, rank, :length]
        weights = None if found.weights is None else found.weights[row, rank, :length, : len(src_ids)]
        return Translation(
            text=self.tgt_vocab.decode(ids.tolist()),
            score=float(found.scores[row, rank]),
            tokens=token_strings(self.tgt_vocab, ids),
            attention=weights,
            src_tokens=token_strings(self.src_vocab, src_ids),
            log_prob=float(found.log_probs[row, rank]),
            tree=self._tree(found.tree, row) if found.tree is not None and rank == 0 else None,
        )

    def _tree(self, tree: Any, row: int) -> tuple[TreeNode, ...]:
        nodes = beam_nodes(tree, row)
        tokens = (token_strings(self.tgt_vocab, [node.token])[0] for node in nodes)
        return tuple(TreeNode(n.step, token, *n[2:]) for n, token in zip(nodes, tokens, strict=True))

    def score(
        self, src: Sequence[str], tgt: Sequence[str | Sequence[str]], *, top_k: int = 0, batch_tokens: int = 4096
    ) -> list[Scored]:
        """Forced decoding: what the model thinks of given pairs, token by token, and where it looks.

        Args:
          src: source sentences.
          tgt: as many target sentences, each a text, or tokens as they stand in ``Translation.tokens``.
          top_k: alternatives to give at each token, most likely first.
          batch_tokens: tokens that are scored at once.

        Raises:
          ValueError: if the numbers of sentences differ, and for a source longer than `max_src_len` tokens.
        """
        if len(src) != len(tgt):
            raise ValueError(f"expected as many targets as sources, found {len(src)} and {len(tgt)} sentences")
        sources, targets = Sequences.from_texts(src, self.src_vocab), Sequences.from_ids(map(self._target_ids, tgt))
        if len(src) and sources.lengths.max() > self.max_src_len:
            number = int(sources.lengths.argmax())
            raise ValueError(
                f"sentence {number + 1} ({src[number]:.40}): has {sources.lengths[number]} tokens, and this model sees "
                f"{self.max_src_len}; split it"
            )
        results: list[Scored | None] = [None] * len(src)
        for rows, batch in inference_batches(sources, batch_tokens):
            longest = next_length(max(len(targets[index]) for index in rows))
            empty = np.full(batch.src.shape[0] - len(rows), -1)
            tgt_ids, tgt_mask = targets.padded(np.concatenate([rows, empty]), longest)
            pairs = batch.replace(tgt=tgt_ids, tgt_mask=tgt_mask)
            forced = jax.device_get(_force_batch(self.model, self._variables, pairs, top_k=top_k))
            for row, index in enumerate(rows):
                ids, src_ids = targets[index], sources[index]
                weights = None if forced.weights is None else forced.weights[row, : len(ids), : len(src_ids)]
                results[index] = Scored(
                    token_strings(self.tgt_vocab, ids),
                    forced.token_log_probs[row, : len(ids)],
                    weights,
                    token_strings(self.src_vocab, src_ids),
                    self._alternatives(forced, row, len(ids)) if top_k else (),
                )
        return results

    def _alternatives(self, forced: Any, row: int, length: int) -> tuple[tuple[tuple[str, float], ...], ...]:
        return tuple(
            tuple((token_strings(self.tgt_vocab, [i])[0], float(p)) for i, p in zip(ids, log_probs, strict=True))
            for ids, log_probs in zip(forced.top_tokens[row, :length], forced.top_log_probs[row, :length], strict=True)
        )


def searches() -> int:
    """How many searches this process has compiled: one for each model, shape and kind of search."""
    return _search_batch._cache_size()


@partial(jax.jit, static_argnames=("model", "config", "max_len", "room", "tree"))
def _search_batch(model, variables, batch, limits, numbers, sentence_ids, prefix, *, config, max_len, room, tree):
    return search(
        config,
        numbers,
        partial(model.apply, variables, method="step"),
        model.apply(variables, batch, room, method="start"),
        max_len=max_len,
        room=room,
        sentence_ids=sentence_ids,
        return_tree=tree,
        src_mask=batch.src_mask,
        active=batch.src_mask.any(-1),
        row_max_len=limits,
        prefix=prefix,
    )


@partial(jax.jit, static_argnames=("model", "top_k"))
def _force_batch(model: Any, variables: Any, batch: Batch, *, top_k: int) -> Any:
    state = model.apply(variables, batch, batch.tgt.shape[1], method="start")
    step = partial(model.apply, variables, method="step")
    return forced_decode(step, state, batch.tgt, batch.tgt_mask, top_k=top_k)


def _padded(prefixes: list[list[int]], rows: int) -> np.ndarray | None:
    """Prefixes as ``[rows, prefix_len]`` ids, ``PAD_ID`` after the end of each; None if all are empty."""
    longest = max(map(len, prefixes), default=0)
    if not longest:
        return None
    padded = np.full((rows, next_length(longest)), PAD_ID, np.int32)
    for row, ids in enumerate(prefixes):
        padded[row, : len(ids)] = ids
    return padded


def token_strings(vocabulary: Vocabulary, ids: Sequence[int]) -> tuple[str, ...]:
    """The tokens of ids as text, with ``</s>`` for the end of the sentence."""
    ids = [int(i) for i in ids]
    ends = bool(ids) and ids[-1] == EOS_ID
    return (*vocabulary.pieces(ids[:-1] if ends else ids), *((EOS_TOKEN,) if ends else ()))
