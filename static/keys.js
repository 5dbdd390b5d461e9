// Keyboard: j/k walk a list or the filter, Enter opens, u goes up, / searches, c copies, s stars, ? explains. Never inside inputs.
(() => {
  "use strict";
  const typing = (node) => node.closest("input, textarea, select, [contenteditable]") !== null;
  const rows = () => [...document.querySelectorAll("[data-list] tbody tr")];

  function walk(step) {
    const target = document.querySelector(step > 0 ? "[data-next]" : "[data-previous]");
    if (target) return target.click();
    const all = rows();
    if (!all.length) return;
    const now = all.findIndex((row) => row.classList.contains("selected"));
    const next = Math.min(Math.max(now + step, 0), all.length - 1);
    if (now >= 0) all[now].classList.remove("selected");
    all[next].classList.add("selected");
    all[next].scrollIntoView({ block: "nearest" });
  }

  const actions = {
    j: () => walk(1), ArrowDown: () => rows().length && walk(1), ArrowRight: () => document.querySelector("[data-next]")?.click(),
    k: () => walk(-1), ArrowUp: () => rows().length && walk(-1), ArrowLeft: () => document.querySelector("[data-previous]")?.click(),
    u: () => document.querySelector("[data-up]")?.click(),
    c: () => document.querySelector("[data-copy]")?.click(),
    s: () => document.querySelector("tr.selected .star, .feature-head .star")?.click(),
    "/": () => document.querySelector("input[type=search]")?.focus(),
    "?": () => document.getElementById("keys-help").showModal(),
    Enter: () => document.querySelector("tr.selected .row-link")?.click(),
  };

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (typing(event.target)) { if (event.key === "Escape") event.target.blur(); return; }
    if (event.key === "Enter" && event.target.closest("a, button, summary")) return;
    const action = actions[event.key];
    if (!action) return;
    const handled = action();
    if (event.key === "/" || event.key === "?" || (handled !== 0 && event.key.startsWith("Arrow") && rows().length)) event.preventDefault();
  });
})();
