// Rule files: which revision is in force, what the disk holds now, what the checks find.

import { h, table } from "./dom.js";
import { forget, get, operator, post } from "./live.js";
import { path } from "./format.js";

export const title = () => "Rules";
export const every = 5000;
export const load = () => get("api/v1/rules");

// Icon, look and meaning of each state of a file.
const STATES = {
  loaded: ["✓", "safe", "in force as it was read"],
  stale: ["◌", "watching", "an earlier text of it is in force"],
  refused: ["✕", "breach", "nothing of it is in force"],
  leaving: ["–", "no_data", "gone from the disk; watched until what it stopped has stopped"],
};
let compared = null;

export function render({ files }, again) {
  const state = (file) => {
    const [icon, look, meaning] = STATES[file.state] ?? ["?", "no_data", ""];
    return [h("span", { class: `badge ${look}` }, h("span", { "aria-hidden": "true" }, icon), ` ${file.state}`), ` ${meaning}`];
  };
  const worst = (file) => Object.keys(STATES).indexOf(file.state) * (file.state === "leaving" ? 0 : 1);
  const sorted = [...files].sort((a, b) => worst(b) - worst(a) || a.file.localeCompare(b.file));
  const row = (file) => [file.file, file.experiment ? h("a", { href: path("e", file.experiment) }, file.experiment) : "sources", file.revision ?? "–", state(file), h("ul", { class: "tries" }, [...(file.faults ?? []), ...(file.warnings ?? [])].map((found) => h("li", null, h("code", null, found))))];
  return [
    h("h1", null, "Rules"),
    files.length ? table("Rule files", ["File", "Experiment", "Revision", "State", "Findings"], sorted.map(row), { class: "text" }) : h("p", { class: "quiet" }, "No file is known yet."),
    h("h2", null, "Against the disk"),
    h("p", { class: "quiet" }, "What a reload would change now. Nothing is changed by looking."),
    h("button", { type: "button", onclick: () => compare(again) }, "Compare with the disk"),
    h("p", { id: "said", role: "status", "data-kept": "yes" }),
    compared && difference(compared),
  ];
}

const LOOK = { added: "added", removed: "removed" };

function difference({ changes, files }) {
  const bad = files.filter((file) => file.faults?.length);
  return [
    changes.length === 0 && bad.length === 0 && h("p", null, "✓ What is in force is what the disk holds."),
    changes.map((change) => h("section", { class: "card" }, h("h3", null, `${change.file}: ${change.what}`),
      h("ul", { class: "tries" }, change.lines.map((line) => h("li", { class: LOOK[change.what] }, h("code", null, line)))))),
    bad.map((file) => h("section", { class: "card" }, h("h3", null, `${file.file} would be ${file.state}`), h("ul", { class: "tries" }, file.faults.map((fault) => h("li", null, h("code", null, fault)))))),
  ];
}

async function compare(again) {
  const say = (text) => (document.getElementById("said").textContent = text);
  try {
    const token = await operator("compare the rules with the disk");
    // Files that would not do are an answer, too.
    compared = await post("-/reload?dry_run=true", [], {}, token, 409);
    say("");
    again();
  } catch (error) {
    if (error.status === 401 || error.status === 403) forget();
    say(`Not compared: ${error.message}. ${error.hint ?? ""}`);
  }
}
