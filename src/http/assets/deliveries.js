// The outbox: what was sent where, what became of it, and sending it again.

import { h } from "./dom.js";
import { forget, get, operator, post } from "./live.js";
import { clock, path, span } from "./format.js";

export const title = () => "Deliveries";
export const every = 3000;
export const load = () => get("api/v1/deliveries");

export function render({ deliveries }, again, reload) {
  return [h("h1", null, "Deliveries"), deliveries.length ? attempts(deliveries, reload) : h("p", { class: "quiet" }, "Nothing has been sent yet.")];
}

const LOOK = { delivered: ["✓", "safe"], pending: ["◌", "watching"], dead: ["✕", "breach"], cancelled: ["–", "no_data"] };

/** Deliveries with their attempts, and a button for each. */
export function attempts(deliveries, reload) {
  const state = (d) => {
    const [icon, look] = LOOK[d.state] ?? ["?", "no_data"];
    return h("span", { class: `badge ${look}` }, h("span", { "aria-hidden": "true" }, icon), ` ${d.state}`);
  };
  const next = (d) => (d.state === "pending" ? `next try ${d.next_attempt_ms > Date.now() ? `in ${span(d.next_attempt_ms - Date.now())}` : "now"}` : "");
  const tried = (a) => h("li", { value: a.n }, `${clock(a.at)} ${a.status ?? ""} ${a.error ?? ""}${a.duration_ms === null ? " in flight" : ` in ${a.duration_ms} ms`}`);
  const card = (d) => h("li", { class: "card", "data-key": d.id },
    h("div", { class: "spread" },
      h("div", null, state(d), " ", h("strong", null, d.type.replace("guardrail.", "")), ` to ${d.endpoint} `, h("span", { class: "quiet" }, next(d))),
      h("button", { type: "button", onclick: (event) => redeliver(event.currentTarget, d, reload), "aria-label": `Send again: ${d.type} to ${d.endpoint}` }, "Send again")),
    h("p", { class: "quiet" }, `${d.experiment}, made ${clock(d.created_ms)}, `, h("a", { href: path("d", d.decision) }, d.decision)),
    d.history.length ? h("ol", { class: "tries" }, d.history.slice(-3).map(tried)) : h("p", { class: "quiet" }, "No attempt yet."));
  return [h("p", { id: "said", role: "status", "data-kept": "yes" }), h("ul", { class: "cards" }, deliveries.map(card))];
}

async function redeliver(button, delivery, reload) {
  const say = (text) => (document.getElementById("said").textContent = text);
  button.disabled = true;
  try {
    const token = await operator("send deliveries again");
    await post("api/v1/deliveries/{}/redeliver", [delivery.id], {}, token);
    say(`Queued: ${delivery.type} to ${delivery.endpoint}. Its id stays the same, so the receiver can tell.`);
    await reload();
  } catch (error) {
    if (error.status === 401 || error.status === 403) forget();
    say(`Not sent again: ${error.message}. ${error.hint ?? ""}`);
  } finally {
    button.disabled = false;
    button.focus();
  }
}
