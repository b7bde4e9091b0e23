// One guardrail of one bucket: the evidence, and the values that it is made of.

import { h, table } from "./dom.js";
import { get } from "./live.js";
import { badge } from "./fleet.js";
import { clock, count, margin, path, percent, value } from "./format.js";
import { chart, frame, histogram, quantileCurve } from "./charts.js";
import { headline, stops, trend } from "./experiment.js";

export const title = ([name, guardrail, bucket]) => `${guardrail} of ${bucket}, ${name}`;
export const every = 2000;

export async function load([name, guardrail, bucket]) {
  const [state, series, decided] = await Promise.all([
    get("api/v1/experiments/{}", [name]), get("api/v1/experiments/{}/series", [name]), get("api/v1/decisions?experiment={}&limit=20", [name])]);
  const g = state.guardrails.find((of) => of.guardrail === guardrail && of.bucket === bucket);
  if (!g) throw Object.assign(new Error(`${name} has no guardrail ${guardrail} of ${bucket}.`), { status: 404 });
  // Only quantiles have a histogram.
  const bins = /^p\d/.test(g.statistic) ? await get(`api/v1/experiments/{}/bins?guardrail=${encodeURIComponent(guardrail)}&bucket=${encodeURIComponent(bucket)}`, [name]).catch(() => null) : null;
  return { state, series, g, bins, decisions: decided.decisions };
}

export function render({ state, g, bins, decisions }) {
  const { number, text, values } = headline(state, g);
  const baseline = state.buckets.find((b) => b.baseline)?.bucket ?? "baseline";
  const acted = decisions.find((d) => d.decision === g.decision);
  return [
    h("p", { class: "crumbs" }, h("a", { href: "#/" }, "Fleet"), " / ", h("a", { href: path("e", state.experiment) }, state.experiment), ` / ${g.guardrail} of ${g.bucket}`),
    h("h1", null, `${g.guardrail} of ${g.bucket}`, " ", badge(g.verdict)),
    h("section", { class: `banner ${g.verdict}` }, h("p", { class: "say" }, acted ? [`${acted.reason}. `, h("a", { href: path("d", acted.decision) }, "Numbers and deliveries")] : `${number}: ${g.reason}`), h("p", null, [values, text].filter(Boolean).join(" · "))),
    h("h2", null, margin(g) ? "Change against the margin" : "Value against the limit"),
    h("p", { class: "quiet" }, "The band is the anytime-valid interval: it holds however often you look. Beyond the dashed line is harm."),
    frame("trend", `${g.guardrail} of ${g.bucket} over time: ${number}; ${text}`, true),
    h("h2", null, "Evidence"),
    h("p", { class: "quiet" }, `The e-value: how much more likely the data are if the margin is broken than if it holds. It acts at ${threshold(g)}. A test that was started late, to find what began late, needs more and is not drawn.`),
    acted && acted.log_e_value !== null && h("p", null, h("strong", null, `It acted on an e-value of ${power(acted.log_e_value)}`), acted.alpha === null ? "." : `, where ${power(-Math.log(acted.alpha))} was needed, of the time since ${clock(acted.since)}.`),
    frame("evidence", `Evidence of harm over time: now e-value ${power(g.log_e_value)}, acts at ${threshold(g)}`, true),
    bins && bins.bins.length > 0 && distribution(g, bins, baseline),
    h("h2", null, "Numbers"), numbers(g, baseline),
    h("details", null, h("summary", null, "Sufficient statistics, for guardraild stats"), h("pre", { tabindex: "0" }, JSON.stringify(g.evidence, null, 1) ?? "none")),
  ];
}

const power = (log) => (log === null || log === undefined ? "none" : Math.abs(log) < 9 ? Number(Math.exp(log).toPrecision(3)).toLocaleString("en") : `10^${(log / Math.LN10).toFixed(1)}`);
const threshold = (g) => power(g.log_threshold);

function distribution(g, bins, baseline) {
  const tested = Number(g.statistic.slice(1)) / 100;
  const of = margin(g);
  const at = (which) => bins.quantiles.find((level) => Math.abs(level.q - tested) < 1e-9)?.[which];
  const marks = [{ of: "baseline", name: `${baseline} ${g.statistic}`, at: at("baseline") }, { of: "bucket", name: `${g.bucket} ${g.statistic}`, at: at("bucket") }].filter((mark) => mark.at);
  const from = { allocation: "units exposed since the shares last changed: the bins that the test reads", window: `the last ${g.window_ms / 1000} s: the bins that the limit reads` };
  return [
    h("h2", null, "Distribution"),
    h("p", { class: "quiet" }, `Shares of ${count(bins.n)} values of ${g.bucket} and ${count(bins.baseline_n)} of ${baseline}, of ${from[bins.of]}. Neighbouring bins are added up.`),
    h("p", { class: "key" }, h("span", { class: "sample baseline" }), ` ${baseline} (dotted) `, h("span", { class: "sample bucket" }), ` ${g.bucket} (solid)`),
    h("div", { class: "card" }, histogram(bins.bins, [baseline, g.bucket], g.unit, marks)),
    of && [h("h2", null, "Difference by quantile"),
      h("div", { class: "card" }, quantileCurve(bins.quantiles, g.unit, { q: tested, at: of.at }, of.relative))],
  ];
}

function numbers(g, baseline) {
  const of = margin(g);
  const rows = [
    [`Value of ${g.bucket}`, value(g.bucket_value, g.unit), `${count(g.n)} ${g.observation}s`],
    [`Value of ${baseline}`, value(g.baseline_value, g.unit), `${count(g.baseline_n)} ${g.observation}s`],
    ["Relative change", percent(g.change), ""],
    ["Interval", g.interval ? (of ? g.interval.map(of.show) : g.interval.map((v) => value(v, g.unit))).join(" to ") : "not known yet", "anytime-valid"],
    ["Margin", of ? of.text : "none", of ? "against the baseline" : ""],
    ["Limit", g.limit === null ? "none" : value(g.limit, g.unit), g.limit === null ? "" : `window ${g.window_ms / 1000} s`],
    ["E-value", power(g.log_e_value), `acts at ${threshold(g)}`],
    ["Design effect", g.design_effect === null ? "none" : g.design_effect.toFixed(2), "counts are divided by it: one unit's events are alike"],
    ["In a breach", g.on_breach, g.decision ? [h("a", { href: path("d", g.decision) }, g.decision)] : ""],
  ];
  return table(`Numbers of ${g.guardrail}`, ["What", "Value", "Note"], rows, { class: "text" });
}

export function drawn(root, { series, g, decisions }) {
  const marks = stops(decisions);
  const spec = trend(series, g, marks);
  if (spec) chart(root, "trend", { ...spec, legend: true });
  const found = series.guardrails.find((of) => of.guardrail === g.guardrail && of.bucket === g.bucket);
  if (!found) return;
  chart(root, "evidence", {
    x: series.at.map((at) => at / 1000), marks, legend: true, floor: 0, show: power,
    lines: [{ label: "e-value", values: found.log_e_value, color: "bucket" }, { label: "acts at", values: found.log_threshold, color: "breach", dash: [6, 4] }],
  });
}
