// A list of features: a click anywhere in a row follows the row's link, and what a filter leaves is said to screen readers.
(() => {
  "use strict";
  const linkOf = (event) => {
    const row = event.target.closest("[data-list] tbody tr");
    const own = event.target.closest("a, button, input, select, label, summary, [tabindex]");
    return row && !own && !String(window.getSelection()) ? row.querySelector(".row-link") : null;
  };
  document.addEventListener("click", (event) => {
    const link = linkOf(event);
    if (!link) return;
    if (event.ctrlKey || event.metaKey || event.shiftKey) window.open(link.href, "_blank", "noopener");
    else link.click();
  });
  document.addEventListener("auxclick", (event) => {
    const link = event.button === 1 ? linkOf(event) : null;
    if (link) window.open(link.href, "_blank", "noopener");
  });

  document.addEventListener("htmx:afterSettle", () => {
    const results = document.getElementById("results");
    const region = document.getElementById("found-count");
    if (!results || !region) return;
    const n = Number(results.dataset.total);
    region.textContent = `${n.toLocaleString("en")} feature${n === 1 ? "" : "s"}`;
  });
})();
