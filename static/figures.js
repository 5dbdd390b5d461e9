// Figures: the server sends Plotly dictionaries with colour roles ("@stable"); this fills them in for day or night and draws.
(() => {
  "use strict";
  const role = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  const fill = (value) => {
    if (typeof value === "string" && value.startsWith("@")) return role(value.slice(1));
    if (Array.isArray(value)) return value.map(fill);
    if (value && typeof value === "object") return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, fill(v)]));
    return value;
  };
  const axis = () => ({ gridcolor: role("line"), zerolinecolor: role("line"), linecolor: role("line"), automargin: true, title: { font: { size: 12 }, standoff: 10 } });
  const merge = (base, more) => {
    const result = { ...base };
    for (const [k, v] of Object.entries(more)) result[k] = v && typeof v === "object" && !Array.isArray(v) ? merge(base[k] ?? {}, v) : v;
    return result;
  };

  // Many points need WebGL; a browser without it draws them as lines, slowly.
  const hasWebGl = (() => {
    try { return Boolean(document.createElement("canvas").getContext("webgl")); } catch { return false; }
  })();
  // The smallest bundle that draws what is on the page, fetched when there is a figure; the one with WebGL where points are many.
  const { plain, gl } = document.currentScript.dataset;
  const fetched = {};
  const fetchBundle = (address) => fetched[address] ??= new Promise((resolve, reject) => {
    const script = Object.assign(document.createElement("script"), { src: address, onload: resolve, onerror: reject });
    document.head.append(script);
  });
  let bundle = null; // that Plotly is from
  async function plotly(needsGl) {
    if (bundle === gl || (bundle && !needsGl)) return;
    const address = needsGl ? gl : plain;
    await fetchBundle(address);
    bundle = address;
  }

  const drawn = new WeakMap(); // what each figure shows: a fragment elsewhere on the page must not redraw thousands of points

  async function draw(node) {
    drawn.set(node, node.dataset.figure);
    const plot = fill(JSON.parse(node.dataset.figure));
    await plotly(hasWebGl && plot.data.some((trace) => trace.type === "scattergl"));
    if (!node.isConnected || drawn.get(node) !== node.dataset.figure) return; // replaced while the bundle came
    if (!hasWebGl) plot.data.forEach((trace) => { if (trace.type === "scattergl") trace.type = "scatter"; });
    const base = {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", margin: { l: 52, r: 18, t: 18, b: 44 }, bargap: 0.12,
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: role("soft") },
      hoverlabel: { bgcolor: role("card"), bordercolor: role("line"), font: { color: role("ink") } },
      xaxis: axis(), yaxis: axis(), autosize: true,
    };
    const layout = merge(base, plot.layout);
    delete layout.height; // the page's own, so that nothing moves when the figure arrives
    const config = {
      displaylogo: false, responsive: true, displayModeBar: matchMedia("(hover: none)").matches ? false : "hover",
      modeBarButtonsToRemove: ["select2d", "lasso2d", "zoomIn2d", "zoomOut2d", "autoScale2d"],
      toImageButtonOptions: { format: "svg", filename: node.closest("figure").id },
    };
    Plotly.react(node, plot.data, layout, config);
    node.removeAllListeners?.("plotly_click");
    node.on("plotly_click", (event) => {
      const { customdata, data, pointNumber } = event.points[0];
      // Thousands of points or cells share what their addresses begin and end with; cells share that of their row and column, too.
      const { base, query, rows, columns, diagonal } = data.meta ?? {};
      if (rows && !diagonal && pointNumber[0] === pointNumber[1]) return;
      const own = rows ? rows[pointNumber[0]] + columns[pointNumber[1]] : customdata;
      const target = base ? base + own + (query ?? "") : own;
      const page = typeof target === "string" && target.startsWith("/") ? (window.seedscope?.address(target) ?? target) : null; // a static site has files
      if (page) location.href = page;
    });
  }
  const drawAll = async () => { for (const node of document.querySelectorAll("[data-figure]")) await draw(node); };
  document.addEventListener("DOMContentLoaded", drawAll);
  document.addEventListener("htmx:afterSettle", () => {
    document.querySelectorAll("[data-figure]").forEach((node) => { if (drawn.get(node) !== node.dataset.figure) draw(node); });
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
})();
