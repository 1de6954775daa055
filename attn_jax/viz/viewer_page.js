// What surrounds the picture: sentence, hypotheses, numbers, announcements; and what happens on every event.

const views = { lines, matrix };

function sentence(at) {
  const name = (side, index) => shown(tokensOf(side)[index]);
  if (at.src !== null && at.tgt !== null) {
    return `${name("tgt", at.tgt)} from ${name("src", at.src)}: ${digits(weightAt(at, "src", at.src))}`;
  }
  const side = at.tgt === null ? "tgt" : "src", top = ranked(at, side).slice(0, 3);
  return `${at.tgt === null ? name("src", at.src) : name("tgt", at.tgt)}: ` +
    top.map(({ index, weight }) => `${name(side, index)} ${digits(weight)}`).join(", ");
}
const ranked = (at, side) => tokensOf(side)
  .map((_, index) => ({ index, weight: weightAt({ ...at, [side]: null }, side, index) }))
  .sort((a, b) => b.weight - a.weight);

function readout(at) {
  if (!at) {
    $("readout").replaceChildren(make("p", {}, `${tokensOf("src").length} source tokens, ${tokensOf("tgt").length} ` +
      `output tokens. The heaviest weight is ${digits(heaviest)}.`));
    return;
  }
  const onTarget = at.tgt !== null, side = onTarget ? "src" : "tgt";
  const all = ranked(at, side), top = all.slice(0, SHOWN_WEIGHTS), rest = all.slice(SHOWN_WEIGHTS);
  if (at.src !== null && onTarget && !top.some(({ index }) => index === at.src)) {
    top[SHOWN_WEIGHTS - 1] = all.find(({ index }) => index === at.src); // the cell pointed at is always listed
  }
  const line = (name, weight, mark = "") => {
    const fill = make("div");
    fill.style.width = `${Math.min(100, 100 * weight)}%`;
    return make("li", mark ? { class: mark } : {}, name, make("span", {}, digits(weight)), make("div", {}, fill));
  };
  const list = make("ul", {}, ...top.map(({ index, weight }) => {
    const gold = state.gold && (onTarget ? isGold(index, at.tgt) : isGold(at.src, index));
    const here = at.src !== null && onTarget && index === at.src;
    return line(word(side, index), weight, [gold ? "is-gold" : "", here ? "here" : ""].join(" ").trim());
  }));
  if (rest.length) {
    const sum = rest.reduce((total, { weight }) => total + weight, 0);
    list.append(line(`${rest.length} more`, sum, "more"));
  }
  const heading = make("h2", {}, onTarget ? word("tgt", at.tgt) : word("src", at.src));
  const about = onTarget ? "was written while looking at" : "was looked at while writing";
  $("readout").replaceChildren(heading, make("p", {}, about), list);
}

function paint() {
  const at = spot();
  if (state.view !== "matrix") $("tip").hidden = true;
  views[state.view].paint(at);
  readout(at);
}
function point(at, aloud = false) {
  if (aloud && at) $("announcer").textContent = sentence(at);
  if (same(at, state.hover)) return;
  state.hover = at;
  paint();
}
function pin(at) {
  state.pin = same(at, state.pin) ? null : at;
  $("announcer").textContent = state.pin ? `Pinned. ${sentence(at)}` : "Let go.";
  paint();
}

function layout() {
  views[state.view].layout();
  paint();
}
function show() { // after another hypothesis or view
  heaviest = Math.max(1e-9, ...hypothesis().weights.map((row) => Math.max(...row)));
  $("heaviest").textContent = heaviest.toFixed(2);
  $("gold-choice").hidden = hypothesis().gold === null;
  $("lines").hidden = state.view !== "lines";
  $("matrix").hidden = state.view !== "matrix";
  for (const node of $("hypotheses").querySelectorAll("button")) {
    node.setAttribute("aria-pressed", Number(node.dataset.rank) === state.hypothesis);
  }
  views[state.view].build();
  layout();
}
function choose(change) {
  Object.assign(state, change, { hover: null });
  if ("example" in change || "hypothesis" in change) state.pin = null;
  show();
}

function showExample(index) {
  const { source, reference, hypotheses } = examples[index];
  $("example").selectedIndex = index;
  $("previous").disabled = index === 0;
  $("next").disabled = index === examples.length - 1;
  $("source").textContent = source.text;
  for (const id of ["reference", "reference-name"]) $(id).hidden = reference === null;
  $("reference").textContent = reference ?? "";
  const several = hypotheses.length > 1;
  $("hypotheses").replaceChildren(...hypotheses.map(({ text, score }, rank) => {
    const content = [make("bdi", { dir: "auto" }, text)];
    if (score !== null) content.push(make("span", { class: "score" }, `score ${score.toFixed(3).replace("-", "−")}`));
    if (!several) return make("li", {}, make("div", { class: "hypothesis" }, ...content));
    const button = make("button", { type: "button", class: "hypothesis", "data-rank": rank }, ...content);
    button.addEventListener("click", () => choose({ hypothesis: rank }));
    return make("li", {}, button);
  }));
  choose({ example: index, hypothesis: 0 });
}

$("example").append(...examples.map(({ source }, index) => {
  return make("option", { value: index }, `${index + 1} · ${source.text.slice(0, 90)}`);
}));
$("picker").hidden = examples.length === 1;
$("example").addEventListener("change", (event) => showExample(event.target.selectedIndex));
$("previous").addEventListener("click", () => showExample(state.example - 1));
$("next").addEventListener("click", () => showExample(state.example + 1));
$("gold").addEventListener("change", (event) => choose({ gold: event.target.checked }));
for (const input of document.querySelectorAll("input[name=view]")) {
  input.addEventListener("change", () => choose({ view: input.value }));
}
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || !spot()) return;
  Object.assign(state, { hover: null, pin: null });
  $("announcer").textContent = "Let go.";
  paint();
});
let width = 0;
new ResizeObserver(([entry]) => {
  if (entry.contentRect.width === width) return;
  width = entry.contentRect.width;
  layout();
}).observe(document.querySelector("figure"));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { readRamp(); layout(); });

readRamp();
$("gold").checked = true; // browsers keep form state over a reload; the page starts afresh
document.querySelector("input[value=lines]").checked = true;
showExample(0);
