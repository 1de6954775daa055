"""What the tests of the page in a browser show: deep, right to left, huge, and two kinds of attention."""

import numpy as np

from attn_jax import viz
from tests.test_viewer import example

TOKENS = ("▁les", "▁ch", "at", "s", "</s>")
SOURCE = ("▁the", "▁cat", "s", "</s>")
SCORES = np.random.default_rng(0).normal(size=(2, 3, 5, 4)) * 2
ARABIC = ("القطة", "السوداء", "تنام", "</s>")


def softmax(scores):
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def deep(name="", tokens=TOKENS, **changes):
    """Two layers of three heads, all kinds of attention, alternatives, three hypotheses."""
    rng, square = np.random.default_rng(1), lambda n: softmax(rng.normal(size=(2, 3, n, n)))
    log_probs = np.log([0.5, 0.25, 0.5, 1.0, 1.0])
    best = viz.AttentionHypothesis(
        tokens=tokens,
        weights=softmax(SCORES),
        decoder=square(5),
        score=-0.5,
        log_probs=log_probs,
        alternatives=[[(token, p), ("<b>", -3.0)] for token, p in zip(tokens, log_probs, strict=True)],
        gold=[(0, 0), (1, 1), (1, 2), (2, 3)],
        possible=[(0, 0), (3, 4)],
    )
    others = [
        viz.AttentionHypothesis(
            tokens=words,
            weights=softmax(rng.normal(size=(2, 3, len(words), 4))),
            decoder=square(len(words)),
            score=score,
            log_probs=[np.log(0.5) if word == "▁les" else -1.0 for word in words],
        )
        for words, score in ((("▁les", "▁chiens", "</s>"), -1.0), (("▁un", "</s>"), -2.0))
    ]
    fields = {"src_tokens": SOURCE, "encoder": square(4), "hypotheses": [best, *others], "name": name}
    return viz.AttentionExample(**fields | changes)


def right_to_left():
    weights = np.eye(4)[[0, 1, 3, 2]]
    return viz.AttentionExample(
        src_tokens=ARABIC, hypotheses=[viz.AttentionHypothesis(tokens=list("猫は眠る"), weights=weights)]
    )


def huge(n=500):
    scores = -0.1 * np.abs(np.arange(n)[:, None] - np.arange(n))
    scores[0, 1:] = -33  # together they weigh 1e-12; at temperature 4 an eighth
    diagonal = softmax(scores)
    words = [f"w{k}" for k in range(n)]
    return viz.AttentionExample(src_tokens=words, hypotheses=[viz.AttentionHypothesis(tokens=words, weights=diagonal)])


def mixed():
    """A model whose attention is a softmax, and one whose is not."""
    weights = np.full((4, 4), 0.25)
    other = viz.AttentionHypothesis(tokens=("un", "chat", "noir", "</s>"), weights=weights, softmax=False)
    return example(others=[example(hypotheses=[other])])
