"""Two alignments of one sentence pair, from models of opposite directions, made one."""

from __future__ import annotations

from collections.abc import Set

from attn_jax.metrics.alignment import Link, Links

SYMMETRISATIONS = ("intersection", "union", "grow-diag", "grow-diag-final-and")

NEIGHBOURS = ((-1, 0), (0, -1), (1, 0), (0, 1), (-1, -1), (-1, 1), (1, -1), (1, 1))
"""In the order of the published algorithm, on which its result depends."""


def symmetrise(forward: Set[Link], backward: Set[Link], method: str = "grow-diag-final-and") -> Links:
    """Joins the links of two directions; ``intersection <= grow-diag <= grow-diag-final-and <= union``.

    ``grow-diag`` starts at the intersection, and, as long as there are such, adds links of the union next to a link it
    has, if either of their words has none. ``final-and`` then adds those links of either direction (first the forward
    ones) of which both words still have none.

    Args:
      forward: links ``(source, target)`` of the model that reads the source and writes the target.
      backward: links of the opposite model, turned round to ``(source, target)`` too.
      method: one of `SYMMETRISATIONS`.

    Returns:
      The joint links.

    Raises:
      ValueError: for an unknown method.

    References:
      Koehn, Och and Marcu 2003, "Statistical phrase-based translation" (N03-1017); Koehn et al. 2005,
      "Edinburgh system description for the 2005 IWSLT speech translation evaluation".

    >>> sorted(symmetrise({(0, 0), (1, 1), (3, 3)}, {(0, 0), (1, 0)}))  # (1, 1) next to (1, 0), next to (0, 0)
    [(0, 0), (1, 0), (1, 1), (3, 3)]
    """
    if method not in SYMMETRISATIONS:
        raise ValueError(f"symmetrisation must be one of {', '.join(SYMMETRISATIONS)}; found {method!r}")
    union, links = forward | backward, set(forward & backward)
    if method in ("intersection", "union"):
        return frozenset(union if method == "union" else links)
    sources, targets = {source for source, _ in links}, {target for _, target in links}

    def add(link: Link) -> None:
        links.add(link)
        sources.add(link[0])
        targets.add(link[1])

    size = -1
    while len(links) > size:
        size = len(links)
        for source, target in sorted(union):
            if (source, target) not in links:  # asked now: what was just added may grow in the same round
                continue
            for down, right in NEIGHBOURS:
                near = source + down, target + right
                if near in union and (near[0] not in sources or near[1] not in targets):
                    add(near)
    if method == "grow-diag-final-and":
        for direction in (forward, backward):
            for source, target in sorted(direction):
                if source not in sources and target not in targets:
                    add((source, target))
    return frozenset(links)
