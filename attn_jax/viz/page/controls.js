// Choices: sentence, hypothesis, kind of attention, layer and head, temperature, words; and what follows from each.

const nameOf = ({ number }) => {
  const model = modelOf(number),
    { text, label } = hypothesisOf(number);
  return [model.name, label, text].filter(Boolean).join(" · ");
};
const choiceName = (what, choice) => (Number.isInteger(choice) ? `${what} ${choice + 1}` : `${choice} of ${what}s`);
function captionOf(panel) {
  const [layers, heads] = panel.table.map.shape,
    { temperature, merged: words } = state;
  return [
    nameOf(panel),
    `${state.kind} attention`,
    layers > 1 && choiceName("layer", state.layer),
    heads > 1 && choiceName("head", state.head),
    temperature !== 1 && `recomputed at temperature ${temperature.toFixed(2)}`,
    words && "whole words",
  ]
    .filter(Boolean)
    .join(" · ");
}

function makePanel(number) {
  const node = $("panel").content.firstElementChild.cloneNode(true),
    zoom = Array.from(node.querySelectorAll(".zoom button"));
  const panel = {
    number,
    node,
    table: null,
    pick: node.querySelector(".pick"),
    note: (text) => {
      node.querySelector(".note").textContent = text;
    },
    zoomable: (smaller, larger) => {
      [smaller, larger].forEach((can, n) => {
        zoom[n].disabled = !can;
      });
    },
  };
  node.querySelector(".badge").textContent = "AB"[number];
  panel.pick.setAttribute("aria-label", `Hypothesis ${"AB"[number]}`);
  panel.pick.addEventListener("change", () => {
    const [model, hypothesis] = panel.pick.value.split(" ").map(Number);
    choose({ picks: state.picks.map((pick, n) => (n === number ? { model, hypothesis } : pick)) });
  });
  $("stage").append(node);
  panel.lines = makeLines(panel);
  panel.matrix = makeMatrix(panel);
  zoom.forEach((part, n) => part.addEventListener("click", () => panel.matrix.zoomBy(n ? 1.25 : 0.8)));
  let width = 0;
  new ResizeObserver(([entry]) => {
    if (entry.contentRect.width === width || !panel.table || node.hidden) return;
    width = entry.contentRect.width;
    panel[state.view].layout();
    paint();
  }).observe(node);
  panels.push(panel);
}

// Sentences and hypotheses
const rankedName = (model, { label, score, text }, rank) =>
  [example().models.length > 1 && model.name, label || rank + 1, score !== null && signed(score), text]
    .filter(Boolean)
    .join(" · ");
function hypothesisNode(model, number, hypothesis, rank) {
  const { text, score, label } = hypothesis,
    content = [];
  if (label) content.push(make("span", { class: "label" }, label));
  content.push(make("bdi", { dir: "auto" }, text));
  if (score !== null) content.push(make("span", { class: "score" }, `score ${signed(score)}`));
  const alone = example().models.length === 1 && model.hypotheses.length === 1;
  if (alone) return make("li", {}, make("div", { class: "hypothesis" }, ...content));
  const choice = button("", () => choose({ picks: [{ model: number, hypothesis: rank }, state.picks[1]] }), {
    class: "hypothesis",
    "data-model": number,
    "data-rank": rank,
  });
  choice.append(...content);
  return make("li", {}, choice);
}
function showExample(index) {
  state.example = index;
  const { text, reference, models } = example();
  $("example").selectedIndex = index;
  $("previous").disabled = index === 0;
  $("next").disabled = index === examples.length - 1;
  $("source").textContent = text;
  const amongThem = models.some(({ hypotheses }) => hypotheses.some(({ text: written }) => written === reference));
  for (const id of ["reference", "reference-name"]) $(id).hidden = reference === null || amongThem;
  $("reference").textContent = reference ?? "";
  $("hypotheses").replaceChildren(
    ...models.flatMap((model, number) => [
      ...(models.length > 1 ? [make("li", { class: "model" }, model.name || `model ${number + 1}`)] : []),
      ...model.hypotheses.map((hypothesis, rank) => hypothesisNode(model, number, hypothesis, rank)),
    ]),
  );
  for (const { pick } of panels) {
    pick.replaceChildren(
      ...models.map((model, number) =>
        make(
          "optgroup",
          { label: model.name || "hypotheses" },
          ...model.hypotheses.map((hypothesis, rank) =>
            make("option", { value: `${number} ${rank}` }, rankedName(model, hypothesis, rank)),
          ),
        ),
      ),
    );
  }
  const other =
    models.length > 1
      ? { model: 1, hypothesis: 0 }
      : { model: 0, hypothesis: Math.min(1, models[0].hypotheses.length - 1) };
  choose({ picks: [{ model: 0, hypothesis: 0 }, other] });
}

// Layers and heads
function headGrid() {
  const { map, rows, cols, mirrored } = panels[0].table,
    [layers, heads] = map.shape;
  $("heads").hidden = layers * heads === 1;
  if ($("heads").hidden) return;
  const grid = $("head-grid"),
    whole = map.shape[2] === rows && map.shape[3] === cols;
  const wanted = { map, ramp, mirrored: whole && mirrored };
  if (Object.entries(wanted).some(([name, value]) => headsDrawn[name] !== value)) drawHeads(grid, wanted);
  Array.from(grid.children).forEach((node, n) => {
    node.setAttribute("aria-pressed", state.layer === Math.floor(n / heads) && state.head === n % heads);
  });
}
let headsDrawn = {};
function drawHeads(grid, wanted) {
  // at temperature 1; the buttons stay where they can, so that the one with the focus keeps it
  const { map, mirrored } = wanted,
    [layers, heads, rows, cols] = map.shape;
  if (grid.children.length !== layers * heads || grid.style.getPropertyValue("--heads") !== String(heads)) {
    grid.style.setProperty("--heads", heads);
    grid.replaceChildren(...range(layers * heads).map((n) => headButton(Math.floor(n / heads), n % heads)));
  }
  Array.from(grid.children).forEach((node, n) => {
    const weights = headWeights(map, Math.floor(n / heads), n % heads);
    paintPixels(node.firstElementChild, weights, rows, cols, heaviestOf(weights), mirrored);
  });
  headsDrawn = wanted;
}
function headButton(layer, head) {
  const pick = () => {
    const again = state.layer === layer && state.head === head; // a second click goes back to the mean
    choose(again ? { layer: "mean", head: "mean" } : { layer, head });
  };
  const name = `ayer ${layer + 1}, head ${head + 1}`;
  return button(make("canvas", { "aria-hidden": true }), pick, { title: `l${name}`, "aria-label": `L${name}` });
}
function layerAndHead() {
  const [layers, heads] = panels[0].table.map.shape;
  for (const [id, count] of [
    ["layer", layers],
    ["head", heads],
  ]) {
    if (Number.isInteger(state[id]) && state[id] >= count) state[id] = "mean";
    options($(id), [["mean", "mean"], ["max", "max"], ...range(count).map((n) => [n, n + 1])], state[id]);
    $(id).closest("label").hidden = count === 1;
  }
  headGrid();
}

// Everything else
function kindsShown() {
  // those that every shown panel has
  const has = { cross: () => true, encoder: (n) => modelOf(n).encoder, decoder: (n) => hypothesisOf(n).decoder };
  const found = Object.keys(KINDS).filter((kind) => shownPanels().every(({ number }) => has[kind](number)));
  if (!found.includes(state.kind)) state.kind = "cross";
  $("kinds").hidden = found.length === 1;
  for (const input of document.querySelectorAll("input[name=kind]")) {
    input.parentElement.hidden = !found.includes(input.value);
    input.checked = input.value === state.kind;
  }
}
const mapShown = ({ number }) => mapOf(modelOf(number), hypothesisOf(number), state.kind);
function temperatureNote() {
  const softmax = shownPanels().every((panel) => mapShown(panel).softmax);
  if (!softmax) state.temperature = 1;
  const moved = state.temperature !== 1;
  $("temperature").disabled = !softmax;
  $("temperature").value = Math.log2(state.temperature);
  $("temperature-value").textContent = state.temperature.toFixed(2);
  $("temperature-value").classList.toggle("moved", moved);
  $("temperature-note").hidden = softmax && !moved;
  $("temperature-text").textContent = softmax
    ? "Recomputed: softmax(scores / temperature) from the stored scores. The model itself used temperature 1."
    : "Some of these weights may not be one softmax of scores, so there is nothing to recompute.";
  $("temperature-reset").hidden = !moved;
}
function panelHead(panel) {
  const { model, hypothesis } = state.picks[panel.number],
    { table } = panel;
  panel.node.hidden = !shownPanels().includes(panel);
  panel.node.querySelector(".panel-head").hidden = !state.compare;
  panel.pick.value = `${model} ${hypothesis}`;
  if (panel.node.hidden) return;
  panel.node.querySelector(".heaviest").textContent = table.heaviest.toFixed(2);
  panel.node.querySelector(".zoom").hidden = state.view !== "matrix";
  panel.node.setAttribute("aria-label", captionOf(panel));
  for (const view of ["lines", "matrix"]) panel[view].frame.hidden = state.view !== view;
  if (state.view !== "matrix") panel.node.querySelector(".tip").hidden = true;
}
function show(afresh = false) {
  // afresh: other tokens than before
  kindsShown();
  temperatureNote();
  for (const panel of shownPanels()) panel.table = makeTable(modelOf(panel.number), hypothesisOf(panel.number), state);
  layerAndHead();
  const { models } = example(),
    tables = shownPanels().map(({ table }) => table);
  const split = models.some(({ source, hypotheses }) =>
    [source, ...hypotheses].some(({ words }) => words.at(-1) + 1 < words.length),
  );
  $("merged").closest("label").hidden = !split;
  $("gold").closest("label").hidden = !tables.some(({ gold, possible }) => gold.size + possible.size);
  $("numbers").closest("label").hidden = state.view !== "matrix";
  $("compare").closest("label").hidden = models.length === 1 && models[0].hypotheses.length === 1;
  $("desk").classList.toggle("two", state.compare);
  for (const panel of panels) panelHead(panel);
  for (const node of $("hypotheses").querySelectorAll("button")) {
    const { model, hypothesis } = state.picks[0];
    node.setAttribute("aria-pressed", Number(node.dataset.model) === model && Number(node.dataset.rank) === hypothesis);
  }
  for (const panel of shownPanels()) {
    panel[state.view].build(afresh);
    panel[state.view].layout();
  }
  paint();
}
function choose(change) {
  Object.assign(state, change, { hover: null });
  const afresh = ["picks", "kind", "merged", "compare"].some((name) => name in change);
  if (afresh) state.pin = null;
  show(afresh);
  if ("picks" in change) treeView.update();
}
