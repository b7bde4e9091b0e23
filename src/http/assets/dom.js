// Elements from data. Text is always text: nothing here takes HTML.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") element[name] = value;
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** An element; functions among the attributes become handlers. */
export function h(tag, attributes, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** An element of SVG. */
export function s(tag, attributes, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

/** A drawing that says in words what it shows. */
export function drawing(width, height, label, ...children) {
  return s("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label, class: "drawing" }, ...children);
}

/** A table whose first column names its rows; `head` are texts, `rows` lists of cells. On a phone it scrolls by itself. */
export function table(caption, head, rows, attributes) {
  const cell = (content, i) => h(i === 0 ? "th" : "td", i === 0 ? { scope: "row" } : null, content);
  return h(
    "div",
    { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    h(
      "table",
      attributes,
      h("caption", { class: "sr" }, caption),
      h("thead", null, h("tr", null, head.map((text) => h("th", { scope: "col" }, text)))),
      h("tbody", null, rows.map((row) => h("tr", null, row.map(cell)))),
    ),
  );
}

const HANDLERS = ["onclick", "oninput", "onsubmit", "onchange"];
// What a user or a chart has changed stays as it is.
const KEPT = new Set(["open"]);

/** Makes `old` like `fresh` and touches only what differs, so that focus, scrolling and charts stay. */
export function morph(old, fresh) {
  if (old.nodeType !== fresh.nodeType || old.nodeName !== fresh.nodeName || old.dataset?.key !== fresh.dataset?.key) {
    old.replaceWith(fresh);
    return;
  }
  if (old.nodeType !== Node.ELEMENT_NODE) {
    if (old.nodeValue !== fresh.nodeValue) old.nodeValue = fresh.nodeValue;
    return;
  }
  for (const { name } of [...old.attributes]) if (!fresh.hasAttribute(name) && !KEPT.has(name)) old.removeAttribute(name);
  for (const { name, value } of fresh.attributes) if (!KEPT.has(name) && old.getAttribute(name) !== value) old.setAttribute(name, value);
  for (const handler of HANDLERS) if (old[handler] !== fresh[handler]) old[handler] = fresh[handler];
  if (!old.dataset?.chart && !old.dataset?.kept) children(old, fresh);
}

function children(old, fresh) {
  const wanted = [...fresh.childNodes];
  const had = [...old.childNodes];
  wanted.forEach((node, i) => (i < had.length ? morph(had[i], node) : old.append(node)));
  had.slice(wanted.length).forEach((node) => node.remove());
}
