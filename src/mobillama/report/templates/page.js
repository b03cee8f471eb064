// Curves of one run or several: hover for values, drag or pinch to zoom, double-click to see all.
"use strict";

const RUNS = JSON.parse(document.getElementById("curves").textContent);
const SINGLE = RUNS.length === 1;
const X_NAMES = { step: "step", tokens: "tokens", elapsed_s: "time" };
const choice = { x: "step", subset: SINGLE ? "all" : "mean", map: "changes" };
let plots = [];

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const color = (index) => css(`--k${index % 8}`);

function short(value) {
  if (value == null) return "–";
  const size = Math.abs(value);
  for (const [limit, unit] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e4, "k"]])
    if (size >= limit) return +(value / (unit === "k" ? 1e3 : limit)).toPrecision(4) + " " + unit;
  if (size !== 0 && size < 1e-3) return value.toExponential(2).replace(/\.?0+e/, "e");
  return String(+value.toPrecision(4));
}

function clock(seconds) {
  if (seconds == null) return "–";
  const [h, m, s] = [seconds / 3600, (seconds / 60) % 60, seconds % 60].map(Math.floor);
  return (h ? h + ":" + String(m).padStart(2, "0") : m) + ":" + String(s).padStart(2, "0");
}

const xText = (value) => (choice.x === "elapsed_s" ? clock(value) : short(value));

// A centred mean over 2 % of the curve: unlike a running average it does not lag behind.
function smooth(values) {
  const reach = Math.floor(values.length / 100);
  if (!reach) return values;
  return values.map((_, i) => {
    const part = values.slice(Math.max(0, i - reach), i + reach + 1).filter((v) => v != null);
    return part.length ? part.reduce((a, b) => a + b) / part.length : null;
  });
}

// Each builder returns curves: { label, x, y, color, width, dash, faint }.
function metricCurves(key, title) {
  return RUNS.flatMap((run, index) => {
    const x = run.metrics[choice.x], y = run.metrics[key];
    if (!x || !y) return [];
    const curve = { label: SINGLE ? title.toLowerCase() : run.name, x, y, color: color(index), width: 1.5 };
    if (key !== "loss") return [curve];
    const mean = { ...curve, label: SINGLE ? "smoothed" : run.name, y: smooth(y), width: 2 };
    return SINGLE ? [{ ...curve, label: "each step", faint: true, width: 1 }, mean] : [mean];
  });
}

function heldoutCurves() {
  return RUNS.flatMap((run, runIndex) => {
    const held = run.heldout;
    if (!held || !held[choice.x]) return [];
    const x = held[choice.x], ends = [x[0], x[x.length - 1]];
    const names = choice.subset === "all" ? Object.keys(held.subsets) : [choice.subset];
    return names.flatMap((name, index) => {
      const y = name === "mean" ? held.mean : held.subsets[name];
      if (!y) return [];
      const stroke = color(SINGLE ? index : runIndex);
      const label = SINGLE ? name : run.name;
      const curves = [{ label, x, y, color: stroke, width: 2, dots: true }];
      const tools = choice.subset === "all" ? ["xz"] : SINGLE || runIndex === 0 ? ["xz", "zstd"] : [];
      for (const tool of tools) {
        const level = (run.baselines[name] || {})[tool];
        if (level != null)
          curves.push({
            label: (SINGLE && names.length > 1 ? name + ", " : "") + (tool === "xz" ? "xz -9" : "zstd -19"),
            x: ends, y: [level, level], width: 1.5, dash: tool === "xz" ? [6, 4] : [2, 4],
            color: names.length > 1 ? stroke : css("--muted"),
          });
      }
      return curves;
    });
  });
}

function benchmarkCurves() {
  return RUNS.flatMap((run, runIndex) => {
    const found = run.benchmarks, x = found && found[choice.x];
    if (!x) return [];
    return Object.entries(found.tasks).map(([task, y], index) => ({
      label: SINGLE ? task : run.name + ", " + task, x, y, width: 2, dots: true,
      color: color(SINGLE ? index : runIndex),
    }));
  });
}

function draw(figure) {
  const name = figure.dataset.plot, holder = figure.querySelector(".canvas");
  const builders = { heldout: heldoutCurves, benchmarks: benchmarkCurves };
  const build = builders[name] || (() => metricCurves(name, figure.querySelector("b").textContent));
  const curves = build();
  holder.replaceChildren();
  figure.classList.toggle("empty", !curves.length);
  if (!curves.length) return null;
  const axis = { stroke: css("--muted"), grid: { stroke: css("--line"), width: 1 }, ticks: { show: false }, font: "12px system-ui, sans-serif" };
  const options = {
    width: holder.clientWidth,
    height: figure.classList.contains("wide") ? 280 : 210,
    cursor: { sync: { key: "runs" }, drag: { x: true, y: false }, points: { size: 6 }, bind: { dblclick: () => showAll } },
    scales: { x: { time: false } },
    axes: [
      { ...axis, size: 30, values: (_, ticks) => ticks.map(xText) },
      { ...axis, size: 58, values: (_, ticks) => ticks.map(short) },
    ],
    series: [{ label: X_NAMES[choice.x], value: (_, v) => xText(v) }].concat(
      curves.map((curve) => ({
        label: curve.label, stroke: curve.color, width: curve.width, dash: curve.dash, spanGaps: true,
        alpha: curve.faint ? 0.5 : 1, points: { show: !!curve.dots && curve.x.length < 60, size: 5 },
        value: (_, v) => short(v),
      }))
    ),
    hooks: { setScale: [followZoom] },
  };
  const plot = new uPlot(options, uPlot.join(curves.map((c) => [c.x, c.y])), holder);
  addTouch(plot);
  return plot;
}

// One zoom for all curves over the same x.
let following = false;
function zoomAll(min, max, source = null) {
  following = true;
  plots.filter((plot) => plot !== source).forEach((plot) => plot.batch(() => plot.setScale("x", { min, max })));
  following = false;
}

function followZoom(source, key) {
  if (key === "x" && !following && plots.includes(source)) zoomAll(source.scales.x.min, source.scales.x.max, source);
}

function showAll() {
  const ends = plots.flatMap(({ data: [x] }) => [x[0], x[x.length - 1]]);
  zoomAll(Math.min(0, ...ends), Math.max(...ends));
}

function addTouch(plot) {
  let start = null;
  const place = (touch) => touch.clientX - plot.over.getBoundingClientRect().left;
  const both = (event) => [place(event.touches[0]), place(event.touches[1])].sort((a, b) => a - b);
  plot.over.addEventListener("touchstart", (event) => {
    if (event.touches.length === 2) start = both(event).map((at) => plot.posToVal(at, "x"));
  }, { passive: true });
  plot.over.addEventListener("touchmove", (event) => {
    if (event.touches.length === 1) return plot.setCursor({ left: place(event.touches[0]), top: 40 });
    if (event.touches.length !== 2 || !start) return;
    event.preventDefault();
    // The two values under the fingers stay under them.
    const [a, b] = both(event), scale = (start[1] - start[0]) / Math.max(b - a, 20);
    const min = start[0] - a * scale;
    plot.setScale("x", { min, max: min + plot.over.clientWidth * scale });
  }, { passive: false });
}

function drawPlots() {
  plots.forEach((plot) => plot.destroy());
  plots = [];
  plots = [...document.querySelectorAll(".plot")].map(draw).filter(Boolean);
  showAll();
}

function drawMap(figure) {
  const data = RUNS[figure.dataset.run].timeline, canvas = figure.querySelector("canvas");
  // The first checkpoint has a norm but no change.
  const first = choice.map === "changes" && data.steps.length > 1 ? 1 : 0;
  const rows = data.parts.length, columns = data.steps.length - first;
  const ratio = devicePixelRatio || 1, width = figure.clientWidth - 28, gutter = 88, cell = 18;
  const height = rows * cell + 22;
  canvas.width = width * ratio;
  canvas.height = height * ratio;
  canvas.style.height = height + "px";
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  const shown = choice.map === "changes" ? data.changes : data.norms.map((row) => row.map((v) => (row[0] ? v / row[0] : null)));
  // Changes span powers of ten; norms do not.
  const level = choice.map === "changes" ? (v) => Math.log(v) : (v) => v;
  // The outer tenths share the end colours, so that one part unlike all others leaves them contrast.
  const levels = shown.flat().filter((v) => v > 0).map(level).sort((a, b) => a - b);
  const at = (share) => levels[Math.round(share * (levels.length - 1))];
  const low = at(0.1), span = at(0.9) - low || 1;
  const [from, to] = [css("--map-low"), css("--map-high")].map((text) => text.split(",").map(Number));
  const step = (width - gutter) / columns;
  pen.font = "12px system-ui, sans-serif";
  pen.textBaseline = "middle";
  shown.forEach((row, r) => {
    pen.fillStyle = css(data.parts[r].startsWith("FFN") ? "--ink" : "--muted");
    pen.fillText(data.parts[r], 0, r * cell + cell / 2);
    row.slice(first).forEach((value, c) => {
      if (!(value > 0)) return;
      const share = 0.06 + 0.94 * Math.min(Math.max((level(value) - low) / span, 0), 1);
      pen.fillStyle = `rgb(${from.map((v, i) => Math.round(v + (to[i] - v) * share))})`;
      pen.fillRect(gutter + c * step, r * cell + 1, Math.max(step - (step > 6 ? 1 : 0), 0.5), cell - 2);
    });
  });
  pen.fillStyle = css("--muted");
  pen.fillText("step " + short(data.steps[first]), gutter, rows * cell + 12);
  pen.textAlign = "right";
  if (columns > 1) pen.fillText("step " + short(data.steps[data.steps.length - 1]), width, rows * cell + 12);
  const caption = figure.querySelector("figcaption"), last = data.steps.length - 1;
  const tell = (r, c) => {
    const change = data.changes[r][c], norm = data.norms[r][c];
    const moved = change == null ? "" : `, ${(100 * change).toPrecision(3)} % changed since step ${data.steps[c - 1].toLocaleString("en")}`;
    caption.textContent = `${data.parts[r]} at step ${data.steps[c].toLocaleString("en")}: norm ${short(norm)}${moved}`;
  };
  const shared = data.parts.findIndex((part) => part.startsWith("FFN"));
  tell(Math.max(shared, 0), last);
  canvas.onpointermove = (event) => {
    const box = canvas.getBoundingClientRect();
    const c = Math.floor((event.clientX - box.left - gutter) / step), r = Math.floor((event.clientY - box.top) / cell);
    if (c >= 0 && c < columns && r >= 0 && r < rows) tell(r, c + first);
  };
}

const drawMaps = () => document.querySelectorAll(".map").forEach(drawMap);

function pressed(button, attribute) {
  for (const other of document.querySelectorAll(`button[${attribute}]`))
    other.setAttribute("aria-pressed", String(other === button));
}

function start() {
  const subsets = [...new Set(RUNS.flatMap((run) => Object.keys(run.heldout?.subsets ?? {})))];
  const select = document.getElementById("subset");
  for (const name of [...(SINGLE ? ["all"] : []), "mean", ...subsets])
    select.add(new Option({ all: "all subsets", mean: "mean of subsets" }[name] ?? name, name));
  select.onchange = () => { choice.subset = select.value; drawPlots(); };
  for (const button of document.querySelectorAll("button[data-x]")) {
    if (!RUNS.some((run) => run.metrics[button.dataset.x])) button.hidden = true;
    button.onclick = () => { choice.x = button.dataset.x; pressed(button, "data-x"); drawPlots(); };
  }
  for (const button of document.querySelectorAll("button[data-map]"))
    button.onclick = () => { choice.map = button.dataset.map; pressed(button, "data-map"); drawMaps(); };
  const redraw = () => { drawPlots(); drawMaps(); };
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  let width = innerWidth;
  addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; redraw(); } });
  redraw();
  document.documentElement.dataset.drawn = plots.length;
}

start();
