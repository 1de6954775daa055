"use strict";
// Elements, text and colour. All *.js files are one script, in the order that viewer.py lists.

const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";

// Text only ever enters as text nodes and attributes: nothing a token holds is parsed as markup.
function make(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}
function draw(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}
function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}
function button(label, onClick, attributes = {}) {
  const node = make("button", { type: "button", ...attributes }, label);
  node.addEventListener("click", onClick);
  return node;
}
function options(select, entries, chosen) {
  // [value, label] pairs
  select.replaceChildren(...entries.map(([value, label]) => make("option", { value }, label)));
  select.value = String(chosen);
}
const checked = (name) => document.querySelector(`input[name=${name}]:checked`)?.value;
const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
const range = (length) => Array.from({ length }, (_, n) => n);

// Tokens
const shown = (token) => (token === "" ? "∅" : token.trim() === "" ? "␣" : token.replace(/\s/g, " "));
function word(token) {
  // SentencePiece's mark of a new word is there, but steps back
  const [, mark, rest] = shown(token).match(/^(▁*)([^]*)$/);
  return make("bdi", { dir: "auto" }, ...(mark ? [make("span", { class: "mark" }, mark)] : []), rest);
}
const isRightToLeft = (tokens) => {
  const letter = tokens.join(" ").match(/\p{L}/u); // the first letter decides, as it does for dir="auto"
  return letter !== null && /[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]/.test(letter[0]);
};

// Numbers
const digits = (weight) => weight.toFixed(3);
const signed = (value) => value.toFixed(3).replace("-", "−");
const percent = (p) => {
  if (p >= 0.9995) return "100 %";
  return p >= 0.01 ? `${(100 * p).toFixed(1)} %` : p >= 1e-5 ? `${Number((100 * p).toPrecision(2))} %` : "< 0.001 %";
};

// Colour: 256 steps between the stops of the style sheet, so that light, dark and another map need no code.
let ramp = [];
const styled = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
function readRamp() {
  const channels = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
  const stops = range(5).map((n) => channels(styled(`--map-${n}`)));
  ramp = range(256).map((step) => {
    const at = (step / 255) * 4,
      low = Math.min(3, Math.floor(at));
    const [red, green, blue] = stops[low].map((value, n) =>
      Math.round(value + (stops[low + 1][n] - value) * (at - low)),
    );
    const light = 0.299 * red + 0.587 * green + 0.114 * blue > 140;
    return { fill: `rgb(${red},${green},${blue})`, ink: light ? "#10202f" : "#ffffff", channels: [red, green, blue] };
  });
}
const shade = (weight, heaviest) => ramp[Math.round(255 * Math.min(1, weight / heaviest))];

/** A stroke between two tokens' ends, across the page or down it. */
function curve([x0, y0], [x1, y1], across) {
  return across
    ? `M${x0} ${y0}C${x0} ${(y0 + y1) / 2} ${x1} ${(y0 + y1) / 2} ${x1} ${y1}`
    : `M${x0} ${y0}C${(x0 + x1) / 2} ${y0} ${(x0 + x1) / 2} ${y1} ${x1} ${y1}`;
}

/** Draws a whole map into a canvas, one pixel a weight; the style sheet enlarges it without smoothing. */
function paintPixels(canvas, weights, rows, cols, heaviest, mirrored = false) {
  canvas.width = cols;
  canvas.height = rows;
  const pen = canvas.getContext("2d"),
    image = pen.createImageData(cols, rows),
    pixels = new Uint32Array(image.data.buffer);
  const inks = Uint32Array.from(ramp, ({ channels: [red, green, blue] }) => {
    return new Uint32Array(Uint8Array.of(red, green, blue, 255).buffer)[0];
  });
  for (let row = 0; row < rows; row++) {
    for (let col = 0; col < cols; col++) {
      const step = Math.round(255 * Math.min(1, weights[row * cols + col] / heaviest));
      pixels[row * cols + (mirrored ? cols - 1 - col : col)] = inks[step];
    }
  }
  pen.putImageData(image, 0, 0);
}
