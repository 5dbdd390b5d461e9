// Every page of a static site: addresses of the dashboard as files of the folder, and the search box.
window.seedscope = (() => {
  "use strict";
  const root = `${document.documentElement.dataset.site}/`;
  const FEATURE = /^\/s\/[^/]+\/([^/]+)\/(\d+)\/(\d+)(?:\?(.*))?$/, TABLE = /^\/s\/[^/]+\/([^/]+)\/features(?:\?(.*))?$/;

  // What a click into a figure opens: figures hold the dashboard's own addresses.
  function address(asked) {
    const feature = FEATURE.exec(asked), table = TABLE.exec(asked);
    if (feature) return `${root}s/${feature[1]}/feature.html#${feature[2]}/${feature[3]}${feature[4] ? `?${feature[4]}` : ""}`;
    if (table) return `${root}s/${table[1]}/features.html#${table[2] ?? ""}`;
    return null;
  }

  document.addEventListener("submit", (event) => {
    const form = event.target;
    if (!form.matches(".search-form")) return;
    event.preventDefault();
    location.href = `${form.getAttribute("action")}#${new URLSearchParams({ q: form.elements.q.value })}`;
  });

  // weights.html#DIGEST/FEATURE: to the page of these weights, whichever ensemble they stand in.
  document.addEventListener("DOMContentLoaded", () => {
    const known = document.getElementById("site-weights");
    if (!known) return;
    const open = () => {
      const [digest, feature] = location.hash.slice(1).split("/");
      const places = JSON.parse(known.textContent)[digest];
      if (places?.length === 1) location.replace(`${root}s/${places[0][0]}/feature.html#${places[0][1]}/${feature}`);
      const list = document.getElementById("weights-places");
      list.replaceChildren(...(places ?? []).map(([ensemble, seed]) => {
        const link = Object.assign(document.createElement("a"), { href: `${root}s/${ensemble}/feature.html#${seed}/${feature}`, textContent: `${ensemble}, seed ${seed}, #${feature}` });
        const item = document.createElement("li");
        item.append(link);
        return item;
      }));
      document.getElementById("weights-none").hidden = Boolean(places) || !digest;
    };
    addEventListener("hashchange", open);
    open();
  });
  return { address, root };
})();
