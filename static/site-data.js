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
  // What every page of an ensemble needs, and the columns of its table (loaded whole, block after block).
  seedscope.about = () => seedscope.load("about");
  let table = null;
  seedscope.table = () => table ??= (async () => {
    const about = await seedscope.about();
    const blocks = await Promise.all(Array.from({ length: about.row_blocks }, (_, i) => seedscope.load(`rows-${i}`)));
    const { tokens } = await seedscope.load("row-tokens");
    const columns = {};
    for (const name of new Set(blocks.flatMap(Object.keys))) columns[name] = blocks.flatMap((block) => block[name] ?? Array(block.seed.length).fill(null));
    return { about, columns, tokens, n: columns.seed.length };
  })();
})();
