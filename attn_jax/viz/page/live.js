// The live page only: a sentence goes to the server that sent this page, and its translation comes back.

const live = (() => {
  const form = $("ask"),
    status = $("ask-status"),
    given = $("given");
  let asked = null; // the request that the page shows

  async function translate(request) {
    if (form.hasAttribute("aria-busy")) return false; // Enter, or another word, before the answer
    form.setAttribute("aria-busy", "true");
    status.textContent = "Translating …";
    try {
      const answer = await fetch("/api/translate", {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify(request),
      });
      const found = await answer.json();
      if (!answer.ok) throw new Error(found.error);
      asked = request;
      showExamples([found.example]);
      tell(found);
      return true;
    } catch (error) {
      status.textContent =
        error instanceof TypeError ? "The server does not answer. Is it still running?" : error.message;
      return false;
    } finally {
      form.removeAttribute("aria-busy");
    }
  }
  function tell({ seconds }) {
    const prefix = asked.prefix.length;
    status.textContent = `Translated in ${seconds.toFixed(2)} s${prefix ? `, the first ${prefix} tokens given.` : "."}`;
    given.hidden = !prefix;
  }
  const requestOf = (prefix) => ({
    sentence: $("sentence").value,
    beam: Number($("beam").value),
    temperature: Number($("sampling").value),
    prefix,
  });

  async function force(panel, step, token) {
    // what was written up to the step, then another token
    const prefix = [...hypothesisOf(panel.number).tokens.slice(0, step), token];
    if (!(await translate({ ...asked, prefix }))) return;
    pin({ panel: 0, row: panels[0].table.steps[step], col: null });
    // the button that was pressed is gone: the keyboard goes on from the word
    document.querySelector(state.view === "lines" ? ".looking .pinned" : ".matrix").focus();
  }

  function start() {
    const { max_beam: widest, max_chars: longest } = page.live;
    form.hidden = false;
    $("sentence").maxLength = longest;
    options(
      $("beam"),
      [1, 2, 3, 4, 5, 8, 10, 12, 16, 20].filter((n) => n <= widest).map((n) => [n, n]),
      Math.min(5, widest),
    );
    options($("sampling"), [[0, "off"], ...[0.5, 0.7, 1, 1.3].map((t) => [t, `temperature ${t}`])], 0);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      translate(requestOf([]));
    });
    $("sentence").addEventListener("keydown", (event) => {
      // while composing, Enter picks a character; Safari ends the composition before the key and says 229
      if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
      event.preventDefault();
      form.requestSubmit();
    });
    given.addEventListener("click", async () => {
      if (await translate({ ...asked, prefix: [] })) $("sentence").focus(); // this button hides itself
    });
    $("sentence").focus();
  }
  return { start, force };
})();
