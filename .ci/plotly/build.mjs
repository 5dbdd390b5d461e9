// Build static/plotly-*.min.js: the traces that SeedScope draws, with shaders compiled ahead of time (no eval under its CSP).
import { build } from "esbuild";
import { writeFileSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
const require = createRequire(import.meta.url);
const { glsl } = require("esbuild-plugin-glsl");
const InlineCSSPlugin = require("esbuild-plugin-inline-css");
const { environmentPlugin } = require("esbuild-plugin-environment");

const version = JSON.parse(readFileSync("node_modules/plotly.js/package.json")).version;
const BUNDLES = {
  plain: ["lib/bar", "lib/heatmap"], // scatter is part of the core
  gl: ["lib/bar", "lib/heatmap", "src/traces/scattergl/strict"],
};
for (const [name, traces] of Object.entries(BUNDLES)) {
  writeFileSync(`${name}.js`, `const Plotly = require("plotly.js/lib/core");\nPlotly.register([${traces.map((t) => `require("plotly.js/${t}")`).join(", ")}]);\nmodule.exports = Plotly;\n`);
  await build({
    entryPoints: [`${name}.js`], outfile: `${process.argv[2]}/plotly-${name}.min.js`,
    format: "iife", globalName: "Plotly", bundle: true, minify: true, target: "es2020", legalComments: "none",
    plugins: [InlineCSSPlugin(), glsl({ minify: true }), environmentPlugin({ NODE_DEBUG: false })],
    alias: { regl: "@plotly/regl", stream: "stream-browserify" },
    define: { global: "window", "define.amd": "false" },
    banner: { js: `/* plotly.js ${version}, a part: ${traces.join(", ")}. Copyright 2012-2026, Plotly, Inc. MIT licence. */` },
  });
}
