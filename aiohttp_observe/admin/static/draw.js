// Elements, and how times and places read.  Text always goes into the page as text, never as markup.

const SVG = "http://www.w3.org/2000/svg";

export const base = document.body.dataset.base;
export const at = (id) => document.getElementById(id);

export function element(tag, { text, className, on, ...attributes } = {}, ...children) {
  const made = document.createElement(tag);
  if (text !== undefined && text !== null) made.textContent = text;
  if (className) made.className = className;
  for (const [name, value] of Object.entries(attributes)) if (value !== undefined) made.setAttribute(name, value);
  for (const [event, handler] of Object.entries(on ?? {})) made.addEventListener(event, handler);
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

export function drawing(tag, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

// Replaces the children but keeps the keyboard, what is folded out, and what is scrolled to where they were.
// While somebody selects text in there, to copy it, nothing moves.
export function redraw(parent, ...children) {
  const marked = document.getSelection();
  if (!marked.isCollapsed && parent.contains(marked.anchorNode)) return;
  const focused = parent.contains(document.activeElement) ? document.activeElement : null;
  const key = focused?.dataset.key;
  const selection = focused?.tagName === "INPUT" ? [focused.selectionStart, focused.selectionEnd] : null;
  const open = [...parent.querySelectorAll("details[data-key][open]")].map((folded) => folded.dataset.key);
  const scrolled = [...parent.querySelectorAll(".scroll, .tree")].map((area) => area.scrollLeft);
  parent.replaceChildren(...children.flat().filter(Boolean));
  for (const folded of parent.querySelectorAll("details[data-key]")) if (open.includes(folded.dataset.key)) folded.open = true;
  parent.querySelectorAll(".scroll, .tree").forEach((area, index) => { if (scrolled[index]) area.scrollLeft = scrolled[index]; });
  if (key === undefined) return;
  const again = parent.querySelector(`[data-key="${CSS.escape(key)}"]`);
  again?.focus({ preventScroll: true });
  if (selection) again?.setSelectionRange(...selection);
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 0.0095) return `${(seconds * 1000).toFixed(1)} ms`;
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 90) return `${seconds.toFixed(1)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

export const count = (number) => number.toLocaleString("en");
export const counted = (number, what) => `${count(number)} ${what}${number === 1 ? "" : "s"}`;
export const clock = (at) => at.slice(11, 19);
export const kindly = (kind) => kind.replaceAll("_", " ");

// aiohttp's server runs one coroutine for every connection and one for every request: neither says anything.
export const CONNECTION = "RequestHandler.start";
export const REQUEST = "RequestHandler._handle_request";

// What to call a task of which no more is known: a request's own by what is asked for.
export const called = ({ name, coro, request }) => (request && coro === REQUEST ? `${request.method} ${request.route}` : brief(name));

const LONGEST = 80;
const brief = (text) => (text.length > LONGEST ? `${text.slice(0, LONGEST)}…` : text);

// Both ends of a long id: those that count up, or begin with the time, are alike in front.
export const ends = (id) => (id.length > 16 ? `${id.slice(0, 6)}…${id.slice(-6)}` : id);

// Requests that this console itself makes.
export const isOurs = (route) => route === base || route.startsWith(`${base}/`);

const fileName = (path) => path.split(/[/\\]/).slice(-2).join("/");
const isLibrary = ({ file }) => /[/\\](site-packages|dist-packages|python3\.\d+|asyncio|aiohttp_observe)[/\\]|\\Lib\\|^<frozen/.test(file);

export const place = (frame) => (frame ? `${fileName(frame.file)}:${frame.line} ${frame.function}` : "");
export const ownFrame = (frames) => frames.find((frame) => !isLibrary(frame)) ?? frames[0] ?? null;

// The functions of an await chain or stack, innermost first.
export function stack(frames) {
  const lines = frames.map((frame) =>
    element("li", { text: `${frame.file}:${frame.line} in ${frame.function}`, className: isLibrary(frame) ? "dim" : "" }),
  );
  return element("ol", { className: "stack" }, ...lines);
}

// Arrays of what has the same key, in the order in which they came up.
export function groupedBy(all, key) {
  const groups = new Map();
  for (const one of all) groups.set(key(one), [...(groups.get(key(one)) ?? []), one]);
  return [...groups.values()];
}

// What stands over each cell, for narrow screens, where it stands beside it.
export function label(row, heads) {
  [...row.children].forEach((one, index) => { if (one.colSpan === 1 && heads[index]) one.dataset.label = heads[index].replace("#", ""); });
  return row;
}

export function table(heads, rows, nothing) {
  const cells = heads.map((head) => element("th", { text: head.replace("#", ""), className: head.startsWith("#") ? "number" : "", scope: "col" }));
  for (const row of rows) label(row, heads);
  const body = rows.length ? rows : [element("tr", {}, element("td", { text: nothing, colspan: heads.length, className: "empty" }))];
  return element("div", { className: "scroll" }, element("table", {}, element("thead", {}, element("tr", {}, ...cells)), element("tbody", {}, ...body)));
}

export const cell = (text, className) => element("td", { text, className });
export const number = (text) => cell(text, "number");

const FEWEST_POINTS = 4;

// Values that aren't known leave their place empty.  So few that they would be a dot beside it aren't drawn yet.
export function sparkline(values) {
  const all = values.map((value, index) => [index, value]).filter(([, value]) => value !== undefined && value !== null);
  const known = all.length < Math.max(FEWEST_POINTS, values.length / 10) ? [] : all;
  const most = Math.max(...known.map(([, value]) => value), 1e-9);
  const step = 100 / Math.max(values.length - 1, 1);
  const points = known.map(([index, value]) => `${(index * step).toFixed(1)},${(22 - (20 * value) / most).toFixed(1)}`);
  const [from, to] = [known[0]?.[0] ?? 0, known.at(-1)?.[0] ?? 0].map((index) => (index * step).toFixed(1));
  const area = `${from},24 ${points.join(" ")} ${to},24`;
  return drawing(
    "svg",
    { viewBox: "0 0 100 24", preserveAspectRatio: "none", class: "spark", "aria-hidden": "true" },
    ...(points.length ? [drawing("polygon", { points: area }), drawing("polyline", { points: points.join(" ") })] : []),
  );
}

// Where the time went: busy, ready, waiting by kind, the rest.
export function split({ seconds, busy_seconds, ready_seconds, waiting }) {
  const parts = [["busy", busy_seconds], ["ready", ready_seconds], ...Object.entries(waiting).sort((one, other) => other[1] - one[1])];
  const total = Math.max(seconds, parts.reduce((sum, [, value]) => sum + value, 0), 1e-9);
  let left = 0;
  const bars = parts.map(([kind, value], index) => {
    const width = (100 * value) / total;
    const bar = drawing("rect", { x: left.toFixed(2), y: 0, width: width.toFixed(2), height: 8, class: index < 2 ? kind : `waits waits-${(index - 2) % 4}` });
    left += width;
    return bar;
  });
  const told = parts.filter(([, value]) => value >= 0.0005).slice(0, 4).map(([kind, value]) => `${kindly(kind)} ${duration(value)}`);
  return element(
    "div",
    { className: "split" },
    drawing("svg", { viewBox: "0 0 100 8", preserveAspectRatio: "none", "aria-hidden": "true" }, ...bars),
    element("small", { text: told.join(" · ") || "–" }),
  );
}

export async function fetched(path) {
  const response = await fetch(`${base}${path}`, { headers: { Accept: "application/json" } });
  if (response.ok) return response.json();
  if (response.status === 401) throw new Error("logged out: reload the page");
  const refusal = await response.json().catch(() => ({}));
  throw new Error(refusal.error ?? `answer ${response.status}`);
}
