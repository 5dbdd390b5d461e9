// Keyboard: j/k (or n/p) walk a list or the filter, Enter opens, u goes up, / searches, c copies, s stars, ? explains. Never inside text.
(() => {
  "use strict";
  // Sliders, boxes and buttons take no letters: keys go on working while one of them has the focus.
  const TEXTLESS = "[type=range], [type=checkbox], [type=radio], [type=button], [type=submit]";
  const typing = (node) => node.closest("input, textarea, select, [contenteditable]") !== null && !node.matches(TEXTLESS);
  const rows = () => [...document.querySelectorAll("[data-list] tbody tr")];
  let landing = null; // which row of the page that is being fetched will be selected: "first" or "last"

  function select(row, block = "nearest") {
    document.querySelectorAll("[data-list] tr.selected").forEach((other) => other.classList.remove("selected"));
    row.classList.add("selected");
    row.scrollIntoView({ block });
  }

  function walk(step) {
    const target = document.querySelector(step > 0 ? "[data-next]" : "[data-previous]");
    if (target) return target.click();
    const all = rows();
    if (!all.length) return;
    const now = all.findIndex((row) => row.classList.contains("selected"));
    const next = now + step;
    const turn = now < 0 || (next >= 0 && next < all.length) ? null : document.querySelector(`.pager a[rel=${step > 0 ? "next" : "prev"}]`);
    if (turn && !landing) {
      landing = step > 0 ? "first" : "last";
      turn.click();
    } else if (!turn) {
      select(all[Math.min(Math.max(next, 0), all.length - 1)]);
    }
  }

  document.addEventListener("htmx:afterSettle", () => {
    if (landing) {
      const all = rows();
      if (all.length) select(all[landing === "first" ? 0 : all.length - 1], landing === "first" ? "nearest" : "end");
      landing = null;
    }
  });
  for (const failed of ["htmx:responseError", "htmx:sendError"]) document.addEventListener(failed, () => { landing = null; });
  document.addEventListener("DOMContentLoaded", () => document.querySelector("[data-list] tr.selected")?.scrollIntoView({ block: "center" }));

  const actions = {
    j: () => walk(1), n: () => walk(1), ArrowDown: () => rows().length && walk(1), ArrowRight: () => document.querySelector("[data-next]")?.click(),
    k: () => walk(-1), p: () => walk(-1), ArrowUp: () => rows().length && walk(-1), ArrowLeft: () => document.querySelector("[data-previous]")?.click(),
    u: () => document.querySelector("[data-up]")?.click(),
    c: () => document.querySelector("[data-copy]")?.click(),
    s: () => document.querySelector("tr.selected .star, .feature-head .star")?.click(),
    "/": () => document.querySelector("input[type=search]")?.focus(),
    "?": () => document.getElementById("keys-help").showModal(),
    Enter: () => document.querySelector("tr.selected .row-link")?.click(),
  };

  document.addEventListener("click", (event) => { if (event.target.closest("[data-keys]")) actions["?"](); });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (typing(event.target)) { if (event.key === "Escape") event.target.blur(); return; }
    if (event.target.closest("dialog[open]")) return;
    if (event.key.startsWith("Arrow") && event.target.closest("input")) return; // they move sliders and choices
    if (event.key === "Enter" && event.target.closest("a, button, summary, input")) return;
    const action = actions[event.key];
    if (!action) return;
    const handled = action();
    if (event.key === "/" || event.key === "?" || (handled !== 0 && event.key.startsWith("Arrow") && rows().length)) event.preventDefault();
  });
})();
