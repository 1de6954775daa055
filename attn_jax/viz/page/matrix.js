// The matrix view: a canvas the size of the window onto it, redrawn as it scrolls, so 500 x 500 stays fluid.

const TILT = (50 * Math.PI) / 180,
  WIDEST_LABEL = 150; // [radians], [px]
const CELL = { fit: 40, legible: 14, scrolling: 20, largest: 64 }; // [px]

/** A token as a label that is no wider than the widest. */
function cut(pen, token) {
  const label = shown(token);
  if (pen.measureText(label).width <= WIDEST_LABEL) return label;
  let end = label.length;
  while (end > 1 && pen.measureText(`${label.slice(0, end)}…`).width > WIDEST_LABEL) end = Math.ceil(end * 0.9) - 1;
  return `${label.slice(0, end)}…`;
}

/** Where everything lies for labels cut to fit; `cell` null: as large as fits in `room`, or legible and scrolling. */
function makeGrid(pen, table, room, cell = null) {
  const labels = { row: table.row.tokens.map((t) => cut(pen, t)), col: table.col.tokens.map((t) => cut(pen, t)) };
  const widest = (side) => labels[side].reduce((most, label) => Math.max(most, pen.measureText(label).width), 0);
  const tilted = widest("col") > 22,
    { rows, cols, mirrored } = table;
  const last = labels.col[mirrored ? 0 : cols - 1];
  const left = Math.ceil(widest("row")) + 14;
  const top = Math.ceil(tilted ? widest("col") * Math.sin(TILT) + 18 : 26);
  const leaning = tilted ? Math.ceil(pen.measureText(last).width * Math.cos(TILT)) + 4 : 4;
  const right = Math.max(58, leaning); // [px] room for the bars of entropy
  const exact = (room - left - right) / cols,
    fitting = Math.min(CELL.fit, exact < 4 ? exact : Math.floor(exact));
  const size = cell ?? (fitting >= CELL.legible ? fitting : CELL.scrolling);
  return {
    labels,
    tilted,
    rows,
    cols,
    mirrored,
    left,
    top,
    cell: size,
    fitting: Math.max(0.5, fitting),
    width: Math.ceil(left + cols * size + right),
    height: Math.ceil(top + rows * size + 6),
  };
}

function makeMatrix(panel) {
  const frame = panel.node.querySelector(".matrix"),
    sheet = frame.firstElementChild,
    canvas = sheet.firstElementChild;
  const pen = canvas.getContext("2d"),
    whole = make("canvas"),
    tip = panel.node.querySelector(".tip");
  let grid = null,
    font = 13,
    family = "sans-serif",
    asked = false,
    zoom = null; // zoom: a chosen size of cells, or null

  const place = (col) => (grid.mirrored ? grid.cols - 1 - col : col);
  const x = (col) => grid.left + place(col) * grid.cell - frame.scrollLeft;
  const y = (row) => grid.top + row * grid.cell - frame.scrollTop;
  const setFont = (bold = false) => {
    pen.font = `${bold ? "600 " : ""}${font}px ${family}`;
  };

  function layout() {
    const { scrollLeft, scrollTop } = frame;
    for (const node of [canvas, sheet]) node.style.width = node.style.height = "0"; // no bars from last time
    family = getComputedStyle(document.body).fontFamily;
    font = 13;
    setFont();
    const room = frame.clientWidth;
    grid = makeGrid(pen, panel.table, room, zoom);
    grid.left += Math.max(0, Math.floor((room - grid.width) / 2));
    font = grid.cell < 16 ? 11 : grid.cell < 19 ? 12 : 13;
    const bar = grid.width > room ? 16 : 0; // room for a scroll bar
    frame.style.height = `${Math.min(grid.height + bar, Math.max(640, Math.round(innerHeight * 0.86)))}px`;
    sheet.style.width = `${Math.max(grid.width, room)}px`;
    sheet.style.height = `${grid.height}px`;
    frame.scrollTo(scrollLeft, scrollTop);
    const [w, h] = [frame.clientWidth, Math.min(frame.clientHeight, grid.height)],
      ratio = devicePixelRatio || 1;
    Object.assign(canvas, { width: Math.round(w * ratio), height: Math.round(h * ratio) });
    Object.assign(canvas.style, { width: `${w}px`, height: `${h}px` });
    const { rows, cols, weights, heaviest } = panel.table;
    if (grid.cell < 9) paintPixels(whole, weights, rows, cols, heaviest, grid.mirrored);
    frame.setAttribute(
      "aria-label",
      `Attention matrix: ${rows} ${panel.table.row.name} tokens by ${cols} ` +
        `${panel.table.col.name} tokens. Arrow keys move, Enter pins, Escape lets go, plus and minus zoom.`,
    );
    panel.note(`rows: ${panel.table.row.name}, columns: ${panel.table.col.name}`);
    panel.zoomable(grid.cell > grid.fitting, grid.cell < CELL.largest);
  }

  function zoomBy(factor) {
    zoom = clamp(
      grid.cell > 4 ? Math.round(grid.cell * factor) : grid.cell * factor,
      Math.min(grid.fitting, CELL.scrolling),
      CELL.largest,
    );
    layout();
    draw();
  }

  function within(x0, y0, x1, y1, body) {
    pen.save();
    pen.beginPath();
    pen.rect(x0, y0, x1 - x0, y1 - y0);
    pen.clip();
    body();
    pen.restore();
  }
  function box(col, row, inset, wide = 1, high = 1) {
    const { cell } = grid,
      radius = Math.min(3, cell / 5);
    pen.beginPath();
    pen.roundRect(x(col) + inset, y(row) + inset, wide * cell - 2 * inset, high * cell - 2 * inset, radius);
  }

  function inSight(w, h) {
    // first and one past the last row and place in the window
    const { cell, left, top, rows, cols } = grid;
    const seen = (start, count, room) => [Math.floor(start / cell), Math.min(count, Math.ceil((start + room) / cell))];
    return [...seen(frame.scrollTop, rows, h - top), ...seen(frame.scrollLeft, cols, w - left)];
  }

  function drawCells(at, [r0, r1, p0, p1]) {
    const { table } = panel,
      gap = grid.cell >= 12 ? 1 : 0.5;
    for (let row = r0; row < r1; row++) {
      for (let p = p0; p < p1; p++) {
        const col = place(p),
          weight = weightOf(table, row, col),
          { fill, ink } = shade(weight, table.heaviest);
        pen.globalAlpha = !at || at.row === row || at.col === col ? 1 : 0.32;
        pen.fillStyle = fill;
        box(col, row, gap);
        pen.fill();
        if (!state.numbers || grid.cell < 26 || weight < 0.005) continue;
        pen.fillStyle = ink;
        pen.fillText(weight.toFixed(2).replace(/^0/, ""), x(col) + grid.cell / 2, y(row) + grid.cell / 2 + 0.5);
      }
    }
    pen.globalAlpha = 1;
  }

  function drawWhole(at) {
    // cells too small for gaps: one picture, enlarged
    const { cell, rows, cols, left, top } = grid;
    const [x0, y0] = [left - frame.scrollLeft, top - frame.scrollTop];
    const put = (col, row, wide, high) =>
      pen.drawImage(whole, col, row, wide, high, x0 + col * cell, y0 + row * cell, wide * cell, high * cell);
    pen.imageSmoothingEnabled = false;
    pen.globalAlpha = at ? 0.4 : 1;
    put(0, 0, cols, rows);
    pen.globalAlpha = 1;
    if (at?.row != null) put(0, at.row, cols, 1);
    if (at?.col != null) put(place(at.col), 0, 1, rows);
  }

  function drawGold([r0, r1], ink, at) {
    const { table } = panel,
      small = grid.cell < 9;
    pen.strokeStyle = ink;
    for (const [links, width, dash] of [
      [table.gold, 2, []],
      [table.possible, 1.5, [3, 3]],
    ]) {
      pen.lineWidth = small ? 1 : width;
      pen.setLineDash(dash);
      for (const [col, row] of linksOf(links)) {
        if (row < r0 || row >= r1 || (links === table.possible && table.gold.has(`${col} ${row}`))) continue;
        pen.globalAlpha = !at || at.row === row || at.col === col ? 1 : 0.35;
        box(col, row, small ? 0.5 : 1.5);
        pen.stroke();
      }
    }
    pen.setLineDash([]);
    pen.globalAlpha = 1;
  }

  function outline(at, width, ink) {
    const { rows, cols, mirrored } = grid;
    pen.strokeStyle = ink;
    pen.lineWidth = width;
    box(at.col ?? (mirrored ? cols - 1 : 0), at.row ?? 0, 0, at.col === null ? cols : 1, at.row === null ? rows : 1);
    pen.stroke();
  }

  function write(text, from, base) {
    // the mark of a new word steps back, as in the line view
    const mark = text.match(/^▁*/)[0],
      alpha = pen.globalAlpha;
    pen.globalAlpha = alpha * 0.35;
    pen.fillText(mark, from, base);
    pen.globalAlpha = alpha;
    pen.fillText(text.slice(mark.length), from + pen.measureText(mark).width, base);
  }
  function label(side, index, at, inks, put) {
    const weight = at && weightAt(panel.table, at, side, index),
      held = at?.[side] === index;
    const strong = !at || held || weight >= 0.1 * panel.table.heaviest;
    pen.fillStyle = strong ? inks.ink : inks.soft;
    pen.globalAlpha = strong ? 1 : 0.6;
    setFont(held);
    put(grid.labels[side][index]);
    pen.globalAlpha = 1;
  }
  function labelled(index, at, side) {
    // every so many tokens have room for their label; what is pointed at takes it
    const room = side === "col" && grid.tilted ? 1.25 * font : font + 1,
      stride = Math.ceil(room / grid.cell);
    if (at?.[side] === index) return true;
    const crowded = stride > 1 && at && at[side] !== null && Math.abs(at[side] - index) < stride;
    return index % stride === 0 && !crowded;
  }

  function drawRowLabels(at, [r0, r1], inks, h) {
    within(0, grid.top - 1, grid.left, h, () => {
      pen.textAlign = "left";
      pen.textBaseline = "middle";
      for (let row = r0; row < r1; row++) {
        if (!labelled(row, at, "row")) continue;
        label("row", row, at, inks, (text) => {
          write(text, grid.left - 9 - pen.measureText(text).width, y(row) + grid.cell / 2 + 1);
        });
      }
    });
  }
  function drawColumnLabels(at, [, , p0, p1], inks, w) {
    // Tilted labels lean to the right, so those of columns just off the left edge still reach in.
    within(grid.left - 1, 0, w, grid.top, () => {
      pen.textAlign = "left";
      pen.textBaseline = "alphabetic";
      for (let p = Math.max(0, p0 - Math.ceil(100 / grid.cell)); p < p1; p++) {
        const col = place(p);
        if (!labelled(col, at, "col")) continue;
        label("col", col, at, inks, (text) => {
          pen.save();
          pen.translate(x(col) + grid.cell / 2 + (grid.tilted ? 3 : 0), grid.top - 7);
          if (grid.tilted) pen.rotate(-TILT);
          write(text, grid.tilted ? 0 : -pen.measureText(text).width / 2, 0);
          pen.restore();
        });
      }
    });
  }

  function drawEntropies([r0, r1], inks, w, h) {
    // a bar a row, right of the cells; full: looks everywhere alike
    const from = grid.left + grid.cols * grid.cell - frame.scrollLeft + 10,
      most = Math.log2(grid.cols) || 1;
    within(grid.left, grid.top - 1, w, h, () => {
      for (let row = r0; row < r1; row++) {
        const high = Math.max(1, Math.min(4, grid.cell - 1));
        pen.fillStyle = inks.faint;
        pen.fillRect(from, y(row) + (grid.cell - high) / 2, 36, high);
        pen.fillStyle = inks.soft;
        pen.fillRect(from, y(row) + (grid.cell - high) / 2, 36 * (panel.table.entropies[row] / most), high);
      }
    });
  }

  function draw() {
    asked = false;
    if (!grid || frame.hidden) return;
    const at = spotIn(panel),
      ratio = devicePixelRatio || 1,
      { left, top } = grid;
    const inks = { ink: styled("--ink"), soft: styled("--soft"), faint: styled("--faint") };
    const [w, h] = [canvas.width / ratio, canvas.height / ratio],
      sight = inSight(w, h);
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, w, h);
    within(left - 1, top - 1, w, h, () => {
      pen.font = `${Math.min(12, grid.cell * 0.34)}px ${family}`;
      pen.textAlign = "center";
      pen.textBaseline = "middle";
      if (grid.cell < 9) drawWhole(at);
      else drawCells(at, sight);
      if (state.gold) drawGold(sight, styled("--gold"), at);
      if (at) outline(at, 1.5, inks.ink);
      if (state.pin?.panel === panel.number && !same(state.pin, at)) outline(state.pin, 1, inks.ink);
    });
    drawEntropies(sight, inks, w, h);
    drawRowLabels(at, sight, inks, h);
    drawColumnLabels(at, sight, inks, w);
    drawTip(at, w, h);
  }

  function drawTip(at, w, h) {
    const cell = at && at.row !== null && at.col !== null;
    const seen = cell && y(at.row) >= grid.top - 1 && y(at.row) < h && x(at.col) >= grid.left - 1 && x(at.col) < w;
    tip.hidden = !seen;
    if (!seen) return;
    const { table } = panel,
      number = make("b", {}, digits(weightOf(table, at.row, at.col)));
    tip.replaceChildren(word(table.row.tokens[at.row]), " ← ", word(table.col.tokens[at.col]), number);
    const half = tip.offsetWidth / 2;
    const middle = clamp(x(at.col) + grid.cell / 2, half, Math.max(half, w - half));
    tip.style.left = `${frame.offsetLeft + middle}px`;
    tip.style.top = `${frame.offsetTop + y(at.row)}px`;
  }

  const ask = () => {
    if (!asked) {
      asked = true;
      requestAnimationFrame(draw);
    }
  };

  function spotUnder(event) {
    const edge = canvas.getBoundingClientRect(),
      { left, top, cell, rows, cols, tilted } = grid;
    const [px, py] = [event.clientX - edge.left, event.clientY - edge.top];
    const row = Math.floor((py - top + frame.scrollTop) / cell);
    const lean = py < top && tilted ? (top - 7 - py) / Math.tan(TILT) : 0;
    const p = Math.floor((px - lean - left + frame.scrollLeft) / cell);
    const inRows = row >= 0 && row < rows,
      inCols = p >= 0 && p < cols;
    if (px < left) return inRows && py >= top ? { panel: panel.number, row, col: null } : null;
    if (py < top) return inCols ? { panel: panel.number, row: null, col: place(p) } : null;
    return inRows && inCols ? { panel: panel.number, row, col: place(p) } : null;
  }
  function reveal({ row, col }) {
    // scrolls a cell into sight
    const into = (now, start, size) => clamp(now, start + grid.cell - size, start);
    frame.scrollLeft = into(frame.scrollLeft, place(col) * grid.cell, frame.clientWidth - grid.left);
    frame.scrollTop = into(frame.scrollTop, row * grid.cell, frame.clientHeight - grid.top);
  }
  function move(at, down, right) {
    const row = clamp((at?.row ?? 0) + down, 0, grid.rows - 1);
    const next = { panel: panel.number, row, col: place(clamp(place(at?.col ?? 0) + right, 0, grid.cols - 1)) };
    reveal(next);
    point(next, true);
  }

  frame.addEventListener("scroll", ask, { passive: true });
  frame.addEventListener("pointermove", (event) => {
    if (event.pointerType !== "touch") point(spotUnder(event));
  });
  frame.addEventListener("pointerleave", () => point(null));
  frame.addEventListener("blur", () => point(null));
  frame.addEventListener("click", (event) => {
    const at = spotUnder(event);
    if (at) pin(at);
  });
  frame.addEventListener("keydown", (event) => {
    const far = grid.cols,
      at = spotIn(panel);
    const moves = {
      ArrowLeft: [0, -1],
      ArrowRight: [0, 1],
      ArrowUp: [-1, 0],
      ArrowDown: [1, 0],
      Home: [0, -far],
      End: [0, far],
      PageUp: [-10, 0],
      PageDown: [10, 0],
    };
    const zooms = { "+": 1.25, "=": 1.25, "-": 0.8 };
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key in moves) move(at, ...(at ? moves[event.key] : [0, 0]));
    else if (event.key in zooms) zoomBy(zooms[event.key]);
    else if ((event.key === "Enter" || event.key === " ") && at) pin(at);
    else return;
    event.preventDefault();
  });
  return {
    frame,
    build(afresh) {
      if (afresh) frame.scrollTo(0, 0);
    },
    layout,
    paint: ask,
    draw,
    zoomBy,
  };
}
