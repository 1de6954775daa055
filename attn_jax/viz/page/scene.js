// Pictures to keep. A scene is { width, height, marks }: rectangles, paths and texts, written as SVG or painted as PNG.

const printable = (text) => text.toWellFormed().replace(/[\u0000-\u0008\u000b\u000c\u000e-\u001f\ufffe\uffff]/g, "□");
const measuring = document.createElement("canvas").getContext("2d");
const family = () => getComputedStyle(document.body).fontFamily;
const ANCHORS = { left: "start", center: "middle", right: "end" };

function textWidth(text, size) {
  measuring.font = `${size}px ${family()}`;
  return measuring.measureText(text).width;
}
const textMark = (text, x, y, more = {}) => ({
  text: printable(text),
  x,
  y,
  size: 13,
  align: "left",
  fill: styled("--ink"),
  ...more,
});

function toSvg({ width, height, marks }) {
  const paint = { fill: "none", opacity: 1 };
  const picture = draw("svg", {
    xmlns: SVG,
    width,
    height,
    viewBox: `0 0 ${width} ${height}`,
    "font-family": family(),
  });
  for (const mark of marks) {
    const { fill, opacity, shift } = { ...paint, ...mark };
    const turns = [
      shift && `translate(${shift.join(" ")})`,
      mark.turn && `rotate(${mark.turn} ${mark.x} ${mark.y})`,
    ].filter(Boolean);
    const look = {
      fill,
      opacity,
      ...(turns.length ? { transform: turns.join(" ") } : {}),
      ...(mark.stroke ? { stroke: mark.stroke, "stroke-width": mark.width } : {}),
    };
    if (mark.dash) look["stroke-dasharray"] = mark.dash.join(" ");
    if ("text" in mark) {
      const place = { x: mark.x, y: mark.y, "font-size": mark.size, "text-anchor": ANCHORS[mark.align] };
      picture.append(draw("text", { ...look, ...place, "dominant-baseline": "central" }, mark.text));
    } else if ("d" in mark) picture.append(draw("path", { ...look, d: mark.d, "stroke-linecap": "round" }));
    else
      picture.append(draw("rect", { ...look, x: mark.x, y: mark.y, width: mark.w, height: mark.h, rx: mark.r ?? 0 }));
  }
  return new XMLSerializer().serializeToString(picture);
}

function paintMark(pen, mark) {
  const shape = new Path2D("d" in mark ? mark.d : undefined);
  if (!("d" in mark)) shape.roundRect(mark.x, mark.y, mark.w, mark.h, mark.r ?? 0);
  if (mark.fill) {
    pen.fillStyle = mark.fill;
    pen.fill(shape);
  }
  if (!mark.stroke) return;
  Object.assign(pen, { strokeStyle: mark.stroke, lineWidth: mark.width, lineCap: "round" });
  pen.setLineDash(mark.dash ?? []);
  pen.stroke(shape);
}
function paintText(pen, { text, x, y, size, align, fill, turn }) {
  pen.save();
  pen.translate(x, y);
  pen.rotate(((turn ?? 0) * Math.PI) / 180);
  Object.assign(pen, { font: `${size}px ${family()}`, textAlign: align, textBaseline: "middle", fillStyle: fill });
  pen.fillText(text, 0, 0);
  pen.restore();
}
function toCanvas({ width, height, marks }) {
  const scale = clamp(Math.floor(8192 / Math.max(width, height)), 1, 2),
    canvas = make("canvas");
  Object.assign(canvas, { width: Math.ceil(width * scale), height: Math.ceil(height * scale) });
  const pen = canvas.getContext("2d");
  for (const mark of marks) {
    pen.setTransform(scale, 0, 0, scale, scale * (mark.shift?.[0] ?? 0), scale * (mark.shift?.[1] ?? 0));
    pen.globalAlpha = mark.opacity ?? 1;
    ("text" in mark ? paintText : paintMark)(pen, mark);
  }
  return canvas;
}

function scaleMarks(table, x, y) {
  // the colours, from no weight to the heaviest
  const steps = range(32).map((n) => ({
    x: x + n * 3,
    y: y - 4,
    w: 3.2,
    h: 8,
    fill: ramp[Math.round((n / 31) * 255)].fill,
  }));
  const ink = { size: 11, fill: styled("--soft") };
  return [
    textMark("0", x - 6, y, { ...ink, align: "right" }),
    ...steps,
    textMark(`${table.heaviest.toFixed(2)}  attention weight`, x + 102, y, ink),
  ];
}

function matrixScene(panel) {
  const { table } = panel,
    cell = 26,
    font = 13,
    marks = [];
  measuring.font = `${font}px ${family()}`;
  const grid = makeGrid(measuring, table, 0, table.rows * table.cols > 20000 ? 4 : cell),
    size = grid.cell;
  const x = (col) => grid.left + (table.mirrored ? table.cols - 1 - col : col) * size,
    y = (row) => grid.top + row * size;
  const gap = size > 8 ? 1 : 0,
    radius = size > 8 ? 3 : 0,
    stride = Math.ceil((font + 1) / size);
  marks.push({
    x: grid.left,
    y: grid.top,
    w: table.cols * size,
    h: table.rows * size,
    fill: shade(0, 1).fill,
    r: radius,
  });
  table.weights.forEach((weight, at) => {
    const [row, col] = [Math.floor(at / table.cols), at % table.cols];
    if (weight < table.heaviest / 510) return; // the colour of nothing
    const { fill, ink } = shade(weight, table.heaviest);
    marks.push({ x: x(col) + gap, y: y(row) + gap, w: size - 2 * gap, h: size - 2 * gap, r: radius, fill });
    if (!state.numbers || size < 26 || weight < 0.005) return;
    marks.push(
      textMark(weight.toFixed(2).replace(/^0/, ""), x(col) + size / 2, y(row) + size / 2, {
        size: 9,
        align: "center",
        fill: ink,
      }),
    );
  });
  grid.labels.row.forEach((text, row) => {
    if (row % stride === 0)
      marks.push(textMark(text, grid.left - 8, y(row) + size / 2, { align: "right", size: font }));
  });
  grid.labels.col.forEach((text, col) => {
    const turned = grid.tilted ? { turn: -50 } : { align: "center" };
    if (col % stride === 0)
      marks.push(textMark(text, x(col) + size / 2 + (grid.tilted ? 3 : 0), grid.top - 12, { ...turned, size: font }));
  });
  if (state.gold) {
    for (const [links, dash] of [
      [table.possible, [3, 3]],
      [table.gold, []],
    ]) {
      for (const [col, row] of linksOf(links)) {
        marks.push({
          x: x(col) + 1.5,
          y: y(row) + 1.5,
          w: size - 3,
          h: size - 3,
          r: radius,
          stroke: styled("--gold"),
          width: size > 8 ? 2 : 1,
          dash,
        });
      }
    }
  }
  return {
    width: grid.width,
    height: grid.height + 30,
    marks: [...marks, ...scaleMarks(table, grid.left + 8, grid.height + 16)],
  };
}

function linesScene(panel) {
  const { table } = panel,
    size = 15,
    pad = 18,
    widths = {};
  for (const side of ["col", "row"]) widths[side] = table[side].tokens.map((token) => textWidth(shown(token), size));
  const total = (side) => widths[side].reduce((sum, width) => sum + width + pad, 0);
  const wide = Math.max(total("col"), total("row")),
    across = wide <= 1200;
  const most = (side) => Math.max(...widths[side]);
  const width = across ? wide + 40 : most("col") + most("row") + 260;
  const height = across ? 270 : Math.max(table.rows, table.cols) * 24 + 20,
    ends = {},
    marks = [];
  for (const side of ["col", "row"]) {
    const { tokens } = table[side],
      first = side === "col",
      backwards = across && isRightToLeft(tokens);
    const step = height / tokens.length,
      slack = (width - total(side)) / 2;
    let at = backwards ? width - slack : slack;
    ends[side] = tokens.map((token, n) => {
      const full = widths[side][n] + pad,
        middle = backwards ? at - full / 2 : at + full / 2;
      at += backwards ? -full : full;
      const [x, y] = across
        ? [middle, first ? 16 : height - 16]
        : [first ? most("col") + 14 : width - most("row") - 14, (n + 0.5) * step];
      marks.push(textMark(shown(token), x, y, { size, align: across ? "center" : first ? "right" : "left" }));
      return across ? [x, y + (first ? 14 : -14)] : [x + (first ? 8 : -8), y];
    });
  }
  const between = (col, row) => curve(ends.col[col], ends.row[row], across);
  const halos = (state.gold ? allLinksOf(table) : []).map(([col, row, possible]) => ({
    d: between(col, row),
    stroke: styled("--gold"),
    opacity: 0.34,
    ...(possible ? { width: 6, dash: [8, 9] } : { width: 11 }),
  }));
  const strokes = heaviestLines(table).map(({ weight, row, col }) => {
    const look = strokeOf(weight, table.heaviest);
    return { d: between(col, row), stroke: styled("--accent"), width: Number(look.width), opacity: Number(look.opacity) };
  });
  return { width, height: height + 30, marks: [...halos, ...strokes, ...marks] };
}

/** Scenes side by side on paper, each under its name. */
function sheet(panelsShown) {
  const marks = [];
  let [x, height] = [24, 0];
  for (const panel of panelsShown) {
    const scene = (state.view === "matrix" ? matrixScene : linesScene)(panel);
    marks.push(textMark(captionOf(panel), x, 22, { size: 12, fill: styled("--soft") }));
    marks.push(...scene.marks.map((mark) => ({ ...mark, shift: [x, 42] })));
    x += Math.max(scene.width, textWidth(captionOf(panel), 12)) + 24;
    height = Math.max(height, scene.height);
  }
  const paper = { x: 0, y: 0, w: Math.ceil(x), h: Math.ceil(height + 52), fill: styled("--card") };
  return { width: paper.w, height: paper.h, marks: [paper, ...marks] };
}

function tableData(panel) {
  // what is drawn, in plain numbers
  const { table } = panel,
    { name, source } = modelOf(panel.number),
    { cross, decoder, ...hypothesis } = hypothesisOf(panel.number); // without the packed maps
  const { kind, layer, head, temperature, merged: words } = state;
  return {
    model: name,
    source,
    hypothesis,
    map: { kind, layer, head, temperature, words },
    rows: table.row.tokens,
    columns: table.col.tokens,
    weights: range(table.rows).map((row) =>
      range(table.cols).map((col) => Number(weightOf(table, row, col).toFixed(4))),
    ),
    entropy_bits: table.entropies.map((bits) => Number(bits.toFixed(4))),
  };
}

const EXPORTS = {
  svg: () => new Blob([toSvg(sheet(shownPanels()))], { type: "image/svg+xml" }),
  png: () =>
    new Promise((done) => {
      toCanvas(sheet(shownPanels())).toBlob(done, "image/png");
    }),
  json: () => {
    const { text, reference } = example();
    const data = {
      format: "attn_jax attention",
      version: page.version,
      source: text,
      reference,
      shown: shownPanels().map(tableData),
    };
    return new Blob([`${JSON.stringify(data, null, 1)}\n`], { type: "application/json" });
  },
};
async function save(kind) {
  const blob = await EXPORTS[kind]();
  if (!blob) return announce("This picture is too large for PNG; save it as SVG."); // beyond the browser's canvas
  const url = URL.createObjectURL(blob);
  const link = make("a", { href: url, download: `attention-${state.kind}-${state.example + 1}.${kind}` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
  announce(`Saved as ${kind.toUpperCase()}.`);
}
