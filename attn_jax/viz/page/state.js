// What is shown and what is pointed at; every view reads it here.

let { examples } = page;
const LEAST_LINE = 0.03,
  MOST_LINES = 1500; // drawn at rest in the line view; pointing at a token draws all of its own
const KINDS = { cross: "Cross", encoder: "Encoder", decoder: "Decoder" };

// A spot is { panel, row, col }: a token that looks, one that is looked at or, with both, a cell; null = none.
const state = {
  example: 0,
  view: "lines",
  compare: false,
  picks: [
    { model: 0, hypothesis: 0 },
    { model: 0, hypothesis: 0 },
  ],
  kind: "cross",
  layer: "mean",
  head: "mean",
  temperature: 1,
  merged: false,
  gold: true,
  numbers: false,
  hover: null,
  pin: null,
};
const panels = []; // see controls.js: each has a number, a table, and its two views
const example = () => examples[state.example];
const modelOf = (panel) => example().models[state.picks[panel].model];
const hypothesisOf = (panel) => modelOf(panel).hypotheses[state.picks[panel].hypothesis];
const shownPanels = () => panels.slice(0, state.compare ? 2 : 1);
const spot = () => state.hover ?? state.pin;
const same = (a, b) => a === b || (!!a && !!b && a.panel === b.panel && a.row === b.row && a.col === b.col);
const isGold = (table, row, col) =>
  state.gold && (table.gold.has(`${col} ${row}`) || table.possible.has(`${col} ${row}`));

/** The spot as another panel sees it: the same column of the same sentence, the same row after the same words. */
function spotIn(panel, at = spot()) {
  if (!at || at.panel === panel.number) return at;
  const from = panels[at.panel].table,
    to = panel.table;
  const equal = (a, b) => a.length === b.length && a.every((token, n) => token === b[n]);
  const col = equal(from.col.tokens, to.col.tokens) ? at.col : null;
  const upTo = (table) => table.row.tokens.slice(0, at.row + 1);
  const row = at.row !== null && equal(upTo(from), upTo(to)) ? at.row : null;
  return row === null && col === null ? null : { panel: panel.number, row, col };
}

/** The weight between a spot and a token of one side, or null where the spot has nothing to say about it. */
function weightAt(table, at, side, index) {
  const other = side === "col" ? at.row : at.col;
  if (other === null || (at[side] !== null && at[side] !== index)) return null;
  return side === "col" ? weightOf(table, other, index) : weightOf(table, index, other);
}
const ranked = (table, at, side) =>
  table[side].tokens
    .map((_, index) => ({ index, weight: weightAt(table, { ...at, [side]: null }, side, index) }))
    .sort((a, b) => b.weight - a.weight);

function sentence(table, at) {
  // what a screen reader hears
  const name = (side, index) => shown(table[side].tokens[index]);
  if (at.row !== null && at.col !== null) {
    return `${name("row", at.row)} from ${name("col", at.col)}: ${digits(weightAt(table, at, "col", at.col))}`;
  }
  const side = at.row === null ? "row" : "col",
    top = ranked(table, at, side).slice(0, 3);
  return (
    `${at.row === null ? name("col", at.col) : name("row", at.row)}: ` +
    top.map(({ index, weight }) => `${name(side, index)} ${digits(weight)}`).join(", ")
  );
}
const announce = (text) => {
  $("announcer").textContent = text;
};

function paint() {
  for (const panel of shownPanels()) panel[state.view].paint(spotIn(panel));
  paintReadout();
}
function point(at, aloud = false) {
  if (aloud && at) announce(sentence(panels[at.panel].table, at));
  if (same(at, state.hover)) return;
  state.hover = at;
  paint();
}
function pin(at) {
  state.pin = same(at, state.pin) ? null : at;
  announce(state.pin ? `Pinned. ${sentence(panels[at.panel].table, at)}` : "Let go.");
  paint();
}
function letGo() {
  Object.assign(state, { hover: null, pin: null });
  announce("Let go.");
  paint();
}
