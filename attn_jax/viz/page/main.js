// What happens on every event, and the start.

const fit = (value) => (/^\d+$/.test(value) ? Number(value) : value);
for (const number of [0, 1]) makePanel(number);
$("example").addEventListener("change", (event) => showExample(event.target.selectedIndex));
$("previous").addEventListener("click", () => showExample(state.example - 1));
$("next").addEventListener("click", () => showExample(state.example + 1));
for (const name of ["view", "kind"]) {
  for (const input of document.querySelectorAll(`input[name=${name}]`)) {
    input.addEventListener("change", () => choose({ [name]: input.value }));
  }
}
for (const name of ["compare", "merged", "gold", "numbers"]) {
  $(name).addEventListener("change", (event) => choose({ [name]: event.target.checked }));
}
for (const name of ["layer", "head"])
  $(name).addEventListener("change", (event) => choose({ [name]: fit(event.target.value) }));
const heat = () => choose({ temperature: 2 ** Number($("temperature").value) });
let heating = 0; // a slider moves more often than a screen is drawn
$("temperature").addEventListener("input", () => {
  cancelAnimationFrame(heating);
  heating = requestAnimationFrame(heat);
});
$("temperature").addEventListener("change", heat);
$("temperature-reset").addEventListener("click", () => choose({ temperature: 1 }));
$("colours").addEventListener("change", (event) => {
  document.documentElement.dataset.colours = event.target.value;
  readRamp();
  show();
});
for (const kind of Object.keys(EXPORTS)) $(`save-${kind}`).addEventListener("click", () => save(kind));
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && spot()) letGo();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  readRamp();
  if (examples.length) show();
});

function showExamples(found) {
  examples = found;
  options(
    $("example"),
    examples.map(({ text }, n) => [n, `${n + 1} · ${text.slice(0, 90)}`]),
    0,
  );
  $("picker").hidden = examples.length < 2;
  $("main").hidden = !examples.length;
  if (examples.length) showExample(0);
}

// Browsers keep form state over a reload; the page starts afresh.
for (const input of document.querySelectorAll("input[type=checkbox]")) input.checked = input.id === "gold";
document.querySelector("input[value=lines]").checked = true;
$("temperature").value = 0;
$("colours").value = "blue";
readRamp();
showExamples(examples);
if (page.live) live.start();
