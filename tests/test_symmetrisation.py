"""Symmetrised alignments: by hand, between intersection and union, and against the published loops over the matrix."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attn_jax.metrics import symmetrise
from attn_jax.metrics.symmetrisation import SYMMETRISATIONS

SIZE = 6
links_strategy = st.frozensets(st.tuples(st.integers(0, SIZE - 1), st.integers(0, SIZE - 1)), max_size=14)


def draw(text):
    """Links from a picture, a row a source word: F forward only, B backward only, X both, . none."""
    rows = [row.split() for row in text.strip().splitlines()]
    cells = [(i, j, cell) for i, row in enumerate(rows) for j, cell in enumerate(row)]
    return ({(i, j) for i, j, cell in cells if cell in kinds} for kinds in ("XF", "XB"))


@pytest.mark.parametrize(
    ("picture", "grown", "final"),
    [
        # A chain grows over rounds; of two links of covered words, (1, 0) stays out.
        ("X . .\nB F .\n. . B", {(0, 0), (1, 0), (1, 1), (2, 2)}, {(0, 0), (1, 0), (1, 1), (2, 2)}),
        # A neighbour between two covered words stays out; a far link comes in with final-and only if both are free.
        ("X F . .\n. X . .\n. . . .\n. . . F", {(0, 0), (1, 1)}, {(0, 0), (1, 1), (3, 3)}),
        # Far links: both words free, then the target is taken: the forward one came first.
        (". . F .\n. . . .\n. . B .\nX . . .", {(3, 0)}, {(3, 0), (0, 2)}),
        # Half covered: final-and (unlike final-or) leaves it out.
        ("X . . B\n. . . .\n. . . .", {(0, 0)}, {(0, 0)}),
        # Nothing in common: nothing to grow from, but final-and takes what is free.
        ("F B .\n. . B", set(), {(0, 0), (1, 2)}),
    ],
)
def test_by_hand(picture, grown, final):
    forward, backward = draw(picture)
    assert symmetrise(forward, backward, "grow-diag") == grown
    assert symmetrise(forward, backward) == final
    assert symmetrise(forward, backward, "intersection") == forward & backward
    assert symmetrise(forward, backward, "union") == forward | backward


def published(forward, backward):
    """The pseudo-code of Koehn et al. with its loops over all cells of the matrix."""
    neighbouring = (-1, 0), (0, -1), (1, 0), (0, 1), (-1, -1), (-1, 1), (1, -1), (1, 1)
    alignment, union = set(forward & backward), forward | backward
    row = lambda i: any(a == i for a, _ in alignment)  # noqa: E731
    column = lambda j: any(b == j for _, b in alignment)  # noqa: E731
    added = True
    while added:
        added = False
        for i in range(SIZE):
            for j in range(SIZE):
                if (i, j) in alignment:
                    for a, b in neighbouring:
                        new = (i + a, j + b)
                        if (not row(new[0]) or not column(new[1])) and new in union:
                            alignment.add(new)
                            added = True
    for direction in (forward, backward):
        for i in range(SIZE):
            for j in range(SIZE):
                if not row(i) and not column(j) and (i, j) in direction:
                    alignment.add((i, j))
    return alignment


@given(links_strategy, links_strategy)
def test_properties(forward, backward):
    found = [symmetrise(forward, backward, method) for method in SYMMETRISATIONS]
    intersection, union, grown, final = found
    assert intersection <= grown <= final <= union
    assert final == published(forward, backward)
    assert symmetrise(forward, forward) == forward
    turned = [frozenset((b, a) for a, b in side) for side in (forward, backward)]
    assert symmetrise(*turned, "union") == frozenset((b, a) for a, b in union)


def test_unknown_method():
    with pytest.raises(ValueError, match="one of intersection, union, grow-diag, grow-diag-final-and; found 'gdfa'"):
        symmetrise(set(), set(), "gdfa")
