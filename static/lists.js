// My list: features starred in this browser, with a note each; export and import. Nothing of it is sent but with an export.
(() => {
  "use strict";
  const KEY = "seedscope.list";
  const PLACE = /^[a-z0-9][a-z0-9._-]*\/[a-z0-9][a-z0-9._-]*\/\d{1,19}\/\d{1,10}$/;
  const LENS = ["theta", "epsilon", "rule", "dead"];

  // [{at: "STUDY/ENSEMBLE/SEED/FEATURE", note: ".."}], in the order in which they were starred.
  function read() {
    try {
      const items = JSON.parse(localStorage.getItem(KEY) ?? "[]");
      return items.filter((item) => PLACE.test(item?.at)).map(({ at, note }) => ({ at, note: String(note ?? "") }));
    } catch { return []; }
  }
  function write(items) {
    try { localStorage.setItem(KEY, JSON.stringify(items)); } catch { say("This browser keeps nothing: its storage is full or off."); }
    show();
  }
  function say(text) { document.querySelectorAll("[data-list-says]").forEach((node) => { node.textContent = text; }); }

  function lens() {
    const here = new URLSearchParams(location.search);
    return new URLSearchParams(LENS.filter((name) => here.has(name)).map((name) => [name, here.get(name)]));
  }
  const ensembleOf = (at) => at.split("/").slice(0, 2).join("/");
  const idOf = (at) => at.split("/").slice(2).join("/");
  const groups = (items) => Map.groupBy ? Map.groupBy(items, ({ at }) => ensembleOf(at))
    : items.reduce((map, item) => map.set(ensembleOf(item.at), [...(map.get(ensembleOf(item.at)) ?? []), item]), new Map());
  function addressOf(ensemble, items) {
    const rest = lens().toString();
    return `/s/${ensemble}/list?id=${items.map(({ at }) => idOf(at)).join(",")}${rest && "&"}${rest}`;
  }

  function show() {
    const items = read();
    const kept = new Map(items.map((item) => [item.at, item]));
    document.querySelectorAll("[data-star]").forEach((button) => {
      const on = kept.has(button.dataset.star);
      button.setAttribute("aria-pressed", String(on));
      button.firstElementChild.textContent = on ? "★" : "☆";
    });
    document.querySelectorAll("[data-note]").forEach((input) => {
      if (input !== document.activeElement) input.value = kept.get(input.dataset.note)?.note ?? "";
    });
    document.querySelectorAll("[data-own]").forEach((card) => { card.hidden = false; });
    document.querySelectorAll("[data-my-list]").forEach((link) => {
      const count = link.querySelector(".count");
      count.textContent = items.length;
      count.hidden = !items.length;
      const [one, ...more] = groups(items);
      link.href = one && !more.length ? addressOf(...one) : "/list";
    });
    showAll(items);
  }

  const element = (name, properties, ...children) => {
    const node = Object.assign(document.createElement(name), properties);
    node.append(...children);
    return node;
  };
  // The page of everything, by ensemble.
  function showAll(items) {
    const place = document.getElementById("my-list");
    if (!place) return;
    const cards = [...groups(items)].map(([ensemble, group]) => element("section", { className: "card" },
      element("h2", {}, element("a", { href: addressOf(ensemble, group), textContent: ensemble }), " ",
        element("small", { textContent: `${group.length} ${group.length === 1 ? "feature" : "features"}` })),
      element("ul", { className: "kept" }, ...group.map(({ at, note }) => element("li", {},
        element("a", { href: `/s/${at}${lens().size ? `?${lens()}` : ""}`, textContent: idOf(at) }), " ", element("span", { className: "soft", textContent: note }),
        Object.assign(element("button", { type: "button", textContent: "remove", ariaLabel: `remove ${at}` }), { onclick: () => toggle(at) }))))));
    place.replaceChildren(...(cards.length ? cards : [element("p", { className: "card", textContent: place.dataset.empty })]));
  }

  function toggle(at) {
    const items = read(), rest = items.filter((item) => item.at !== at), note = items.find((item) => item.at === at)?.note;
    if (note && !window.confirm(`Remove ${idOf(at)} from my list, with your explanation “${note}”?`)) return;
    write(rest.length < items.length ? rest : [...items, { at, note: "" }]);
  }
  // Adds to what is there; a note that is not empty replaces the one that was kept.
  function add(incoming) {
    const items = read(), places = new Map(items.map((item) => [item.at, item]));
    const sound = incoming.filter(({ at }) => PLACE.test(at));
    for (const { at, note } of sound) {
      const known = places.get(at);
      if (known) known.note = note || known.note;
      else { const item = { at, note: note ?? "" }; places.set(at, item); items.push(item); }
    }
    write(items);
    return sound.length;
  }

  // What a reader writes of a feature; an empty text takes the note away and leaves the feature in the list.
  function annotate(at, note) {
    const items = read(), item = items.find((other) => other.at === at);
    if (item) item.note = note;
    else if (note) items.push({ at, note });
    else return;
    say("Kept.");
    write(items);
  }

  // Rows of a CSV text, quoted fields included.
  function rowsOf(text) {
    const rows = [[]];
    for (const [, quoted, plain, end] of text.matchAll(/(?:"((?:[^"]|"")*)"|([^",\r\n]*))(,|\r?\n|$)/g)) {
      rows.at(-1).push(quoted !== undefined ? quoted.replaceAll('""', '"') : plain);
      if (end === "") break;
      if (end !== ",") rows.push([]);
    }
    return rows.filter((row) => row.length > 1);
  }
  function itemsOf(text) {
    if (/^\s*[{[]/.test(text)) {
      const file = JSON.parse(text);
      if (Array.isArray(file.seedscope_list)) return file.seedscope_list.map(({ at, note }) => ({ at, note: String(note ?? "") }));
      const base = `${file.study.study}/${file.ensemble.ensemble}`;
      return file.listed.map(({ id, note }) => ({ at: `${base}/${id}`, note }));
    }
    const [header, ...rows] = rowsOf(text);
    const column = (name) => header.indexOf(name);
    const [study, ensemble, seed, feature, note] = ["study", "ensemble", "seed", "feature", "note"].map(column);
    if (Math.min(study, ensemble, seed, feature) < 0) throw new Error("columns");
    return rows.map((row) => ({ at: [study, ensemble, seed, feature].map((i) => row[i]).join("/"), note: row[note] ?? "" }));
  }

  document.addEventListener("click", (event) => {
    const star = event.target.closest("[data-star]");
    if (star) { event.preventDefault(); toggle(star.dataset.star); return; }
    if (event.target.closest("[data-keep-all]")) {
      const { listOf, listed } = document.querySelector("[data-list-of]").dataset;
      say(`${add(listed.split(",").map((id) => ({ at: `${listOf}/${id}` })))} features are in my list.`);
    }
    if (event.target.closest("[data-clear]") && window.confirm("Empty my list in this browser?")) write([]);
    if (event.target.closest("[data-export-all]")) {
      const blob = new Blob([JSON.stringify({ seedscope_list: read() }, null, 1)], { type: "application/json" });
      const link = element("a", { href: URL.createObjectURL(blob), download: "seedscope-list.json" });
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
    }
    // Notes go along with the file that is saved.
    const exported = event.target.closest("[data-export]");
    if (exported) {
      const { listOf } = document.querySelector("[data-list-of]").dataset;
      const notes = read().filter(({ at, note }) => note && ensembleOf(at) === listOf).map(({ at, note }) => [idOf(at), note]);
      const address = new URL(exported.href);
      address.searchParams.delete("notes");
      if (notes.length) address.searchParams.set("notes", JSON.stringify(Object.fromEntries(notes)));
      exported.href = address;
    }
  });
  document.addEventListener("change", async (event) => {
    const { target } = event;
    if (target.matches("[data-note]")) annotate(target.dataset.note, target.value.trim());
    if (target.matches("[data-import]") && target.files[0]) {
      try {
        const n = add(itemsOf(await target.files[0].text()));
        say(n ? `${n} features of the file are in my list.` : "The file names no feature.");
      } catch { say("This is no list: expected the JSON or CSV file that a list page exports."); }
      target.value = "";
    }
  });
  document.addEventListener("DOMContentLoaded", show);
  document.addEventListener("htmx:afterSettle", show);
  window.addEventListener("storage", show);
  window.addEventListener("pageshow", show);
})();
