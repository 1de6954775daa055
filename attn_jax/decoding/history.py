"""What a beam search wrote at each step, and how it is read: back from an end to its tokens, or as a tree."""

from __future__ import annotations

from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from attn_jax.decoding.hypotheses import IMPOSSIBLE, Hypotheses
from attn_jax.models.protocol import EOS_ID, PAD_ID

Array = jax.Array


class Ends(NamedTuple):
    """Last tokens of hypotheses, each ``[rows, n]``: enough to walk back from."""

    scores: Array
    log_probs: Array
    lengths: Array
    tokens: Array  # the last token
    parents: Array  # the slot it extends


class Tried(NamedTuple):
    """What only the tree needs, each ``[max_len, batch, beam]``; see `BeamTree`."""

    log_probs: Array
    end_log_probs: Array
    end_scores: Array


class History(NamedTuple):
    """What each step wrote: tokens and parents of the slots after the step, weights of the slots before it."""

    tokens: Array  # [max_len, batch, beam]
    parents: Array  # [max_len, batch, beam]
    weights: Array | None  # [max_len, batch, beam, src_len]
    tried: Tried | None


@flax.struct.dataclass
class BeamTree:
    """All hypotheses that a beam search went through; leaves ``[batch, max_len, beam]``.

    Attributes:
      tokens: the token that slot ``i`` got at a step; ``PAD_ID`` where there is no hypothesis.
      parents: the slot of the step before that it extends. At step 0 that is the root, whatever the slot.
      log_probs: of the hypothesis in slot ``i`` after the step, in nats; ``IMPOSSIBLE`` where there is none.
      end_log_probs: of the hypothesis in slot ``i`` *of the step before* (at step 0: the root) with an end of sentence
        at this step; ``IMPOSSIBLE`` where the end was not among the best continuations.
      end_scores: of those ends.
    """

    tokens: Array
    parents: Array
    log_probs: Array
    end_log_probs: Array
    end_scores: Array


class BeamNode(NamedTuple):
    """One hypothesis of a tree: what ``parent`` (a place in the list of nodes, -1: the root) became by ``token``.

    ``step`` counts from 0, ``log_prob`` is that of the whole hypothesis in nats, and ``score`` is a number for a
    finished hypothesis alone.
    """

    step: int
    token: int
    parent: int
    log_prob: float
    score: float | None


def beam_nodes(tree: BeamTree, row: int) -> list[BeamNode]:
    """The tree of one sentence as a list, step by step, parents before children.

    Args:
      tree: of a search.
      row: of the batch.

    >>> live = BeamTree(*(jnp.array([[[a, b], [c, d]]]) for a, b, c, d in [
    ...     (3, 4, 5, 0), (0, 0, 1, 0), (-0.5, -1.0, -1.5, IMPOSSIBLE),
    ...     (IMPOSSIBLE, IMPOSSIBLE, -0.75, IMPOSSIBLE), (IMPOSSIBLE, IMPOSSIBLE, -0.7, IMPOSSIBLE)]))
    >>> [(node.step, node.token, node.parent, node.log_prob) for node in beam_nodes(live, 0)]
    [(0, 3, -1, -0.5), (0, 4, -1, -1.0), (1, 2, 0, -0.75), (1, 5, 1, -1.5)]
    """
    tokens, parents, log_probs, end_log_probs, end_scores = (
        np.asarray(leaf[row])
        for leaf in (tree.tokens, tree.parents, tree.log_probs, tree.end_log_probs, tree.end_scores)
    )
    nodes: list[BeamNode] = []
    before = np.full(tokens.shape[1], -1)  # place in the list of each slot of the step before
    for step in range(len(tokens)):
        for slot in np.flatnonzero(end_log_probs[step] > IMPOSSIBLE / 2):
            end = float(end_log_probs[step, slot]), float(end_scores[step, slot])
            nodes.append(BeamNode(step, EOS_ID, int(before[slot]), *end))
        here = np.full_like(before, -1)
        for slot in np.flatnonzero(log_probs[step] > IMPOSSIBLE / 2):
            here[slot] = len(nodes)
            parent = int(before[parents[step, slot]])
            nodes.append(BeamNode(step, int(tokens[step, slot]), parent, float(log_probs[step, slot]), None))
        before = here
    return nodes


def write(history: History, position: Array, new: History) -> History:
    """Writes the step ``position``; the leaves of ``new`` lack the first axis."""
    return jax.tree.map(lambda past, now: lax.dynamic_update_index_in_dim(past, now, position, 0), history, new)


def traceback(ends: Ends, history: History) -> Hypotheses:
    """Walks from the last tokens back along the pointers, and reads tokens and attention on the way."""
    exists = ends.scores > IMPOSSIBLE / 2  # [batch, n_best]
    lengths = jnp.where(exists, ends.lengths, 0)
    rows = jnp.arange(lengths.shape[0])[:, None]

    def back(slots: Array, position: Array) -> tuple[Array, tuple[Array, Array]]:
        inside = position < lengths - 1
        here = (position, rows, slots)
        tokens = jnp.where(inside, history.tokens[here], jnp.where(position < lengths, ends.tokens, PAD_ID))
        slots = jnp.where(inside, history.parents[here], slots)
        return slots, (tokens, slots)

    positions = jnp.arange(history.tokens.shape[0])
    _, (tokens, slots) = lax.scan(back, ends.parents, positions, reverse=True)  # [max_len, batch, n_best]

    weights = history.weights
    if weights is not None:
        weights = weights[positions[:, None, None], rows, slots]  # [max_len, batch, n_best, src_len]
        weights = jnp.where((positions[:, None, None] < lengths)[..., None], weights, 0)
        weights = jnp.moveaxis(weights, 0, 2)
    return Hypotheses(
        tokens=jnp.moveaxis(tokens, 0, 2),
        lengths=lengths,
        log_probs=jnp.where(exists, ends.log_probs, IMPOSSIBLE),
        scores=ends.scores,
        finished=exists & (ends.tokens == EOS_ID),
        weights=weights,
        tree=None if history.tried is None else _tree(history),
    )


def _tree(history: History) -> BeamTree:
    real = history.tried.log_probs > IMPOSSIBLE / 2
    leaves = (jnp.where(real, history.tokens, PAD_ID), jnp.where(real, history.parents, 0), *history.tried)
    return BeamTree(*(jnp.moveaxis(leaf, 0, 1) for leaf in leaves))
