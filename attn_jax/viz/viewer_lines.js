// The line view: tokens on two sides, a stroke between them for each weight.

const lines = (() => {
  const frame = $("lines"), rows = { src: $("src-tokens"), tgt: $("tgt-tokens") };
  const path = (d, weight) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", "path");
    node.setAttribute("d", d);
    if (weight !== undefined) {
      const share = Math.min(1, weight / Math.max(heaviest, 0.3)); // evenly spread attention stays faint
      node.setAttribute("stroke-width", (0.75 + 4.25 * share).toFixed(2));
      node.setAttribute("stroke-opacity", (0.05 + 0.85 * share).toFixed(3));
    }
    return node;
  };
  let ends = { src: [], tgt: [] }; // where strokes meet each token: [x, y]

  function curve(src, tgt) {
    const [x0, y0] = ends.src[src], [x1, y1] = ends.tgt[tgt];
    return frame.classList.contains("across")
      ? `M${x0} ${y0}C${x0} ${(y0 + y1) / 2} ${x1} ${(y0 + y1) / 2} ${x1} ${y1}`
      : `M${x0} ${y0}C${(x0 + x1) / 2} ${y0} ${(x0 + x1) / 2} ${y1} ${x1} ${y1}`;
  }

  function halo(src, tgt) {
    const node = path(curve(src, tgt));
    node.setAttribute("class", "halo");
    return node;
  }

  function build() {
    for (const side of ["src", "tgt"]) {
      const tokens = tokensOf(side);
      const name = side === "src" ? "source" : "output";
      rows[side].dir = isRightToLeft(tokens) ? "rtl" : "ltr";
      rows[side].replaceChildren(...tokens.map((token, index) => make("button", {
        type: "button", class: "token", title: token, "data-side": side, "data-index": index,
        tabindex: index ? -1 : 0, "aria-pressed": false,
        "aria-label": `${shown(token)}, ${name} token ${index + 1} of ${tokens.length}`,
      }, word(side, index))));
    }
  }

  function layout() {
    frame.className = "lines across";
    for (const row of Object.values(rows)) row.style.columnGap = "0px";
    const width = (row) => Array.from(row.children).reduce((sum, node) => sum + node.offsetWidth, 0);
    const gap = (row) => (frame.clientWidth - width(row)) / Math.max(1, row.children.length - 1);
    const gaps = Object.values(rows).map(gap); // [px] what is left between tokens
    const across = Math.min(...gaps) >= 0;
    frame.className = across ? "lines across" : "lines down";
    for (const row of Object.values(rows)) row.style.columnGap = `${Math.min(14, ...gaps)}px`;
    const origin = frame.getBoundingClientRect();
    for (const side of ["src", "tgt"]) {
      ends[side] = Array.from(rows[side].children, (node) => {
        const box = node.getBoundingClientRect();
        const [x, y] = [box.left - origin.left, box.top - origin.top];
        if (across) return [x + box.width / 2, side === "src" ? y + box.height + 2 : y - 2];
        return [side === "src" ? x + box.width + 2 : x - 2, y + box.height / 2];
      });
    }
    const all = hypothesis().weights.flatMap((row, tgt) => row.map((weight, src) => ({ weight, src, tgt })))
      .filter(({ weight }) => weight >= LEAST_LINE).sort((a, b) => a.weight - b.weight);
    const strokes = all.slice(-MOST_LINES); // the heaviest last, so on top
    $("rest").replaceChildren(...strokes.map(({ weight, src, tgt }) => path(curve(src, tgt), weight)));
    $("gold-strokes").replaceChildren(...goldLinks().map(([src, tgt]) => halo(src, tgt)));
    $("note").textContent = all.length > MOST_LINES ? `the ${MOST_LINES} heaviest lines` : `lines from ${LEAST_LINE}`;
  }

  function paint(at) {
    for (const side of ["src", "tgt"]) {
      Array.from(rows[side].children).forEach((node, index) => {
        const weight = at && weightAt(at, side, index), chosen = !!at && at[side] === index;
        const tinted = weight !== null && !(chosen && at.src !== null && at.tgt !== null);
        node.classList.toggle("chosen", chosen);
        node.classList.toggle("pinned", !!state.pin && state.pin[side] === index);
        node.classList.toggle("away", !!at && !chosen && !(weight >= LEAST_LINE));
        const tint = tinted && weight >= LEAST_LINE ? shade(weight) : null;
        node.style.backgroundColor = tint ? tint.fill : "";
        node.style.color = tint ? tint.ink : "";
        node.setAttribute("aria-pressed", !!state.pin && state.pin[side] === index);
        if (tinted && weight >= 0.05) node.setAttribute("data-weight", weight.toFixed(2));
        else node.removeAttribute("data-weight");
      });
    }
    $("rest").classList.toggle("away", !!at);
    $("gold-strokes").classList.toggle("away", !!at);
    const lit = [];
    if (at) {
      const side = at.tgt !== null ? "src" : "tgt"; // the side the strokes fan out to
      tokensOf(side).forEach((_, index) => {
        const weight = weightAt(at, side, index);
        const link = side === "src" ? [index, at.tgt] : [at.src, index];
        if (weight !== null && state.gold && isGold(...link)) lit.unshift(halo(...link));
        if (weight >= 0.001) lit.push(path(curve(...link), weight));
      });
    }
    $("lit").replaceChildren(...lit);
  }

  const tokenOf = (event) => event.target.closest?.(".token");
  const spotOf = (node) => {
    const index = Number(node.dataset.index);
    return node.dataset.side === "src" ? { src: index, tgt: null } : { src: null, tgt: index };
  };
  frame.addEventListener("pointerover", (event) => {
    if (event.pointerType !== "touch") point(tokenOf(event) ? spotOf(tokenOf(event)) : null);
  });
  frame.addEventListener("pointerleave", () => point(null));
  frame.addEventListener("click", (event) => { if (tokenOf(event)) pin(spotOf(tokenOf(event))); });
  frame.addEventListener("focusin", (event) => {
    for (const node of tokenOf(event).parentElement.children) node.tabIndex = node === tokenOf(event) ? 0 : -1;
    if (event.target.matches(":focus-visible")) point(spotOf(tokenOf(event)), true);
  });
  frame.addEventListener("focusout", () => point(null));
  frame.addEventListener("keydown", (event) => {
    const node = tokenOf(event);
    if (!node) return;
    const { side } = node.dataset, index = Number(node.dataset.index), last = tokensOf(side).length - 1;
    const across = frame.classList.contains("across");
    const ahead = rows[side].dir === "rtl" && across ? -1 : 1;
    const along = across ? { ArrowRight: ahead, ArrowLeft: -ahead } : { ArrowDown: 1, ArrowUp: -1 };
    const toOther = across ? (side === "src" ? "ArrowDown" : "ArrowUp") : side === "src" ? "ArrowRight" : "ArrowLeft";
    let next = null;
    if (event.key in along) next = rows[side].children[Math.min(last, Math.max(0, index + along[event.key]))];
    else if (event.key === "Home") next = rows[side].children[0];
    else if (event.key === "End") next = rows[side].children[last];
    else if (event.key === toOther) { // to the token it is tied to most
      const other = side === "src" ? "tgt" : "src", at = spotOf(node);
      const weights = tokensOf(other).map((_, n) => weightAt(at, other, n));
      next = rows[other].children[weights.indexOf(Math.max(...weights))];
    }
    if (next) { event.preventDefault(); next.focus(); }
  });
  return { build, layout, paint };
})();
