// Small controls: a slider's number beside it, a permalink to the clipboard.
(() => {
  "use strict";
  document.addEventListener("input", (event) => {
    if (event.target.type !== "range") return;
    const shown = event.target.closest(".slider").querySelector("output");
    shown.value = Number(event.target.value).toFixed(2);
  });

  document.addEventListener("click", async (event) => {
    const button = event.target.closest("[data-copy]");
    if (!button) return;
    const address = new URL(button.dataset.copy, location.href).href;
    try {
      await navigator.clipboard.writeText(address);
      button.textContent = "Copied";
    } catch {
      window.prompt("The permalink", address); // no clipboard without HTTPS or loopback
    }
    setTimeout(() => { button.textContent = "Copy link"; }, 1500);
  });
})();
