// Entries of the glossary: the browser opens them on click and tap; this also on hover and focus, and beside their word.
(() => {
  "use strict";
  const GAP = 6, EDGE = 8, OPEN_MS = 120, CLOSE_MS = 180;
  const noteOf = (button) => document.getElementById(button.getAttribute("popovertarget"));
  const wordOf = (note) => document.querySelector(`[popovertarget="${note.id}"]`);
  const isOpen = (note) => note?.matches(":popover-open");
  let passing = null; // the note that hover or focus opened: it closes by itself
  let timer = 0;

  function place(note) {
    const word = wordOf(note)?.getBoundingClientRect();
    if (!word) return;
    const { width, height } = note.getBoundingClientRect();
    const below = word.bottom + GAP, above = word.top - GAP - height;
    const left = Math.max(EDGE, Math.min(word.left, document.body.clientWidth - width - EDGE));
    const top = below + height > innerHeight && above > EDGE ? above : below;
    Object.assign(note.style, { margin: "0", inset: "auto", left: `${left}px`, top: `${top}px` });
  }
  function show(button) {
    const note = noteOf(button);
    if (!note || isOpen(note)) return;
    note.showPopover({ source: button });
    passing = note;
  }
  function leave() {
    clearTimeout(timer);
    timer = setTimeout(() => { if (isOpen(passing)) passing.hidePopover(); passing = null; }, CLOSE_MS);
  }

  document.addEventListener("toggle", (event) => {
    if (!event.target.matches?.(".entry")) return;
    if (event.newState === "open") place(event.target);
    else if (passing === event.target) passing = null;
  }, true);
  document.addEventListener("pointerover", (event) => {
    if (event.pointerType !== "mouse") return;
    if (event.target.closest(".entry")) return clearTimeout(timer);
    const button = event.target.closest(".term") ?? event.target.closest("th, dt")?.querySelector(".term");
    if (!button || isOpen(noteOf(button))) { if (button) clearTimeout(timer); return; }
    clearTimeout(timer);
    timer = setTimeout(() => show(button), OPEN_MS);
  });
  document.addEventListener("pointerout", (event) => {
    if (event.pointerType === "mouse" && event.target.closest("th, dt, .term, .entry")) leave();
  });
  document.addEventListener("focusin", (event) => {
    clearTimeout(timer);
    if (event.target.matches(".term:focus-visible")) show(event.target);
    else if (isOpen(passing) && !passing.contains(event.target)) passing.hidePopover();
  });
  // A click on a word whose note is open already keeps it open, until a click elsewhere or Escape.
  document.addEventListener("click", (event) => {
    const button = event.target.closest?.(".term");
    if (!button || !passing || noteOf(button) !== passing) return;
    event.preventDefault();
    clearTimeout(timer);
    if (!isOpen(passing)) passing.showPopover({ source: button }); // the press on its word has closed it
    passing = null;
  }, true);
  const again = () => document.querySelectorAll(".entry:popover-open").forEach(place);
  addEventListener("scroll", again, { passive: true, capture: true });
  addEventListener("resize", again);
})();
