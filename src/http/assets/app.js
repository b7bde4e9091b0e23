// The frame: which view is shown, when it is loaded again, theme, pulse.

import { h, morph } from "./dom.js";
import { connect, on, standing } from "./live.js";
import { redraw } from "./charts.js";
import * as fleet from "./fleet.js";
import * as experiment from "./experiment.js";
import * as guardrail from "./guardrail.js";
import * as decision from "./decision.js";
import * as deliveries from "./deliveries.js";
import * as data from "./data.js";
import * as rules from "./rules.js";

// Path, parts in it, and the view: `load(parts)` gives data, `render(data, again)` a tree, `drawn(root, data)` adds charts.
const VIEWS = [
  [/^#?\/?$/, fleet],
  [/^#\/e\/([^/]+)$/, experiment],
  [/^#\/e\/([^/]+)\/([^/]+)\/([^/]+)$/, guardrail],
  [/^#\/d$/, decision.list],
  [/^#\/d\/([^/]+)$/, decision.one],
  [/^#\/deliveries$/, deliveries],
  [/^#\/data$/, data],
  [/^#\/rules$/, rules],
];
const NAV = [["#/", "Fleet"], ["#/d", "Decisions"], ["#/deliveries", "Deliveries"], ["#/data", "Data"], ["#/rules", "Rules"]];

const main = document.getElementById("main");
let shown = null;

function match() {
  for (const [path, view] of VIEWS) {
    const found = path.exec(location.hash);
    if (found) return { view, parts: found.slice(1).map(decodeURIComponent) };
  }
  return { view: { title: () => "Not found", load: async () => null, render: () => h("section", null, h("h1", null, "No such view")) }, parts: [] };
}

async function open() {
  const { view, parts } = match();
  const mine = (shown = { view, parts, loaded: 0, busy: false, data: null, first: true });
  document.title = `${view.title(parts)} · guardraild`;
  nav();
  await load(mine);
  if (mine === shown) {
    scrollTo(0, 0);
    if (document.activeElement !== document.body) main.focus({ preventScroll: true });
  }
}

async function load(mine) {
  if (mine.busy || document.hidden) return;
  mine.busy = true;
  try {
    mine.data = await mine.view.load(mine.parts, mine.data);
    mine.loaded = Date.now();
    if (mine === shown) render(mine);
  } catch (error) {
    // With nothing to show, say why; else the pulse tells that what is shown gets old.
    if (mine === shown && (error.status === 404 || mine.data === null)) failed(error);
  } finally {
    mine.busy = false;
  }
}

function render(mine) {
  const tree = h("main", { id: "main", tabindex: "-1" }, mine.view.render(mine.data, () => render(mine), () => load(mine)));
  if (mine.first) main.replaceChildren(...tree.childNodes);
  else morph(main, tree);
  mine.first = false;
  mine.view.drawn?.(main, mine.data);
}

function failed(error) {
  main.replaceChildren(h("section", { class: "card" }, h("h1", null, "Nothing to show"), h("p", null, error.message), error.hint && h("p", { class: "quiet" }, error.hint)));
}

function nav() {
  const here = (path) => path === location.hash || (path === "#/" && /^#?\/?$/.test(location.hash)) || (path === "#/d" && location.hash.startsWith("#/d/"));
  document.getElementById("nav").replaceChildren(...NAV.map(([path, text]) => h("a", { href: path, "aria-current": here(path) ? "page" : null }, text)));
}

function pulse({ word, stale, text }) {
  const mark = document.getElementById("pulse");
  const label = `${stale ? "○" : "●"} ${word}`;
  if (mark.textContent !== label) mark.textContent = label;
  mark.className = stale ? "off" : "on";
  const alarm = document.getElementById("alarm");
  alarm.hidden = !text;
  if (alarm.textContent !== text) alarm.textContent = text;
  document.body.classList.toggle("stale", stale);
}

const THEMES = ["auto", "light", "dark"];

function theme(next) {
  const button = document.getElementById("theme");
  const root = document.documentElement;
  root.dataset.theme = next;
  button.textContent = `Theme: ${next}`;
  button.onclick = () => {
    const after = THEMES[(THEMES.indexOf(next) + 1) % THEMES.length];
    try {
      localStorage.setItem("theme", after);
    } catch {
      // It holds for this page then.
    }
    theme(after);
  };
  redraw();
}

function remembered() {
  try {
    return THEMES.find((name) => name === localStorage.getItem("theme")) ?? "auto";
  } catch {
    return "auto";
  }
}

theme(remembered());
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
document.getElementById("skip").onclick = (event) => {
  event.preventDefault();
  main.focus();
};
addEventListener("hashchange", open);
addEventListener("keydown", (event) => {
  const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement?.tagName);
  if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey) {
    const filter = document.getElementById("filter");
    if (filter) {
      event.preventDefault();
      filter.focus();
    }
  }
});
document.addEventListener("visibilitychange", () => shown && load(shown));
on("tick", () => shown && Date.now() - shown.loaded >= shown.view.every - 100 && load(shown));
on("state", () => shown?.loaded && load(shown));
on("fresh", pulse);
pulse(standing());
connect();
open();
