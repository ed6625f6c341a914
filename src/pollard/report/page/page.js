"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const hidden = new Set();
const narrow = () => window.innerWidth < 640;
const percent = (share) => `${+(100 * share).toPrecision(4)} %`;
const style = new Map(data.series.map((series) => [series.label, series]));
const ERRORS = [0.1, 0.2, 0.5, 1, 1.5, 2, 3, 4, 5, 7, 10, 12, 15, 20, 30, 50, 100];
const shown = (points) => points.filter((point) => !hidden.has(point.label));

function layout(xaxis, yaxis, more = {}) {
  const font = { family: "Inter, Helvetica Neue, Arial, DejaVu Sans, sans-serif", size: 13, color: "#1d2a33" };
  const axis = { gridcolor: "#e3e8eb", zeroline: false, linecolor: "#97a3ab", ticks: "outside", tickcolor: "#e3e8eb" };
  return {
    font, showlegend: false, hovermode: "closest", paper_bgcolor: "#fff", plot_bgcolor: "#fff",
    margin: narrow() ? { l: 52, r: 8, t: 8, b: 48 } : { l: 72, r: 16, t: 12, b: 56 },
    xaxis: { ...axis, ...xaxis, title: { text: xaxis.title, standoff: 10 } },
    yaxis: { ...axis, ...yaxis, title: { text: yaxis.title, standoff: 8 }, automargin: true },
    ...more,
  };
}

const kept = () => ({
  title: "weights kept, %", type: "log", autorange: "reversed",
  tickvals: data.densities.map((d) => 100 * d), ticktext: data.densities.map((d) => `${+(100 * d).toPrecision(3)}`),
});

function draw(id, traces, shape) {
  const config = { responsive: true, displaylogo: false, displayModeBar: narrow() ? false : "hover" };
  Plotly.react(id, traces, shape, config);
}

function line(label, more) {
  const { colour, dash } = style.get(label);
  return { type: "scatter", mode: "lines+markers", name: label, line: { color: colour, dash, width: 2 },
    marker: { color: colour, size: 7 }, ...more };
}

function band(label, xs, low, high) {
  return { type: "scatter", mode: "lines", x: [...xs, ...xs.toReversed()], y: [...high, ...low.toReversed()],
    fill: "toself", fillcolor: `${style.get(label).colour}22`, line: { width: 0 }, hoverinfo: "skip", name: label,
    showlegend: false };
}

function drawAccuracy() {
  const traces = [];
  const error = document.getElementById("accuracy-choice").value === "error";
  const told = (share) => (error ? 100 * (1 - share) : 100 * share);
  const pruned = data.densities.filter((density) => density < 1);
  const range = (pruned.length > 1 ? [Math.min(...pruned), Math.max(...pruned)] : [0.01, 1]).map((d) => 100 * d);
  for (const series of shown(data.accuracy)) {
    const dense = series.densities.length === 1 && series.densities[0] === 1;
    const repeat = (values) => (dense ? [values[0], values[0]] : values);
    const xs = dense ? range : series.densities.map((d) => 100 * d);
    const mean = repeat(series.mean.map(told));
    const spread = repeat(series.half.map((a) => 100 * (a ?? 0)));
    // No share is below none or above all; on a logarithmic axis a band must stay above zero.
    const low = mean.map((m, i) => Math.max(m - spread[i], error ? m / 10 : 0));
    traces.push(band(series.label, xs, low, mean.map((m, i) => Math.min(m + spread[i], 100))));
    const text = mean.map((m, i) => `${m.toFixed(2)}${repeat(series.half)[i] == null ? "" : ` ± ${spread[i].toFixed(2)}`} %, n = ${repeat(series.count)[i]}`);
    traces.push(line(series.label, { x: xs, y: mean, text, mode: dense ? "lines" : "lines+markers",
      hovertemplate: dense ? "%{text}" : "%{x:.3g} % kept: %{text}" }));
  }
  for (const [label, marks] of Map.groupBy(shown(data.published), (one) => one.label)) {
    traces.push(line(label, { x: marks.map((one) => 100 * one.density), y: marks.map((one) => told(one.test_accuracy)),
      mode: "markers", text: marks.map((one) => one.source), name: `${label}, published`,
      marker: { symbol: "diamond-open", size: 12, color: style.get(label).colour, line: { width: 2 } },
      hovertemplate: "%{y:.2f} %<br>%{text}" }));
  }
  draw("accuracy", traces, layout(kept(), error
    ? { title: "test error, %", type: "log", tickvals: ERRORS } : { title: "test accuracy, %" }));
}

const points = (share) => `${share < 0 ? "" : "+"}${(100 * share).toFixed(2)}`;
const between = (low, high) => (low == null ? "none" : `${points(low)} to ${points(high)}`);

// Every pair is told once, the later series less the earlier: seen from the later one, signs and ends change places.
function seenFrom(against, pair) {
  if (pair.against === against) return pair;
  const turned = Object.fromEntries(["student", "bootstrap"].flatMap((name) => [["low", "high"], ["high", "low"]].map(
    ([end, other]) => [`${name}_${end}`, pair[`${name}_${other}`] == null ? null : -pair[`${name}_${other}`]])));
  return { ...pair, ...turned, label: pair.against, against: pair.label, difference: -pair.difference };
}

function drawDifferences() {
  const against = document.getElementById("differences-against").value;
  const at = Number(document.getElementById("differences-choice").value);
  const own = data.differences.filter((pair) => pair.density === at && [pair.label, pair.against].includes(against));
  const rows = shown(own.map((pair) => seenFrom(against, pair))).map((pair) => [pair.label, points(pair.difference),
    between(pair.student_low, pair.student_high), between(pair.bootstrap_low, pair.bootstrap_high),
    pair.p == null ? "none" : pair.p.toPrecision(2), String(pair.n)]);
  const table = document.getElementById("differences");
  table.replaceChildren();
  const head = ["", "above, in points", "95 %, Student", "95 %, bootstrap", "p", "n"];
  for (const [index, cells] of [head, ...rows].entries()) {
    const row = (index ? table.tBodies[0] ?? table.createTBody() : table.createTHead()).insertRow();
    for (const text of cells) row.appendChild(document.createElement(index ? "td" : "th")).textContent = text;
  }
}

// The accuracies of each seed of a series by epoch, from right after pruning on; of a dense one at every density.
function runs(label, at) {
  const own = data.points.filter((p) => p.label === label);
  const dense = own.every((p) => p.density === 1);
  return new Map(own.filter((p) => dense || p.density === at).map((p) => [p.seed, [p.accuracy, ...p.curve]]));
}

function lead(label, against, at) {
  const [mine, theirs] = [runs(label, at), runs(against, at)];
  const pairs = [...mine.keys()].filter((seed) => theirs.has(seed)).map((seed) => [mine.get(seed), theirs.get(seed)]);
  const found = { epochs: [], mean: [], half: [] };
  const last = Math.min(...pairs.flat().map((curve) => curve.length));
  for (let epoch = 0; pairs.length > 0 && epoch < last; epoch += 1) {
    const steps = pairs.filter(([a, b]) => a[epoch] != null && b[epoch] != null).map(([a, b]) => 100 * (a[epoch] - b[epoch]));
    if (steps.length === 0) continue;
    const mean = steps.reduce((sum, step) => sum + step, 0) / steps.length;
    const variance = steps.reduce((sum, step) => sum + (step - mean) ** 2, 0) / (steps.length - 1);
    found.epochs.push(epoch);
    found.mean.push(mean);
    found.half.push((data.quantiles[steps.length] ?? 0) * Math.sqrt(variance || 0));
  }
  return found;
}

function drawLeads() {
  const against = document.getElementById("differences-against").value;
  const at = Number(document.getElementById("differences-choice").value);
  const traces = [];
  for (const { label } of shown(data.series).filter((series) => series.label !== against)) {
    const { epochs, mean, half } = lead(label, against, at);
    if (epochs.length === 0) continue;
    traces.push(band(label, epochs, mean.map((m, i) => m - half[i]), mean.map((m, i) => m + half[i])));
    traces.push(line(label, { x: epochs, y: mean, text: half.map((h) => (h ? ` ± ${h.toFixed(2)}` : "")),
      hovertemplate: "epoch %{x}: %{y:+.2f}%{text}" }));
  }
  draw("leads", traces, layout({ title: "epoch of training" }, { title: `above ${against}, in points` }));
}

function drawPairs() {
  drawDifferences();
  drawLeads();
}

function drawLayers() {
  const at = Number(document.getElementById("layers-choice").value);
  const traces = shown(data.layers).filter((entry) => entry.density === at).map((entry) =>
    line(entry.label, { x: Object.keys(entry.densities), y: Object.values(entry.densities).map((d) => 100 * d),
      hovertemplate: "%{x}: %{y:.3g} % kept" }));
  draw("layers", traces, layout({ title: "layer", type: "category" }, { title: "weights kept, %", type: "log" }));
}

function drawAims() {
  const aim = document.getElementById("aims-choice").value;
  const at = document.getElementById("aims-density").value;
  const traces = [];
  for (const { label } of shown(data.series)) {
    const points = data.points.filter((p) => p.label === label && p[aim] != null && (at === "" || p.density === Number(at)));
    if (points.length === 0) continue;
    traces.push(line(label, { mode: "markers", x: points.map((p) => p[aim]), y: points.map((p) => 100 * p.test_accuracy),
      text: points.map((p) => `${percent(p.density)} kept, seed ${p.seed}`), hovertemplate: "%{text}<br>%{x:.4g}: %{y:.2f} %" }));
  }
  const values = traces.flatMap((trace) => trace.x);
  const wide = values.length > 0 && Math.min(...values) > 0 && Math.max(...values) > 30 * Math.min(...values);
  draw("aims", traces, layout({ title: data.aims[aim], type: wide ? "log" : "linear", exponentformat: "none" }, { title: "final test accuracy, %" }));
}

function drawCurves() {
  const at = Number(document.getElementById("curves-choice").value);
  const traces = shown(data.curves).filter((c) => c.density === at || c.density === 1).map((curve) =>
    line(curve.label, { mode: "lines", x: curve.epochs, y: curve.mean.map((a) => 100 * a),
      hovertemplate: "epoch %{x:.3g}: %{y:.2f} %" }));
  draw("curves", traces, layout({ title: "epoch of training" }, { title: "test accuracy, %" }));
}

function drawCosts() {
  const { title, series } = data.costs[document.getElementById("costs-choice").value];
  if (document.getElementById("costs-against").value === "accuracy") return drawTrade(title, series);
  const traces = shown(series).map((each) =>
    line(each.label, { x: each.densities.map((d) => 100 * d), y: each.mean,
      hovertemplate: "%{x:.3g} % kept: %{y:.4g}" }));
  draw("costs", traces, layout(kept(), { title, rangemode: "tozero" }));
}

// What accuracy a cost buys: up and to the left is better. A line joins the densities of a series.
function drawTrade(title, series) {
  const reached = new Map(data.accuracy.map((each) => [each.label, each]));
  const traces = shown(series).map((each) => {
    const own = reached.get(each.label);
    const spread = each.densities.map((d) => own.half[own.densities.indexOf(d)] ?? 0);
    return line(each.label, { x: each.mean, y: each.densities.map((d) => 100 * own.mean[own.densities.indexOf(d)]),
      text: each.densities.map(percent), hovertemplate: "%{text} kept: %{y:.2f} % at %{x:.4g}",
      error_y: { type: "data", array: spread.map((a) => 100 * a), color: style.get(each.label).colour, thickness: 1, width: 2 } });
  });
  draw("costs", traces, layout({ title, rangemode: "tozero" }, { title: "test accuracy, %" }));
}

const figures = [drawAccuracy, drawPairs, drawLayers, drawAims, drawCurves, drawCosts];
const drawAll = () => figures.forEach((figure) => figure());

function choose(id, options, figure) {
  const select = document.getElementById(id);
  for (const [value, text] of options) select.add(new Option(text, value));
  select.addEventListener("change", figure);
}

for (const { label, colour } of data.series) {
  const button = document.createElement("button");
  const dot = document.createElement("i");
  dot.style.background = colour;
  button.append(dot, label);
  button.type = "button";
  button.setAttribute("aria-pressed", "true");
  button.addEventListener("click", () => {
    if (!hidden.delete(label)) hidden.add(label);
    button.setAttribute("aria-pressed", String(!hidden.has(label)));
    drawAll();
  });
  document.getElementById("series").append(button);
}

const sparse = data.densities.filter((density) => density < 1).map((density) => [density, `${percent(density)} kept`]);
choose("accuracy-choice", [["accuracy", "accuracy"], ["error", "error, on a logarithmic scale"]], drawAccuracy);
choose("differences-against", data.series.map(({ label }) => [label, label]), drawPairs);
choose("differences-choice", sparse, drawPairs);
choose("layers-choice", sparse, drawLayers);
choose("curves-choice", sparse, drawCurves);
choose("aims-choice", Object.entries(data.aims), drawAims);
choose("aims-density", [["", "all densities"], ...sparse], drawAims);
choose("costs-choice", Object.entries(data.costs).map(([name, { title }]) => [name, title]), drawCosts);
choose("costs-against", [["kept", "weights kept"], ["accuracy", "test accuracy"]], drawCosts);
drawAll();
window.matchMedia("(max-width: 640px)").addEventListener("change", drawAll);
