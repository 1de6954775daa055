// The line view: tokens on two sides, a stroke between them for each weight.

function makeLines(panel) {
  const frame = panel.node.querySelector(".lines"),
    svg = frame.querySelector("svg");
  const [goldStrokes, rest, lit] = svg.children;
  const rowsOf = { col: frame.querySelector(".looked-at"), row: frame.querySelector(".looking") };
  let ends = { col: [], row: [] }; // where strokes meet each token: [x, y]

  const across = () => frame.classList.contains("across");
  const between = (col, row) => curve(ends.col[col], ends.row[row], across());
  const halo = (col, row, possible) =>
    draw("path", { d: between(col, row), class: possible ? "halo possible" : "halo" });
  const stroke = (col, row) => {
    const { width, opacity } = strokeOf(weightOf(panel.table, row, col), panel.table.heaviest);
    return draw("path", { d: between(col, row), "stroke-width": width, "stroke-opacity": opacity });
  };

  function build() {
    for (const side of ["col", "row"]) {
      const { tokens, name } = panel.table[side];
      rowsOf[side].dir = isRightToLeft(tokens) ? "rtl" : "ltr";
      rowsOf[side].setAttribute("aria-label", `Tokens, ${name}`);
      rowsOf[side].replaceChildren(
        ...tokens.map((token, index) =>
          make(
            "button",
            {
              type: "button",
              class: "token",
              title: token,
              "data-side": side,
              "data-index": index,
              tabindex: index ? -1 : 0,
              "aria-pressed": false,
              "aria-label": `${shown(token)}, ${name} token ${index + 1} of ${tokens.length}`,
            },
            word(token),
          ),
        ),
      );
    }
    const most = Math.log2(panel.table.cols) || 1;
    Array.from(rowsOf.row.children).forEach((node, row) => {
      node.classList.toggle("given", panel.table.givenRows > row);
      node.style.setProperty("--entropy", (panel.table.entropies[row] / most).toFixed(3));
    });
  }

  function fit() {
    // across the page where the tokens fit, else in two columns
    frame.className = "lines across";
    const rows = Object.values(rowsOf);
    for (const row of rows) row.style.columnGap = "0px";
    const width = (row) => Array.from(row.children).reduce((sum, node) => sum + node.offsetWidth, 0);
    const gaps = rows.map((row) => (frame.clientWidth - width(row)) / Math.max(1, row.children.length - 1)); // [px]
    frame.className = Math.min(...gaps) >= 0 ? "lines across" : "lines down";
    for (const row of rows) row.style.columnGap = `${Math.min(14, ...gaps)}px`;
  }

  function measure() {
    const origin = frame.getBoundingClientRect(),
      top = (side) => side === "col";
    for (const side of ["col", "row"]) {
      ends[side] = Array.from(rowsOf[side].children, (node) => {
        const box = node.getBoundingClientRect();
        const [x, y] = [box.left - origin.left, box.top - origin.top];
        if (across()) return [x + box.width / 2, top(side) ? y + box.height + 2 : y - 5];
        return [top(side) ? x + box.width + 2 : x - 2, y + box.height / 2];
      });
    }
  }

  function layout() {
    fit();
    measure();
    const strokes = heaviestLines(panel.table);
    rest.replaceChildren(...strokes.map(({ row, col }) => stroke(col, row)));
    goldStrokes.replaceChildren(...(state.gold ? allLinksOf(panel.table) : []).map((link) => halo(...link)));
    panel.note(strokes.length === MOST_LINES ? `the ${MOST_LINES} heaviest lines` : `lines from ${LEAST_LINE}`);
  }

  function paintToken(node, side, index, at) {
    const weight = at && weightAt(panel.table, at, side, index),
      chosen = !!at && at[side] === index;
    const tinted = weight !== null && !(chosen && at.row !== null && at.col !== null);
    const pinned = !!state.pin && state.pin.panel === panel.number && state.pin[side] === index;
    const tint = tinted && weight >= LEAST_LINE ? shade(weight, panel.table.heaviest) : null;
    node.classList.toggle("chosen", chosen);
    node.classList.toggle("pinned", pinned);
    node.classList.toggle("away", !!at && !chosen && !(weight >= LEAST_LINE));
    node.style.backgroundColor = tint ? tint.fill : "";
    node.style.color = tint ? tint.ink : "";
    node.setAttribute("aria-pressed", pinned);
    if (tinted && weight >= 0.05) node.setAttribute("data-weight", weight.toFixed(2));
    else node.removeAttribute("data-weight");
  }

  function light(at) {
    // all strokes of what is pointed at, the lightest first
    const side = at.row !== null ? "col" : "row"; // the side they fan out to
    const strokes = [];
    panel.table[side].tokens.forEach((_, index) => {
      const weight = weightAt(panel.table, at, side, index);
      const [col, row] = side === "col" ? [index, at.row] : [at.col, index];
      if (weight !== null && isGold(panel.table, row, col))
        strokes.unshift(halo(col, row, !panel.table.gold.has(`${col} ${row}`)));
      if (weight >= 0.001) strokes.push(stroke(col, row));
    });
    return strokes;
  }

  function paint(at) {
    for (const side of ["col", "row"]) {
      Array.from(rowsOf[side].children).forEach((node, index) => paintToken(node, side, index, at));
    }
    svg.classList.toggle("lighting", !!at);
    lit.replaceChildren(...(at ? light(at) : []));
  }

  const tokenOf = (event) => event.target.closest?.(".token");
  const spotOf = ({ dataset: { side, index } }) => ({
    panel: panel.number,
    row: null,
    col: null,
    [side]: Number(index),
  });

  function neighbour(node, key) {
    // the token that a key leads to
    const { side } = node.dataset,
      index = Number(node.dataset.index),
      last = panel.table[side].tokens.length - 1;
    const ahead = rowsOf[side].dir === "rtl" && across() ? -1 : 1;
    const along = across() ? { ArrowRight: ahead, ArrowLeft: -ahead } : { ArrowDown: 1, ArrowUp: -1 };
    const toOther = across() ? { col: "ArrowDown", row: "ArrowUp" } : { col: "ArrowRight", row: "ArrowLeft" };
    if (key in along) return rowsOf[side].children[clamp(index + along[key], 0, last)];
    if (key === "Home") return rowsOf[side].children[0];
    if (key === "End") return rowsOf[side].children[last];
    if (key !== toOther[side]) return null;
    const other = side === "col" ? "row" : "col"; // to the token it is tied to most
    return rowsOf[other].children[ranked(panel.table, spotOf(node), other)[0].index];
  }

  frame.addEventListener("pointerover", (event) => {
    if (event.pointerType !== "touch") point(tokenOf(event) ? spotOf(tokenOf(event)) : null);
  });
  frame.addEventListener("pointerleave", () => point(null));
  frame.addEventListener("click", (event) => {
    if (tokenOf(event)) pin(spotOf(tokenOf(event)));
  });
  frame.addEventListener("focusin", (event) => {
    for (const node of tokenOf(event).parentElement.children) node.tabIndex = node === tokenOf(event) ? 0 : -1;
    if (event.target.matches(":focus-visible")) point(spotOf(tokenOf(event)), true);
  });
  frame.addEventListener("focusout", () => point(null));
  frame.addEventListener("keydown", (event) => {
    const next = tokenOf(event) && neighbour(tokenOf(event), event.key);
    if (next) {
      event.preventDefault();
      next.focus();
    }
  });
  return { frame, build, layout, paint };
}

/** How wide and how dark a line of this weight is; evenly spread attention stays faint. */
function strokeOf(weight, heaviest) {
  const share = Math.min(1, weight / Math.max(heaviest, 0.3));
  return { width: (0.75 + 4.25 * share).toFixed(2), opacity: (0.05 + 0.85 * share).toFixed(3) };
}

/** The lines drawn at rest, the heaviest last, so on top. */
function heaviestLines({ weights, cols }) {
  const found = [];
  weights.forEach((weight, at) => {
    if (weight >= LEAST_LINE) found.push({ weight, row: Math.floor(at / cols), col: at % cols });
  });
  return found.sort((a, b) => a.weight - b.weight).slice(-MOST_LINES);
}
