// The matrix view: a canvas the size of the window onto it, redrawn as it scrolls, so 500 x 500 stays fluid.

const matrix = (() => {
  const frame = $("matrix"), canvas = $("canvas"), pen = canvas.getContext("2d");
  const TILT = (50 * Math.PI) / 180, LABEL = 150; // [radians], the widest label [px]
  let grid = null; // left, top, cell, rows, cols and the labels, cut to fit
  let family = "sans-serif", font = 13, asked = false;
  const tipBox = $("tip");

  function cut(token) {
    const label = shown(token);
    if (pen.measureText(label).width <= LABEL) return label;
    let end = label.length;
    while (end > 1 && pen.measureText(`${label.slice(0, end)}…`).width > LABEL) end = Math.ceil(end * 0.9) - 1;
    return `${label.slice(0, end)}…`;
  }
  const setFont = (bold = false) => { pen.font = `${bold ? "600 " : ""}${font}px ${family}`; };

  function layout() {
    for (const node of [canvas, $("sheet")]) node.style.width = node.style.height = "0"; // no bars from last time
    family = getComputedStyle(document.body).fontFamily;
    font = 13;
    setFont();
    const labels = { src: tokensOf("src").map(cut), tgt: tokensOf("tgt").map(cut) };
    const widest = (side) => Math.max(...labels[side].map((label) => pen.measureText(label).width));
    const [rows, cols] = [labels.tgt.length, labels.src.length];
    const tilted = widest("src") > 22;
    const left = Math.ceil(widest("tgt")) + 14;
    const top = Math.ceil(tilted ? widest("src") * Math.sin(TILT) + 18 : 24);
    const right = tilted ? Math.ceil(pen.measureText(labels.src[cols - 1]).width * Math.cos(TILT)) + 4 : 4;
    const room = frame.clientWidth;
    const fitting = Math.min(40, Math.floor((room - left - right) / cols));
    const cell = fitting >= 16 ? fitting : 20; // [px] where it cannot fit at a legible size, it scrolls
    font = cell < 19 ? 12 : 13;
    const width = left + cols * cell + right, height = top + rows * cell + 4;
    const shift = Math.max(0, Math.floor((room - width) / 2));
    grid = { labels, rows, cols, tilted, cell, top, left: left + shift };
    const bar = width > room ? 16 : 0; // room for a scroll bar
    const tall = Math.min(height + bar, Math.max(1000, Math.round(innerHeight * 0.9)));
    frame.style.height = `${tall}px`;
    $("sheet").style.width = `${Math.max(width, room)}px`;
    $("sheet").style.height = `${height}px`;
    const [w, h] = [frame.clientWidth, Math.min(frame.clientHeight, height)], ratio = devicePixelRatio || 1;
    canvas.width = Math.round(w * ratio);
    canvas.height = Math.round(h * ratio);
    canvas.style.width = `${w}px`;
    canvas.style.height = `${h}px`;
    frame.setAttribute("aria-label", `Attention matrix: ${rows} output tokens by ${cols} source tokens. ` +
      "Arrow keys move, Enter pins, Escape lets go.");
    $("note").textContent = "rows: output, columns: source";
  }

  function draw() {
    asked = false;
    if (!grid) return;
    const { labels, rows, cols, tilted, cell, left, top } = grid;
    const at = spot(), ratio = devicePixelRatio || 1, style = getComputedStyle(document.documentElement);
    const [ink, soft, gold] = ["--ink", "--soft", "--gold"].map((name) => style.getPropertyValue(name));
    const [w, h] = [canvas.width / ratio, canvas.height / ratio], [dx, dy] = [frame.scrollLeft, frame.scrollTop];
    const seen = (start, count, room) => [Math.floor(start / cell), Math.min(count, Math.ceil((start + room) / cell))];
    const [r0, r1] = seen(dy, rows, h - top), [c0, c1] = seen(dx, cols, w - left);
    const x = (col) => left + col * cell - dx, y = (row) => top + row * cell - dy;
    const within = (x0, y0, x1, y1, body) => {
      pen.save(); pen.beginPath(); pen.rect(x0, y0, x1 - x0, y1 - y0); pen.clip(); body(); pen.restore();
    };
    const crossed = (row, col) => !at || at.tgt === row || at.src === col;
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, w, h);

    within(left - 1, top - 1, w, h, () => {
      for (let row = r0; row < r1; row++) {
        for (let col = c0; col < c1; col++) {
          pen.globalAlpha = crossed(row, col) ? 1 : 0.32;
          pen.fillStyle = shade(hypothesis().weights[row][col]).fill;
          pen.beginPath();
          pen.roundRect(x(col) + 1, y(row) + 1, cell - 2, cell - 2, 3);
          pen.fill();
        }
      }
      pen.strokeStyle = gold;
      pen.lineWidth = 2;
      for (const [src, tgt] of goldLinks()) {
        if (tgt < r0 || tgt >= r1 || src < c0 || src >= c1) continue;
        pen.globalAlpha = crossed(tgt, src) ? 1 : 0.35;
        pen.beginPath(); pen.roundRect(x(src) + 1.5, y(tgt) + 1.5, cell - 3, cell - 3, 3); pen.stroke();
      }
      pen.globalAlpha = 1;
      const outline = (spotted, width) => {
        const [row, high] = spotted.tgt === null ? [0, rows] : [spotted.tgt, 1];
        const [col, wide] = spotted.src === null ? [0, cols] : [spotted.src, 1];
        pen.strokeStyle = ink; pen.lineWidth = width;
        pen.beginPath(); pen.roundRect(x(col), y(row), wide * cell, high * cell, 4); pen.stroke();
      };
      if (at) outline(at, 1.5);
      if (state.pin && !same(state.pin, at)) outline(state.pin, 1);
    });

    const write = (text, from, base) => { // the mark of a new word steps back, as in the line view
      const mark = text.match(/^▁*/)[0], alpha = pen.globalAlpha;
      pen.globalAlpha = alpha * 0.35;
      pen.fillText(mark, from, base);
      pen.globalAlpha = alpha;
      pen.fillText(text.slice(mark.length), from + pen.measureText(mark).width, base);
    };
    const label = (side, index, held, put) => {
      const weight = at && weightAt(at, side, index);
      pen.fillStyle = !at || held || weight >= 0.1 * heaviest ? ink : soft;
      pen.globalAlpha = !at || held || weight >= 0.1 * heaviest ? 1 : 0.6;
      setFont(held);
      put(labels[side][index]);
    };
    within(0, top - 1, left, h, () => {
      pen.textBaseline = "middle";
      for (let row = r0; row < r1; row++) label("tgt", row, at?.tgt === row, (text) => {
        write(text, left - 9 - pen.measureText(text).width, y(row) + cell / 2 + 1);
      });
    });
    // Tilted labels lean to the right, so those of columns just off the left edge still reach in.
    within(left - 1, 0, w, top, () => {
      pen.textBaseline = "alphabetic";
      for (let col = Math.max(0, c0 - 8); col < c1; col++) {
        label("src", col, at?.src === col, (text) => {
          pen.save();
          pen.translate(x(col) + cell / 2 + (tilted ? 3 : 0), top - 7);
          if (tilted) pen.rotate(-TILT);
          write(text, tilted ? 0 : -pen.measureText(text).width / 2, 0);
          pen.restore();
        });
      }
    });
    pen.globalAlpha = 1;
    tip(at, x, y, w, h);
  }

  function tip(at, x, y, w, h) {
    const cell = at && at.src !== null && at.tgt !== null;
    const inSight = cell && y(at.tgt) >= grid.top - 1 && y(at.tgt) < h && x(at.src) >= grid.left - 1 && x(at.src) < w;
    tipBox.hidden = !inSight;
    if (!inSight) return;
    const number = make("b", {}, digits(weightAt(at, "src", at.src)));
    tipBox.replaceChildren(word("tgt", at.tgt), " ← ", word("src", at.src), number);
    const half = tipBox.offsetWidth / 2;
    const middle = Math.min(Math.max(x(at.src) + grid.cell / 2, half), Math.max(half, w - half));
    tipBox.style.left = `${frame.offsetLeft + middle}px`;
    tipBox.style.top = `${frame.offsetTop + y(at.tgt)}px`;
  }

  const ask = () => { if (!asked) { asked = true; requestAnimationFrame(draw); } };

  function spotUnder(event) {
    const box = canvas.getBoundingClientRect(), { left, top, cell, rows, cols, tilted } = grid;
    const [px, py] = [event.clientX - box.left, event.clientY - box.top];
    const row = Math.floor((py - top + frame.scrollTop) / cell);
    const lean = py < top && tilted ? (top - 7 - py) / Math.tan(TILT) : 0;
    const col = Math.floor((px - lean - left + frame.scrollLeft) / cell);
    const spotted = { src: px < left ? null : col, tgt: py < top ? null : row };
    if (spotted.src === null && spotted.tgt === null) return null;
    return (spotted.src ?? 0) < 0 || (spotted.src ?? 0) >= cols || (spotted.tgt ?? 0) >= rows ? null : spotted;
  }
  function reveal({ src, tgt }) { // scrolls a cell into sight
    const { left, top, cell } = grid;
    const into = (now, start, size) => Math.min(Math.max(now, start + cell - size), start);
    frame.scrollLeft = into(frame.scrollLeft, src * cell, frame.clientWidth - left);
    frame.scrollTop = into(frame.scrollTop, tgt * cell, frame.clientHeight - top);
  }
  frame.addEventListener("scroll", ask, { passive: true });
  frame.addEventListener("pointermove", (event) => { if (event.pointerType !== "touch") point(spotUnder(event)); });
  frame.addEventListener("pointerleave", () => point(null));
  frame.addEventListener("blur", () => point(null));
  frame.addEventListener("click", (event) => { const at = spotUnder(event); if (at) pin(at); });
  frame.addEventListener("keydown", (event) => {
    const { rows, cols } = grid, at = spot();
    const arrows = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
    const moves = { ...arrows, Home: [0, -cols], End: [0, cols] };
    if (event.key in moves) {
      event.preventDefault();
      const [down, across] = at ? moves[event.key] : [0, 0];
      const clamp = (value, count) => Math.min(count - 1, Math.max(0, value));
      const next = { src: clamp((at?.src ?? 0) + across, cols), tgt: clamp((at?.tgt ?? 0) + down, rows) };
      reveal(next);
      point(next, true);
    } else if ((event.key === "Enter" || event.key === " ") && at) {
      event.preventDefault();
      pin(at);
    }
  });
  return { build() { frame.scrollTo(0, 0); }, layout, paint: ask };
})();
