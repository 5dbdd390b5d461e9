// Small controls: a slider's number beside it, forms that follow their controls, a permalink to the clipboard.
(() => {
  "use strict";
  document.addEventListener("input", (event) => {
    if (event.target.type !== "range") return;
    const shown = event.target.closest(".slider")?.querySelector("output");
    if (shown) shown.value = Number(event.target.value).toFixed(2);
  });

  // Forms that follow their controls: "moved" at once, then at most every WAIT ms, and always once after the last change.
  // (htmx's own throttle drops the last event of a burst.)
  const WAIT = 150;
  const states = new WeakMap();
  function follow(event) {
    const form = event.target.form;
    if (!form?.matches("[data-follows]")) return;
    const state = states.get(form) ?? { last: -Infinity, timer: 0 };
    states.set(form, state);
    clearTimeout(state.timer);
    state.timer = setTimeout(() => {
      state.last = performance.now();
      form.dispatchEvent(new CustomEvent("moved"));
    }, Math.max(state.last + WAIT - performance.now(), 0));
  }
  document.addEventListener("input", follow);
  document.addEventListener("change", follow);

  document.addEventListener("click", async (event) => {
    const button = event.target.closest("[data-copy], [data-copy-embed]");
    if (!button) return;
    const embeds = "copyEmbed" in button.dataset;
    const address = new URL(embeds ? button.dataset.copyEmbed : button.dataset.copy, location.href).href;
    const text = embeds ? `<iframe src="${address.replaceAll("&", "&amp;")}" width="960" height="640" loading="lazy" title="${document.title.replaceAll('"', "&quot;")}"></iframe>` : address;
    const says = button.textContent;
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
    } catch {
      window.prompt(embeds ? "The embed code" : "The permalink", text); // no clipboard without HTTPS or loopback
    }
    setTimeout(() => { button.textContent = says; }, 1500);
  });

  // The current tab stands in sight where the row is wider than the window.
  const showTab = () => { const tab = document.querySelector(".tabs [aria-current]"); if (tab) tab.parentElement.scrollLeft = tab.offsetLeft - tab.parentElement.offsetLeft - 40; };
  document.addEventListener("DOMContentLoaded", showTab);

  // What scrolls inside the page can be reached and scrolled with the keyboard.
  const reachScrolled = () => document.querySelectorAll(".scroll, .tabs, .formula, pre").forEach((node) => {
    if (node.scrollWidth > node.clientWidth || node.scrollHeight > node.clientHeight) node.tabIndex = 0;
    else node.removeAttribute("tabindex");
  });
  ["DOMContentLoaded", "htmx:afterSettle", "toggle"].forEach((name) => document.addEventListener(name, reachScrolled, true));
  window.addEventListener("resize", reachScrolled);

  // An open switcher closes when something else is clicked, or with Escape.
  const closeSwitchers = (but) => document.querySelectorAll("details.switcher[open]").forEach((node) => { if (node !== but) node.open = false; });
  document.addEventListener("click", (event) => closeSwitchers(event.target.closest("details.switcher")));
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") closeSwitchers(null); });
})();
