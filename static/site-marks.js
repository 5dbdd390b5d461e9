// Numbers, tokens and small pictures of a static site, as the dashboard writes them (app/formats.py, app/figures/svg_strips.py).
(() => {
  "use strict";
  const HIGHLIGHT_STEPS = 20, PROFILE_FROM = 33, NARROW = "\u00a0";
  const escape = (text) => String(text).replace(/[&<>"']/g, (sign) => `&#${sign.charCodeAt(0)};`);

  // As Python writes a number: of two equally near the even one.
  function fixed(value, digits) {
    const size = Math.abs(value), scaled = size * 10 ** digits;
    const isTie = (size * 2 ** 20) % 1 === 0 && scaled % 1 === 0.5;
    const text = isTie ? ((Math.floor(scaled) + (Math.floor(scaled) % 2)) / 10 ** digits).toFixed(digits) : size.toFixed(digits);
    return (value < 0 || Object.is(value, -0) ? "-" : "") + text;
  }
  const signed = (value, digits) => (value < 0 ? "" : "+") + fixed(value, digits);
  const thousands = (value) => value.toLocaleString("en-US");
  const percent = (value, digits = 1) => `${fixed(100 * value, digits)}${NARROW}%`;
  const density = (value) => percent(value, 3);
  const perMille = (value) => `${signed(1000 * value, 2)}${NARROW}‰`;
  const millinats = (value) => `${signed(1000 * value, 3)}${NARROW}mnat`;
  // Three significant digits without a power of ten.
  function short(value) {
    if (!value) return "0";
    const text = value.toLocaleString("en-US", { minimumFractionDigits: 0, maximumFractionDigits: Math.max(2 - Math.floor(Math.log10(Math.abs(value))), 0) });
    return text;
  }
  const shown = (text) => text.replace(/[\x00-\x08\x0b-\x1f]/g, (sign) => String.fromCharCode(0x2400 + sign.charCodeAt(0))).replaceAll("\x7f", "␡").replaceAll("\n", "⏎\n").replaceAll("\t", "→\t") || "▯";
  const oneLine = (text) => shown(text).replaceAll("\n", "");
  const code = (text) => `<code class="tok">${escape(oneLine(text))}</code>`;
  const withCode = (text) => text.split("`").map((part, i) => (i % 2 ? `<code>${escape(part)}</code>` : escape(part))).join("");
  const pill = (bucket, activity) => (bucket == null ? '<span class="soft">–</span>'
    : activity || bucket !== "dead" ? `<span class="pill ${bucket}">${bucket}</span>` : '<span class="pill bare">no direction</span>');

  function alphaStep(activation, largest) {
    if (activation <= 0 || largest <= 0) return 0;
    return Math.max(1, Math.round(HIGHLIGHT_STEPS * Math.log10(1 + 9 * Math.min(activation / largest, 1))));
  }

  function triggerShort(trigger, what) {
    if (trigger === "single token") return code(what);
    if (trigger === "family") return what ? `like ${code(what)}` : "blank space";
    if (trigger === "substring") return `…${code(what)}…`;
    if (trigger === "previous token") return `after ${code(what)}`;
    return trigger === "other" ? '<span class="soft">–</span>' : escape(trigger);
  }
  function triggerSays(trigger, share, what) {
    const part = percent(share, 0);
    return {
      "single token": () => `fires on one token: ${code(what)} in ${part} of firings`,
      family: () => `fires on a family of tokens, ${what ? `${code(what)} in any case, spacing and number` : "blank space of any length"}: ${part} of firings`,
      number: () => `fires on numbers: ${part} of firings`,
      punctuation: () => `fires on punctuation or white space: ${part} of firings`,
      substring: () => `fires on tokens that contain ${code(what)}: ${part} of firings`,
      position: () => `fires at the start of a window: ${part} of firings`,
      "previous token": () => `fires after the token ${code(what)}: ${part} of firings`,
    }[trigger]?.() ?? `no single trigger: its most frequent token makes up ${part} of firings`;
  }

  // -- pictures ----------------------------------------------------------------------------------------------------
  const f1 = (value) => fixed(value, 1);
  // One bar per comparison, in seed order; from 33 on a sorted profile. Cosines stand on their side of theta at three decimals.
  function strip(cosines, theta, bucket, measure, width = 70, height = 20) {
    const n = cosines.length;
    if (!n) return "–";
    const reaches = (cosine) => Math.fround(cosine) >= Math.fround(theta);
    const matched = cosines.filter(reaches).length;
    const name = measure === "cosine" ? "best cosine" : measure;
    let track = "", solid = "", faded = "", title = `${matched} of ${n} seeds match; ${name}s `;
    if (n >= PROFILE_FROM) {
      const ordered = [...cosines].sort((a, b) => b - a);
      const path = (begin, end) => ordered.slice(begin, end).reduce((text, cosine, i) => `${text}V${fixed(Math.round(2 * height * (1 - Math.max(cosine, 0.02))) / 2, 1)}H${fixed((begin + i + 1) * width / n, 2)}`, `M${fixed(begin * width / n, 2)} ${height}`) + `V${height}z`;
      track = `M0 0H${width}V${height}H0z`;
      if (matched) solid = path(0, matched);
      if (matched < n) faded = path(matched, n);
      title += `from ${fixed(ordered[0], 2)} to ${fixed(ordered[n - 1], 2)}, half of them at least ${fixed(ordered[(n - 1) >> 1], 2)}`;
    } else {
      const step = width / n, w = f1(step - Math.min(2, step / 4));
      cosines.forEach((cosine, i) => {
        const x = f1(i * step), bar = `M${x} ${f1(height * (1 - Math.max(cosine, 0.02)))}h${w}V${height}h-${w}z`;
        track += `M${x} 0h${w}v${height}h-${w}z`;
        if (reaches(cosine)) solid += bar; else faded += bar;
      });
      title += cosines.map((cosine) => fixed(cosine, 2)).join(", ");
    }
    return `<svg class="strip ${bucket}" width="${width}" height="${height}" viewBox="0 0 ${width} ${height}" role="img" aria-label="${title}"><title>${title}</title><path class="track" d="${track}"/><path class="solid" d="${solid}"/><path class="faded" d="${faded}"/><path class="theta" d="M0 ${f1(height * (1 - theta))}H${width}"/></svg>`;
  }

  // The strip at the head of a feature's page; `link(seed, feature)` is an address, or null for what has no page.
  function largeStrip(matches, theta, bucket, measure, link) {
    const n = matches.length, many = n >= PROFILE_FROM, width = many ? 400 : n * 26, height = 64, step = width / n;
    const every = many ? Math.ceil(n / 10) : 1;
    const bars = matches.map((m, i) => {
      const x = i * step, w = step - (many ? step / 5 : 4), top = height * (1 - Math.max(m.cosine, 0.02));
      let title = m.partner == null ? `seed ${m.seed}: no counterpart under this rule` : `seed ${m.seed}: #${m.partner}, ${measure} ${fixed(m.cosine, 3)}`;
      if (m.partner != null && m.runnerUp != null && measure === "cosine") title += `, next best ${fixed(m.runnerUp, 3)}`;
      const target = m.partner == null ? null : link(m.seed, m.partner);
      return `<a ${target ? `href="${target}"` : ""} aria-label="${title}"><title>${title}</title><rect class="track" x="${f1(x)}" y="0" width="${f1(w)}" height="${height}" rx="3"/>`
        + `<rect class="${m.matched ? "solid" : "faded"}" x="${f1(x)}" y="${f1(top)}" width="${f1(w)}" height="${f1(height - top)}" rx="${many ? 1 : 3}"/>${i % every === 0 ? `<text x="${f1(x + w / 2)}" y="${height + 13}">${m.seed}</text>` : ""}</a>`;
    });
    return `<svg class="strip large ${bucket}" width="${width}" height="${height + 16}" viewBox="0 0 ${width} ${height + 16}" role="group" aria-label="${measure} in each other seed">${bars.join("")}<path class="theta" d="M0 ${f1(height * (1 - theta))}H${width}"/></svg>`;
  }

  function predictedStrip(p, low, high, width = 70, height = 20) {
    const title = `predicted p ${fixed(p, 2)}, not measured; of features with such a prediction 95 % have p from ${fixed(low, 2)} to ${fixed(high, 2)}`;
    return `<svg class="strip predicted" width="${width}" height="${height}" viewBox="0 0 ${width} ${height}" role="img" aria-label="${title}"><title>${title}</title><path class="track" d="M0 ${f1(height / 2 - 0.5)}H${width}v1H0z"/><rect class="hollow" x="${f1(low * width)}" y="${f1(height * 0.2)}" width="${f1(Math.max((high - low) * width, 1))}" height="${f1(height * 0.6)}" rx="3"/><path class="mark" d="M${f1(Math.min(Math.max(p * width, 1), width - 1))} 0V${height}"/></svg>`;
  }

  function histogram(counts, edges, marks, width = 280, height = 48) {
    const low = edges[0], high = edges.at(-1), span = high > low && low > 0 ? Math.log(high / low) : 0;
    const place = (edge, i) => (span ? width * Math.log(edge / low) / span : width * i / counts.length);
    const largest = Math.max(...counts, 1);
    const bars = counts.map((n, i) => {
      const x = place(edges[i], i), tall = height * n / largest;
      return `<rect x="${f1(x)}" y="${f1(height - tall)}" width="${f1(Math.max(place(edges[i + 1], i + 1) - x - 1, 0.5))}" height="${f1(tall)}"><title>${short(edges[i])} to ${short(edges[i + 1])}: ${thousands(n)} tokens</title></rect>`;
    });
    for (const [name, value] of Object.entries(marks)) {
      if (span && value >= low && value <= high) bars.push(`<line x1="${f1(place(value))}" x2="${f1(place(value))}" y1="0" y2="${height}"><title>${name}: ${short(value)}</title></line>`);
    }
    return `<svg class="histogram" viewBox="0 0 ${width} ${height}" preserveAspectRatio="none" role="img" aria-label="activation histogram, ${short(low)} to ${short(high)}, log scale">${bars.join("")}</svg>`;
  }

  // A value along training, tokens on a log axis.
  function course(tokens, values, low, high, says, write) {
    const width = 280, height = 44, pad = 4, first = tokens.find(Boolean) ?? 1;
    const places = tokens.map((each) => Math.log(each || first / 4)), span = places.at(-1) - places[0] || 1;
    const up = (value) => f1(pad + (height - 2 * pad) * (1 - (value - low) / (high - low || 1)));
    const x = places.map((each) => f1(pad + (width - 2 * pad) * (each - places[0]) / span)), y = values.map(up);
    const dots = x.map((at, i) => `<circle cx="${at}" cy="${y[i]}" r="3"><title>${thousands(tokens[i])} tokens: ${write(values[i])}</title></circle>`);
    const title = `${says} in training, ${write(values[0])} at the start, ${write(values.at(-1))} at the end`;
    return `<svg class="course" viewBox="0 0 ${width} ${height}" role="img" aria-label="${title}"><title>${title}</title><path class="zero" d="M0 ${up(0)}H${width}"/><path class="line" d="M${x.map((at, i) => `${at} ${y[i]}`).join("L")}"/>${dots.join("")}</svg>`;
  }

  seedscope.marks = { escape, fixed, signed, thousands, percent, density, perMille, millinats, short, shown, oneLine, code, withCode, pill, alphaStep, triggerShort, triggerSays, strip, largeStrip, predictedStrip, histogram, course };
})();
