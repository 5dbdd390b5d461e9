// The feature table of a static site: filters, facets, order and pages over the columns in data/; its state is the fragment.
(() => {
  "use strict";
  const PAGE = 50, KEPT_OFF = ["loss", "max", "entropy", "cofiring"];
  const { escape, fixed, thousands, percent, density, perMille, code, pill, strip, predictedStrip, triggerShort } = seedscope.marks;
  const { read, write, select, facet, sortedBy, descending, wordsOf } = seedscope.filter;
  const find = (id) => document.getElementById(id);
  let table = null, state = {}, found = null, page = 0;

  // -- rows --------------------------------------------------------------------------------------------------------
  const dash = '<span class="soft">–</span>';
  function marked(text, q) {
    const words = wordsOf(q).map((word) => word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
    if (!words.length) return escape(text);
    return text.split(new RegExp(`((?<![\\p{L}\\p{N}_])(?:${words.join("|")}))`, "iu")).map((run, i) => (i % 2 ? `<mark>${escape(run)}</mark>` : escape(run))).join("");
  }
  function tops(i) {
    const { columns, tokens } = table, own = columns.top_tokens?.[i] ?? [], hits = found.found?.hits[i] ?? [];
    const shown = own.map((token, place) => [tokens[token], place]).filter(([, place]) => !hits.includes(place) && (place < 4 || hits.length));
    const first = hits.map((place) => `<mark>${code(tokens[own[place]])} ${percent(columns.top_token_counts[i][place] / (columns.n_active[i] || 1), 0)}</mark> `);
    return (hits.length ? '<small class="found-by">token</small> ' : "") + first.join("") + shown.map(([text]) => `${code(text)} `).join("");
  }
  function explanation(i) {
    const text = table.columns.explanation?.[i];
    if (text == null) return "";
    return found.found?.byText[i] ? `<small class="found-by">explanation</small> ${marked(text, state.q)}` : escape(text);
  }
  const predicted = (i) => table.columns.predicted_interval?.[i];
  const CELLS = {
    feature: (i, c) => `<a class="row-link" href="feature.html#${c.seed[i]}/${c.feature[i]}${query()}"><span class="soft">${c.seed[i]}/</span><b>#${c.feature[i]}</b></a>${c.seed[i] === table.about.anchor ? ' <span class="flag" title="the public SAE">anchor</span>' : ""}`,
    strip: (i, c) => (predicted(i) ? predictedStrip(c.predicted[i], ...predicted(i)) : strip(c.cosines[i], table.about.theta, c.bucket[i] ?? "null", table.about.measure)),
    stability: (i, c) => (table.about.n_comparisons ? `${fixed(c.n_matched[i] / table.about.n_comparisons, 2)} <small>${c.n_matched[i]}/${table.about.n_comparisons}</small>` : dash),
    predicted: (i, c) => (predicted(i) ? `${fixed(c.predicted[i], 2)} <small>${fixed(predicted(i)[0], 2)} – ${fixed(predicted(i)[1], 2)}</small>` : dash),
    bucket: (i, c) => pill(c.bucket?.[i], table.about.has.activity),
    density: (i, c) => (c.density[i] == null ? dash : density(c.density[i])),
    cosine: (i, c) => (c.mean_cosine?.[i] == null ? dash : fixed(c.mean_cosine[i], 3)),
    worth: (i, c) => (c.worth_ev[i] == null ? dash : perMille(c.worth_ev[i])),
    loss: (i, c) => (c.worth_loss[i] == null ? dash : seedscope.marks.signed(1000 * c.worth_loss[i], 3)),
    cofiring: (i, c) => (c.cofiring?.[i] == null ? "–" : fixed(c.cofiring[i], 2)),
    max: (i, c) => (c.max_activation[i] == null ? dash : fixed(c.max_activation[i], 2)),
    entropy: (i, c) => (c.n_active[i] ? fixed(c.token_entropy[i], 2) : "–"),
    trigger: (i, c) => (c.n_active[i] ? triggerShort(c.trigger[i], c.trigger_what[i] ?? "") : ""),
    tops: (i) => tops(i),
    norm: (i, c) => (c.decoder_norm?.[i] == null ? dash : seedscope.marks.short(c.decoder_norm[i])),
    explanation: (i) => explanation(i),
    score: (i, c) => (c.score?.[i] == null ? dash : fixed(c.score[i], 2)),
  };
  const EXTRA = { feature: "num first", strip: "strip-cell", bucket: "bucket-cell", trigger: "trigger-short", tops: "tops", explanation: "tops label-of", score: "score-cell" };
  const LABELS = { stability: "stability", predicted: "predicted p", density: "density", cosine: "mean cosine", worth: "marginal EV", loss: "loss (mnat)", cofiring: "fires alike", max: "max", entropy: "entropy", score: "score" };
  const TITLES = { explanation: (i, c) => (c.explanation?.[i] == null ? null : `${c.explainer?.[i] ?? ""}: ${c.explanation[i]}`), trigger: (i, c) => (c.n_active[i] ? `${c.trigger[i] === "other" ? "no single trigger" : c.trigger[i]}: ${percent(c.trigger_share[i], 0)} of firings` : null) };

  const query = () => { const text = write(state); return text ? `?${escape(text)}` : ""; };
  function rowOf(i, heads) {
    const cells = heads.map(({ column, kind }) => {
      const title = TITLES[column]?.(i, table.columns);
      return `<td class="${[kind, EXTRA[column] ?? ""].join(" ").trim()}"${LABELS[column] ? ` data-label="${LABELS[column]}"` : ""}${title ? ` title="${escape(title)}"` : ""}>${CELLS[column](i, table.columns)}</td>`;
    });
    const { seed, feature } = table.columns;
    return `<tr${state.at === `${seed[i]}/${feature[i]}` ? ' class="selected"' : ""}>${cells.join("")}</tr>`;
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
    const { columns, about } = table;
    const into = (name, items) => { const list = document.querySelector(`[data-facet="${name}"] ul`); if (list) list.innerHTML = items.join(""); };
    const buckets = facet(table, found.passes, "bucket", (i) => [columns.bucket?.[i]]), most = Math.max(1, ...buckets.values());
    into("bucket", ["stable", "middle", "unstable", "dead"].filter((name) => (about.n_comparisons || name === "dead") && (about.has.activity || name !== "dead" || buckets.get(name))).map((name) => {
      const n = buckets.get(name) ?? 0;
      return choice("bucket", name, name === "dead" && !about.has.activity ? "no direction" : name, n, `<i class="bar ${name}"><i style="width:${fixed(100 * n / most, 1)}%"></i></i>`);
    }));
    const seeds = facet(table, found.passes, "seed", (i) => [columns.seed[i]]);
    into("seed", about.seeds.map(({ seed }) => choice("seed", seed, String(seed), seeds.get(seed) ?? 0)));
    if (about.has.tokens) {
      const triggers = facet(table, found.passes, "trigger", (i) => [columns.trigger[i]], (i) => columns.n_active[i] > 0);
      into("trigger", about.triggers.filter((name) => triggers.get(name) || state.trigger === name).map((name) => choice("trigger", name, name === "other" ? "no single trigger" : name, triggers.get(name) ?? 0)));
    }
    if (about.has.scores) {
      const steps = facet(table, found.passes, "score_min", (i) => table.about.score_steps.filter((step) => columns.score[i] != null && Math.fround(columns.score[i]) >= Math.fround(step)));
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

  function draw() {
    found = select(table, state);
    const n = found.rows.length, { columns, about } = table;
    if (state.at) {
      const at = found.rows.findIndex((i) => `${columns.seed[i]}/${columns.feature[i]}` === state.at);
      if (at >= 0) page = Math.floor(at / PAGE);
    }
    page = Math.max(0, Math.min(page, Math.ceil(n / PAGE) - 1));
    drawHead();
    const heads = [...document.querySelectorAll("th[data-column]")].map((head) => ({ column: head.dataset.column, kind: head.className }));
    document.querySelector("[data-list] tbody").innerHTML = found.rows.slice(page * PAGE, (page + 1) * PAGE).map((i) => rowOf(i, heads)).join("");
    document.querySelector("[data-list]").hidden = !n;
    document.querySelector("[data-list]").classList.toggle("searched", Boolean(state.q));
    find("none-found").hidden = n > 0;
    find("total").textContent = `${thousands(n)} ${state.bucket ?? ""} features`.replace("  ", " ");
    find("of-what").textContent = state.seed !== undefined ? `in seed ${state.seed}` : `in ${about.seeds.length} seed${about.seeds.length === 1 ? "" : "s"}`;
    find("show-count").textContent = `Show ${thousands(n)}`;
    find("found-count").textContent = `${thousands(n)} feature${n === 1 ? "" : "s"}`;
    find("results").dataset.total = n;
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
  function follow() {
    state = read(location.hash.slice(1));
    page = 0;
    if (table) draw();
    if (state.at) document.querySelector("tr.selected")?.scrollIntoView({ block: "center" });
  }
  addEventListener("hashchange", follow);
  document.addEventListener("click", (event) => {
    const link = event.target.closest(".pager a[rel]");
    if (!link || !table) return;
    event.preventDefault();
    page += link.rel === "next" ? 1 : -1;
    delete state.at;
    draw();
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
      draw();
      document.querySelector("tr.selected")?.scrollIntoView({ block: "center" });
    } catch (error) {
      find("site-failed").textContent = error.message;
      find("site-failed").hidden = false;
    }
  });
})();
