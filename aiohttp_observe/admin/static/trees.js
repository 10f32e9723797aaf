// Trees: who awaits whom, and who started whom.  Each task is drawn once, and mentioned after that.

import { count, duration, element, place } from "./draw.js";

const closed = new Set();
const DEEPEST = 60;

function facts(node) {
  const age = node.age_seconds === null ? "" : ` · ${duration(node.age_seconds)}`;
  return `${node.wait ? node.wait.replaceAll("_", " ") : node.state} · ${place(node.frame)}${age}`;
}

function label(node, via) {
  return [
    element("span", { className: `state ${node.state}`, title: node.state }),
    via && element("span", { text: `${via} → `, className: "dim" }),
    element("a", { href: `#tasks/${node.id}`, text: node.name, "data-key": `node-${node.id}` }),
    element("span", { text: ` ${facts(node)}`, className: "dim" }),
  ];
}

function branch(id, via, tree, below, drawn, depth) {
  const node = tree.get(id);
  const children = below.get(id) ?? [];
  if (drawn.has(id)) return element("li", {}, ...label(node, via), element("em", { text: " see above" }));
  drawn.add(id);
  if (!children.length || depth > DEEPEST) return element("li", {}, ...label(node, via));
  const inner = element("ul", {}, ...children.map(([child, through]) => branch(child, through, tree, below, drawn, depth + 1)));
  const made = element("details", {}, element("summary", { "data-key": `branch-${id}` }, ...label(node, via), element("span", { text: ` (${count(children.length)})`, className: "dim" })), inner);
  made.open = !closed.has(id);
  made.addEventListener("toggle", () => (made.open ? closed.delete(id) : closed.add(id)));
  return element("li", {}, made);
}

function forest(nodes, edges) {
  const tree = new Map(nodes.map((node) => [node.id, node]));
  const below = new Map();
  const led = new Set();
  for (const [from, to, via] of edges) {
    if (!below.has(from)) below.set(from, []);
    below.get(from).push([to, via]);
    led.add(to);
  }
  const drawn = new Set();
  const roots = [...below.keys()].sort((one, other) => led.has(one) - led.has(other) || one - other);
  const made = roots.filter((id) => tree.has(id)).map((id) => (drawn.has(id) ? null : branch(id, "", tree, below, drawn, 0)));
  return element("ul", { className: "tree" }, ...made);
}

function cycle(ids, names) {
  const path = [...ids, ids[0]].flatMap((id, index) => [index ? " → " : "", element("a", { href: `#tasks/${id}`, text: names.get(id) ?? `task ${id}` })]);
  return element("p", { className: "finding deadlock" }, "deadlock: ", ...path);
}

function draw({ nodes, awaits, created, cycles, truncated }) {
  const names = new Map(nodes.map((node) => [node.id, node.name]));
  return [
    element("h2", {}, "Who awaits whom ", element("span", { text: truncated ? `${count(truncated)} tasks not drawn` : "" })),
    ...cycles.map((ids) => cycle(ids, names)),
    awaits.length ? forest(nodes, awaits) : element("p", { text: "No task waits for another one.", className: "dim" }),
    element("h2", { text: "Who started whom" }),
    created.length ? forest(nodes, created) : element("p", { text: "No task was started by one that is still there.", className: "dim" }),
  ];
}

export const trees = { path: "/tree", load: (fetched) => fetched("/tree"), draw };
