// Decisions: what was decided on which numbers, and what came of it.

import { h, table } from "./dom.js";
import { get } from "./live.js";
import { AFTER, clock, count, difference, done, path, percent, value } from "./format.js";
import { chart, frame } from "./charts.js";
import { exposures } from "./experiment.js";
import { attempts } from "./deliveries.js";

const ICON = { rollback: "↩", kill: "✕", pause: "⏸", page: "☎", notify: "✉", hold: "⏸" };
const act = (d) => h("span", { class: `badge ${["rollback", "kill"].includes(d.action) ? "breach" : "watching"}` }, h("span", { "aria-hidden": "true" }, ICON[d.action] ?? "•"), ` ${done(d.action)}`);
const about = (d) => [d.experiment || "several experiments", d.bucket && ` / ${d.bucket}`, d.segment && ` in ${d.segment}`];

export const list = {
  title: () => "Decisions",
  every: 5000,
  load: () => get("api/v1/decisions?limit=200"),
  render: ({ decisions }) => [
    h("h1", null, "Decisions"),
    decisions.length === 0
      ? h("p", { class: "quiet" }, "None yet.")
      : table("Decisions, newest first", ["Decision", "When", "About", "Done", "Why"], decisions.map((d) => [
          h("a", { href: path("d", d.decision) }, d.decision), clock(d.decided_at), about(d), [act(d), d.mode === "observe" && " (observe: not sent)", d.covered_by && " (covered by another)"], d.reason]), { class: "text" }),
  ],
};

export const one = {
  title: ([id]) => id,
  every: 2000,
  async load([id]) {
    const decision = await get("api/v1/decisions/{}", [id]);
    // Of an experiment that no rule names any more only the decision is left.
    const [state, series] = await Promise.all(["api/v1/experiments/{}", "api/v1/experiments/{}/series"].map((at) => get(at, [decision.experiment]).catch(() => null)));
    return { decision, state, series };
  },
  render({ decision: d, state }, again, reload) {
    const stop = state?.buckets.find((b) => b.bucket === d.bucket)?.stopped;
    const after = stop?.decision === d.decision ? stop.confirmation : null;
    return [
      h("p", { class: "crumbs" }, h("a", { href: "#/d" }, "Decisions"), " / ", d.decision),
      h("h1", null, act(d), " ", d.bucket || d.experiment),
      h("section", { class: `banner ${d.verdict}` },
        h("p", { class: "say" }, d.reason),
        h("p", null, d.mode === "observe" ? "Observe mode: interventions were not sent. " : "", after && d.mode !== "observe" ? `${AFTER[after] ?? after} ` : "",
          d.covered_by && ["Not sent: ", h("a", { href: path("d", d.covered_by) }, d.covered_by), " has done as much. "],
          state && h("a", { href: path("e", d.experiment) }, `${d.experiment} now`))),
      h("h2", null, "Numbers"), numbers(d),
      state && d.bucket && [h("h2", null, "Exposures"), frame("exposures", `Exposures per second of each bucket; the decision came at ${clock(d.decided_at)}`, true)],
      h("h2", null, "Deliveries"),
      d.deliveries.length ? attempts(d.deliveries, reload) : h("p", { class: "quiet" }, d.mode === "observe" ? "None: observe mode." : "None: the rule names no receiver for it."),
      h("details", null, h("summary", null, "Evidence, for guardraild stats and guardraild audit"), h("pre", { tabindex: "0" }, JSON.stringify(d.evidence, null, 1))),
    ];
  },
  drawn(root, { decision, state, series }) {
    if (state && series) chart(root, "exposures", exposures(state, series, [{ x: Date.parse(decision.decided_at) / 1000, label: decision.action }]));
  },
};

function numbers(d) {
  const relative = d.criterion === "max_increase" && !d.test.includes("difference");
  const shown = (x) => (d.criterion === "limit" ? value(x, d.unit) : relative ? percent(x) : difference(x, d.unit));
  const rows = [
    ["Decided at", clock(d.decided_at), "event time"],
    ["Breach since", clock(d.since), ""],
    ["Guardrail", d.guardrail, `${d.criterion.replace("_", " ")}, test ${d.test}`],
    ["Bucket's value", value(d.bucket_value, d.unit), ""],
    ["Baseline's value", value(d.baseline_value, d.unit), d.change === null ? "" : `change ${percent(d.change)}`],
    ["Interval", d.interval ? d.interval.map(shown).join(" to ") : "none", "anytime-valid"],
    ["Margin", d.margin === null ? "none" : shown(d.margin), ""],
    ["E-value", d.log_e_value === null ? "none" : `e^${d.log_e_value.toFixed(2)}`, d.alpha === null ? "" : `acts at e^${(-Math.log(d.alpha)).toFixed(2)}`],
    ["Exposed units", count(d.exposed_units), "of the bucket, so far"],
    ["Rule", `${d.experiment} revision ${d.revision}`, `phase ${d.phase + 1}, arming ${d.epoch}`],
    ["Decision", d.decision, d.author ? `asked for by ${d.author}` : ""],
  ];
  return table("Numbers at that moment", ["What", "Value", "Note"], rows, { class: "text" });
}
