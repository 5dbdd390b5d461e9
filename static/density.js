// The filter by density: two handles on a log scale, over the densities of the features. They fill the fields beside them.
(() => {
  "use strict";
  // A handle stands at an edge of the histogram's bins; at either end of the scale there is no bound.
  const share = (range, place) => 10 ** ((place - Number(range.max)) / Number(range.dataset.perDecade));
  const percent = (range, place) => String(Number((100 * share(range, place)).toPrecision(3)));
  const field = (range) => document.getElementById(range.dataset.fills);
  const ends = (box) => [...box.querySelectorAll("input[type=range]")];

  function show(box) {
    const [low, high] = ends(box), last = Number(low.max);
    box.style.setProperty("--from", low.value / last);
    box.style.setProperty("--to", high.value / last);
    for (const [range, none] of [[low, "0"], [high, String(last)]]) {
      range.setAttribute("aria-valuetext", range.value === none ? "no bound" : `${percent(range, Number(range.value))} %`);
    }
    low.style.zIndex = Number(low.value) > last / 2 ? 2 : 1; // both at the upper end: the lower one is what can move
  }

  // What is typed moves the handles.
  function follow(box) {
    ends(box).forEach((range, i) => {
      const typed = Number(field(range).value) / 100;
      const place = Math.round(Number(range.max) + Math.log10(typed) * Number(range.dataset.perDecade));
      range.value = typed > 0 ? place : (i ? range.max : 0);
    });
    show(box);
  }

  document.addEventListener("input", (event) => {
    const box = event.target.closest(".density-range");
    if (!box) {
      if (event.target.closest(".density")) document.querySelectorAll(".density-range").forEach(follow);
      return;
    }
    const [low, high] = ends(box), moved = event.target;
    if (Number(low.value) >= Number(high.value)) moved.value = moved === low ? Number(high.value) - 1 : Number(low.value) + 1;
    const free = moved.value === (moved === low ? "0" : moved.max);
    field(moved).value = free ? "" : percent(moved, Number(moved.value));
    show(box);
  });
  const followAll = () => document.querySelectorAll(".density-range").forEach(follow);
  ["DOMContentLoaded", "pageshow", "htmx:afterSettle"].forEach((name) => (name === "pageshow" ? window : document).addEventListener(name, followAll));
})();
