// From the stored maps to the table that is drawn: unpacked, at a temperature, reduced, merged. See viz/examples.py.

const page = JSON.parse($("data").textContent);
const STEPS = 8192,
  NOTHING = 65535; // of the stored roots of logarithms

const unpacked = new WeakMap();
function unpack(map) {
  // steps of the root of -log(weight), [layers, heads, rows, columns] flat
  if (!unpacked.has(map)) {
    const bytes = Uint8Array.from(atob(map.weights), (character) => character.charCodeAt(0));
    unpacked.set(
      map,
      Uint16Array.from({ length: bytes.length / 2 }, (_, n) => bytes[2 * n] | (bytes[2 * n + 1] << 8)),
    );
  }
  return unpacked.get(map);
}

let powers = { temperature: null, table: null };
function powersAt(temperature) {
  // weight ** (1 / temperature) of every possible step
  if (powers.temperature !== temperature) {
    const table = Float32Array.from({ length: NOTHING + 1 }, (_, step) => Math.exp(-((step / STEPS) ** 2) / temperature));
    table[NOTHING] = 0;
    powers = { temperature, table };
  }
  return powers.table;
}

/** One head's weights; at another temperature than 1 they are softmax(scores / temperature), from their logarithms. */
function headWeights(map, layer, head, temperature = 1) {
  const [, heads, rows, cols] = map.shape,
    size = rows * cols,
    start = (layer * heads + head) * size;
  const table = powersAt(temperature);
  const weights = new Float32Array(size),
    steps = unpack(map);
  for (let at = 0; at < size; at++) weights[at] = table[steps[start + at]];
  if (temperature === 1) return weights;
  for (let row = 0; row < size; row += cols) {
    let sum = 0;
    for (let at = row; at < row + cols; at++) sum += weights[at];
    if (sum) for (let at = row; at < row + cols; at++) weights[at] /= sum;
  }
  return weights;
}

/** The mean or the largest of several maps, cell by cell. */
function combined(maps, how) {
  if (maps.length === 1) return maps[0];
  const result = Float32Array.from(maps[0]);
  for (const map of maps.slice(1)) {
    for (let at = 0; at < result.length; at++)
      result[at] = how === "max" ? Math.max(result[at], map[at]) : result[at] + map[at];
  }
  if (how === "mean") for (let at = 0; at < result.length; at++) result[at] /= maps.length;
  return result;
}

/** The map for a choice of layer and head, each a number, "mean" or "max": heads first, then layers. */
function chosenWeights(map, { layer, head, temperature }) {
  const [layers, heads] = map.shape;
  const pick = (choice, count) => (Number.isInteger(choice) ? [Math.min(choice, count - 1)] : range(count));
  return combined(
    pick(layer, layers).map((l) =>
      combined(
        pick(head, heads).map((h) => headWeights(map, l, h, temperature)),
        head,
      ),
    ),
    layer,
  );
}

// Words: what is looked at with several pieces is looked at with their sum; what looks does so with their mean.
function joined(tokens, words) {
  const texts = [];
  tokens.forEach((token, n) => {
    texts[words[n]] = (texts[words[n]] ?? "") + token;
  });
  return texts.map((text) => text.replace(/^▁/, "") || text);
}
function merged(weights, rowWords, colWords) {
  const rows = rowWords.at(-1) + 1,
    cols = colWords.at(-1) + 1;
  const result = new Float32Array(rows * cols),
    pieces = new Float32Array(rows);
  rowWords.forEach((row, r) => {
    pieces[row] += 1;
    colWords.forEach((col, c) => {
      result[row * cols + col] += weights[r * colWords.length + c];
    });
  });
  return result.map((weight, at) => weight / pieces[Math.floor(at / cols)]);
}

function heaviestOf(weights) {
  let most = 1e-9;
  for (const weight of weights) if (weight > most) most = weight;
  return most;
}

/** Entropy of a row in bits. */
function entropy(weights) {
  let sum = 0,
    bits = 0;
  for (const weight of weights) sum += weight;
  for (const weight of weights) if (weight > 0) bits -= (weight / sum) * Math.log2(weight / sum);
  return bits + 0;
}

/** What looks and what is looked at in a kind of map, with the numbers of their words. */
function sidesOf(model, hypothesis, kind) {
  const source = { ...model.source, name: "source" },
    output = { ...hypothesis, name: "output" };
  if (kind === "encoder") return { row: source, col: source };
  if (kind === "cross") return { row: output, col: source };
  const start = {
    tokens: ["<s>", ...output.tokens.slice(0, -1)],
    words: [0, ...output.words.slice(0, -1).map((w) => w + 1)],
  };
  return { row: output, col: { ...start, name: "input" } };
}

const mapOf = (model, hypothesis, kind) => (kind === "encoder" ? model.encoder : hypothesis[kind]);

/** The table drawn: tokens of both sides, weights row by row, their entropies, and the gold links between them. */
function makeTable(model, hypothesis, choice) {
  const map = mapOf(model, hypothesis, choice.kind);
  const { row, col } = sidesOf(model, hypothesis, choice.kind);
  const numbers = (side) => (choice.merged ? side.words : range(side.tokens.length));
  const tokens = (side) => (choice.merged ? joined(side.tokens, side.words) : side.tokens);
  const [rowNumbers, colNumbers] = [numbers(row), numbers(col)],
    cols = colNumbers.at(-1) + 1;
  const plain = chosenWeights(map, choice),
    weights = choice.merged ? merged(plain, rowNumbers, colNumbers) : plain;
  const links = (known) =>
    new Set(
      choice.kind === "cross" && known
        ? known.map(([source, target]) => `${colNumbers[source]} ${rowNumbers[target]}`)
        : [],
    );
  return {
    kind: choice.kind,
    map,
    weights,
    cols,
    rows: rowNumbers.at(-1) + 1,
    row: { tokens: tokens(row), name: row.name },
    col: { tokens: tokens(col), name: col.name },
    steps: rowNumbers, // the row of each step of the output
    givenRows: choice.kind === "encoder" || !hypothesis.forced ? 0 : rowNumbers[hypothesis.forced - 1] + 1,
    entropies: Array.from({ length: rowNumbers.at(-1) + 1 }, (_, r) =>
      entropy(weights.subarray(r * cols, (r + 1) * cols)),
    ),
    heaviest: heaviestOf(weights),
    mirrored: isRightToLeft(tokens(col)),
    gold: links(hypothesis.gold),
    possible: links(hypothesis.possible),
  };
}
const weightOf = (table, row, col) => table.weights[row * table.cols + col];
const linksOf = (links) => Array.from(links, (link) => link.split(" ").map(Number));
/** All links of people, `[col, row, whether merely possible]`; one that is both is sure. */
const allLinksOf = ({ gold, possible }) => [
  ...linksOf([...possible].filter((link) => !gold.has(link))).map((link) => [...link, true]),
  ...linksOf(gold).map((link) => [...link, false]),
];
