// Data of a static site: scripts that hand over compressed JSON, loaded when they are needed, each once.
(() => {
  "use strict";
  const DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;<=>?@^_`{|}~";
  const VALUES = new Uint8Array(128);
  [...DIGITS].forEach((digit, value) => { VALUES[digit.charCodeAt(0)] = value; });

  // Base 85 as Python's base64.b85encode writes it: five digits are four bytes, and what is short is cut.
  function bytesOf(text) {
    const padding = (5 - (text.length % 5)) % 5, whole = text + "~".repeat(padding);
    const bytes = new Uint8Array((whole.length / 5) * 4), view = new DataView(bytes.buffer);
    for (let i = 0, at = 0; i < whole.length; i += 5, at += 4) {
      let value = 0;
      for (let k = 0; k < 5; k += 1) value = value * 85 + VALUES[whole.charCodeAt(i + k)];
      view.setUint32(at, value);
    }
    return bytes.subarray(0, bytes.length - padding);
  }
  async function unpacked(text) {
    const stream = new Blob([bytesOf(text)]).stream().pipeThrough(new DecompressionStream("gzip"));
    return JSON.parse(await new Response(stream).text());
  }

  const waiting = new Map(), asked = new Map();
  window.siteData = (name, packed) => waiting.get(name)(packed);
  // A data file by its name; rejects where the folder lacks it or it is damaged.
  seedscope.load = (name) => {
    if (!asked.has(name)) {
      asked.set(name, new Promise((resolve, reject) => {
        const fail = () => reject(new Error(`data/${name}.js could not be read: copy the folder whole`));
        waiting.set(name, resolve);
        document.head.append(Object.assign(document.createElement("script"), { src: `data/${name}.js`, onerror: fail }));
      }).then(unpacked));
    }
    return asked.get(name);
  };
  // What every page of an ensemble needs, and the lines of its table in blocks of `about.block_rows`.
  seedscope.about = () => seedscope.load("about");
  async function wholeTable() {
    const about = await seedscope.about();
    const blocks = await Promise.all(Array.from({ length: about.row_blocks }, (_, i) => seedscope.load(`rows-${i}`)));
    const { tokens } = await seedscope.load("row-tokens");
    const columns = {};
    for (const name of new Set(blocks.flatMap(Object.keys))) columns[name] = blocks.flatMap((block) => block[name] ?? Array(block.seed.length).fill(null));
    return seedscope.filter.wholeTable({ about, columns, tokens, n: columns.seed.length });
  }
  seedscope.script = (src) => new Promise((resolve, reject) => {
    document.head.append(Object.assign(document.createElement("script"), { src, onload: resolve, onerror: () => reject(new Error(`${src} could not be read: copy the folder whole`)) }));
  });
  // The table: from DuckDB where the folder holds it and a file server answers, else loaded whole.
  async function anyTable() {
    const about = await seedscope.about();
    if (!about.duckdb || !/^https?:$/.test(location.protocol)) return wholeTable();
    try {
      for (const name of ["duckdb.min.js", "site-query.js"]) await seedscope.script(`${seedscope.root}static/${name}`);
      return await seedscope.queriedTable(about);
    } catch (error) {
      seedscope.lacksDuckdb = error.message; // the page says it: the whole table takes longer
      return wholeTable();
    }
  }
  let table = null;
  seedscope.table = () => table ??= anyTable();
})();
