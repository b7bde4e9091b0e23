// Numbers, times and verdicts as people read them.

/** Icon and word of each verdict: colour is never alone. Worst first. */
export const VERDICTS = {
  breach: { icon: "✕", word: "breach" },
  no_data: { icon: "?", word: "no data" },
  watching: { icon: "◌", word: "watching" },
  safe: { icon: "✓", word: "safe" },
};
export const ORDER = Object.keys(VERDICTS);

/** How bad a verdict is: 0 is worst. */
export const rank = (verdict) => ORDER.indexOf(verdict);

const DONE = { rollback: "rolled back", kill: "killed", pause: "paused", page: "paged", notify: "told", hold: "held" };
export const done = (action) => DONE[action] ?? action;

/** What became of a rollback or kill. */
export const AFTER = {
  waiting: "Exposures have not stopped yet: waiting for confirmation.",
  confirmed: "Confirmed: exposures have stopped.",
  unconfirmed: "NOT CONFIRMED: users are still exposed.",
  undone: "UNDONE: users are exposed again.",
  observed: "Observe mode: nothing was sent.",
  held: "HELD BACK by a limit: users are still exposed; `guardraild rollback` carries it out.",
};

// Three digits; of shares no more than two after the point: what is beyond is noise.
const round = (value, digits = 3) => {
  const size = Math.abs(value);
  if (size >= 10 ** (digits - 1)) return Math.round(value).toLocaleString("en");
  return String(Number(value.toPrecision(digits)));
};
const hundredths = (share) => String(Number((100 * share).toFixed(Math.abs(share) < 0.1 ? 2 : 1)));

/** A count with thousands apart. */
export const count = (n) => (n === null || n === undefined ? "–" : Math.round(n).toLocaleString("en"));

/** A value in the unit of its metric; shares come as fractions. */
export function value(number, unit) {
  if (number === null || number === undefined) return "no value";
  return unit === "%" ? `${hundredths(number)}%` : `${round(number)}${unit ? ` ${unit}` : ""}`;
}

const sign = (number, text) => (number > 0 ? `+${text}` : text.replace("-", "−"));

/** A relative change: 0.233 is +23.3%. */
export const percent = (x) => (x === null || x === undefined ? "–" : sign(x, `${hundredths(x)}%`));

/** A change in the unit of its metric: of shares, in points. */
export function difference(x, unit) {
  if (x === null || x === undefined) return "–";
  return unit === "%" ? sign(x, `${hundredths(x)} pp`) : sign(x, value(x, unit));
}

/** A share of something. */
export const share = (part, whole) => (whole > 0 ? `${hundredths(part / whole)}%` : "–");

export function span(ms) {
  const s = Math.max(0, Math.round(ms / 1000));
  if (s < 120) return `${s} s`;
  if (s < 7200) return `${Math.round(s / 60)} min`;
  if (s < 172800) return `${Math.round(s / 3600)} h`;
  return `${Math.round(s / 86400)} d`;
}

export const ago = (ms) => (ms === null || ms === undefined ? "never" : `${span(Date.now() - ms)} ago`);

/** Wall clock in UTC, as the log and the webhooks have it. */
export function clock(when) {
  if (when === null || when === undefined) return "–";
  const iso = new Date(when).toISOString();
  const day = iso.slice(0, 10);
  const time = `${iso.slice(11, 19)}Z`;
  return day === new Date().toISOString().slice(0, 10) ? time : `${day} ${time}`;
}

/** What a guardrail tolerates of the change: a number and its text; `null` where it has a limit only. */
export function margin(guardrail) {
  const of = guardrail.max_increase;
  if (!of) return null;
  const worse = guardrail.higher_is_worse === false ? -1 : 1;
  return "relative" in of
    ? { relative: true, at: worse * of.relative, text: percent(worse * of.relative), show: percent }
    : { relative: false, at: worse * of.absolute, text: difference(worse * of.absolute, guardrail.unit), show: (x) => difference(x, guardrail.unit) };
}

/** The change that a margin bounds. */
export function change(margin, baseline, bucket) {
  if (baseline === null || bucket === null || baseline === undefined || bucket === undefined) return null;
  if (!margin.relative) return bucket - baseline;
  return baseline === 0 ? null : bucket / baseline - 1;
}

export const path = (...parts) => `#/${parts.map(encodeURIComponent).join("/")}`;
