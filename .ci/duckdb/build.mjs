// Build static/duckdb.min.js: what a page of a static site needs to start DuckDB-WASM and to read its answers.
// The worker and the database itself (18 MB) are not in it: `seedscope site --duckdb-wasm` takes them from npm's package.
// 1.28.0 has the Parquet reader inside, so that a site asks no other server.
import { build } from "esbuild";
import { readFileSync, writeFileSync } from "node:fs";

const version = JSON.parse(readFileSync("node_modules/@duckdb/duckdb-wasm/package.json")).version;
writeFileSync("entry.js", 'export { AsyncDuckDB, VoidLogger, DuckDBDataProtocol } from "@duckdb/duckdb-wasm/dist/duckdb-browser.mjs";\n');
await build({
  entryPoints: ["entry.js"], outfile: `${process.argv[2]}/duckdb.min.js`,
  format: "iife", globalName: "duckdb", bundle: true, minify: true, target: "es2020", legalComments: "none",
  banner: { js: `/* duckdb-wasm ${version}, its part for pages, with apache-arrow 13.0.0. MIT licence and Apache licence 2.0. */` },
});
