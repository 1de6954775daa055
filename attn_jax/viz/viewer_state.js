"use strict";
// The data, what is pointed at, and what every view needs. The four viewer_*.js files are one script.

const { examples } = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const LEAST_LINE = 0.03, MOST_LINES = 1500; // drawn at rest in the line view; pointing at a token draws all of its own
const SHOWN_WEIGHTS = 6; // in the list beside the picture

// What is shown. A spot is { src, tgt }: a source token, an output token or, with both, a cell; null = none.
const state = { example: 0, hypothesis: 0, view: "lines", gold: true, hover: null, pin: null };
const example = () => examples[state.example];
const hypothesis = () => example().hypotheses[state.hypothesis];
const spot = () => state.hover ?? state.pin;
const same = (a, b) => a === b || (!!a && !!b && a.src === b.src && a.tgt === b.tgt);
const tokensOf = (side) => (side === "src" ? example().source.tokens : hypothesis().tokens);
const isGold = (src, tgt) => (hypothesis().gold ?? []).some(([s, t]) => s === src && t === tgt);
const goldLinks = () => (state.gold ? hypothesis().gold ?? [] : []);
let heaviest = 1; // of the matrix shown: the end of the colour scale

/** The weight between the spot and a token of one side, or null where the spot has nothing to say about it. */
function weightAt(at, side, index) {
  const other = side === "src" ? at.tgt : at.src;
  if (other === null || (at[side] !== null && at[side] !== index)) return null;
  return side === "src" ? hypothesis().weights[other][index] : hypothesis().weights[index][other];
}

// Elements. Text only ever enters as text nodes: nothing a token holds is parsed as markup.
function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}
function word(side, index) { // SentencePiece's mark of a new word is there, but steps back
  const [, mark, rest] = shown(tokensOf(side)[index]).match(/^(▁*)([^]*)$/);
  return make("bdi", { dir: "auto" }, ...(mark ? [make("span", { class: "mark" }, mark)] : []), rest);
}
const shown = (token) => (token === "" ? "∅" : token.trim() === "" ? "␣" : token.replace(/\s/g, " "));
const digits = (weight) => weight.toFixed(3);
const isRightToLeft = (tokens) => {
  const letter = tokens.join(" ").match(/\p{L}/u); // the first letter decides, as it does for dir="auto"
  return letter !== null && /[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]/.test(letter[0]);
};

// Colour: 256 steps between the stops of the style sheet, so that light and dark need no code.
let ramp = [];
function readRamp() {
  const style = getComputedStyle(document.documentElement);
  const stops = [0, 1, 2, 3, 4].map((n) => {
    const hex = style.getPropertyValue(`--map-${n}`).trim();
    return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
  });
  ramp = Array.from({ length: 256 }, (_, step) => {
    const at = (step / 255) * 4, low = Math.min(3, Math.floor(at));
    const between = (value, n) => Math.round(value + (stops[low + 1][n] - value) * (at - low));
    const [red, green, blue] = stops[low].map(between);
    const light = 0.299 * red + 0.587 * green + 0.114 * blue > 140;
    return { fill: `rgb(${red} ${green} ${blue})`, ink: light ? "#10202f" : "#ffffff" };
  });
}
const shade = (weight) => ramp[Math.round(255 * Math.min(1, weight / heaviest))];
