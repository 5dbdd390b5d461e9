// The table of a static site asked from DuckDB-WASM over its Parquet files: what static/site-filter.js answers for a table that is
// loaded whole, with the same filters, orders and searches. Lines come from the same blocks; only those of a page are loaded.
(() => {
  "use strict";
  const { COLUMNS, TOLERANCE, sortedBy, descending, wordsOf, matcher, line, pageAt, within } = seedscope.filter;
  const LETTER = "[\\p{L}\\p{N}\\p{M}_]", OTHER = "[^\\p{L}\\p{N}\\p{M}_]", MOST_VALUES = 10_000;
  const text = (value) => `'${String(value).replaceAll("'", "''")}'`;
  const absolute = (path) => new URL(path, document.baseURI).href;

  async function read(path) {
    const answer = await fetch(path);
    if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
    return answer.arrayBuffer();
  }
  // A failure inside the worker can be silent: its parts are fetched here, where one is heard, and it has a minute to begin.
  async function connect() {
    const parts = absolute(`${seedscope.root}static/duckdb/`), worker = new Worker(`${parts}duckdb-browser-eh.worker.js`);
    const failed = new Promise((_, reject) => {
      worker.addEventListener("error", () => reject(new Error("its worker could not be started")));
      setTimeout(() => reject(new Error("it did not begin within a minute")), 60_000);
    });
    failed.catch(() => {});
    const wasm = URL.createObjectURL(new Blob([await read(`${parts}duckdb-eh.wasm`)], { type: "application/wasm" }));
    const db = new duckdb.AsyncDuckDB(new duckdb.VoidLogger(), worker);
    await Promise.race([db.instantiate(wasm), failed]);
    URL.revokeObjectURL(wasm);
    const connection = await db.connect();
    return {
      run: async (sql) => (await connection.query(sql)).toArray().map((row) => row.toJSON()),
      load: async (name) => db.registerFileBuffer(name, new Uint8Array(await read(absolute(`data/${name}`)))),
    };
  }

  // {name: condition}, one for each filter that the state asks for.
  function filters(state, n) {
    const has = {};
    if (state.id !== undefined) has.q = `feature = ${state.id}`;
    else if (state.q) has.q = "by_token OR by_text";
    if (state.seed !== undefined) has.seed = `seed = ${text(state.seed)}`;
    if (state.bucket) has.bucket = `bucket = ${text(state.bucket)}`;
    if (state.trigger) has.trigger = `trigger = ${text(state.trigger)} AND n_active > 0`;
    if (state.score_min !== undefined) has.score_min = `CAST(score AS FLOAT) >= CAST(${state.score_min} AS FLOAT)`;
    if (state.stability_min !== undefined) has.stability_min = `n_matched >= ${Math.ceil(state.stability_min * n - TOLERANCE)}`;
    if (state.stability_max !== undefined) has.stability_max = `n_matched <= ${Math.floor(state.stability_max * n + TOLERANCE)}`;
    if (state.density_min !== undefined) has.density_min = `density >= CAST(${state.density_min} AS DOUBLE)`;
    if (state.density_max !== undefined) has.density_max = `density <= CAST(${state.density_max} AS DOUBLE)`;
    return has;
  }
  const where = (has, without) => {
    const kept = Object.entries(has).filter(([name]) => name !== without).map(([, condition]) => `(${condition})`);
    return kept.length ? `WHERE ${kept.join(" AND ")}` : "";
  };
  // Missing values last in both directions; equal ones in the order of seeds and features.
  const order = (state) => {
    const name = sortedBy(state), key = COLUMNS[name] ?? (state.id === undefined ? "relevance" : "CAST(NULL AS DOUBLE)"); // an index has none
    return `ORDER BY ${key} ${descending(state) ? "DESC" : "ASC"} NULLS LAST, i`;
  };
  // Explanations that hold every word of a search; the last may be the beginning of one.
  function explains(q) {
    const words = q[0] === '"' && q.at(-1) === '"' && q.length > 1 ? [] : wordsOf(q), isWhole = /\s$/.test(q);
    if (!words.length) return "false";
    const end = (k) => (k < words.length - 1 || isWhole ? `($|${OTHER})` : "");
    return words.map((word, k) => `regexp_matches(lower(explanation), ${text(`(^|${OTHER})${word}${end(k)}`)})`).join(" AND ");
  }

  seedscope.queriedTable = async (about) => {
    const { run, load } = await connect();
    await load("table.parquet");
    await run("CREATE TABLE feature_rows AS SELECT * FROM 'table.parquet'");
    let tokens = null, isHit = null, sought = null, isSearchable = false, tail = Promise.resolve();
    const inTurn = (work) => (tail = tail.then(work, work)); // a search belongs to the queries behind it
    const tokenTexts = async () => tokens ??= (await seedscope.load("row-tokens")).tokens;

    // What a state's queries read: all rows, with what a search found where there is one.
    async function source(state) {
      if (!state.q || state.id !== undefined) return "feature_rows";
      if (!isSearchable) { await load("search.parquet"); await run("CREATE TABLE texts AS SELECT * FROM 'search.parquet'"); isSearchable = true; }
      if (sought !== state.q) {
        isHit = (await tokenTexts()).map(matcher(state.q));
        const hits = isHit.flatMap((is, token) => (is ? [`(${token})`] : []));
        await run("CREATE OR REPLACE TABLE hits (token INTEGER)");
        for (let i = 0; i < hits.length; i += MOST_VALUES) await run(`INSERT INTO hits VALUES ${hits.slice(i, i + MOST_VALUES).join(",")}`);
        await run(`CREATE OR REPLACE TABLE found AS
          WITH pairs AS (SELECT i, unnest(top_tokens) AS token, unnest(top_token_counts) AS n FROM texts),
            firings AS (SELECT i, CAST(sum(n) AS DOUBLE) AS n FROM pairs WHERE token IN (SELECT token FROM hits) GROUP BY i),
            told AS (SELECT i FROM texts WHERE ${explains(state.q)})
          SELECT i, firings.i IS NOT NULL AS by_token, told.i IS NOT NULL AS by_text,
            CASE WHEN firings.i IS NULL THEN coalesce(score, 0) - 1 WHEN n_active > 0 THEN firings.n / n_active ELSE 0 END AS relevance
          FROM feature_rows LEFT JOIN firings USING (i) LEFT JOIN told USING (i)`);
        sought = state.q;
      }
      return "feature_rows JOIN found USING (i)";
    }
    async function facets(rows, has) {
      const counted = async (name, condition = "true") => new Map((await run(
        `SELECT ${name} AS value, CAST(count(*) AS INTEGER) AS n FROM (SELECT * FROM ${rows} ${where(has, name)}) WHERE ${condition} GROUP BY 1`)).map(({ value, n }) => [value, n]));
      const steps = about.score_steps.map((step, k) => `CAST(count(*) FILTER (WHERE CAST(score AS FLOAT) >= CAST(${step} AS FLOAT)) AS INTEGER) AS s${k}`);
      const [scored] = about.has.scores ? await run(`SELECT ${steps.join(", ")} FROM ${rows} ${where(has, "score_min")}`) : [null];
      return {
        bucket: await counted("bucket"), seed: await counted("seed"), trigger: about.has.tokens ? await counted("trigger", "n_active > 0") : new Map(),
        score_min: new Map(scored ? about.score_steps.map((step, k) => [step, scored[`s${k}`]]) : []),
      };
    }
    async function lines(found, isSearch) {
      const size = about.block_rows, texts = await tokenTexts();
      const blocks = new Map(await Promise.all([...new Set(found.map(({ i }) => Math.floor(i / size)))].map(async (k) => [k, await seedscope.load(`rows-${k}`)])));
      return found.map(({ i, by_text: byText }) => {
        const block = blocks.get(Math.floor(i / size)), at = i % size, own = block.top_tokens?.[at] ?? [];
        return line(block, at, texts, isSearch ? own.flatMap((token, place) => (isHit[token] ? [place] : [])) : [], Boolean(byText));
      });
    }
    return {
      about,
      view: (state, asked, size) => inTurn(async () => {
        const rows = await source(state), has = filters(state, about.n_comparisons), isSearch = rows !== "feature_rows";
        const [{ total }] = await run(`SELECT CAST(count(*) AS INTEGER) AS total FROM ${rows} ${where(has)}`);
        const [seed, feature] = (state.at ?? "").split("/");
        const [at] = state.at ? await run(`SELECT place FROM (SELECT seed, feature, CAST(row_number() OVER (${order(state)}) - 1 AS INTEGER) AS place
          FROM ${rows} ${where(has)}) WHERE seed = ${text(seed)} AND feature = ${Math.trunc(Number(feature)) || 0}`) : [];
        const page = within(at ? pageAt(at.place, size) : asked, total, size);
        const found = await run(`SELECT i${isSearch ? ", by_text" : ""} FROM ${rows} ${where(has)} ${order(state)} LIMIT ${size} OFFSET ${page * size}`);
        return { lines: await lines(found, isSearch), page, total, facets: await facets(rows, has) };
      }),
      around: (state, seed, feature) => inTurn(async () => {
        const rows = await source(state), has = filters(state, about.n_comparisons);
        const [{ total }] = await run(`SELECT CAST(count(*) AS INTEGER) AS total FROM ${rows} ${where(has)}`);
        const [here] = await run(`SELECT * FROM (SELECT seed, feature, CAST(row_number() OVER own - 1 AS INTEGER) AS place,
          lag(seed) OVER own AS seed_before, lag(feature) OVER own AS feature_before, lead(seed) OVER own AS seed_behind, lead(feature) OVER own AS feature_behind
          FROM ${rows} ${where(has)} WINDOW own AS (${order(state)})) WHERE seed = ${text(seed)} AND feature = ${feature}`);
        const named = (found, index) => (here && here[found] != null ? { seed: here[found], feature: here[index] } : null);
        return { at: here ? here.place : -1, total, previous: named("seed_before", "feature_before"), next: named("seed_behind", "feature_behind") };
      }),
    };
  };
})();
