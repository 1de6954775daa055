// The numbers beside the picture: weights, entropy, probability, and what else the model considered at a step.

const SHOWN_WEIGHTS = 6;

function bar(name, share, number, classes = "") {
  const fill = make("div");
  fill.style.width = `${Math.min(100, 100 * share)}%`;
  return make("li", { class: classes.trim() }, name, make("span", {}, number), make("div", {}, fill));
}

function weightList(table, at, side) {
  const all = ranked(table, at, side),
    top = all.slice(0, SHOWN_WEIGHTS),
    rest = all.slice(SHOWN_WEIGHTS);
  const cell = at.row !== null && at.col !== null;
  if (cell && !top.some(({ index }) => index === at.col)) {
    // the cell pointed at is always listed
    top[SHOWN_WEIGHTS - 1] = all.find(({ index }) => index === at.col);
  }
  const list = make(
    "ul",
    { class: "weights" },
    ...top.map(({ index, weight }) => {
      const gold = side === "col" ? isGold(table, at.row, index) : isGold(table, index, at.col);
      const classes = `${gold ? "is-gold" : ""} ${cell && index === at.col ? "here" : ""}`;
      return bar(word(table[side].tokens[index]), weight, digits(weight), classes);
    }),
  );
  if (rest.length) {
    const shownSum = top.reduce((sum, { weight }) => sum + weight, 0);
    const sum = all.reduce((total, { weight }) => total + weight, 0) - shownSum;
    list.append(bar(`${rest.length} more`, sum, digits(Math.max(0, sum)), "more"));
  }
  return list;
}

function alternativeItem(panel, step, [token, logProb]) {
  const { tokens } = hypothesisOf(panel.number),
    own = token === tokens[step],
    p = Math.exp(logProb);
  const item = bar(word(token), p, percent(p), own ? "here" : "");
  if (!page.live || own) return item;
  const force = button("", () => live.force(panel, step, token), {
    class: "force",
    "aria-label": `Continue from ${shown(token)} at step ${step + 1}`,
    title: "continue from here",
  });
  force.append(...item.childNodes);
  item.append(force);
  return item;
}

/** What else the model considered when it wrote a row, where that is one step. */
function alternativesOf(panel, row) {
  const { alternatives, forced } = hypothesisOf(panel.number),
    { table } = panel;
  if (!alternatives || table.kind === "encoder" || row === null) return [];
  const steps = range(table.steps.length).filter((step) => table.steps[step] === row);
  if (steps.length > 1) return [make("p", { class: "aside" }, "Several pieces: split the words to see alternatives.")];
  const [step] = steps,
    given = step < forced ? " (given)" : "";
  const hint = page.live ? "pick one to continue from there" : "the likeliest at this step";
  return [
    make("h3", {}, `Alternatives${given}`, make("small", {}, ` ${hint}`)),
    make("ol", { class: "alternatives" }, ...alternatives[step].map((entry) => alternativeItem(panel, step, entry))),
  ];
}

function factsOf(panel, row) {
  // one line: probability and entropy
  const { table } = panel,
    { log_probs: logProbs } = hypothesisOf(panel.number),
    facts = [];
  if (logProbs && table.kind !== "encoder") {
    const sum = logProbs.reduce((total, value, step) => total + (table.steps[step] === row ? value : 0), 0);
    facts.push(`probability ${percent(Math.exp(sum))}`);
  }
  facts.push(`entropy ${table.entropies[row].toFixed(2)} of ${Math.log2(table.cols).toFixed(2)} bits`);
  return make("p", { class: "facts" }, facts.join(" · "));
}

function spotReadout(panel, at) {
  const { table } = panel,
    looks = at.row !== null,
    side = looks ? "col" : "row";
  const verbs = {
    cross: ["was written while looking at", "was looked at while writing"],
    encoder: ["looks at", "is looked at by"],
    decoder: ["was written while looking back at", "was looked back at while writing"],
  };
  return [
    make("h2", {}, looks ? word(table.row.tokens[at.row]) : word(table.col.tokens[at.col])),
    ...(looks ? [factsOf(panel, at.row)] : []),
    make("p", {}, verbs[table.kind][looks ? 0 : 1]),
    weightList(table, at, side),
    ...alternativesOf(panel, at.row),
  ];
}

function restingReadout({ table }) {
  const mean = table.entropies.reduce((sum, bits) => sum + bits, 0) / table.rows;
  return [
    make(
      "p",
      {},
      `${table.cols} ${table.col.name} tokens, ${table.rows} ${table.row.name} tokens. ` +
        `The heaviest weight is ${digits(table.heaviest)}, the mean entropy ${mean.toFixed(2)} bits.`,
    ),
  ];
}

function paintReadout() {
  $("readout").replaceChildren(
    ...shownPanels().map((panel) => {
      const at = spotIn(panel);
      const parts = at
        ? spotReadout(panel, at)
        : spot()
          ? [make("p", {}, "Nothing here to compare.")]
          : restingReadout(panel);
      if (state.compare) parts.unshift(make("h4", {}, "AB"[panel.number], make("span", {}, ` ${nameOf(panel)}`)));
      return make("div", {}, ...parts);
    }),
  );
}
