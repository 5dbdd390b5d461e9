// One feature of a static site, drawn from its record (app/site/records.py) and the texts; its address is #SEED/FEATURE?FILTER.
(() => {
  "use strict";
  const SILENT = 6, VIEWS = ["stacked", "snippet", "full"];
  const { escape, fixed, signed, thousands, percent, density, perMille, millinats, short, shown, oneLine, code, withCode, pill, alphaStep, triggerSays, largeStrip, predictedStrip, histogram, course } = seedscope.marks;
  const find = (id) => document.getElementById(id);
  const each = (name) => document.querySelectorAll(`[data-v="${name}"]`);
  const put = (name, text) => each(name).forEach((node) => { node.textContent = text; });
  const draw = (name, html) => each(name).forEach((node) => { node.innerHTML = html; });
  const show = (name, isShown) => document.querySelectorAll(`[data-if="${name}"]`).forEach((node) => { node.hidden = !isShown; });
  let view = "stacked", drawn = 0;

  // -- records and texts -------------------------------------------------------------------------------------------
  function chunkOf(about, seed, feature) {
    const starts = about.chunks[seed];
    if (!starts) return null;
    let at = starts.length - 1;
    while (at >= 0 && starts[at] > feature) at -= 1;
    return at < 0 ? null : `features-${seed}-${at}`;
  }
  async function recordOf(about, seed, feature) {
    const name = chunkOf(about, seed, feature);
    return name && (await seedscope.load(name)).find((record) => record.feature === feature);
  }
  const counterpart = ([seed, partner, cosine, runnerUp, flags, bucket, correlation, jaccard, substitution, context, explanation, explainer, score]) =>
    ({ seed, partner, cosine, runnerUp, matched: Boolean(flags & 1), mutual: Boolean(flags & 2), oneToOne: Boolean(flags & 4), dead: Boolean(flags & 8), bucket, correlation, jaccard, substitution, context, explanation, explainer, score });

  // {tokens, activations, peak, ..} of a window of the text.
  async function textsOf(windows) {
    const texts = await seedscope.load("texts"), blocks = new Map();
    for (const { document: at } of windows) if (!blocks.has(texts.blocks[at])) blocks.set(texts.blocks[at], seedscope.load(`texts-${texts.blocks[at]}`));
    const loaded = new Map();
    for (const [block, promise] of blocks) loaded.set(block, await promise);
    return windows.map(({ document: at, start, length, peak, sparse, group }) => {
      const block = texts.blocks[at], first = texts.blocks.indexOf(block);
      const stretch = loaded.get(block)[at - first].findLast(([begin]) => begin <= start);
      const tokens = [...stretch[1]].slice(start - stretch[0], start - stretch[0] + length).map((sign) => {
        const point = sign.codePointAt(0);
        return texts.tokens[(point >= 0xe000 ? point - 0x800 : point) - 0x30];
      });
      const activations = Array(length).fill(0);
      for (let i = 0; i < sparse.length; i += 2) activations[sparse[i]] = sparse[i + 1];
      return { group, tokens, activations, peak, document: texts.documents[at], position: start + peak };
    });
  }
  const windowOf = ([group, at, start, length, peak, sparse]) => ({ group, document: at, start, length, peak, sparse });
  const snippetOf = ([at, start, length, peak, sparse]) => ({ document: at, start, length, peak, sparse });

  // -- contexts ----------------------------------------------------------------------------------------------------
  function tokens(context, largest, begin, end, isOneLine) {
    let html = "";
    for (let i = begin; i < end; i += 1) {
      const a = context.activations[i], step = alphaStep(a, largest), text = escape(isOneLine ? oneLine(context.tokens[i]) : shown(context.tokens[i]));
      html += step ? `<span class="t a${step}${i === context.peak ? " peak" : ""}" title="${fixed(a, 3)}">${text}</span>` : text;
    }
    return `<span class="tokens${isOneLine ? " one-line" : ""}" dir="auto">${html}</span>`;
  }
  function line(context, largest) {
    const n = context.tokens.length, { peak } = context, maximum = fixed(Math.max(...context.activations), 2);
    const where = `${escape(context.document)}, token ${thousands(context.position)}`;
    const body = view === "stacked" ? `<span class="before">${tokens(context, largest, Math.max(peak - 16, 0), peak, true)}</span><span class="after">${tokens(context, largest, peak, n, true)}</span>`
      : view === "snippet" ? tokens(context, largest, Math.max(peak - 6, 0), Math.min(peak + 5, n), true) : tokens(context, largest, 0, n, false);
    return `<div class="context ${view}" title="${where}">${body}<button type="button" class="maximum" aria-expanded="false" aria-label="maximum ${maximum}: where it stands">${maximum}</button><span class="source">${where}<span class="of-token" role="status"></span></span></div>`;
  }
  function groups(contexts, largest) {
    const nOpen = view === "stacked" ? 8 : 5, titles = { 0: ["Strongest", "its highest activations, one per window"], [SILENT]: ["Where it is not active", "drawn at random from windows in which it never fires"] };
    for (let g = 1; g < SILENT; g += 1) titles[g] = [`Interval ${SILENT - g} of 5`, "drawn at random from this fifth of 0 to the maximum"];
    const present = Object.keys(titles).map(Number).sort((a, b) => a - b).filter((g) => contexts.some((c) => c.group === g));
    let html = "";
    present.forEach((g, i) => {
      const own = contexts.filter((c) => c.group === g), lines = own.map((c) => line(c, largest));
      const more = present.length > 1 || own.length > nOpen;
      if (!i) html += lines.slice(0, nOpen).join("") + (more ? "<details><summary>more, lower intervals, and where it is not active</summary>" : "") + lines.slice(nOpen).join("");
      else html += `<h3 class="label">${titles[g][0]} <span>${titles[g][1]}</span></h3><div class="group">${lines.join("")}</div>`;
      if (more && i === present.length - 1) html += "</details>";
    });
    return html;
  }

  // -- cards -------------------------------------------------------------------------------------------------------
  const explainerSays = (name) => (name === "token rule" ? '<span title="the shortest rule about tokens that tells its contexts apart; found by search, no language model">token rule</span>'
    : name.startsWith("openai:") ? `language model ${escape(name.slice(7))}` : escape(name));
  function explanations(told, nActive) {
    if (!told.length) return `<p class="soft">${nActive ? "No explainer was asked about it." : "It never fires on the evaluation tokens, so there is nothing to explain."}</p>`;
    return told.map((e, i) => {
      const scores = e.scores.map((s) => `<p class="score"><span class="label">${escape(s.kind)}</span> ${s.value == null ? `<span class="flag strong">failed</span> <small>${escape(s.failure ?? "without a reason")}</small>`
        : `<b>${fixed(s.value, 2)}</b> <span>on ${s.n_active} + ${s.n_silent} contexts</span>${s.shuffled_p95 == null ? "" : `<small>chance level ${fixed(s.shuffled_p95, 2)}${s.value <= s.shuffled_p95 ? ": no better than chance" : ""}</small>`}`}</p>`);
      const text = e.text == null ? `<p><span class="flag strong">not explained</span> ${escape(e.failure ?? "without a reason")}</p>` : `<p class="said">${escape(e.text)}</p>`;
      return `<div class="explanation${i ? "" : " first"}">${text}${told.length > 1 ? `<p class="soft">${explainerSays(e.explainer)}</p>` : ""}${scores.join("")}</div>`;
    }).join("");
  }
  function stability(r, about, matches) {
    if (about.has.predicted) {
      show("predicted", Boolean(r.predicted));
      if (r.predicted) {
        put("predicted", fixed(r.predicted.p, 2));
        put("predicted-interval", `${fixed(r.predicted.p_low, 2)} – ${fixed(r.predicted.p_high, 2)}`);
        put("predicted-outside", r.predicted.inside ? "" : " · outside the range that the predictor was trained on");
        draw("predicted-strip", predictedStrip(r.predicted.p, r.predicted.p_low, r.predicted.p_high, 208, 32));
      }
    }
    if (r.stability !== undefined) {
      put("stability", fixed(r.stability, 2));
      put("interval", `${fixed(r.stability_low, 2)} – ${fixed(r.stability_high, 2)}`);
      put("why-what", `Why ${about.has.activity || r.bucket !== "dead" ? r.bucket : "no direction"}?`);
    } else put("why-what", "");
    put("n-matched", r.n_matched);
    draw("pill", pill(r.bucket, about.has.activity));
    if (matches.length) draw("strip", largeStrip(matches, about.theta, r.bucket, about.measure, (seed, feature) => linkTo(about, seed, feature)));
    draw("why", withCode(r.why));
    show("differs", Boolean(r.differs));
    put("differs", r.differs ?? "");
  }
  function worth(r, about, edges) {
    const { ablation } = r;
    show("worth-ev", Boolean(ablation?.rank));
    show("worth-loss", Boolean(ablation?.loss_rank));
    if (ablation?.rank) { put("worth-ev", perMille(ablation.marginal_ev)); put("worth-ev-rank", `${ablation.rank} of ${ablation.of}`); }
    if (ablation?.loss_rank) { put("worth-loss", millinats(ablation.marginal_loss_nats)); put("worth-loss-rank", `${ablation.loss_rank} of ${ablation.of}`); }
    if (!about.has.activity) return;
    put("density", density(r.density));
    put("density-of", `${thousands(r.n_active)} of ${thousands(about.n_tokens)}`);
    put("max-mean", `${fixed(r.max_activation, 2)} / ${fixed(r.mean_activation, 2)}`);
    const fires = Boolean(r.histogram) && !r.dead && r.n_active > 0;
    show("histogram", fires);
    if (!fires) return;
    const [median, q90, q99] = r.quantiles;
    draw("histogram", histogram(r.histogram, edges, { median, "90 %": q90, "99 %": q99 }));
    put("axis-low", short(edges[0]));
    put("axis-high", short(edges.at(-1)));
    [median, q90, q99, r.max_activation].forEach((value, i) => put(`quantile-${i}`, short(value)));
  }
  function training(t, word) {
    show("trajectory", Boolean(t));
    if (!t) return;
    const power = (value) => { const [mantissa, exponent] = Math.abs(value).toExponential(2).split("e"); return `${value < 0 ? "-" : "+"}${mantissa}e${exponent[0]}${exponent.slice(1).padStart(2, "0")}`; };
    put("training-of", `${t.steps.length} checkpoints, start to ${thousands(t.tokens.at(-1))} tokens`);
    put("training-p", `${fixed(t.stability[0], 2)} → ${fixed(t.stability.at(-1), 2)}`);
    put("training-p-of", `${t.matched.at(-1)} of ${t.n_comparisons}; mean best cosine ${fixed(t.best_cosines[0], 2)} → ${fixed(t.best_cosines.at(-1), 2)}`);
    draw("training-p-course", course(t.tokens, t.stability, 0, 1, `${word} p`, (value) => fixed(value, 2)));
    show("training-worth", Boolean(t.worth_ev));
    if (!t.worth_ev) return;
    put("training-worth", `${perMille(t.worth_ev[0])} → ${perMille(t.worth_ev.at(-1))}`);
    put("training-worth-of", `on ${thousands(t.n_tokens)} tokens, ${thousands(t.n_active.at(-1))} of them active at the end`);
    draw("training-worth-course", course(t.tokens, t.worth_ev, Math.min(0, ...t.worth_ev), Math.max(0, ...t.worth_ev), "marginal EV", power));
  }
  function tokensCard(r) {
    show("trigger", Boolean(r.top_tokens?.length));
    if (!r.top_tokens?.length) return;
    put("entropy", fixed(r.token_entropy, 2));
    draw("trigger", triggerSays(r.trigger, r.trigger_share, r.trigger_what ?? ""));
    draw("top-tokens", r.top_tokens.map(([text, n]) => `<li>${code(text)}<span>${thousands(n)}</span></li>`).join(""));
  }
  function logits(r) {
    show("logits", Boolean(r.positive_logits && r.decoder_norm));
    if (!r.positive_logits) return;
    const all = [...r.positive_logits, ...r.negative_logits], largest = Math.max(1e-12, ...all.map(({ logit }) => Math.abs(logit)));
    const items = (list) => list.map(({ token, logit }) => `<li>${code(token)}<i><i style="width:${fixed(100 * Math.abs(logit) / largest, 1)}%"></i></i><span>${signed(logit, 2)}</span></li>`).join("");
    draw("raised", items(r.positive_logits));
    draw("lowered", items(r.negative_logits));
  }
  function subspace(r, about) {
    const s = r.subspace, hasEnergies = Boolean(s) && s.own_energy != null && s.others_energy != null;
    show("subspace", Boolean(s) || r.spans?.length > 0);
    show("subspace-none", Boolean(s) && !hasEnergies);
    show("energies", hasEnergies);
    if (hasEnergies) {
      const bar = (value) => `<i><i style="width:${fixed(100 * value, 1)}%"></i></i><b>${percent(value)}</b>`;
      draw("energy-others", bar(s.others_energy));
      draw("energy-own", bar(s.own_energy));
      draw("energy-null", bar(s.random[s.ranks.indexOf(s.rank)]));
      document.querySelector('#subspace p [data-v="energy-own"]').textContent = r.bucket === "unstable" ? "; its own seed’s span is fitted without it" : "";
      put("energy-rank", thousands(s.rank));
    }
    draw("spans", (r.spans ?? []).map(([span, says, told, energy]) => `<p>Small spans: ${about.spans.includes(span) ? `<a href="spans/${span}.html">${escape(says)}</a>` : escape(says)}${told == null ? "" : `: ${escape(told)}`}. <span class="soft">${percent(energy)} of it lies in the span of the other seeds’ members.</span></p>`).join(""));
  }
  function whence(r, about, member) {
    const parts = [`SAE <code>${member.sae_digest}</code>, ${escape(member.library ?? "library unknown")}`];
    if (member.source != null) parts.push(`, from <span class="path">${escape(member.source).replaceAll("/", "/<wbr>")}</span>`);
    if (member.trained_on != null) parts.push(`, trained on ${escape(member.trained_on)}`);
    for (const remark of member.remarks) parts.push(` · ${escape(remark)}`);
    const norm = Number(r.decoder_norm.toPrecision(3));
    draw("whence", `${parts.join("")}<br>data <code>${about.digest}</code> · start shared: ${about.shared_start} · data order ${about.data_order} · decoder norm ${norm}<br><a href="../../weights.html#${member.sae_digest}/${r.feature}">permanent link to these weights</a> · <a href="../../methods.html">what the numbers mean</a>`);
  }
  function counterparts(r, about, matches, snippets, largest) {
    const { has } = about, first = r.explanations?.[0]?.explainer;
    draw("counterparts", matches.map((m, i) => {
      const target = m.partner == null ? null : linkTo(about, m.seed, m.partner), name = `<b>#${m.partner}</b>`;
      const partner = m.partner == null ? '<span class="soft">none</span>' : `${target ? `<a href="${target}">${name}</a>` : `<span title="not in this copy">${name}</span>`} ${m.bucket ? pill(m.bucket, has.activity) : ""}`;
      const flags = (m.matched ? '<span class="flag strong">match</span>' : "") + (m.mutual ? '<span class="flag" title="each is the other’s best">mutual</span>' : "") + (m.oneToOne ? '<span class="flag" title="also the counterpart in the one-to-one matching">one-to-one</span>' : "");
      const does = m.substitution == null ? "" : `<small class="folded">does ${m.substitution >= -1 ? fixed(m.substitution, 2) : "< −1"}</small>`;
      const alike = !has.function ? "" : `<td class="num">${m.correlation == null ? '<span class="soft">–</span>' : `<span title="correlation of activations; Jaccard index of firing ${fixed(m.jaccard, 2)}">${fixed(m.correlation, 2)}</span>${does}`}</td>`;
      const context = !has.tokens ? "" : snippets[i] ? tokens(snippets[i], largest, 0, snippets[i].tokens.length, true) : m.partner != null && m.dead ? '<span class="soft">never fires</span>' : "";
      const label = !has.scores ? "" : m.explanation != null ? `<p class="label-of" title="${escape(m.explanation)}">${m.score == null ? "" : `<small>${fixed(m.score, 2)}</small> `}${first && m.explainer !== first ? `<small>${explainerSays(m.explainer)}:</small> ` : ""}${escape(m.explanation)}</p>` : m.partner != null && !m.dead ? '<p class="label-of soft">not explained</p>' : "";
      return `<tr class="${m.matched ? "" : "faded"}"><td class="seed">${m.seed}</td><td class="partner">${partner}<span class="folded">${flags}</span></td>`
        + `<td class="num">${m.partner == null ? '<span class="soft">–</span>' : fixed(m.cosine, 3)}${m.runnerUp != null && about.rule !== "active" ? `<small class="folded">next best ${fixed(m.runnerUp, 3)}</small>` : ""}</td>${alike}${has.tokens || has.scores ? `<td class="shows">${context}${label}</td>` : ""}</tr>`;
    }).join(""));
    const a = r.label_agreement;
    show("agreement", Boolean(a?.explainer != null));
    if (a?.explainer == null) return;
    put("agreement", a.mean != null ? `Labels of its matches share ${percent(a.mean, 0)} of their words with its own (Jaccard, mean over ${a.n} of ${a.n_matched} matches, by the same explainer)${a.chance != null ? `; those of ${a.n_chance} random ${r.bucket} features of other seeds ${percent(a.chance, 0)}` : ""}.`
      : a.n_matched ? `None of its ${a.n_matched} matches has an explanation by the same explainer.` : "No matches, so no explanations to compare.");
  }

  // -- the page ----------------------------------------------------------------------------------------------------
  const asked = () => {
    const [place, query = ""] = location.hash.slice(1).split("?");
    const found = /^(\d+)\/(\d+)$/.exec(place), parameters = new URLSearchParams(query);
    return { seed: found && found[1], feature: found && Number(found[2]), v: parameters.get("v"), state: seedscope.filter.read(query) };
  };
  function linkTo(about, seed, feature) {
    const held = about.indices[seed];
    if (!held || !(held === true || held.includes(feature))) return null;
    const query = seedscope.filter.write(asked().state);
    return `#${seed}/${feature}${query ? `?${escape(query)}` : ""}`;
  }
  function fail(says) {
    find("site-failed").textContent = says;
    find("site-failed").hidden = false;
    find("site-feature").hidden = true;
  }
  async function stepper(about, { seed, feature, state }, turn) {
    const { at, total, previous, next } = await (await seedscope.table()).around(state, seed, feature);
    if (turn !== drawn) return;
    find("up").textContent = at < 0 ? "outside the current filter" : `${thousands(at + 1)} of ${thousands(total)} ${state.bucket ?? "features"}`;
    find("up").href = `features.html#${seedscope.filter.write(state, at < 0 ? {} : { at: `${seed}/${feature}` })}`;
    for (const [key, other] of [["previous", previous], ["next", next]]) {
      const link = find(key);
      link.hidden = !other;
      link.toggleAttribute(`data-${key}`, Boolean(other));
      if (other) link.href = linkTo(about, other.seed, other.feature).replaceAll("&#38;", "&");
    }
  }
  async function open() {
    const turn = drawn += 1, place = asked();
    try {
      const about = await seedscope.about();
      const member = about.seeds.find(({ seed }) => seed === place.seed);
      if (place.seed === null) return fail(`Expected an address such as feature.html#${about.seeds[0].seed}/0: a seed and a feature's index.`);
      if (!member) return fail(`Seed ${place.seed} is not in this ensemble, expected one of ${about.seeds.map(({ seed }) => seed).join(", ")}.`);
      const r = await recordOf(about, place.seed, place.feature);
      if (!r) return fail(place.feature < about.d_sae ? `Feature ${place.feature} of seed ${place.seed} is not in this copy, which holds the features that its filter finds.` : `Feature ${place.feature} does not exist, expected 0 to ${about.d_sae - 1}.`);
      const matches = r.matches.map(counterpart), edges = about.has.activity ? (await seedscope.load("edges"))[place.seed] : [];
      const withText = matches.filter((m) => m.context);
      const windows = [...(r.contexts ?? []).map(windowOf), ...withText.map((m) => snippetOf(m.context))];
      const texts = windows.length ? await textsOf(windows) : [];
      if (turn !== drawn) return;
      const contexts = texts.slice(0, r.contexts?.length ?? 0), snippets = matches.map((m) => (m.context ? texts[contexts.length + withText.indexOf(m)] : null));
      const { largest } = r;
      find("other-data").hidden = !place.v || about.digest.startsWith(place.v);
      put("asked", place.v ?? "");
      put("feature", r.feature);
      put("seed", place.seed);
      put("is-anchor", place.seed === about.anchor ? ", the anchor" : "");
      document.title = `#${r.feature} · seed ${place.seed} · ${about.ensemble} · SeedScope`;
      find("copy-link").dataset.copy = `#${place.seed}/${r.feature}?v=${about.digest}`;
      stability(r, about, matches);
      if (about.has.scores) {
        draw("explainer", r.explanations?.length === 1 ? explainerSays(r.explanations[0].explainer) : "");
        draw("explanations", explanations(r.explanations ?? [], r.n_active));
      }
      worth(r, about, edges);
      training(r.trajectory, about.shared_start === "no" ? "stability" : "agreement");
      tokensCard(r);
      logits(r);
      subspace(r, about);
      whence(r, about, member);
      if (about.has.tokens) drawContexts(r, about, contexts, largest);
      counterparts(r, about, matches, snippets, largest);
      find("site-failed").hidden = true;
      find("site-feature").hidden = false;
      document.dispatchEvent(new Event("htmx:afterSettle"));
      await stepper(about, place, turn);
    } catch (error) {
      fail(error.message);
    }
  }
  function drawContexts(r, about, contexts, largest) {
    const again = () => {
      put("contexts-max", contexts.length ? `max ${fixed(r.max_activation, 2)} · one scale for all seeds` : "");
      let says = "";
      if (r.dead) {
        const near = r.nearest, target = near && linkTo(about, near[0], near[1]), name = near && `<b>seed ${near[0]}, #${near[1]}</b>`;
        says = `<p>${r.n_active ? "Its decoder row has no direction." : `It never fired on ${thousands(about.n_tokens)} evaluation tokens.`}${near ? ` The nearest living feature of the other seeds is ${target ? `<a href="${target}">${name}</a>` : name}, at cosine ${fixed(near[2], 3)}.` : ""}</p>`;
      }
      if (r.n_contexts) says += `<p class="soft">The first ${contexts.length} of ${r.n_contexts} contexts: the others would make this copy too large.</p>`;
      draw("contexts", says + groups(contexts, largest));
    };
    document.querySelectorAll("[data-view]").forEach((link) => {
      link.parentElement.hidden = !contexts.length;
      link.onclick = (event) => {
        event.preventDefault();
        view = VIEWS.includes(link.dataset.view) ? link.dataset.view : "stacked";
        document.querySelectorAll("[data-view]").forEach((other) => { if (other === link) other.setAttribute("aria-current", "true"); else other.removeAttribute("aria-current"); });
        again();
      };
    });
    again();
  }
  addEventListener("hashchange", () => { scrollTo({ top: 0 }); open(); });
  document.addEventListener("DOMContentLoaded", () => { if (find("site-feature")) open(); });
})();
