// The feature table of a notebook: draws the page of rows that the kernel holds ready, and says what is asked for.
// Texts are set as text; the strip is SVG that the kernel made of numbers.

const BUCKETS = ["stable", "middle", "unstable", "dead"];

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "onclick" || name === "onchange") made[name] = value;
    else if (value !== null && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

function ask(model, changes) {
  for (const [name, value] of Object.entries(changes)) model.set(name, value);
  model.save_changes();
}

function filters(model) {
  const counts = model.get("counts"), chosen = model.get("bucket");
  const all = Object.values(counts).reduce((sum, n) => sum + n, 0);
  const button = (name, label, n) =>
    element("button", { type: "button", class: `bucket ${name ?? "all"}`, "aria-pressed": String(chosen === name), onclick: () => ask(model, { bucket: name }) }, `${label} ${n.toLocaleString("en")}`);
  return element("div", { class: "row" }, button(null, "all", all), ...BUCKETS.filter((name) => counts[name] || name === chosen).map((name) => button(name, name, counts[name] ?? 0)));
}

function order(model) {
  const chosen = model.get("sort"), descending = model.get("descending");
  const select = element("select", { "aria-label": "sort by", onchange: (event) => ask(model, { sort: event.target.value }) },
    ...model.get("sorts").map((name) => element("option", { value: name, selected: name === chosen }, name)));
  const turn = element("button", { type: "button", class: "turn", "aria-label": descending ? "descending" : "ascending", onclick: () => ask(model, { descending: !descending }) }, descending ? "↓" : "↑");
  return element("div", { class: "row" }, element("span", { class: "soft" }, "sort by"), select, turn);
}

function line(model, row) {
  const strip = element("td");
  strip.innerHTML = row.strip;
  const p = row.stability === null ? "–" : row.stability.toFixed(2);
  const interval = row.low === null ? "" : ` ${row.low.toFixed(2)}–${row.high.toFixed(2)}`;
  const selected = model.get("selected");
  const here = selected && selected.seed === row.seed && selected.feature === row.feature;
  const choose = element("button", { type: "button", class: "choose", "aria-pressed": String(Boolean(here)), onclick: () => ask(model, { selected: { seed: row.seed, feature: row.feature } }) }, `${row.seed} · #${row.feature}`);
  return element("tr", { class: here ? "selected" : null },
    element("td", {}, choose), strip,
    element("td", { class: "num", title: `${row.n_matched} of ${row.n_comparisons} other seeds` }, p, element("small", {}, interval)),
    element("td", {}, element("span", { class: `pill ${row.bucket ?? ""}` }, row.bucket ?? "–")),
    element("td", { class: "num" }, row.density === null ? "–" : `${(100 * row.density).toPrecision(2)} %`),
    element("td", { class: "says" }, row.explanation ?? "", ...row.tokens.map((token) => element("code", {}, token))));
}

function pages(model) {
  const page = model.get("page"), size = model.get("page_size"), total = model.get("total");
  const first = total ? page * size + 1 : 0, last = Math.min((page + 1) * size, total);
  const step = (label, to, possible) => element("button", { type: "button", class: "step", disabled: !possible, onclick: () => ask(model, { page: to }) }, label);
  return element("div", { class: "row" }, step("‹ back", page - 1, page > 0), element("span", { class: "range" }, `${first.toLocaleString("en")}–${last.toLocaleString("en")} of ${total.toLocaleString("en")}`), step("on ›", page + 1, last < total));
}

function render({ model, el }) {
  const place = element("div", { class: "seedscope-table" });
  el.append(place);
  function draw() {
    const head = element("tr", {}, ...["feature", "other seeds", "p, 95 %", "bucket", "density", "says"].map((name) => element("th", { scope: "col" }, name)));
    place.replaceChildren(
      element("b", {}, model.get("title")), filters(model), order(model),
      element("table", {}, element("thead", {}, head), element("tbody", {}, ...model.get("rows").map((row) => line(model, row)))),
      pages(model));
  }
  let waiting = false;  // several values that arrive together are drawn once
  const later = () => { if (!waiting) { waiting = true; queueMicrotask(() => { waiting = false; draw(); }); } };
  const heard = ["rows", "counts", "total", "page", "bucket", "sort", "descending", "selected"].map((name) => `change:${name}`);
  for (const event of heard) model.on(event, later);
  draw();
  return () => { for (const event of heard) model.off(event, later); };
}

export default { render };
