// All experiments, worst first.

import { h } from "./dom.js";
import { get } from "./live.js";
import { VERDICTS, ORDER, ago, change, count, difference, done, margin, path, percent, rank, value } from "./format.js";
import { meter } from "./charts.js";

export const title = () => "Fleet";
export const every = 5000;
export const load = () => get("api/v1/fleet");

const PAGE = 50;
let filter = "";
let only = null;
let rows = PAGE;

/** Verdict as icon and word. */
export const badge = (verdict) => h("span", { class: `badge ${verdict}` }, h("span", { "aria-hidden": "true" }, VERDICTS[verdict].icon), ` ${VERDICTS[verdict].word}`);

const trouble = (e) => rank(e.verdict) * 10 - (e.stopped.length ? 2 : 0) - (e.holds.length ? 1 : 0) - Math.min(0.99, Math.max(0, e.worst?.evidence ?? 0));
const live = (e) => e.stage !== "done" && e.stage !== "ended" && e.stage !== "planned";

export function render(data, again) {
  const all = [...data.experiments].sort((a, b) => Number(live(b)) - Number(live(a)) || trouble(a) - trouble(b) || a.experiment.localeCompare(b.experiment));
  const words = filter.toLowerCase().split(/\s+/).filter(Boolean);
  const text = (e) => `${e.experiment} ${e.reason} ${e.phase ?? ""} ${e.worst?.guardrail ?? ""}`.toLowerCase();
  const found = all.filter((e) => (!only || e.verdict === only) && words.every((word) => text(e).includes(word)));
  const chip = (verdict) => {
    const n = all.filter((e) => e.verdict === verdict).length;
    const click = () => {
      only = only === verdict ? null : verdict;
      rows = PAGE;
      again();
    };
    return h("button", { type: "button", class: `chip ${verdict}`, "aria-pressed": String(only === verdict), onclick: click }, h("span", { "aria-hidden": "true" }, VERDICTS[verdict].icon), ` ${count(n)} ${VERDICTS[verdict].word}`);
  };
  const type = (event) => {
    filter = event.target.value;
    rows = PAGE;
    again();
  };
  const more = found.length - rows;
  return [
    h("h1", null, "Experiments"),
    h("div", { class: "bar" }, h("div", { class: "chips", role: "group", "aria-label": "Show only" }, ORDER.map(chip)),
      h("label", { class: "filter" }, h("span", { class: "sr" }, "Filter by name, reason, phase or guardrail"), h("input", { id: "filter", type: "search", placeholder: "Filter ( / )", autocomplete: "off", oninput: type }))),
    found.length ? h("ul", { class: "fleet" }, found.slice(0, rows).map(row)) : h("p", { class: "quiet" }, all.length ? "No experiment fits the filter." : "No experiment is loaded."),
    more > 0 && h("button", { type: "button", class: "more", onclick: () => ((rows += 4 * PAGE), again()) }, `Show more: ${count(more)} are left`),
    h("p", { class: "quiet" }, `${count(found.length)} of ${count(all.length)} experiments, worst first`),
  ];
}

function row(e) {
  return h("li", { class: `row ${e.verdict}`, "data-key": e.experiment },
    h("div", { class: "who" }, badge(e.verdict), " ", h("a", { href: path("e", e.experiment) }, e.experiment), e.mode === "observe" && h("span", { class: "tag" }, "observe")),
    h("p", { class: "why" }, actions(e), e.stopped.length && e.worst ? `${e.worst.guardrail} of ${e.worst.bucket} is in breach` : e.reason),
    h("div", { class: "worst" }, e.worst ? worst(e.worst) : h("span", { class: "quiet" }, "no guardrail")),
    h("dl", { class: "facts" },
      fact("phase", phase(e)), fact("exposed", count(e.exposed_units)), fact("data", e.last_record ? ago(e.last_record) : "none yet")));
}

const fact = (name, text) => h("div", null, h("dt", null, name), h("dd", null, text));

function phase(e) {
  const words = { planned: "not begun", running: "", full: "full", done: "done", ended: "ended" };
  return [e.phase, words[e.stage]].filter(Boolean).join(", ") || "running";
}

/** What was done: rolled back, held. */
function actions(e) {
  const stops = e.stopped.map((stop) => h("strong", { class: "act" }, `${stop.bucket} ${stop.confirmation === "observed" ? "would be " : ""}${done(stop.action)}, ${stop.confirmation}: `));
  const holds = e.holds.map((by) => h("strong", { class: "act" }, `held by ${by}. `));
  return [...stops, ...holds];
}

function worst(g) {
  const of = margin(g);
  const now = of ? change(of, g.baseline_value, g.bucket_value) : null;
  const against = of ? `${of.show(now)}, may be ${of.text}` : `${value(g.bucket_value, g.unit)}, limit ${value(g.limit, g.unit)}`;
  return [h("span", { class: "name" }, `${g.guardrail} of ${g.bucket}`), h("span", { class: "num" }, against), meter(g.verdict === "breach" ? 1 : g.evidence, g.verdict)];
}
