// The feature table of a static site: filters, facets, order and pages over the columns in data/; its state is the fragment.
(() => {
  "use strict";
  const PAGE = 50, KEPT_OFF = ["loss", "max", "entropy", "cofiring"];
  const { escape, fixed, thousands, percent, density, perMille, code, pill, strip, predictedStrip, triggerShort } = seedscope.marks;
  const { read, write, sortedBy, descending, wordsOf } = seedscope.filter;
  const find = (id) => document.getElementById(id);
  let table = null, state = {}, view = null, page = 0, turn = 0;

  // -- rows --------------------------------------------------------------------------------------------------------
  const dash = '<span class="soft">–</span>';
  function marked(text, q) {
    const words = wordsOf(q).map((word) => word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
    if (!words.length) return escape(text);
    return text.split(new RegExp(`((?<![\\p{L}\\p{N}_])(?:${words.join("|")}))`, "iu")).map((run, i) => (i % 2 ? `<mark>${escape(run)}</mark>` : escape(run))).join("");
  }
  function tops({ top_tokens: own, hits, top_token_counts: counts, n_active: active }) {
    const others = own.map((text, place) => [text, place]).filter(([, place]) => !hits.includes(place) && (place < 4 || hits.length));
    const first = hits.map((place) => `<mark>${code(own[place])} ${percent(counts[place] / (active || 1), 0)}</mark> `);
    return (hits.length ? '<small class="found-by">token</small> ' : "") + first.join("") + others.map(([text]) => `${code(text)} `).join("");
  }
  function explanation({ explanation: text, byText }) {
    if (text == null) return "";
    return byText ? `<small class="found-by">explanation</small> ${marked(text, state.q)}` : escape(text);
  }
  const CELLS = {
    feature: (r) => `<a class="row-link" href="feature.html#${r.seed}/${r.feature}${query()}"><span class="soft">${r.seed}/</span><b>#${r.feature}</b></a>${r.seed === table.about.anchor ? ' <span class="flag" title="the public SAE">anchor</span>' : ""}`,
    strip: (r) => (r.predicted_interval ? predictedStrip(r.predicted, ...r.predicted_interval) : strip(r.cosines, table.about.theta, r.bucket ?? "null", table.about.measure)),
    stability: (r) => (table.about.n_comparisons ? `${fixed(r.n_matched / table.about.n_comparisons, 2)} <small>${r.n_matched}/${table.about.n_comparisons}</small>` : dash),
    predicted: (r) => (r.predicted_interval ? `${fixed(r.predicted, 2)} <small>${fixed(r.predicted_interval[0], 2)} – ${fixed(r.predicted_interval[1], 2)}</small>` : dash),
    bucket: (r) => pill(r.bucket, table.about.has.activity),
    density: (r) => (r.density == null ? dash : density(r.density)),
    cosine: (r) => (r.mean_cosine == null ? dash : fixed(r.mean_cosine, 3)),
    worth: (r) => (r.worth_ev == null ? dash : perMille(r.worth_ev)),
    loss: (r) => (r.worth_loss == null ? dash : seedscope.marks.signed(1000 * r.worth_loss, 3)),
    cofiring: (r) => (r.cofiring == null ? "–" : fixed(r.cofiring, 2)),
    max: (r) => (r.max_activation == null ? dash : fixed(r.max_activation, 2)),
    entropy: (r) => (r.n_active ? fixed(r.token_entropy, 2) : "–"),
    trigger: (r) => (r.n_active ? triggerShort(r.trigger, r.trigger_what ?? "") : ""),
    tops,
    norm: (r) => (r.decoder_norm == null ? dash : seedscope.marks.short(r.decoder_norm)),
    explanation,
    score: (r) => (r.score == null ? dash : fixed(r.score, 2)),
  };
  const EXTRA = { feature: "num first", strip: "strip-cell", bucket: "bucket-cell", trigger: "trigger-short", tops: "tops", explanation: "tops label-of", score: "score-cell" };
  const LABELS = { stability: "stability", predicted: "predicted p", density: "density", cosine: "mean cosine", worth: "marginal EV", loss: "loss (mnat)", cofiring: "fires alike", max: "max", entropy: "entropy", score: "score" };
  const TITLES = { explanation: (r) => (r.explanation == null ? null : `${r.explainer ?? ""}: ${r.explanation}`), trigger: (r) => (r.n_active ? `${r.trigger === "other" ? "no single trigger" : r.trigger}: ${percent(r.trigger_share, 0)} of firings` : null) };

  const query = () => { const text = write(state); return text ? `?${escape(text)}` : ""; };
  function rowOf(line, heads) {
    const cells = heads.map(({ column, kind }) => {
      const title = TITLES[column]?.(line);
      return `<td class="${[kind, EXTRA[column] ?? ""].join(" ").trim()}"${LABELS[column] ? ` data-label="${LABELS[column]}"` : ""}${title ? ` title="${escape(title)}"` : ""}>${CELLS[column](line)}</td>`;
    });
    return `<tr${state.at === `${line.seed}/${line.feature}` ? ' class="selected"' : ""}>${cells.join("")}</tr>`;
  }

  // -- what stands around them -------------------------------------------------------------------------------------
  function drawHead() {
    const by = sortedBy(state), down = descending(state);
    for (const head of document.querySelectorAll("th[data-sort]")) {
      const name = head.dataset.sort, link = head.querySelector("a"), isHere = name === by;
      link.textContent = link.textContent.replace(/ [↓↑]$/, "") + (isHere ? (down ? " ↓" : " ↑") : "");
      link.href = `#${write(state, { sort: name === "stability" && !state.q ? null : name, dir: isHere ? (down ? "asc" : "desc") : null })}`;
      if (isHere) head.setAttribute("aria-sort", down ? "descending" : "ascending"); else head.removeAttribute("aria-sort");
      if (KEPT_OFF.includes(name)) for (const off of ["wide", "broad"]) head.classList.toggle(off, !isHere);
    }
    find("sort-choice").value = by;
    const turn = find("turn");
    turn.textContent = down ? "↓" : "↑";
    turn.href = `#${write(state, { dir: down ? "asc" : "desc" })}`;
    turn.setAttribute("aria-label", `${down ? "descending" : "ascending"}, turn the order round`);
  }
  function choice(name, value, says, n, extra = "") {
    const isOn = state[name] === value;
    return `<li><a id="${name.replace("_min", "")}-${String(value).replaceAll(" ", "-")}" href="#${escape(write(state, { [name]: isOn ? null : value }))}"${isOn ? ' class="on" aria-current="true"' : ""}><span>${escape(says)}</span><span>${thousands(n)}</span>${extra}</a></li>`;
  }
  function drawFacets() {
    const { about } = table, { bucket: buckets, seed: seeds, trigger: triggers, score_min: steps } = view.facets, most = Math.max(1, ...buckets.values());
    const into = (name, items) => { const list = document.querySelector(`[data-facet="${name}"] ul`); if (list) list.innerHTML = items.join(""); };
    into("bucket", ["stable", "middle", "unstable", "dead"].filter((name) => (about.n_comparisons || name === "dead") && (about.has.activity || name !== "dead" || buckets.get(name))).map((name) => {
      const n = buckets.get(name) ?? 0;
      return choice("bucket", name, name === "dead" && !about.has.activity ? "no direction" : name, n, `<i class="bar ${name}"><i style="width:${fixed(100 * n / most, 1)}%"></i></i>`);
    }));
    into("seed", about.seeds.map(({ seed }) => choice("seed", seed, String(seed), seeds.get(seed) ?? 0)));
    if (about.has.tokens) {
      into("trigger", about.triggers.filter((name) => triggers.get(name) || state.trigger === name).map((name) => choice("trigger", name, name === "other" ? "no single trigger" : name, triggers.get(name) ?? 0)));
    }
    if (about.has.scores) {
      into("score_min", table.about.score_steps.filter((step) => steps.get(step) || state.score_min === step).map((step) => choice("score_min", step, `≥ ${fixed(step, 1)}`, steps.get(step) ?? 0)));
    }
  }
  function drawForm() {
    for (const input of find("filters").querySelectorAll("input[type=number]")) {
      const value = state[input.name], shown = value === undefined ? "" : String(input.name.startsWith("density") ? Number((100 * value).toPrecision(9)) : value);
      if (document.activeElement !== input) input.value = shown;
    }
    const box = document.querySelector("input[name=q]");
    if (box && document.activeElement !== box) box.value = state.q ?? "";
    const relevance = find("sort-choice").querySelector("[value=relevance]");
    if (relevance) relevance.hidden = relevance.disabled = !state.q;
    const n = Object.keys(state).filter((name) => !["q", "id", "sort", "dir", "at"].includes(name)).length;
    find("filter-count").hidden = !n;
    find("filter-count").textContent = n;
  }

  async function draw() {
    find("results").setAttribute("aria-busy", "true");
    const own = turn += 1, asked = await table.view(state, page, PAGE);
    if (own !== turn) return; // another state was asked for since
    view = asked;
    page = view.page;
    const n = view.total, { about } = table;
    drawHead();
    const heads = [...document.querySelectorAll("th[data-column]")].map((head) => ({ column: head.dataset.column, kind: head.className }));
    document.querySelector("[data-list] tbody").innerHTML = view.lines.map((line) => rowOf(line, heads)).join("");
    document.querySelector("[data-list]").hidden = !n;
    document.querySelector("[data-list]").classList.toggle("searched", Boolean(state.q));
    find("none-found").hidden = n > 0;
    find("total").textContent = `${thousands(n)} ${state.bucket ?? ""} features`.replace("  ", " ");
    find("of-what").textContent = state.seed !== undefined ? `in seed ${state.seed}` : `in ${about.seeds.length} seed${about.seeds.length === 1 ? "" : "s"}`;
    find("show-count").textContent = `Show ${thousands(n)}`;
    find("found-count").textContent = `${thousands(n)} feature${n === 1 ? "" : "s"}`;
    find("results").dataset.total = n;
    find("results").dataset.state = write(state);
    find("page-of").textContent = n ? `${thousands(page * PAGE + 1)} to ${thousands(Math.min((page + 1) * PAGE, n))} of ${thousands(n)}` : "";
    find("previous-page").hidden = page === 0;
    find("next-page").hidden = (page + 1) * PAGE >= n;
    for (const link of document.querySelectorAll(".pager a")) { if (link.hidden) link.removeAttribute("href"); else link.href = "#"; }
    drawFacets();
    drawForm();
    find("results").removeAttribute("aria-busy");
    document.dispatchEvent(new Event("htmx:afterSettle")); // the keys of lists wait for it
  }

  // -- what changes the state --------------------------------------------------------------------------------------
  const go = (changes) => { location.hash = write(state, changes); };
  async function show() {
    try {
      await draw();
    } catch (error) {
      find("site-failed").textContent = error.message;
      find("site-failed").hidden = false;
    }
  }
  async function follow() {
    state = read(location.hash.slice(1));
    page = 0;
    if (table) await show();
    if (state.at) document.querySelector("tr.selected")?.scrollIntoView({ block: "center" });
  }
  addEventListener("hashchange", follow);
  document.addEventListener("click", async (event) => {
    const link = event.target.closest(".pager a[rel]");
    if (!link || !table) return;
    event.preventDefault();
    page += link.rel === "next" ? 1 : -1;
    delete state.at;
    await show();
    scrollTo({ top: 0 });
  });
  document.addEventListener("DOMContentLoaded", async () => {
    if (!find("site-table")) return;
    let timer = 0;
    const type = (event) => {
      const { name, value, form } = event.target;
      if (!["q", "stability_min", "stability_max", "density_min", "density_max"].includes(name) || form?.id !== "filters") return;
      clearTimeout(timer);
      timer = setTimeout(() => go({ [name]: value === "" ? null : name.startsWith("density") ? Number(value) / 100 : value, ...(name === "q" ? { sort: null, dir: null } : {}) }), 150);
    };
    document.addEventListener("input", type);
    find("filters").addEventListener("submit", (event) => event.preventDefault());
    find("sort-choice").addEventListener("change", (event) => go({ sort: event.target.value, dir: null }));
    state = read(location.hash.slice(1));
    try {
      table = await seedscope.table();
    } catch (error) {
      find("site-failed").textContent = error.message;
      find("site-failed").hidden = false;
      return;
    }
    find("whole-table").hidden = !seedscope.lacksDuckdb;
    find("whole-table").title = seedscope.lacksDuckdb ?? "";
    await show();
    document.querySelector("tr.selected")?.scrollIntoView({ block: "center" });
  });
})();
