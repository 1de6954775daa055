// The search tree: what the search kept at each step, and which hypotheses came out of it.

const TREE = { lane: 27, gap: 30, top: 18, left: 34, font: 14, widest: 120 }; // [px]

/** The tree of the hypotheses alone, where the search left none. */
function treeOfHypotheses(hypotheses) {
  const tree = { tokens: [], parents: [], log_probs: [], leaves: [] },
    known = new Map();
  for (const { tokens, log_probs: steps, label } of hypotheses) {
    if (label) {
      tree.leaves.push(null);
      continue;
    } // no result of the search
    let parent = -1,
      sum = 0;
    tokens.forEach((token, n) => {
      const key = `${parent} ${token}`;
      sum += steps ? steps[n] : NaN;
      if (!known.has(key)) {
        tree.parents.push(parent);
        tree.log_probs.push(sum);
        known.set(key, tree.tokens.push(token) - 1);
      }
      parent = known.get(key);
    });
    tree.leaves.push(parent);
  }
  return tree;
}

/** Nodes with their step, children (the most promising first), probability, and the best hypothesis through them. */
function grown({ tokens, parents: above, log_probs: sums, leaves }) {
  const nodes = tokens.map((token, n) => ({
    n,
    token,
    parent: above[n],
    sum: sums[n],
    children: [],
    hypothesis: null,
    leaf: null,
    step: 0,
    p: Math.exp(sums[n] - (above[n] < 0 ? 0 : sums[above[n]])),
  }));
  for (const node of nodes) node.step = node.parent < 0 ? 0 : nodes[node.parent].step + 1;
  leaves.forEach((leaf, rank) => {
    if (leaf === null) return;
    nodes[leaf].leaf ??= rank;
    for (let at = leaf; at >= 0; at = nodes[at].parent) nodes[at].hypothesis ??= rank;
  });
  const roots = nodes.filter(({ parent }) => parent < 0);
  for (const node of nodes) if (node.parent >= 0) nodes[node.parent].children.push(node);
  const rank = (node) => node.hypothesis ?? Infinity;
  const better = (a, b) => (rank(a) === rank(b) ? b.sum - a.sum || 0 : rank(a) - rank(b));
  for (const list of [roots, ...nodes.map(({ children }) => children)]) list.sort(better);
  return { nodes, roots };
}

/** Gives every node a lane: the best path runs straight on, every other branch takes the first free lane below. */
function giveLanes(roots) {
  const ends = []; // for each lane the stretches taken: [from, to]
  const free = (lane, from, to) => (ends[lane] ?? []).every(([a, b]) => to < a || from > b);
  function chain(first) {
    const nodes = [first];
    while (nodes.at(-1).children.length) nodes.push(nodes.at(-1).children[0]);
    return nodes;
  }
  function place(first, above) {
    const nodes = chain(first),
      [from, to] = [first.step - 1, nodes.at(-1).step];
    let lane = above;
    while (!free(lane, from, to)) lane += 1;
    (ends[lane] ??= []).push([from, to]);
    for (const node of nodes) node.lane = lane;
    for (const node of nodes) for (const child of node.children.slice(1)) place(child, lane + 1);
  }
  for (const root of roots) place(root, root === roots[0] ? 0 : 1);
  return ends.length;
}

/** Where everything lies: x and width of each step's tokens, y of each lane. */
function treeLayout(tree, measure) {
  const { nodes, roots } = grown(tree);
  if (!nodes.length) return null;
  const lanes = giveLanes(roots),
    steps = Math.max(...nodes.map(({ step }) => step)) + 1;
  const widths = new Array(steps).fill(12),
    starts = [];
  for (const node of nodes) {
    node.width = Math.min(TREE.widest, measure(shown(node.token)));
    widths[node.step] = Math.max(widths[node.step], node.width);
  }
  let at = TREE.left;
  for (const width of widths) {
    starts.push(at);
    at += width + TREE.gap;
  }
  for (const node of nodes) Object.assign(node, { x: starts[node.step], y: TREE.top + node.lane * TREE.lane });
  return { nodes, width: at + 60, height: TREE.top * 2 + (lanes - 1) * TREE.lane };
}

function edgeOf(nodes, node) {
  // from the end of the parent's token to the start of this one
  const parent = nodes[node.parent],
    x0 = parent ? parent.x + parent.width + 5 : 10,
    y0 = parent ? parent.y : TREE.top;
  const x1 = node.x - 5,
    bend = Math.max(Math.min(28, x1 - x0), 12);
  return `M${x0} ${y0}C${x0 + bend * 0.6} ${y0} ${x0 + bend * 0.4} ${node.y} ${x0 + bend} ${node.y}L${x1} ${node.y}`;
}
const edgeWidth = ({ p }) => (Number.isFinite(p) ? 0.8 + 3.6 * p : 1.5).toFixed(2);

const treeView = (() => {
  const frame = $("tree"),
    svg = $("tree-picture"),
    note = $("tree-note"),
    pen = document.createElement("canvas").getContext("2d");
  let laid = null,
    built = null, // the model whose tree it is
    leaves = [],
    nodesOf = [];

  const pathTo = (node) => {
    const path = [];
    for (let at = node; at; at = laid.nodes[at.parent]) path.unshift(at);
    return path;
  };
  const describe = (node) => {
    const p = Number.isFinite(node.p) ? `, probability ${percent(node.p)}, ${signed(node.sum)} nats so far` : "";
    const into = node.hypothesis === null ? "given up later" : `in hypothesis ${node.hypothesis + 1}`;
    return `${shown(node.token)}, step ${node.step + 1}${p}, ${into}`;
  };

  function update() {
    if (modelOf(0) === built) mark(laid?.nodes[document.activeElement?.dataset.node]);
    else build(modelOf(0)); // only then: a node with the focus keeps it
  }

  function build(model) {
    built = model;
    const tree = model.tree ?? treeOfHypotheses(model.hypotheses);
    leaves = tree.leaves;
    const found = model.hypotheses.filter(({ label }) => !label).length;
    $("search").hidden = !model.tree && found < 2;
    pen.font = `600 ${TREE.font}px ${getComputedStyle(document.body).fontFamily}`;
    laid = $("search").hidden ? null : treeLayout(tree, (text) => pen.measureText(text).width);
    $("tree-size").textContent = laid ? `${found} hypotheses out of ${laid.nodes.length} nodes` : "";
    svg.replaceChildren();
    nodesOf = [];
    if (!laid) return;
    svg.setAttribute("width", laid.width);
    svg.setAttribute("height", laid.height);
    const edges = laid.nodes.map((node) =>
      draw("path", {
        class: "edge",
        d: edgeOf(laid.nodes, node),
        "stroke-width": edgeWidth(node),
        "data-node": node.n,
      }),
    );
    nodesOf = laid.nodes.map(drawNode);
    svg.append(draw("circle", { class: "root", cx: 8, cy: TREE.top, r: 3.5 }), ...edges, ...nodesOf);
    mark();
  }

  function drawNode(node) {
    const [, start, rest] = shown(node.token).match(/^(▁*)([^]*)$/);
    const text = draw("text", { x: node.x, y: node.y + 5 }, draw("tspan", { class: "mark" }, start), rest);
    if (node.width === TREE.widest) filled(text, { textLength: TREE.widest, lengthAdjust: "spacingAndGlyphs" }, []);
    const target = draw("rect", { x: node.x - 5, y: node.y - 12, width: node.width + 10, height: 24, rx: 5 });
    const group = draw(
      "g",
      {
        class: "node",
        role: "button",
        tabindex: node.n ? -1 : 0,
        "data-node": node.n,
        "aria-label": describe(node),
      },
      target,
      text,
    );
    if (node.leaf !== null) {
      const { score } = built.hypotheses[node.leaf];
      const label = `${node.leaf + 1}${score === null ? "" : ` · ${signed(score)}`}`;
      group.append(draw("text", { class: "rank", x: node.x + node.width + 9, y: node.y + 4.5 }, label));
    }
    return group;
  }

  function mark(pointed = null) {
    // the chosen hypothesis, and the way to what is pointed at
    if (!laid) return;
    const leaf = laid.nodes[leaves[state.picks[0].hypothesis]];
    const chosen = new Set(leaf ? pathTo(leaf) : []),
      lit = new Set(pointed ? pathTo(pointed) : []);
    for (const element of svg.querySelectorAll("[data-node]")) {
      const node = laid.nodes[element.dataset.node];
      element.classList.toggle("kept", node.hypothesis !== null);
      element.classList.toggle("chosen", chosen.has(node));
      element.classList.toggle("lit", lit.has(node));
    }
    svg.classList.toggle("lighting", !!pointed);
    note.textContent = pointed
      ? describe(pointed)
      : "Thicker lines: likelier words. Pick a node to see the attention of the best hypothesis through it.";
  }

  const nodeOf = (event) => laid?.nodes[event.target.closest?.(".node")?.dataset.node];
  const focus = (node) => {
    if (!node) return;
    for (const element of nodesOf) element.setAttribute("tabindex", element === nodesOf[node.n] ? 0 : -1);
    nodesOf[node.n].focus();
    nodesOf[node.n].scrollIntoView({ block: "nearest", inline: "nearest" });
  };
  function pick(node) {
    if (node.hypothesis === null) announce("No hypothesis came out of this branch.");
    else choose({ picks: [{ ...state.picks[0], hypothesis: node.hypothesis }, state.picks[1]] });
  }
  function beside(node, direction) {
    // the nearest node of the same step above or below
    const column = laid.nodes.filter(({ step }) => step === node.step).sort((a, b) => a.lane - b.lane);
    return column[column.indexOf(node) + direction];
  }
  svg.addEventListener("pointerover", (event) => mark(nodeOf(event) ?? null));
  svg.addEventListener("pointerleave", () => mark());
  svg.addEventListener("focusin", (event) => mark(nodeOf(event) ?? null));
  svg.addEventListener("focusout", () => mark());
  svg.addEventListener("click", (event) => {
    if (nodeOf(event)) pick(nodeOf(event));
  });
  svg.addEventListener("keydown", (event) => {
    const node = nodeOf(event);
    if (!node) return;
    const moves = {
      ArrowLeft: () => focus(laid.nodes[node.parent]),
      ArrowRight: () => focus(node.children[0]),
      ArrowUp: () => focus(beside(node, -1)),
      ArrowDown: () => focus(beside(node, 1)),
      Enter: () => pick(node),
      " ": () => pick(node),
    };
    if (!(event.key in moves)) return;
    event.preventDefault();
    moves[event.key]();
  });
  return {
    update,
    mark,
    frame,
    get laid() {
      return laid;
    },
  };
})();
