// Drawings: series over time by uPlot, the rest as SVG by hand.

import { drawing, h, s } from "./dom.js";
import { count, percent, value } from "./format.js";

const drawn = new Map();
/** On a phone drawings have a phone's width, so that their text keeps its size. */
export const narrow = () => matchMedia("(max-width: 34rem)").matches;
const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

/** Where a chart goes; `label` says in words what it shows. */
export const frame = (key, label, tall) => h("div", { "data-chart": key, class: tall ? "chart tall" : "chart", role: "img", "aria-label": label });

/**
 * Draws a chart into its frame, or brings it up to date. `x` in seconds; `lines` of { label, values, color, dash, fill };
 * `band` of two lines; `show` writes a value; `marks` of { x, label } are vertical.
 */
export function chart(root, key, spec) {
  const element = root.querySelector(`[data-chart="${CSS.escape(key)}"]`);
  if (!element || !window.uPlot) return;
  const had = drawn.get(element);
  const shape = JSON.stringify([spec.lines.map((line) => line.label), Boolean(spec.band), spec.marks]);
  if (had?.shape === shape) {
    had.spec = spec;
    had.plot.setData(columns(spec));
    return;
  }
  had?.end();
  begin(element, spec, shape);
}

/** Draws all charts again: the theme has changed. */
export function redraw() {
  for (const [element, had] of [...drawn]) {
    had.end();
    if (element.isConnected) begin(element, had.spec, had.shape);
  }
}

const columns = (spec) => [spec.x, ...(spec.band ? spec.band.values : []), ...spec.lines.map((line) => line.values)];

function begin(element, spec, shape) {
  const size = () => ({ width: Math.max(160, element.clientWidth), height: element.classList.contains("tall") ? 230 : 146 });
  const state = { spec, shape };
  const plot = new window.uPlot(options(state, size()), columns(spec), element);
  const watch = new ResizeObserver(() => (element.isConnected ? plot.setSize(size()) : state.end()));
  watch.observe(element);
  state.plot = plot;
  state.end = () => {
    watch.disconnect();
    plot.destroy();
    drawn.delete(element);
  };
  drawn.set(element, state);
}

function options(state, size) {
  const { spec } = state;
  const quiet = { stroke: color("muted"), grid: { stroke: color("line"), width: 1 }, ticks: { stroke: color("line"), width: 1 }, font: "11px system-ui, sans-serif" };
  const show = (number) => (number === null || number === undefined ? "–" : spec.show(number));
  const line = (of) => ({
    label: of.label, stroke: color(of.color), width: of.width ?? 2, dash: of.dash, spanGaps: of.gaps !== false, points: { show: false },
    paths: of.steps ? window.uPlot.paths.stepped({ align: 1 }) : undefined, value: (_, number) => show(number),
  });
  const ends = spec.band ? ["interval from", "to"].map((label) => ({ label, stroke: "transparent", spanGaps: true, points: { show: false }, value: (_, number) => show(number) })) : [];
  return {
    ...size,
    legend: { show: Boolean(spec.legend), live: true },
    cursor: { show: Boolean(spec.legend), y: false, drag: { x: false, y: false } },
    tzDate: (seconds) => window.uPlot.tzDate(new Date(seconds * 1000), "Etc/UTC"),
    scales: { x: { time: true }, y: { range: (_, low, high) => room(state.spec, low, high) } },
    axes: [{ ...quiet, space: 80, size: 28, values: (_, ticks) => ticks.map((at) => new Date(at * 1000).toISOString().slice(11, ticks[1] - ticks[0] < 60 ? 19 : 16)) }, { ...quiet, size: 62, space: 28, values: (_, ticks) => ticks.map(spec.show) }],
    series: [{ value: "{HH}:{mm}:{ss}" }, ...ends, ...spec.lines.map(line)],
    bands: spec.band ? [{ series: [2, 1], fill: color("band") }] : [],
    hooks: { draw: [(plot) => (state.spec.marks ?? []).forEach((mark) => vertical(plot, mark))] },
  };
}

/** A little room above and below; of flat lines, too. An interval that is wide as long as there is little data does not flatten the rest. */
function room(spec, low, high) {
  if (spec.focus) [low, high] = spec.focus(low, high);
  if (low === null || high === null || !Number.isFinite(low) || !Number.isFinite(high)) return [0, 1];
  const pad = (high - low || Math.abs(high) || 1) * 0.08;
  return [spec.floor === undefined ? low - pad : Math.max(spec.floor, low - pad), high + pad];
}

function vertical(plot, { x, label }) {
  const at = plot.valToPos(x, "x", true);
  const { left, top, width, height } = plot.bbox;
  if (at < left || at > left + width) return;
  const { ctx } = plot;
  ctx.save();
  ctx.strokeStyle = ctx.fillStyle = color("breach");
  ctx.lineWidth = 2;
  ctx.beginPath();
  ctx.moveTo(at, top);
  ctx.lineTo(at, top + height);
  ctx.stroke();
  ctx.font = `${11 * devicePixelRatio}px system-ui, sans-serif`;
  const right = at > left + width * 0.6;
  ctx.textAlign = right ? "right" : "left";
  ctx.fillText(label, at + (right ? -5 : 5), top + 12 * devicePixelRatio);
  ctx.restore();
}

/** Evidence as a share of what it must reach to act. */
export function meter(part, verdict) {
  if (part === null || part === undefined) return null;
  const filled = Math.min(1, Math.max(0, part));
  const label = `evidence of harm: ${Math.round(100 * filled)}% of what acts`;
  return drawing(120, 8, label,
    s("rect", { class: "track", width: 120, height: 8, rx: 4 }),
    s("rect", { class: `full ${verdict}`, width: 120 * filled, height: 8, rx: 4 }));
}

/**
 * Intervals against a margin, one in a row: rows of { name, low, high, at, verdict, note }. Where the margin lies, what is beyond it is
 * shaded, and its side has a name.
 */
export function forest(label, rows, { margin, show, worse = 1 }) {
  const [W, ROW, LEFT, RIGHT, TOP, NAME] = narrow() ? [370, 30, 118, 92, 24, 16] : [640, 30, 170, 130, 24, 24];
  const ends = rows.flatMap((row) => [row.low, row.high, row.at]).filter((x) => x !== null && x !== undefined && Number.isFinite(x));
  // Intervals of little data are wide: beyond three times what matters they are cut, with an arrow.
  const all = [0, margin, ...rows.map((row) => row.at ?? 0)];
  const reach = Math.max(...all.map(Math.abs), 1e-6) * 3;
  const low = Math.max(Math.min(0, margin, ...ends), -reach);
  const high = Math.min(Math.max(0, margin, ...ends), reach);
  const pad = (high - low || 1) * 0.06;
  const x = (v) => LEFT + ((Math.min(high + pad, Math.max(low - pad, v)) - low + pad) / (high - low + 2 * pad)) * (W - LEFT - RIGHT);
  const H = TOP + rows.length * ROW + 22;
  const beyond = worse > 0 ? { x: x(margin), width: W - RIGHT - x(margin) } : { x: LEFT, width: x(margin) - LEFT };
  const told = rows.map((row) => `${row.name}: ${show(row.at)}${row.low === null ? "" : `, from ${show(row.low)} to ${show(row.high)}`}, ${row.verdict}`).join("; ");
  const line = (row, i) => {
    const y = TOP + (i + 0.5) * ROW;
    const whole = row.low !== null && row.low !== undefined;
    return s("g", { class: row.verdict },
      s("text", { x: LEFT - 8, y: y + 4, "text-anchor": "end" }, clip(row.name, NAME)),
      whole && s("line", { class: "interval", x1: x(row.low), x2: x(row.high), y1: y, y2: y }),
      whole && [row.low, row.high].map((end) => end >= low - pad && end <= high + pad
        ? s("line", { class: "interval", x1: x(end), x2: x(end), y1: y - 5, y2: y + 5 })
        : s("text", { x: x(end) + (end > 0 ? 2 : -2), y: y + 4, "text-anchor": end > 0 ? "start" : "end" }, end > 0 ? "›" : "‹")),
      row.at !== null && row.at !== undefined && s("rect", { class: "point", x: x(row.at) - 4, y: y - 4, width: 8, height: 8 }),
      s("text", { class: "num", x: W - RIGHT + 16, y: y + 4 }, row.note));
  };
  return drawing(W, H, `${label}. Margin ${show(margin)}. ${told}`,
    s("rect", { class: "beyond", x: beyond.x, width: Math.max(0, beyond.width), y: TOP - 4, height: rows.length * ROW + 8 }),
    s("line", { class: "zero", x1: x(0), x2: x(0), y1: TOP - 4, y2: H - 18 }),
    s("line", { class: "margin", x1: x(margin), x2: x(margin), y1: TOP - 4, y2: H - 18 }),
    s("text", { class: "axis", x: x(0), y: H - 4, "text-anchor": "middle" }, "no change"),
    s("text", { class: "axis harm", x: worse > 0 ? Math.min(x(margin) + 4, W - 96) : x(margin) - 4, y: 13, "text-anchor": worse > 0 ? "start" : "end" }, `${show(margin)} margin`),
    rows.map(line));
}

const clip = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);

/** Two histograms over the same bins, as shares of each; `mark` is a value with a name. */
export function histogram(bins, names, unit, marks) {
  const [W, H, LEFT, BOTTOM, TOP] = [narrow() ? 380 : 760, 260, 40, 34, 16];
  const total = (of) => bins.reduce((sum, bin) => sum + bin[of], 0) || 1;
  const sums = { baseline: total("baseline"), bucket: total("bucket") };
  const [first, last] = [bins[0].from || bins[0].to / 2, bins[bins.length - 1].to];
  // Bins are even on a scale of logarithms, where latencies are, too.
  const x = (v) => LEFT + ((Math.log(Math.max(v, first)) - Math.log(first)) / (Math.log(last) - Math.log(first) || 1)) * (W - LEFT - 8);
  // Height is the share for each unit of width, so that bins of different width compare.
  const density = (bin, of) => bin[of] / sums[of] / Math.max(1e-9, x(bin.to) - x(bin.from));
  const most = Math.max(...bins.flatMap((bin) => [density(bin, "baseline"), density(bin, "bucket")]), 1e-9);
  const y = (d) => H - BOTTOM - (d / most) * (H - BOTTOM - TOP);
  const outline = (of) => {
    let path = `M${x(first)},${y(0)}`;
    let at = x(first);
    for (const bin of bins) {
      if (x(bin.from) > at + 0.5) path += `L${at},${y(0)}L${x(bin.from)},${y(0)}`;
      path += `L${x(bin.from)},${y(density(bin, of))}L${x(bin.to)},${y(density(bin, of))}`;
      at = x(bin.to);
    }
    return `${path}L${at},${y(0)}Z`;
  };
  const ticks = nice(first, last, narrow() ? 4 : 8);
  const told = marks.map((mark) => `${mark.name} ${value(mark.at, unit)}`).join(", ");
  return drawing(W, H, `Histograms of ${count(sums.baseline)} values of ${names[0]} and ${count(sums.bucket)} of ${names[1]}, by share. ${told}`,
    s("line", { class: "zero", x1: LEFT, x2: W - 8, y1: y(0), y2: y(0) }),
    ticks.map((at) => s("g", null, s("line", { class: "tick", x1: x(at), x2: x(at), y1: y(0), y2: y(0) + 5 }), s("text", { class: "axis", x: x(at), y: H - 14, "text-anchor": x(at) > W - 40 ? "end" : "middle" }, value(at, unit)))),
    s("path", { class: "area baseline", d: outline("baseline") }),
    s("path", { class: "area bucket", d: outline("bucket") }),
    marks.map((mark, i) => s("g", { class: mark.of }, s("line", { class: "quantile", x1: x(mark.at), x2: x(mark.at), y1: TOP, y2: y(0) }),
      s("text", { class: "axis", x: x(mark.at) + (x(mark.at) > W * 0.6 ? -5 : 5), y: TOP + 10 + 15 * i, "text-anchor": x(mark.at) > W * 0.6 ? "end" : "start" }, `${mark.name} ${value(mark.at, unit)}`))));
}

/** Round values between two, on a scale of logarithms. */
function nice(low, high, most) {
  const all = [];
  for (let ten = 10 ** Math.floor(Math.log10(low)); ten <= high; ten *= 10) all.push(...[1, 2, 5].map((n) => n * ten).filter((v) => v >= low && v <= high));
  const step = Math.ceil(all.length / most);
  return all.filter((_, i) => i % step === 0);
}

/** How much later the bucket is than the baseline at each quantile. */
export function quantileCurve(levels, unit, tested, relative) {
  const [W, H, LEFT, BOTTOM, TOP] = [narrow() ? 380 : 760, 220, 70, 34, 16];
  const known = levels.filter((level) => level.baseline !== null && level.bucket !== null && (!relative || level.baseline > 0));
  const change = (level) => (relative ? level.bucket / level.baseline - 1 : level.bucket - level.baseline);
  const show = (v) => (relative ? percent(v) : value(v, unit));
  const all = [0, tested.at, ...known.map(change)];
  const [low, high] = [Math.min(...all), Math.max(...all)];
  const pad = (high - low || 1) * 0.1;
  const x = (q) => LEFT + q * (W - LEFT - 12);
  const y = (v) => H - BOTTOM - ((v - low + pad) / (high - low + 2 * pad)) * (H - BOTTOM - TOP);
  const told = known.map((level) => `p${Number((100 * level.q).toPrecision(4))} ${show(change(level))}`).join(", ");
  return drawing(W, H, `Change of each quantile: ${told}`,
    s("line", { class: "zero", x1: LEFT, x2: W - 12, y1: y(0), y2: y(0) }),
    s("line", { class: "margin", x1: LEFT, x2: W - 12, y1: y(tested.at), y2: y(tested.at) }),
    s("text", { class: "axis", x: LEFT - 6, y: y(0) + 4, "text-anchor": "end" }, "0"),
    s("text", { class: "axis harm", x: LEFT - 6, y: y(tested.at) + 4, "text-anchor": "end" }, show(tested.at)),
    [0.1, 0.25, 0.5, 0.75, 0.9].map((q) => s("text", { class: "axis", x: x(q), y: H - 14, "text-anchor": "middle" }, `p${100 * q}`)),
    tested.q && s("line", { class: "quantile", x1: x(tested.q), x2: x(tested.q), y1: TOP, y2: H - BOTTOM }),
    tested.q && s("text", { class: "axis", x: x(tested.q) - 5, y: TOP + 10, "text-anchor": "end" }, `tested: p${Number((100 * tested.q).toPrecision(4))}`),
    s("polyline", { class: "curve", points: known.map((level) => `${x(level.q)},${y(change(level))}`).join(" ") }),
    known.map((level) => s("circle", { class: "dot", cx: x(level.q), cy: y(change(level)), r: 3 })));
}
