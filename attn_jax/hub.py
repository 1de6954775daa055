"""Text in, text and attention out: a model with its vocabularies, and its folder on disk."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from attn_jax.data.batching import Sequences, inference_batches, next_length
from attn_jax.data.subwords import load_vocabulary
from attn_jax.data.vocabulary import SPECIAL_TOKENS, Vocabulary, split_language_token
from attn_jax.decoding import beam_search, forced_decode, greedy
from attn_jax.models.families import build_model, family_of
from attn_jax.models.protocol import EOS_ID, Batch
from attn_jax.storage.files import replaced_name
from attn_jax.storage.model_folder import ModelFolderError, load_model_folder, save_model_folder
from attn_jax.viz.viewer import AttentionExample, AttentionHypothesis

EOS_TOKEN = SPECIAL_TOKENS[EOS_ID]
MAX_SRC_LEN = 1024
"""Tokens of the longest sentence that is translated: a search keeps its attention, which grows with the square."""


class Translation(NamedTuple):
    """One hypothesis of one sentence.

    Attributes:
      text: for people.
      score: log-probability in nats over the length penalty; what the search ranks by.
      tokens: target tokens, ``</s>`` last if the search got that far.
      attention: ``[tgt_len, src_len]``, row t: where the model looked when it wrote token t. None without attention.
      src_tokens: source tokens, ``</s>`` last.
      log_prob: log-probability of the tokens, in nats.
    """

    text: str
    score: float
    tokens: tuple[str, ...]
    attention: np.ndarray | None
    src_tokens: tuple[str, ...]
    log_prob: float


class Scored(NamedTuple):
    """A given pair as the model sees it: ``log_probs [tgt_len]`` in nats, and the attention ``[tgt_len, src_len]``."""

    tokens: tuple[str, ...]
    log_probs: np.ndarray
    attention: np.ndarray | None
    src_tokens: tuple[str, ...]


class Translator:
    """A trained model with its vocabularies.

    Attributes:
      model: a linen module of one of `attn_jax.models.families.FAMILIES`.
      params: its parameters.
      src_vocab, tgt_vocab: its vocabularies.
    """

    def __init__(self, model: Any, params: Any, src_vocab: Vocabulary, tgt_vocab: Vocabulary):
        for side, vocabulary in (("src", src_vocab), ("tgt", tgt_vocab)):
            size = getattr(model.config, f"{side}_vocab_size")
            if len(vocabulary) != size:
                raise ValueError(
                    f"the model has {size} {side} ids and the vocabulary {len(vocabulary)}; they must agree"
                )
        self.model, self.params, self.src_vocab, self.tgt_vocab = model, params, src_vocab, tgt_vocab
        self._search = jax.jit(self._search_batch, static_argnames=("beam", "n_best", "max_len"))
        self._force = jax.jit(self._force_batch)

    # ------------------------------------------------------------------------------------------------------- on disk

    @classmethod
    def load(cls, path: str | Path, *, precision: str = "float32") -> Translator:
        """Loads a model folder, or the best model of a run folder.

        Args:
          path: the folder.
          precision: ``float32``, or ``bfloat16`` for faster decoding whose results may differ in rare words.

        Raises:
          ModelFolderError: if a file is missing or is not what was written.
        """
        path = Path(path)
        if (path / "environment.json").is_file() and not _has_model(path):
            raise ModelFolderError(f"{path}: this run has no model yet; go on with --resume until the first validation")
        folder = path / "model" if _has_model(path) else path
        config, params, folder = load_model_folder(folder)
        missing = {"family", "model"} - set(config)
        if missing:
            raise ModelFolderError(f"{folder / 'config.json'}: lacks {', '.join(sorted(missing))}; save the model anew")
        model = build_model(config["family"], {**config["model"], "precision": precision})
        src_vocab = load_vocabulary(folder, "src")
        tgt_vocab = src_vocab if config.get("joint_vocabulary") else load_vocabulary(folder, "tgt")
        return cls(model, jax.tree.map(jnp.asarray, params), src_vocab, tgt_vocab)

    def save(self, path: str | Path, *, card: str = "", overwrite: bool = False) -> Path:
        """Writes a model folder: configuration, parameters, vocabularies, a card, and a manifest of their hashes.

        Args:
          path: the folder to write.
          card: the text of ``MODEL_CARD.md``.
          overwrite: replaces a model folder that is there.
        """
        joint = self.src_vocab is self.tgt_vocab
        config = {
            "family": family_of(self.model),
            "model": dataclasses.asdict(self.model.config),
            "joint_vocabulary": joint,
        }
        stems = {"src": self.src_vocab} if joint else {"src": self.src_vocab, "tgt": self.tgt_vocab}
        files = _vocabulary_files(stems)
        return save_model_folder(
            path,
            config,
            jax.device_get(self.params),
            files=files,
            card=card or "# A translation model\n",
            overwrite=overwrite,
        )

    # --------------------------------------------------------------------------------------------------- translating

    def __call__(
        self,
        text: str | Sequence[str],
        *,
        beam: int = 5,
        n_best: int = 1,
        length_penalty: float = 0.6,
        max_len: int = 0,
        batch_tokens: int = 2048,
    ) -> list:
        """Translates a sentence, or a list of them.

        Args:
          text: a sentence, or a list of sentences.
          beam: hypotheses that the search keeps; 1 is greedy.
          n_best: hypotheses to return, at most ``beam``.
          length_penalty: GNMT's alpha; larger favours longer translations.
          max_len: longest translation in tokens; 0: twice the source and eight more.
          batch_tokens: source tokens that are searched at once.

        Returns:
          For a sentence a list of ``n_best`` `Translation`, best first; for a list of sentences a list of such lists,
          in the order given. A blank sentence has one blank translation, of probability 1. One that is longer than
          `max_src_len` tokens is not translated: its one translation is blank, with a score of minus infinity. The
          ``src_tokens`` of both are empty.
        """
        if not 1 <= n_best <= beam:
            raise ValueError(f"n_best must be between 1 and beam = {beam}, found {n_best}; widen the beam")
        if isinstance(text, str):
            options = {"beam": beam, "n_best": n_best, "length_penalty": length_penalty, "max_len": max_len}
            return self([text], batch_tokens=batch_tokens, **options)[0]
        untold = [-math.inf if sentence.strip() else 0.0 for sentence in text]
        results = [[Translation("", log_prob, (), None, (), log_prob)] for log_prob in untold]
        self.check_language_tokens(text)
        encoded = Sequences.from_texts(text, self.src_vocab)
        filled = [i for i, sentence in enumerate(text) if sentence.strip() and encoded.lengths[i] <= self.max_src_len]
        sequences = Sequences.from_ids([encoded[index][:-1] for index in filled])
        for rows, batch in inference_batches(sequences, batch_tokens):
            src_len = np.asarray(batch.src_mask).sum(-1)
            limits = np.where(src_len > 0, max_len or 2 * src_len + 8, 0).astype(np.int32)
            longest = max_len or 2 * batch.src.shape[1] + 8
            found = self._search(
                self.params, batch, limits, np.float32(length_penalty), beam=beam, n_best=n_best, max_len=longest
            )
            found = jax.device_get(found)
            for row, index in enumerate(rows):
                ids = sequences[index]
                results[filled[index]] = [self._translation(found, row, k, ids) for k in range(n_best)]
        return results

    @property
    def max_src_len(self) -> int:
        """Tokens of the longest sentence that is translated: `MAX_SRC_LEN`, or what location attention can see."""
        return min(MAX_SRC_LEN, self.model.config.max_src_len or MAX_SRC_LEN)

    @property
    def searches(self) -> int:
        """How many shapes of search were compiled."""
        return self._search._cache_size()

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

    def _search_batch(self, params, batch, limits, length_penalty, *, beam, n_best, max_len):
        state = self.model.apply({"params": params}, batch, max_len, method="start")
        step = partial(self.model.apply, {"params": params}, method="step")
        options = {"max_len": max_len, "length_penalty": length_penalty, "row_max_len": limits}
        search = greedy if beam == 1 else partial(beam_search, beam=beam, n_best=n_best)
        return search(step, state, active=batch.src_mask.any(-1), **options)

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
        )

    def score(self, src: Sequence[str], tgt: Sequence[str], *, batch_tokens: int = 4096) -> list[Scored]:
        """Forced decoding: what the model thinks of given pairs, token by token, and where it looks.

        Args:
          src: source sentences.
          tgt: as many target sentences.
          batch_tokens: tokens that are scored at once.

        Raises:
          ValueError: if the numbers of sentences differ, and for a source longer than `max_src_len` tokens.
        """
        if len(src) != len(tgt):
            raise ValueError(f"expected as many targets as sources, found {len(src)} and {len(tgt)} sentences")
        sources, targets = Sequences.from_texts(src, self.src_vocab), Sequences.from_texts(tgt, self.tgt_vocab)
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
            forced = jax.device_get(self._force(self.params, batch.replace(tgt=tgt_ids, tgt_mask=tgt_mask)))
            for row, index in enumerate(rows):
                ids, src_ids = targets[index], sources[index]
                weights = None if forced.weights is None else forced.weights[row, : len(ids), : len(src_ids)]
                results[index] = Scored(
                    token_strings(self.tgt_vocab, ids),
                    forced.token_log_probs[row, : len(ids)],
                    weights,
                    token_strings(self.src_vocab, src_ids),
                )
        return results

    def _force_batch(self, params: Any, batch: Batch):
        state = self.model.apply({"params": params}, batch, batch.tgt.shape[1], method="start")
        return forced_decode(
            partial(self.model.apply, {"params": params}, method="step"), state, batch.tgt, batch.tgt_mask
        )


def _has_model(run: Path) -> bool:
    """Whether a run folder holds a model, or what an interrupted save left of one."""
    return (run / "model").is_dir() or replaced_name(run / "model").is_dir()


def attention_example(hypotheses: Sequence[Translation], reference: str | None = None) -> AttentionExample:
    """The hypotheses of a sentence as the interactive page takes them."""
    return AttentionExample(
        src_tokens=hypotheses[0].src_tokens,
        hypotheses=[
            AttentionHypothesis(tokens=h.tokens, weights=h.attention, text=h.text, score=h.score)
            for h in hypotheses
            if h.tokens
        ],
        reference=reference,
    )


def token_strings(vocabulary: Vocabulary, ids: Sequence[int]) -> tuple[str, ...]:
    """The tokens of ids as text, with ``</s>`` for the end of the sentence."""
    ids = [int(i) for i in ids]
    ends = bool(ids) and ids[-1] == EOS_ID
    return (*vocabulary.pieces(ids[:-1] if ends else ids), *((EOS_TOKEN,) if ends else ()))


def _vocabulary_files(stems: dict[str, Vocabulary]) -> dict[str, bytes]:
    """The files of vocabularies, as a model folder takes them."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        for stem, vocabulary in stems.items():
            vocabulary.save(folder, stem)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}
