// One experiment: what is, what was done, and the figures of the runbook's analysis plan.

import { drawing, h, s, table } from "./dom.js";
import { get } from "./live.js";
import { badge } from "./fleet.js";
import { AFTER, VERDICTS, ago, change, clock, count, difference, done, margin, path, percent, rank, share, span, value } from "./format.js";
import { chart, forest, frame, meter, narrow } from "./charts.js";

export const title = ([name]) => name;
export const every = 2000;

/** Decisions and log are asked for when something has changed, and now and then. */
const QUIET_MS = 10_000;
const standing = (state) => JSON.stringify([state.decisions, state.holds, state.phase, state.mode, state.revision, state.buckets.map((b) => b.stopped)]);

export async function load([name], before) {
  const [state, series] = await Promise.all([get("api/v1/experiments/{}", [name]), get("api/v1/experiments/{}/series", [name])]);
  if (before && standing(before.state) === standing(state) && Date.now() - before.asked < QUIET_MS) return { ...before, state, series };
  const log = before?.log ?? { entries: [], last: 0 };
  const [decided, page] = await Promise.all([
    get("api/v1/decisions?experiment={}&limit=20", [name]), get(`api/v1/experiments/{}/log?limit=1000&after=${log.last}`, [name])]);
  const entries = [...log.entries, ...page.entries].slice(-200);
  return { state, series, decisions: decided.decisions, log: { entries, last: entries.at(-1)?.seq ?? 0 }, asked: Date.now() };
}

export function render({ state, decisions, log, series }) {
  const lift = state.guardrails.filter((g) => g.primary);
  const guards = state.guardrails.filter((g) => !g.primary).sort((a, b) => rank(a.verdict) - rank(b.verdict) || part(b) - part(a));
  return [
    h("p", { class: "crumbs" }, h("a", { href: "#/" }, "Fleet"), " / ", state.experiment),
    h("h1", null, state.experiment, " ", badge(state.verdict)),
    banner(state, decisions),
    facts(state),
    h("h2", null, "Guardrails"),
    guards.length ? h("div", { class: "tiles" }, guards.map((g) => tile(state, g))) : h("p", { class: "quiet" }, "The rule has no guardrail."),
    lift.length > 0 && [h("h2", null, "Lift of the primary metric"), h("div", { class: "tiles" }, lift.map((g) => tile(state, g)))],
    state.secondary.length > 0 && [h("h2", null, "Secondary metrics"), secondary(state)],
    h("h2", null, "Split"), split(state),
    h("h2", null, "Exposures per second"), frame("exposures", `Exposures per second of ${state.buckets.map((b) => b.bucket).join(" and ")} over time`),
    h("h2", null, "Phases"), phases(state),
    segments(state),
    state.funnels.length > 0 && [h("h2", null, "Funnel"), state.funnels.map(funnel)],
    state.retention.length > 0 && [h("h2", null, "Retention"), retention(state.retention)],
    h("h2", null, "Execution log"), h("p", null, h("a", { href: `api/v1/experiments/${encodeURIComponent(state.experiment)}/readout?format=html` }, "Readout"), ": one page to print or to keep, and ", h("a", { href: `api/v1/experiments/${encodeURIComponent(state.experiment)}/readout?format=tar.gz` }, "the data behind it")), entries(log.entries),
    h("p", { class: "quiet" }, `Charts begin when the daemon did${series.at.length ? `: ${clock(series.at[0])}` : ""}. Intervals hold however often you look.`),
  ];
}

/** Evidence as a share of what acts; whoever has acted has had all of it. */
const part = (g) => (g.decision ? 1 : (g.log_e_value ?? 0) / (g.log_threshold || 1));

/** One sentence: what is, and what was done. */
function banner(state, decisions) {
  const decision = (id) => decisions.find((d) => d.decision === id);
  const stopped = state.buckets.filter((b) => b.stopped);
  const command = (text) => h("code", null, text);
  if (stopped.length) {
    return stopped.map((b) => {
      const why = decision(b.stopped.decision);
      const sent = !["observed", "held"].includes(b.stopped.confirmation);
      return h("section", { class: "banner breach", "data-key": b.bucket },
        h("p", { class: "say" }, h("span", { "aria-hidden": "true" }, "✕ "), `${b.bucket} ${sent ? "was" : "would have been"} ${done(b.stopped.action)} ${ago(b.stopped.at)}`, why ? `: ${why.reason}.` : ".", ` ${AFTER[b.stopped.confirmation] ?? b.stopped.confirmation}`),
        h("p", null, h("a", { href: path("d", b.stopped.decision) }, "Numbers and deliveries"), " · undo: ", command(`guardraild resume ${state.experiment} --reason "…"`)));
    });
  }
  if (state.holds.length) {
    return state.holds.map((hold) => h("section", { class: "banner watching", "data-key": hold.by },
      h("p", { class: "say" }, h("span", { "aria-hidden": "true" }, "⏸ "), `Held by ${hold.author ? hold.author : hold.by}: ${hold.reason}${hold.until ? `, until ${clock(hold.until)}` : ""}.`),
      h("p", null, hold.by === "operator" ? ["End it: ", command(`guardraild resume ${state.experiment} --reason "…"`)] : "Gates say wait until the check passes.")));
  }
  const word = { breach: "In breach", no_data: "Nothing can be said", watching: "No harm found, no proof of safety yet", safe: "Safe: every margin is proved to hold" }[state.verdict];
  return h("section", { class: `banner ${state.verdict}` }, h("p", { class: "say" }, h("span", { "aria-hidden": "true" }, `${VERDICTS[state.verdict].icon} `), `${word}: ${state.reason}.`));
}

function facts(state) {
  const fact = (name, text) => h("div", null, h("dt", null, name), h("dd", null, text));
  const units = state.buckets.reduce((sum, b) => sum + b.exposed_units, 0);
  return h("dl", { class: "facts wide" },
    fact("gate", state.stop ? "✕ stop" : state.go ? "✓ go" : "⏸ wait"), fact("mode", state.mode), fact("phase", state.phase_name ?? state.rollout.stage),
    fact("exposed", count(units)), fact("last record", ago(state.last_record)), fact("judged to", clock(state.judged_to)),
    fact("refused", count(state.rejected)), fact("revision", state.revision));
}

/** A guardrail's values over the whole life, which its interval is about. */
export function wholeLife(state, g) {
  const of = (bucket) => state.whole_life?.buckets.find((b) => b.bucket === bucket)?.metrics.find((m) => m.metric === g.guardrail)?.value ?? null;
  return { baseline_value: of(state.buckets.find((b) => b.baseline)?.bucket), bucket_value: of(g.bucket) };
}

/** How far a guardrail's change or value is from what it must not pass. */
export function headline(state, g) {
  const baseline = state.buckets.find((b) => b.baseline)?.bucket ?? "baseline";
  const of = margin(g);
  const limit = g.limit !== null && g.limit !== undefined ? `limit ${value(g.limit, g.unit)}` : null;
  const lately = g.primary || g.observation === "unit" ? "since the start" : `last ${span(g.window_ms)}`;
  if (!of) {
    const between = g.interval && `between ${value(g.interval[0], g.unit)} and ${value(g.interval[1], g.unit)}`;
    return { number: value(g.bucket_value, g.unit), values: lately, text: [limit, between].filter(Boolean).join(" · ") };
  }
  const life = wholeLife(state, g);
  const now = change(of, g.baseline_value, g.bucket_value);
  const whole = change(of, life.baseline_value, life.bucket_value);
  const between = g.interval ? `between ${of.show(g.interval[0])} and ${of.show(g.interval[1])}` : "no interval yet";
  return {
    number: of.show(now),
    values: `${lately}: ${value(g.bucket_value, g.unit)}, ${baseline} ${value(g.baseline_value, g.unit)}`,
    text: `Whole life ${whole === null ? "" : `${of.show(whole)}, `}${between}; margin ${of.text}${limit ? `, ${limit}` : ""}`,
  };
}

function tile(state, g) {
  const { number, text, values } = headline(state, g);
  const key = `${g.guardrail}/${g.bucket}`;
  return h("section", { class: `tile ${g.verdict}`, "data-key": key },
    h("h3", null, h("a", { href: path("e", state.experiment, g.guardrail, g.bucket) }, `${g.guardrail} of ${g.bucket}`), " ", badge(g.verdict)),
    h("p", { class: "big" }, number, h("span", { class: "quiet" }, ` ${values ?? ""}`)),
    h("p", { class: "quiet" }, text),
    frame(key, `${g.guardrail} of ${g.bucket} over time: ${number}; ${text}`),
    h("p", { class: "evidence" }, meter(part(g), g.verdict), g.decision ? h("span", null, "acted: ", h("a", { href: path("d", g.decision) }, g.decision)) : h("span", { class: "quiet" }, g.reason)),
    h("p", { class: "quiet" }, `${count(g.n)} ${g.observation}s, in a breach: ${g.on_breach}`));
}

/** Secondary metrics over the whole life: shown, never acted on. */
function secondary(state) {
  const rows = state.secondary.map((m) => [m.metric, m.bucket, value(m.baseline_value, m.unit), value(m.bucket_value, m.unit),
    m.change === null ? "" : percent(m.change), m.interval ? `${percent(m.interval[0])} to ${percent(m.interval[1])}` : "not known yet", m.reason]);
  return table("Secondary metrics against the baseline", ["metric", "bucket", "baseline", "value", "change", "between", "what is known"], rows);
}

/** What a guardrail's chart shows over time: the change with its interval against the margin, or the value against the limit. */
export function trend(series, g, marks) {
  const found = series.guardrails.find((of) => of.guardrail === g.guardrail && of.bucket === g.bucket);
  if (!found) return null;
  const of = margin(g);
  const x = series.at.map((at) => at / 1000);
  const flat = (at) => x.map(() => at);
  // Looks closer than the chart's are rare: what is known now ends the band.
  const band = { values: [found.low, found.high].map((ends, i) => [...ends.slice(0, -1), ends.at(-1) ?? g.interval?.[i] ?? null]) };
  const tight = (edge, values) => (low, high) => {
    const known = values.filter((v) => v !== null);
    const reach = 2.5 * Math.max(Math.abs(edge), ...known.map(Math.abs), 1e-9);
    return [Math.max(low, Math.min(-reach / 2, ...known)), Math.min(high, Math.max(reach, ...known))];
  };
  if (of) {
    const now = x.map((_, i) => change(of, found.baseline_value[i], found.bucket_value[i]));
    return { x, band, marks, show: of.show, focus: tight(of.at, now), lines: [{ label: `change, last ${span(g.window_ms)}`, values: now, color: "bucket" }, { label: "margin", values: flat(of.at), color: "breach", dash: [6, 4] }] };
  }
  const lines = [{ label: g.bucket, values: found.bucket_value, color: "bucket" }, { label: "baseline", values: found.baseline_value, color: "baseline", dash: [2, 3] }, { label: "limit", values: flat(g.limit), color: "breach", dash: [6, 4] }];
  return { x, band, marks, floor: 0, show: (v) => value(v, g.unit), lines };
}

export function drawn(root, { state, series, decisions }) {
  const marks = stops(decisions);
  for (const g of state.guardrails) {
    const spec = trend(series, g, marks);
    if (spec) chart(root, `${g.guardrail}/${g.bucket}`, spec);
  }
  chart(root, "exposures", exposures(state, series, marks));
}

/** Interventions as marks of charts. */
export const stops = (decisions) => decisions.filter((d) => ["rollback", "kill", "pause"].includes(d.action) && !d.covered_by).map((d) => ({ x: Date.parse(d.decided_at) / 1000, label: d.action }));

export function exposures(state, series, marks) {
  const look = (b) => (b.baseline ? { color: "baseline", dash: [2, 3] } : { color: "bucket" });
  const of = (b) => series.buckets.find((had) => had.bucket === b.bucket)?.exposure_rate ?? [];
  return { x: series.at.map((at) => at / 1000), marks, floor: 0, legend: true, show: (v) => `${count(v)}/s`, lines: state.buckets.map((b) => ({ label: b.bucket, values: of(b), ...look(b) })) };
}

function split(state) {
  const units = state.buckets.reduce((sum, b) => sum + b.exposed_units, 0);
  const rows = state.buckets.map((b) => [`${b.bucket}${b.baseline ? " (baseline)" : ""}`, percentOf(b.weight), share(b.exposed_units, units), count(b.exposed_units), `${b.exposure_rate.toFixed(1)}/s`, count(b.mixed_units), b.stopped ? `${done(b.stopped.action)}, ${b.stopped.confirmation}` : "–"]);
  const checks = state.quality.map((q) => [q.check, badge(q.verdict), q.reason, q.action]);
  const flaws = Object.entries(state.data).filter(([name, n]) => n > 0 && !name.endsWith("_share") && name !== "placed_units");
  return [
    table("Split of the units", ["Bucket", "Designed", "Share", "Units", "Exposures", "In two buckets", "Stopped"], rows),
    checks.length > 0 && table("Checks of the data", ["Check", "Verdict", "Why", "Then"], checks, { class: "text why" }),
    flaws.length > 0 && h("p", { class: "quiet" }, `Flaws of the data so far: ${flaws.map(([name, n]) => `${name.replaceAll("_", " ")} ${count(n)}`).join(", ")}.`),
  ];
}

const percentOf = (x) => (x === null ? "–" : `${Number((100 * x).toPrecision(4))}%`);

function phases(state) {
  const planned = state.rollout.phases;
  const now = state.phase;
  const step = (p, i) => h("li", { class: i === now ? "now" : i < now ? "past" : "", "aria-current": i === now ? "step" : null },
    h("strong", null, p.name), ` ${percentOf(p.traffic)}`, p.for_ms ? h("span", { class: "quiet" }, ` for ${span(p.for_ms)}`) : null,
    i === now && h("span", null, state.rollout.phase_ready ? " – now, ready for the next" : " – now"));
  const metrics = state.whole_life?.buckets[0]?.metrics.map((m) => m.metric) ?? [];
  const rows = [...state.phases, ...(state.phases.length > 1 && state.whole_life ? [state.whole_life] : [])].flatMap((p) => p.buckets.map((b) => [
    `${p.phase === null ? "whole life" : (p.name ?? p.phase + 1)}: ${b.bucket}`, p.phase === null ? "" : clock(p.since), percentOf(b.weight), count(b.exposed_units), ...b.metrics.map((m) => value(m.value, m.unit))]));
  return [
    planned.length > 0 && h("ol", { class: "phases" }, planned.map(step)),
    rows.length > 0 && table("What each phase has seen", ["Phase and bucket", "Since", "Share", "Units", ...metrics], rows),
  ];
}

function segments(state) {
  const compared = state.guardrails.filter((g) => g.segments?.length && margin(g));
  if (!compared.length) return null;
  return [h("h2", null, "Segments"), h("p", { class: "quiet" }, "The same comparison among the units of each segment. The shaded side is beyond the margin."),
    h("div", { class: "tiles broad" }, compared.map((g) => {
      const of = margin(g);
      const row = (name, from) => {
        const at = change(of, from.baseline_value, from.bucket_value);
        return { name, at, low: from.interval?.[0] ?? null, high: from.interval?.[1] ?? null, verdict: from.verdict, note: `${VERDICTS[from.verdict].icon} ${of.show(at)}` };
      };
      const rows = [row("all units", { ...g, ...(wholeLife(state, g).bucket_value === null ? {} : wholeLife(state, g)) }), ...g.segments.map((segment) => row(segment.segment, segment))];
      return h("section", { class: "tile", "data-key": `${g.guardrail}/${g.bucket}` }, h("h3", null, `${g.guardrail} of ${g.bucket}`),
        forest(`${g.guardrail} of ${g.bucket} by segment`, rows, { margin: of.at, show: of.show, worse: g.higher_is_worse ? 1 : -1 }));
    }))];
}

function funnel(f) {
  const of = (b) => b.matured.started > 0 ? b.matured : b.all;
  const steps = (b) => [["started", of(b).started], ...f.steps.map((name, i) => [name, of(b).reached[i]]), ["completed", of(b).completed]];
  const rows = f.buckets.flatMap((b) => steps(b).map(([name, n]) => ({ name: `${b.bucket}: ${name}`, n, whole: of(b).started })));
  const [W, ROW, LEFT, RIGHT] = narrow() ? [370, 24, 152, 100] : [640, 24, 190, 130];
  const bar = (row, i) => s("g", null,
    s("text", { x: LEFT - 8, y: i * ROW + 16, "text-anchor": "end" }, row.name),
    s("rect", { class: "step", x: LEFT, y: i * ROW + 4, width: row.whole > 0 ? ((W - LEFT - RIGHT) * row.n) / row.whole : 0, height: ROW - 8 }),
    s("text", { class: "num", x: W - RIGHT + 8, y: i * ROW + 16 }, `${count(row.n)}  ${share(row.n, row.whole)}`));
  const matured = f.buckets.some((b) => b.matured.started > 0);
  const table_ = f.buckets.map((b) => [b.bucket, count(b.all.started), count(b.all.completed), count(b.all.completed_late), count(b.all.abandoned), count(b.all.timed_out), count(b.all.open)]);
  return h("section", { class: "tile wide", "data-key": f.funnel }, h("h3", null, `${f.funnel} (workflow ${f.workflow}, within ${span(f.within_ms)})`),
    h("p", { class: "quiet" }, matured ? "Workflows whose time limit has passed." : "All workflows so far: none has come to its time limit."),
    drawing(W, rows.length * ROW + 4, rows.map((row) => `${row.name} ${count(row.n)}, ${share(row.n, row.whole)}`).join("; "), rows.map(bar)),
    table("All workflows", ["Bucket", "Started", "Completed", "Late", "Abandoned", "Timed out", "Open"], table_));
}

function retention(all) {
  const rows = all.flatMap((r) => r.buckets.map((b) => [`${r.metric}: ${b.bucket}`, `day ${r.day}`, count(b.eligible), count(b.active), b.rate === null ? `first known ${r.day + 1} d after exposure` : value(b.rate, "%")]));
  return table("Units that came back", ["Metric and bucket", "On", "Units whose day is over", "Active", "Share"], rows);
}

function entries(log) {
  if (!log.length) return h("p", { class: "quiet" }, "Nothing yet.");
  const linked = (url) => [" ", h("a", { href: url, rel: "noopener noreferrer" }, new URL(url).host)];
  const text = (entry) => (entry.decision ? [entry.text, " ", h("a", { href: path("d", entry.decision) }, entry.decision)] : [entry.text, ...(entry.links ?? []).flatMap(linked)]);
  return table("Execution log, newest first", ["When", "What", "By", "Text"], [...log].reverse().slice(0, 50).map((e) => [clock(e.at), e.kind.replace("_", " "), e.author ?? "", text(e)]), { class: "text" });
}
