// What opens late: details whose content is a dialog; and where a context stands, on its maximum or on a touch.
(() => {
  "use strict";
  document.addEventListener("toggle", ({ target }) => {
    if (!target.matches?.("details.panel")) return;
    const dialog = target.querySelector("dialog");
    if (target.open && !dialog.open) dialog.showModal();
    if (!target.open && dialog.open) dialog.close();
  }, true);
  // A dialog that was closed, by whatever means, closes its details; focus goes back to what opened it.
  document.addEventListener("close", ({ target }) => {
    const details = target.closest?.("details.panel");
    if (details) { details.open = false; details.querySelector("summary").focus(); }
  }, true);

  function tell(context, token) {
    const open = token ? true : !context.classList.contains("told");
    document.querySelectorAll(".context.told").forEach((other) => { if (other !== context) close(other); });
    context.classList.toggle("told", open);
    context.querySelector(".maximum").setAttribute("aria-expanded", String(open));
    context.querySelector(".of-token").textContent = token ? ` · “${token.textContent.trim()}” ${token.title}` : "";
  }
  function close(context) {
    context.classList.remove("told");
    context.querySelector(".maximum")?.setAttribute("aria-expanded", "false");
  }
  document.addEventListener("click", (event) => {
    const { target } = event;
    if (target.matches("details.panel > dialog") || target.closest("[data-close]")) target.closest("dialog").close();
    const context = target.closest(".context");
    if (context?.querySelector(".maximum")) tell(context, target.closest(".t[title]"));
  });
})();
