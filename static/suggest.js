// Suggestions under the search box: tokens and words that what is typed may mean. Arrow keys choose, Enter takes, Escape closes.
(() => {
  "use strict";
  const WAIT = 120; // ms without a key before asking
  let timer = 0, asked = null, chosen = -1;
  const listOf = (box) => document.getElementById(box.getAttribute("aria-controls"));
  const optionsOf = (box) => [...listOf(box).children];

  function close(box) {
    clearTimeout(timer);
    asked?.abort();
    chosen = -1;
    listOf(box).hidden = true;
    listOf(box).replaceChildren();
    box.setAttribute("aria-expanded", "false");
    box.removeAttribute("aria-activedescendant");
  }

  function choose(box, index) {
    const options = optionsOf(box);
    chosen = index;
    options.forEach((option, i) => option.setAttribute("aria-selected", String(i === index)));
    if (index < 0) box.removeAttribute("aria-activedescendant");
    else box.setAttribute("aria-activedescendant", options[index].id);
  }

  // What alone is searched travels with the form: a word taken from the list is one of explanations.
  function take(box, option) {
    const form = box.form;
    let hit = form.elements.namedItem("hit");
    if (!hit) {
      hit = Object.assign(document.createElement("input"), { type: "hidden", name: "hit" });
      form.append(hit);
    }
    hit.value = option.dataset.hit === "explanation" ? "explanation" : "";
    box.value = option.dataset.q;
    close(box);
    form.requestSubmit();
  }

  function show(box, suggestions) {
    const list = listOf(box);
    list.replaceChildren(...suggestions.map((each, i) => {
      const option = document.createElement("li");
      option.id = `suggestion-${i}`;
      option.setAttribute("role", "option");
      option.setAttribute("aria-selected", "false");
      option.dataset.q = each.q;
      option.dataset.hit = each.hit;
      const text = document.createElement(each.hit === "token" ? "code" : "b");
      if (each.hit === "token") text.className = "tok";
      text.textContent = each.shown;
      const kind = Object.assign(document.createElement("span"), { className: "found-by soft", textContent: each.hit });
      const count = Object.assign(document.createElement("small"), { textContent: `${each.n_features.toLocaleString("en")} feature${each.n_features === 1 ? "" : "s"}` });
      option.append(kind, text, count);
      return option;
    }));
    chosen = -1;
    list.hidden = !suggestions.length;
    box.setAttribute("aria-expanded", String(!list.hidden));
  }

  async function ask(box) {
    asked?.abort();
    asked = new AbortController();
    try {
      const answer = await fetch(`${box.dataset.suggest}?${new URLSearchParams({ q: box.value })}`, { signal: asked.signal });
      if (answer.ok && document.activeElement === box) show(box, (await answer.json()).suggestions);
    } catch (error) {
      if (error.name !== "AbortError") close(box);
    }
  }

  document.addEventListener("input", (event) => {
    const box = event.target;
    if (!box.matches("[data-suggest]")) return;
    clearTimeout(timer);
    if (!box.value || box.value.startsWith("#")) return close(box);
    timer = setTimeout(() => ask(box), WAIT);
  });
  document.addEventListener("keydown", (event) => {
    const box = event.target;
    if (!box.matches?.("[data-suggest]") || listOf(box).hidden) return;
    const n = optionsOf(box).length;
    if (event.key === "ArrowDown") choose(box, chosen + 1 < n ? chosen + 1 : -1);
    else if (event.key === "ArrowUp") choose(box, chosen < 0 ? n - 1 : chosen - 1);
    else if (event.key === "Enter" && chosen >= 0) take(box, optionsOf(box)[chosen]);
    else if (event.key === "Escape") close(box);
    else {
      if (event.key === "Enter") close(box);
      return;
    }
    event.preventDefault();
    event.stopPropagation();
  }, true);
  const optionAt = (event) => event.target.closest(".suggestions li");
  document.addEventListener("mousedown", (event) => { if (optionAt(event)) event.preventDefault(); }); // the box keeps the focus
  document.addEventListener("click", (event) => {
    const option = optionAt(event);
    if (option) take(document.querySelector(`[aria-controls="${option.parentElement.id}"]`), option);
  });
  document.addEventListener("focusout", (event) => { if (event.target.matches("[data-suggest]")) close(event.target); });
})();
