"use strict";
// Fetches the page again when something has changed, and every five seconds so that its age is right.
const state = document.getElementById("state");
let busy = false;
async function refresh() {
  if (busy) return;
  busy = true;
  try {
    const answer = await fetch("/", { cache: "no-store" });
    if (!answer.ok) throw new Error(answer.status);
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    state.replaceChildren(...page.getElementById("state").childNodes);
    state.classList.remove("stale");
  } catch {
    state.classList.add("stale");
  } finally {
    busy = false;
  }
}
new EventSource("/api/v1/events").addEventListener("state", refresh);
setInterval(refresh, 5000);
