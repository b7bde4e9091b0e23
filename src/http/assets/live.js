// The connection: what is asked for, the pulse, and whether what is shown may be believed.

/** Without a pulse for this long, what is shown is stale. */
const STALE_MS = 4000;
const POLL_MS = 5000;

const hearers = { tick: new Set(), state: new Set(), fresh: new Set() };
let last = 0;
let pulse = null;
let source = null;
let polling = false;

export const on = (event, hear) => hearers[event].add(hear);
const tell = (event, ...what) => hearers[event].forEach((hear) => hear(...what));

/** Failure of a request, with the API's own words. */
export class Failed extends Error {
  constructor(status, answer) {
    super(answer?.error ?? `the daemon answered ${status}`);
    this.status = status;
    this.hint = answer?.hint ?? "";
  }
}

/** GET; resources of one path are parts that are escaped. */
export async function get(path, parts = [], token) {
  const url = parts.reduce((url, part) => url.replace("{}", encodeURIComponent(part)), path);
  const headers = token ? { authorization: `Bearer ${token}` } : {};
  const answer = await fetch(url, { headers });
  if (!answer.ok) throw new Failed(answer.status, await answer.json().catch(() => null));
  return answer.json();
}

/** POST by an operator; `also` is a status that carries an answer, too. */
export async function post(path, parts, body, token, also) {
  const url = parts.reduce((url, part) => url.replace("{}", encodeURIComponent(part)), path);
  const headers = { "content-type": "application/json", authorization: `Bearer ${token}` };
  const answer = await fetch(url, { method: "POST", headers, body: JSON.stringify(body) });
  if (!answer.ok && answer.status !== also) throw new Failed(answer.status, await answer.json().catch(() => null));
  return answer.json();
}

function beat(tick) {
  last = Date.now();
  pulse = tick;
  tell("fresh", standing());
  tell("tick", tick);
}

/** What may be said of the data now. */
export function standing() {
  const silent = Date.now() - last;
  if (last === 0) return { word: "connecting", stale: true, text: "Connecting to the daemon." };
  if (silent > STALE_MS) return { word: "stale", stale: true, text: `No word from the daemon: what is shown is ${Math.round(silent / 1000)} s old. Trying again.` };
  const failing = pulse.failing.map((check) => `${check.name}: ${check.detail}`).join("; ");
  if (!pulse.fresh) {
    const since = pulse.at > 0 ? `its view is of ${new Date(pulse.at).toISOString().slice(11, 19)}Z` : "it has judged nothing yet";
    return { word: "stale", stale: true, text: `The daemon judges nothing now: ${since}. ${failing}` };
  }
  if (failing) return { word: "not ready", stale: false, text: `Not ready. ${failing}` };
  return { word: "live", stale: false, text: "" };
}

/** Opens the stream, again and again if it must be. */
export function connect() {
  source?.close();
  source = new EventSource("api/v1/events");
  source.addEventListener("tick", (event) => {
    polling = false;
    beat(JSON.parse(event.data));
  });
  source.addEventListener("state", (event) => tell("state", JSON.parse(event.data)));
  // A browser gives up where the answer is no stream: too many are open, or a proxy has no daemon behind it.
  source.onerror = () => {
    if (source.readyState === EventSource.CLOSED) {
      polling = true;
      setTimeout(connect, POLL_MS);
    }
  };
}

async function poll() {
  if (!polling) return;
  try {
    const data = await get("api/v1/data");
    beat({ at: data.at, fresh: data.fresh, failing: data.checks.filter((check) => !check.ok) });
    tell("state", null);
  } catch {
    // The pulse stays away, and the page says so.
  }
}

setInterval(() => tell("fresh", standing()), 1000);
setInterval(poll, POLL_MS - 500);

let token = null;

/** The operator's token: asked for once, kept in memory alone. */
export function operator(why) {
  if (token) return Promise.resolve(token);
  return ask(why).then((given) => (token = given));
}

/** Forgets a token that was refused. */
export const forget = () => (token = null);

function ask(why) {
  const dialog = document.createElement("dialog");
  const form = document.createElement("form");
  form.method = "dialog";
  const label = document.createElement("label");
  const input = Object.assign(document.createElement("input"), { type: "password", required: true, autocomplete: "off", name: "token" });
  const note = document.createElement("p");
  const [go, no] = ["Use it", "Cancel"].map((text) => Object.assign(document.createElement("button"), { textContent: text }));
  Object.assign(no, { type: "button", onclick: () => dialog.close() });
  label.append(`Token with the role operate, to ${why}`, input);
  note.textContent = "It is kept in this page's memory and nowhere else.";
  form.append(label, note, go, " ", no);
  dialog.append(form);
  document.body.append(dialog);
  return new Promise((resolve, reject) => {
    form.onsubmit = () => (dialog.returnValue = "given");
    dialog.onclose = () => {
      dialog.remove();
      if (dialog.returnValue === "given" && input.value) resolve(input.value);
      else reject(new Error("no token was given"));
    };
    dialog.showModal();
  });
}
