// What comes in: is it on time, is it whole, what was refused.

import { h, table } from "./dom.js";
import { forget, get, operator } from "./live.js";
import { ago, clock, count, share, span } from "./format.js";

export const title = () => "Data";
export const every = 2000;
let rejects = null;

export const load = () => get("api/v1/data");

const OUTCOMES = { accepted: "counted for an experiment", duplicate: "id seen before", late: "came too late", waiting: "waits for its unit's exposure", unattributed: "of a unit in no experiment", unknown_experiment: "names an experiment that no rule does", inactive: "outside the experiment's dates", unmapped: "no source makes an event of it" };

export function render(data, again) {
  const all = Object.values(data.counts).reduce((sum, n) => sum + (typeof n === "number" ? n : 0), 0) + sum(data.counts.rejected);
  const outcomes = Object.entries(OUTCOMES).filter(([name]) => data.counts[name] !== undefined).map(([name, text]) => [name.replace("_", " "), count(data.counts[name]), share(data.counts[name], all), text]);
  const refused = Object.entries(data.counts.rejected).map(([reason, n]) => [`refused: ${reason.replaceAll("_", " ")}`, count(n), share(n, all), ""]);
  const behind = (p) => sum(p.lag);
  return [
    h("h1", null, "Data"),
    h("h2", null, "Readiness"),
    h("ul", { class: "checks" }, data.checks.map((check) => h("li", { class: check.ok ? "safe" : "breach" }, h("span", { "aria-hidden": "true" }, check.ok ? "✓ " : "✕ "), h("strong", null, check.name), `: ${check.ok ? "" : "NOT READY. "}${check.detail}`))),
    h("h2", null, "Partitions"),
    table("Partitions", ["Partition", "Watermark", "Behind the clock", "Records behind", "Records", "State"],
      data.partitions.map((p) => [p.partition, clock(p.watermark), p.watermark === null ? "–" : span(data.at - p.watermark), count(behind(p)), count(total(p.counts)), p.idle ? "◌ idle" : "✓ reading"])),
    h("h2", null, "Records by outcome"),
    table("Records by outcome", ["Outcome", "Records", "Share", "Means"], [...outcomes, ...refused], { class: "text" }),
    h("h2", null, "Refused records"),
    h("p", { class: "quiet" }, "Samples, newest last. What users sent is not shown: of strings only the length, of numbers the shape."),
    h("button", { type: "button", onclick: () => fetchRejects(again) }, rejects ? "Look again" : "Show samples"),
    h("p", { id: "said", role: "status", "data-kept": "yes" }),
    rejects && (rejects.length === 0 ? h("p", null, "No record has been refused.") : table("Refused records", ["Reason", "Where", "Bytes", "Beginning, redacted"],
      rejects.map((r) => [[r.reason.replaceAll("_", " "), r.detail && `: ${r.detail}`], `${r.topic} / ${r.partition} @ ${r.offset}`, count(r.length), h("code", null, r.text)]), { class: "text" })),
    h("p", { class: "quiet" }, `View of ${clock(data.at)}, ${ago(data.at)}`),
  ];
}

const sum = (numbers) => Object.values(numbers ?? {}).reduce((a, b) => a + b, 0);
const total = (counts) => Object.entries(counts).reduce((n, [name, of]) => n + (name === "rejected" ? sum(of) : of), 0);

async function fetchRejects(again) {
  const say = (text) => (document.getElementById("said").textContent = text);
  try {
    const token = await operator("see refused records");
    rejects = (await get("api/v1/rejects", [], token)).rejects;
    say("");
    again();
  } catch (error) {
    if (error.status === 401 || error.status === 403) forget();
    say(`Not shown: ${error.message}. ${error.hint ?? ""}`);
  }
}
