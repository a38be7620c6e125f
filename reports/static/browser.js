"use strict";
// Strips of mixtures, and the browser of samples. Reads what reports/sections/samples.py packed.
// Every text of a model or data set goes into the page through textContent, so that none can be
// anything but text.
(() => {
  // A strip is walked with the arrow keys; the position under focus is told below it ------------

  const walkable = (strip) => {
    const readout = strip.parentElement.querySelector(".readout");
    const at = (node) => {
      for (const other of strip.children) other.setAttribute("tabindex", other === node ? "0" : "-1");
      node.focus();
    };
    strip.addEventListener("keydown", (event) => {
      const all = Array.from(strip.children);
      const here = all.indexOf(document.activeElement);
      const target = {
        ArrowRight: here + 1, ArrowLeft: here - 1, Home: 0, End: all.length - 1,
      }[event.key];
      if (here < 0 || target === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      if (all[target]) at(all[target]);
    });
    strip.addEventListener("focusin", (event) => { readout.textContent = event.target.getAttribute("aria-label"); });
    strip.addEventListener("click", (event) => {
      const cell = event.target.closest("[role=option]");
      if (cell) at(cell);
    });
  };

  const data = JSON.parse(document.getElementById("samples-data").textContent);
  const app = document.getElementById("samples-app");
  const section = document.getElementById("samples");

  // Building blocks ---------------------------------------------------------------------------

  const element = (tag, attributes = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else if (value !== null) node.setAttribute(name, value);
    }
    node.append(...children);
    return node;
  };

  const choice = (label, options, onchange) => {
    const select = element("select", { "aria-label": label, onchange: () => onchange(select.value) });
    options.forEach(([value, text]) => select.append(element("option", { value }, text)));
    return [element("label", {}, label, select), select];
  };

  const bytes = (text) => Uint8Array.from(atob(text || ""), (c) => c.charCodeAt(0));
  const nats = (byte) => data.scale * (byte / 255) ** 2;
  const round = (value, digits) => String(Number(value.toFixed(digits)));

  const tokensOf = (sample) => {
    const tokens = [];
    let start = 0;
    let size = 0;
    for (const part of bytes(sample.l)) {
      size += part;
      if (part === 255) continue; // a long token: the next byte is added
      tokens.push(sample.x.slice(start, start + size));
      start += size;
      size = 0;
    }
    return tokens;
  };

  const mixturesOf = (sample) => {
    const found = new Map();
    const raw = bytes(sample.u);
    const words = new Uint16Array(raw.buffer, 0, raw.length >> 1);
    for (let i = 0; i < words.length; ) {
      const entries = [];
      const [position, count] = [words[i], words[i + 1]];
      for (let j = 0; j < count; j++) {
        entries.push([data.vocab[words[i + 2 + 2 * j]], words[i + 3 + 2 * j] / 1e4]);
      }
      found.set(position, entries);
      i += 2 + 2 * count;
    }
    return found;
  };

  // What can be coloured, in five bins ----------------------------------------------------------

  const HEATS = {
    e: { name: "entropy", edges: [0.1, 0.5, 1, 2], unit: " nats", value: nats, down: false },
    p: { name: "top-1 probability", edges: [0.99, 0.9, 0.7, 0.4], unit: "", value: (b) => b / 255, down: true },
    k: { name: "KL to base", edges: [0.003, 0.03, 0.1, 0.5], unit: " nats", value: nats, down: false },
  };
  const binOf = (heat, value) =>
    heat.edges.filter((edge) => (heat.down ? value < edge : value >= edge)).length;

  // State: what is shown, mirrored in the address -------------------------------------------------

  const state = { t: 0, q: 0, a: 0, m: 0, s: 0, b: 0, n: 0, r: 0, h: "e", o: "any", z: "order", f: "" };
  const defaults = { ...state };
  const outcomes = {
    any: ["any outcome", () => true],
    yes: ["left correct", (left) => left.some((s) => s.c)],
    no: ["left incorrect", (left) => left.some((s) => !s.c)],
    none: ["left without answer", (left) => left.some((s) => s.b === null)],
    cut: ["left truncated", (left) => left.some((s) => s.r === "length")],
    differ: ["sides differ", (left, right) => left[0] && right[0] && left[0].c !== right[0].c],
  };
  const mean = (samples, value) =>
    samples.length ? samples.reduce((sum, s) => sum + (value(s) || 0), 0) / samples.length : -1;
  const orders = {
    order: ["as chosen", null],
    length: ["longest CoT", (s) => s.n],
    mean: ["highest mean entropy", (s) => (s.h ? s.h[0] : 0)],
    peak: ["highest peak entropy", (s) => (s.h ? s.h[1] : 0)],
    kl: ["highest KL to base", (s) => s.g],
  };

  const cellOf = (problem, arm, mode) =>
    data.samples.filter((s) => s.q === problem && s.a === arm && s.m === mode);
  const textOf = (index) => {
    const problem = data.problems[index];
    const samples = data.samples.filter((s) => s.q === index);
    const parts = [String(problem.d), problem.p, problem.y, ...samples.flatMap((s) => [s.x, s.z])];
    return parts.join("\n").toLowerCase();
  };
  const searchable = new Map();
  const matches = (index, needle) => {
    if (!needle) return true;
    if (!searchable.has(index)) searchable.set(index, textOf(index));
    return searchable.get(index).includes(needle);
  };

  const listed = () => {
    const needle = state.f.toLowerCase();
    const keep = outcomes[state.o][1];
    const found = data.problems.map((_, index) => index).filter((index) => {
      if (data.problems[index].t !== state.t) return false;
      const sides = [cellOf(index, state.a, state.m), cellOf(index, state.b, state.n)];
      return keep(...sides) && matches(index, needle);
    });
    const key = orders[state.z][1];
    if (!key) return found;
    const rank = (index) => mean(cellOf(index, state.a, state.m), key);
    return found.sort((x, y) => rank(y) - rank(x) || x - y);
  };

  const readAddress = () => {
    const given = new URLSearchParams(location.hash.replace(/^#samples\??/, ""));
    Object.assign(state, defaults);
    for (const [name, value] of given) {
      if (!Object.hasOwn(state, name)) continue;
      if (typeof state[name] === "number") state[name] = Math.max(0, parseInt(value, 10) || 0);
      else state[name] = value;
    }
    const within = (name, list) => { if (state[name] >= list.length) state[name] = 0; };
    within("t", data.tasks);
    within("q", data.problems);
    for (const name of ["a", "b"]) within(name, data.arms);
    for (const name of ["m", "n"]) within(name, data.modes);
    if (!Object.hasOwn(outcomes, state.o)) state.o = "any";
    if (!Object.hasOwn(orders, state.z)) state.z = "order";
    if (!Object.hasOwn(HEATS, state.h)) state.h = "e";
  };

  const writeAddress = () => {
    const changed = Object.entries(state).filter(([name, value]) => value !== defaults[name]);
    history.replaceState(null, "", "#samples?" + new URLSearchParams(changed));
  };

  // One side ------------------------------------------------------------------------------------

  const SVG = "http://www.w3.org/2000/svg";
  const sparkline = (values, label) => {
    const svg = document.createElementNS(SVG, "svg");
    const width = Math.max(values.length, 2);
    const top = Math.max(...values, 1e-9);
    const points = values.map((v, i) => `${i} ${round(30 - (28 * v) / top, 1)}`);
    svg.setAttribute("viewBox", `0 0 ${width} 32`);
    svg.setAttribute("preserveAspectRatio", "none");
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", label);
    const path = document.createElementNS(SVG, "path");
    path.setAttribute("d", "M" + points.join("L"));
    path.setAttribute("fill", "none");
    path.setAttribute("stroke", "currentColor");
    path.setAttribute("vector-effect", "non-scaling-stroke");
    svg.append(path);
    return svg;
  };

  // Cells as reports/sections/mixture.py draws them in a figure.
  const STACK = 44;
  const BAR = 8; // a nat; two and more are its full height
  const WINDOW = 8;
  const POSITIONS = 64;
  const LONGEST_TOKEN = 20;
  const inLine = (token) => token.replaceAll("\n", "⏎").replaceAll("\t", "⇥");
  const written = (token) => {
    const letters = Array.from(inLine(token).trim() || "␣");
    return letters.length <= LONGEST_TOKEN ? letters.join("") : letters.slice(0, LONGEST_TOKEN - 1).join("") + "…";
  };
  // Letters from Hangul on are as wide as two of Latin.
  const columns = (text) => Array.from(text).reduce((sum, letter) => sum + (letter < "\u1100" ? 1 : 2), 0);
  // Isolated, so that tokens written from the right do not move the weights beside them.
  const quoted = (token) => `“\u2068${inLine(token)}\u2069”`;
  const percent = (weight) => (100 * weight).toFixed(1) + " %";
  const atTemperature = (sample) =>
    data.temperatures[sample.m] === null ? "" : ` at temperature ${data.temperatures[sample.m]}`;

  const drawing = (tag, attributes, text = "") => {
    const node = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.textContent = text;
    return node;
  };

  // Positions of a sample, and what is told of each of them.
  const thoughtOf = (sample) => {
    const tokens = tokensOf(sample);
    const values = {};
    for (const key of Object.keys(HEATS)) if (sample[key]) values[key] = bytes(sample[key]);
    const mixtures = mixturesOf(sample);
    const told = (index) => {
      const mixture = mixtures.get(index) || [];
      const weights = mixture.map(([token, weight]) => `${quoted(token)} ${percent(weight)}`);
      const measured = Object.entries(values).map(([key, list]) =>
        `${HEATS[key].name} ${HEATS[key].value(list[index]).toFixed(key === "p" ? 3 : 2)}${HEATS[key].unit}`);
      const fed = weights.length ? weights.join(", ") + atTemperature(sample) : quoted(tokens[index]);
      return `Position ${index + 1}: ${fed}; ${measured.join(", ")} at temperature 1`;
    };
    return { tokens, values, mixtures, told };
  };

  const cell = (thought, index) => {
    const entries = thought.mixtures.get(index) || [[thought.tokens[index], 1]];
    const svg = drawing("svg", { role: "option", height: 62, "aria-label": thought.told(index), tabindex: -1 });
    let top = 0;
    let widest = 0;
    entries.forEach(([token, weight], rank) => {
      const height = STACK * weight;
      const text = height >= 11 ? written(token) : "";
      widest = Math.max(widest, columns(text));
      svg.append(drawing("rect", { class: "w" + (rank + 1), y: round(top, 1), width: "100%", height: round(height, 1) }));
      if (text) svg.append(drawing("text", { x: "50%", y: round(top + height / 2, 1) }, text));
      top += height;
    });
    const bar = BAR * Math.min(nats(thought.values.e[index]), 2);
    svg.append(drawing("rect", { class: "entropy", y: STACK + 2, width: "100%", height: round(bar, 1) }));
    svg.setAttribute("width", round(Math.max(18, 7.3 * widest + 6), 1));
    return svg;
  };

  const shownWindows = (entropies) => {
    const windows = [];
    for (let start = 0; start < entropies.length; start += WINDOW) {
      const end = Math.min(start + WINDOW, entropies.length);
      windows.push({ start, end, peak: Math.max(...entropies.slice(start, end)) });
    }
    if (entropies.length <= POSITIONS) return windows;
    const best = [...windows].sort((x, y) => y.peak - x.peak || x.start - y.start).slice(0, POSITIONS / WINDOW);
    return best.sort((x, y) => x.start - y.start);
  };

  const fold = (start, end, entropies, unfold) => {
    const peak = Math.max(...entropies.slice(start, end)).toFixed(2);
    const folded = element("span", {
      class: "fold", role: "option", tabindex: "-1",
      "aria-label": `${end - start} positions of entropy up to ${peak} are folded; Enter or a tap unfolds them`,
    }, `⋯ ${end - start}`);
    folded.addEventListener("click", (event) => { event.stopPropagation(); unfold(folded, start, end); });
    folded.addEventListener("keydown", (event) => { if (event.key === "Enter") folded.click(); });
    return folded;
  };

  const stripOf = (sample, thought) => {
    const entropies = Array.from(thought.values.e, nats);
    const strip = element("div", {
      class: "strip", role: "listbox",
      "aria-label": `${data.modes[sample.m].replaceAll("_", " ")}, position by position; arrow keys walk`,
    });
    const positions = (start, end) =>
      Array.from({ length: end - start }, (_, i) => cell(thought, start + i));
    const unfold = (folded, start, end) => {
      const found = positions(start, end);
      folded.replaceWith(...found);
      found[0].setAttribute("tabindex", "0");
      found[0].focus();
    };
    let end = 0;
    for (const shown of [...shownWindows(entropies), { start: entropies.length }]) {
      if (shown.start > end) strip.append(fold(end, shown.start, entropies, unfold));
      if (shown.end) strip.append(...positions(shown.start, shown.end));
      end = shown.end;
    }
    if (sample.o) {
      const label = `${sample.o} more positions are not on this page`;
      strip.append(element("span", { class: "fold", role: "option", tabindex: "-1", "aria-label": label }, `⋯ ${sample.o} not shown`));
    }
    const answer = `${sample.b === null ? "no answer" : sample.b || "(empty)"} ${sample.c ? "✓" : "✗"}`;
    strip.append(element("span", {
      class: "outcome " + (sample.c ? "yes" : "no"), role: "option", tabindex: "-1", "aria-label": "Answer " + answer,
    }, "→ " + answer));
    strip.firstChild.setAttribute("tabindex", "0");
    const meaning = sample.u !== undefined
      ? `Height: weight in the mode’s distribution${atTemperature(sample)}`
      : data.mixes[sample.m]
        ? "Mixtures are recorded of first samples; here the most likely token stands"
        : "One block: the token that was fed";
    const thoughtBox = element("div", { class: "thought" }, strip,
      element("p", { class: "quiet" }, `${meaning}; below, the entropy at temperature 1 (2 nats and more at full length).`),
      element("p", { class: "readout" }));
    walkable(strip);
    return thoughtBox;
  };

  const coloured = (sample, thought) => {
    const box = element("div", { class: "cot", tabindex: "0", role: "group", "aria-label": "Chain of thought" });
    if (!sample.l) {
      box.textContent = sample.x;
      return box;
    }
    const heat = HEATS[state.h];
    const shown = thought.values[state.h];
    thought.tokens.forEach((token, index) => {
      const bin = shown ? binOf(heat, heat.value(shown[index])) : 0;
      box.append(element("span", { class: bin ? "h" + bin : null }, token));
    });
    if (sample.o) box.append(element("span", { class: "quiet" }, ` … ${sample.o} more tokens are not shown`));
    return box;
  };

  const outcomeOf = (sample) => {
    if (sample.c) return ["yes", "✓ correct"];
    if (sample.v === "no_answer") return ["no", "✗ no answer"];
    if (sample.v !== "ok") return ["no", "✗ not scored: " + sample.v];
    return ["no", "✗ incorrect"];
  };

  const describe = (sample) => {
    const [kind, text] = outcomeOf(sample);
    const facts = [`${sample.n} CoT tokens`, data.stops[sample.r] || sample.r];
    if (sample.h) facts.push(`entropy ${sample.h[0]} mean, ${sample.h[1]} peak`);
    if (sample.g !== undefined) facts.push(`KL ${sample.g}`);
    return element("p", {},
      element("span", { class: "outcome " + kind }, text),
      element("span", { class: "quiet" }, " · " + facts.join(" · ")));
  };

  const fillPane = (pane, samples, pick) => {
    pane.replaceChildren();
    if (!samples.length) {
      pane.append(element("p", { class: "quiet" }, "No sample of this cell is shown for this question."));
      return;
    }
    const sample = samples[Math.min(pick, samples.length - 1)];
    const thought = thoughtOf(sample);
    const name = `${data.arms[sample.a]} · ${data.modes[sample.m].replaceAll("_", " ")} · sample ${sample.i}`;
    pane.append(element("p", { class: "printed" }, element("strong", {}, name)), describe(sample));
    if (sample.e) pane.append(stripOf(sample, thought));
    if (thought.tokens.length > POSITIONS) {
      const values = Array.from(thought.values.e, nats);
      pane.append(sparkline(values, `Entropy by position, mean ${sample.h[0]}, peak ${sample.h[1]} nats`));
    }
    pane.append(
      element("h3", {}, data.mixes[sample.m] ? "Shadow of the CoT (most likely token at each position)" : "Chain of thought"),
      coloured(sample, thought),
      element("h3", {}, "Answer"),
      element("div", { class: "answer" }, element("span", { class: "prefill" }, sample.f), sample.z),
      element("p", { class: "quiet" }, "Extracted: " + (sample.b === null ? "none" : sample.b === "" ? "(empty)" : sample.b)));
  };

  // Page ------------------------------------------------------------------------------------------

  const set = (name, numeric = true) => (value) => {
    state[name] = numeric ? Number(value) : value;
    render();
  };
  const named = (list) => list.map((text, index) => [index, text.replaceAll("_", " ")]);

  const side = (title, arm, mode, pick) => {
    const [armLabel, armSelect] = choice(title + " checkpoint", named(data.arms), set(arm));
    const [modeLabel, modeSelect] = choice(title + " mode", named(data.modes), set(mode));
    const [pickLabel, pickSelect] = choice(title + " sample", [], set(pick));
    const content = element("div");
    const pane = element("section", { class: "pane", "aria-label": title + " side" },
      element("div", { class: "controls" }, armLabel, modeLabel, pickLabel), content);
    const draw = () => {
      armSelect.value = state[arm];
      modeSelect.value = state[mode];
      const samples = state.q === null ? [] : cellOf(state.q, state[arm], state[mode]);
      const options = samples.map((s, i) => element("option", { value: i }, `#${s.i} ${s.c ? "✓" : "✗"}`));
      pickSelect.replaceChildren(...options);
      pickSelect.value = Math.min(state[pick], Math.max(samples.length - 1, 0));
      fillPane(content, samples, state[pick]);
    };
    return { pane, draw };
  };

  const [taskLabel, taskSelect] = choice("Task", named(data.tasks), set("t"));
  const [questionLabel, questionSelect] = choice("Question", [], set("q"));
  const [outcomeLabel, outcomeSelect] =
    choice("Show", Object.entries(outcomes).map(([k, v]) => [k, v[0]]), set("o", false));
  const hasKl = data.samples.some((s) => s.k);
  const [orderLabel, orderSelect] =
    choice("Order", Object.entries(orders).filter(([k]) => k !== "kl" || hasKl).map(([k, v]) => [k, v[0]]), set("z", false));
  const [heatLabel, heatSelect] =
    choice("Colour", Object.entries(HEATS).filter(([k]) => k !== "k" || hasKl).map(([k, v]) => [k, v.name]), set("h", false));
  const search = element("input", { type: "search", "aria-label": "Search", oninput: () => set("f", false)(search.value) });
  const move = (by) => {
    const found = listed();
    if (!found.length) return;
    const at = found.indexOf(state.q);
    state.q = found[at < 0 ? 0 : (at + by + found.length) % found.length];
    render();
  };
  const status = element("span", { role: "status", class: "quiet" });
  const prompt = element("pre", { tabindex: "0", "aria-label": "Prompt" });
  const question = element("p", { class: "asked" });
  const label = element("p");
  const asked = element("div", { class: "question" }, question, label,
    element("details", {}, element("summary", {}, "Prompt"), prompt));
  const legend = element("div", { class: "keyed" });
  const help = element("p", { class: "quiet", hidden: "" },
    "Keys, while the focus is in here: j next question, k previous question, h next colouring, / search, ? this help; arrow keys walk a strip, Enter unfolds; Escape leaves a field, then the browser.");
  const left = side("Left", "a", "m", "s");
  const right = side("Right", "b", "n", "r");

  const drawLegend = () => {
    const heat = HEATS[state.h];
    const [low, high] = heat.down ? ["≥ ", "< "] : ["< ", "≥ "];
    legend.replaceChildren(heat.name + ":");
    legend.append(element("span", {}, low + heat.edges[0] + heat.unit));
    heat.edges.forEach((edge, i) => legend.append(element("span", { class: "h" + (i + 1) }, high + edge + heat.unit)));
  };

  function render() {
    const found = listed();
    if (!found.includes(state.q)) state.q = found.length ? found[0] : null;
    const problem = data.problems[state.q];
    taskSelect.value = state.t;
    outcomeSelect.value = state.o;
    orderSelect.value = state.z;
    heatSelect.value = state.h;
    if (search.value !== state.f) search.value = state.f;
    questionSelect.replaceChildren(...found.map((index) =>
      element("option", { value: index }, `${data.problems[index].d} · ${data.problems[index].p.slice(0, 60)}`)));
    questionSelect.value = state.q;
    status.textContent = found.length
      ? `question ${found.indexOf(state.q) + 1} of ${found.length} that match (${problem.w})`
      : "no question matches";
    asked.hidden = !problem;
    if (problem) {
      const [before, after] = data.frames[problem.t];
      question.textContent = problem.p;
      prompt.textContent = before + problem.p + after;
      label.replaceChildren("Label: ", element("strong", {}, problem.y));
    }
    drawLegend();
    left.draw();
    right.draw();
    writeAddress();
  }

  app.append(
    element("div", { class: "controls" },
      taskLabel, questionLabel, outcomeLabel, orderLabel, heatLabel,
      element("label", {}, "Search", search),
      element("div", { class: "step" },
        element("button", { type: "button", onclick: () => move(-1), "aria-label": "Previous question" }, "‹"),
        element("button", { type: "button", onclick: () => move(1), "aria-label": "Next question" }, "›"), status)),
    legend,
    element("p", { class: "quiet" }, element("kbd", {}, "j"), " ", element("kbd", {}, "k"), " next and previous question, ", element("kbd", {}, "?"), " all keys"),
    help,
    asked,
    element("div", { class: "panes" }, left.pane, right.pane));

  const actions = {
    j: () => move(1),
    k: () => move(-1),
    h: () => {
      const keys = Array.from(heatSelect.options, (option) => option.value);
      state.h = keys[(keys.indexOf(state.h) + 1) % keys.length];
      render();
    },
    "/": () => search.focus(),
    "?": () => { help.hidden = !help.hidden; },
  };
  app.addEventListener("keydown", (event) => {
    const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
    if (event.key === "Escape") {
      if (typing) app.focus();
      else document.activeElement.blur();
      return;
    }
    if (typing || event.ctrlKey || event.metaKey || event.altKey || !(event.key in actions)) return;
    event.preventDefault();
    actions[event.key]();
  });

  Object.assign(defaults, data.start);
  const opening = document.getElementById("thought-app");
  if (opening) {
    const problem = data.problems[0];
    opening.append(element("p", { class: "asked" }, problem.p,
      element("span", { class: "quiet" }, ` ${data.tasks[problem.t]} ${problem.d}, label ${problem.y}`)));
    for (const mode of [defaults.m, defaults.n]) {
      const sample = cellOf(0, defaults.a, mode)[0];
      if (!sample || !sample.e) continue;
      opening.append(element("p", { class: "told" },
        element("strong", {}, `${data.arms[defaults.a]} · ${data.modes[mode].replaceAll("_", " ")}`)),
      stripOf(sample, thoughtOf(sample)));
    }
  }
  app.tabIndex = -1; // a click anywhere inside puts the focus here, and the keys act
  const shown = location.hash;
  readAddress();
  app.hidden = false;
  render();
  if (shown.startsWith("#samples")) section.scrollIntoView();
  // Rendering writes the state to the address; a visitor of another section stays there.
  if (!shown.startsWith("#samples")) history.replaceState(null, "", shown || location.pathname + location.search);
  window.addEventListener("hashchange", () => {
    if (location.hash.startsWith("#samples?")) { readAddress(); render(); section.scrollIntoView(); }
  });
})();
