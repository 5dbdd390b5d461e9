// What the table of a static site finds, and in which order: the filter of the dashboard over columns (app/store/selection.py).
(() => {
  "use strict";
  const COLUMNS = { density: "n_active", worth: "worth_ev", loss: "worth_loss", max: "max_activation", entropy: "token_entropy", score: "score", cofiring: "cofiring", predicted: "predicted", stability: "n_matched", feature: "feature" };
  const NUMBERS = ["score_min", "stability_min", "stability_max", "density_min", "density_max"];
  const KNOWN = ["bucket", "seed", "trigger", "q", "sort", "dir", "at", ...NUMBERS];
  const TOLERANCE = 1e-9;

  // The state that an address's fragment holds; numbers that are none count as absent, and so do names that mean nothing.
  function read(fragment) {
    const state = {};
    for (const [name, value] of new URLSearchParams(fragment)) {
      if (!KNOWN.includes(name) || value === "") continue;
      if (NUMBERS.includes(name)) { if (Number.isFinite(Number(value))) state[name] = Number(value); } else state[name] = value;
    }
    const index = /^#\s*(\d{1,9})$/.exec((state.q ?? "").trim());
    if (index) { state.id = Number(index[1]); }
    if (state.sort && !(state.sort in COLUMNS) && state.sort !== "relevance") delete state.sort;
    if (state.dir !== "asc" && state.dir !== "desc") delete state.dir;
    return state;
  }
  const write = (state, changes = {}) => {
    const kept = { ...state, ...changes };
    delete kept.id;
    if (!("at" in changes)) delete kept.at;
    return new URLSearchParams(Object.entries(kept).filter(([, value]) => value !== null && value !== undefined && value !== "")).toString();
  };
  const sortedBy = (state) => (state.sort && !(state.sort === "relevance" && !state.q) ? state.sort : state.q && state.id === undefined ? "relevance" : "stability");
  const descending = (state) => (state.dir ? state.dir === "desc" : sortedBy(state) !== "feature");

  // -- searches ----------------------------------------------------------------------------------------------------
  function matcher(q) {
    const part = q.toLowerCase();
    if (q.length > 1 && q[0] === '"' && q.at(-1) === '"') { const literal = q.slice(1, -1); return (text) => text === literal || seedscope.marks.oneLine(text) === literal; }
    if (q.length > 1 && q[0] === '"') return (text) => text.startsWith(q.slice(1)) || text.toLowerCase().includes(part);
    return (text) => text.toLowerCase().includes(part);
  }
  const wordsOf = (text) => text.toLowerCase().match(/[\p{L}\p{N}\p{M}_]+/gu) ?? [];
  // Whether an explanation holds every word; the last may be the beginning of one.
  function explains(q) {
    const words = q[0] === '"' && q.at(-1) === '"' && q.length > 1 ? [] : wordsOf(q);
    const last = words.at(-1), whole = words.slice(0, -1), isWhole = /\s$/.test(q);
    return (text) => {
      if (!words.length || text == null) return false;
      const held = wordsOf(text);
      return whole.every((word) => held.includes(word)) && held.some((word) => (isWhole ? word === last : word.startsWith(last)));
    };
  }
  // {hits: per row the places in its top tokens, told: by its explanation, relevance}; one pass over the token texts.
  function search(table, q) {
    const { columns, tokens, n } = table, matches = matcher(q), told = explains(q);
    const isHit = tokens.map(matches), hits = Array(n), byText = new Uint8Array(n), relevance = new Float64Array(n);
    for (let i = 0; i < n; i += 1) {
      const own = columns.top_tokens?.[i] ?? [];
      hits[i] = own.flatMap((token, place) => (isHit[token] ? [place] : []));
      byText[i] = told(columns.explanation?.[i]) ? 1 : 0;
      const firings = hits[i].reduce((sum, place) => sum + columns.top_token_counts[i][place], 0), active = columns.n_active?.[i] ?? 0;
      relevance[i] = hits[i].length ? (active > 0 ? firings / active : 0) : (columns.score?.[i] ?? 0) - 1;
    }
    return { q, hits, byText, relevance };
  }

  // -- filters -----------------------------------------------------------------------------------------------------
  // {name: whether row i passes}, one for each that the state asks for.
  function filters(table, state, found) {
    const { columns, about } = table, N = about.n_comparisons, one = Math.fround;
    const at = (name) => columns[name] ?? [];
    const passes = {};
    if (state.id !== undefined) passes.q = (i) => columns.feature[i] === state.id;
    else if (found) passes.q = (i) => found.hits[i].length > 0 || found.byText[i] === 1;
    if (state.seed !== undefined) passes.seed = (i) => columns.seed[i] === state.seed;
    if (state.bucket) passes.bucket = (i) => at("bucket")[i] === state.bucket;
    if (state.trigger) passes.trigger = (i) => at("trigger")[i] === state.trigger && at("n_active")[i] > 0;
    if (state.score_min !== undefined) passes.score_min = (i) => at("score")[i] != null && one(at("score")[i]) >= one(state.score_min);
    if (state.stability_min !== undefined) passes.stability_min = (i) => columns.n_matched[i] >= Math.ceil(state.stability_min * N - TOLERANCE);
    if (state.stability_max !== undefined) passes.stability_max = (i) => columns.n_matched[i] <= Math.floor(state.stability_max * N + TOLERANCE);
    if (state.density_min !== undefined) passes.density_min = (i) => at("density")[i] != null && at("density")[i] >= state.density_min;
    if (state.density_max !== undefined) passes.density_max = (i) => at("density")[i] != null && at("density")[i] <= state.density_max;
    return passes;
  }
  const kept = new WeakMap(); // the last search of each table
  function select(table, state) {
    let found = null;
    if (state.q && state.id === undefined) {
      found = kept.get(table);
      if (found?.q !== state.q) kept.set(table, found = search(table, state.q));
    }
    const passes = filters(table, state, found), all = Object.values(passes);
    const rows = [];
    for (let i = 0; i < table.n; i += 1) if (all.every((pass) => pass(i))) rows.push(i);
    const name = sortedBy(state), sign = descending(state) ? -1 : 1;
    const values = name === "relevance" ? found?.relevance : table.columns[COLUMNS[name]];
    // What is missing stands last in both directions; equal values in the order of seeds and features.
    const key = (i) => { const value = values?.[i]; return value == null ? Infinity : sign * value; };
    const keys = new Map(rows.map((i) => [i, key(i)]));
    rows.sort((a, b) => { const x = keys.get(a), y = keys.get(b); return x === y ? a - b : x - y; });
    return { rows, found, passes };
  }
  // {value: rows that have it, under all other filters}.
  function facet(table, passes, name, value, isCounted = () => true) {
    const others = Object.entries(passes).filter(([other]) => other !== name).map(([, pass]) => pass), counts = new Map();
    for (let i = 0; i < table.n; i += 1) {
      if (isCounted(i) && others.every((pass) => pass(i))) for (const each of value(i)) counts.set(each, (counts.get(each) ?? 0) + 1);
    }
    return counts;
  }
  function facets({ columns, about, n }, passes) {
    const of = (...rest) => facet({ n }, passes, ...rest);
    const held = (i) => about.score_steps.filter((step) => columns.score?.[i] != null && Math.fround(columns.score[i]) >= Math.fround(step));
    return {
      bucket: of("bucket", (i) => [columns.bucket?.[i]]), seed: of("seed", (i) => [columns.seed[i]]),
      trigger: about.has.tokens ? of("trigger", (i) => [columns.trigger[i]], (i) => columns.n_active[i] > 0) : new Map(),
      score_min: about.has.scores ? of("score_min", held) : new Map(),
    };
  }

  // -- what pages ask ----------------------------------------------------------------------------------------------
  // One line of the table: {column: value} with its top tokens as texts, and the places of those that a search found.
  function line(columns, i, tokens, hits, byText) {
    const own = Object.fromEntries(Object.entries(columns).map(([name, values]) => [name, values[i]]));
    return { ...own, top_tokens: (own.top_tokens ?? []).map((token) => tokens[token]), hits, byText };
  }
  const pageAt = (place, size) => Math.floor(place / size);
  const within = (page, total, size) => Math.max(0, Math.min(page, Math.ceil(total / size) - 1));
  // A table that is loaded whole, as pages ask for it; static/site-query.js answers the same from DuckDB.
  function wholeTable(table) {
    const { columns, about, tokens } = table, isAt = (seed, feature) => (i) => columns.seed[i] === seed && columns.feature[i] === feature;
    const name = (i) => (i === undefined ? null : { seed: columns.seed[i], feature: columns.feature[i] });
    return {
      about,
      // Lines of one page, the one where `state.at` stands if it is found; how many there are in all; counts beside filters.
      async view(state, asked, size) {
        const { rows, found, passes } = select(table, state), [seed, feature] = (state.at ?? "").split("/");
        const place = state.at ? rows.findIndex(isAt(seed, Number(feature))) : -1;
        const page = within(place < 0 ? asked : pageAt(place, size), rows.length, size);
        const lines = rows.slice(page * size, (page + 1) * size).map((i) => line(columns, i, tokens, found?.hits[i] ?? [], found?.byText[i] === 1));
        return { lines, page, total: rows.length, facets: facets(table, passes) };
      },
      // Where a feature stands under a filter, counted from 0 (-1: nowhere), and what is before and behind it.
      async around(state, seed, feature) {
        const { rows } = select(table, state), at = rows.findIndex(isAt(seed, feature));
        return { at, total: rows.length, previous: at < 0 ? null : name(rows[at - 1]), next: at < 0 ? null : name(rows[at + 1]) };
      },
    };
  }
  seedscope.filter = { read, write, sortedBy, descending, wordsOf, matcher, line, pageAt, within, wholeTable, COLUMNS, TOLERANCE };
})();
