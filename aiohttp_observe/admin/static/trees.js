// Trees: who awaits whom, and who started whom.  Each task is drawn once, and mentioned after that.

import { CONNECTION, called, count, counted, duration, element, isOurs, kindly, place } from "./draw.js";

const closed = new Set();
const DEEPEST = 60;
const MOST_DRAWN = 300;

function facts(node) {
  const age = node.age_seconds === null ? "" : ` · ${duration(node.age_seconds)}`;
  const title = called(node);
  const served = title !== node.name && node.request ? ` · ${node.name}` : node.request ? ` · for ${node.request.method} ${node.request.route}` : "";
  return `${node.wait ? kindly(node.wait) : node.state} · ${place(node.frame)}${age}${served}`;
}

function label(node, via) {
  return [
    element("span", { className: `state ${node.state}`, title: node.state }),
    via && element("span", { text: `${via} → `, className: "dim" }),
    element("a", { href: `#tasks/${node.id}`, text: called(node), "data-key": `node-${node.id}` }),
    element("span", { text: ` ${facts(node)}`, className: "dim" }),
  ];
}

function branch(id, via, tree, below, drawn, depth) {
  const node = tree.get(id);
  const children = below.get(id) ?? [];
  if (drawn.has(id)) return element("li", {}, ...label(node, via), element("em", { text: " see above" }));
  drawn.add(id);
  if (!children.length || depth > DEEPEST || drawn.size > MOST_DRAWN) return element("li", {}, ...label(node, via));
  const inner = element("ul", {}, ...children.map(([child, through]) => branch(child, through, tree, below, drawn, depth + 1)));
  const made = element("details", {}, element("summary", { "data-key": `branch-${id}` }, ...label(node, via), element("span", { text: ` (${count(children.length)})`, className: "dim" })), inner);
  made.open = !closed.has(id);
  made.addEventListener("toggle", () => (made.open ? closed.delete(id) : closed.add(id)));
  return element("li", {}, made);
}

// Without aiohttp's own task of each connection, which awaits and starts that of the request.
function forest(nodes, edges, nothing) {
  const tree = new Map(nodes.filter(({ coro, request }) => coro !== CONNECTION && !(request && isOurs(request.route))).map((node) => [node.id, node]));
  const below = new Map();
  const led = new Set();
  for (const [from, to, via] of edges) {
    if (!tree.has(from) || !tree.has(to)) continue;
    if (!below.has(from)) below.set(from, []);
    below.get(from).push([to, via]);
    led.add(to);
  }
  if (!below.size) return element("p", { text: nothing, className: "empty card" });
  const drawn = new Set();
  const roots = [...below.keys()].sort((one, other) => led.has(one) - led.has(other) || one - other);
  const made = [];
  let left = 0;
  for (const id of roots) {
    if (drawn.has(id)) continue;
    if (drawn.size < MOST_DRAWN) made.push(branch(id, "", tree, below, drawn, 0));
    else left += 1;
  }
  if (left) made.push(element("li", { text: `and ${count(left)} more that ${left === 1 ? "isn't" : "aren't"} drawn`, className: "dim" }));
  return element("ul", { className: "tree" }, ...made);
}

// Its address names one of its tasks.
function cycle(ids, names, detail) {
  const path = [...ids, ids[0]].flatMap((id, index) => [index ? " → " : "", element("a", { href: `#tasks/${id}`, text: names.get(id) ?? `task ${id}` })]);
  const chosen = ids.includes(Number(detail)) ? `trees/${detail}` : undefined;
  return element("p", { className: "finding deadlock", tabindex: -1, "data-key": `cycle-${ids[0]}`, "data-detail": chosen }, "deadlock: ", ...path);
}

function draw({ nodes, awaits, created, cycles, truncated }, detail) {
  const names = new Map(nodes.map((node) => [node.id, node.name]));
  return [
    element("h2", {}, "Who awaits whom ", element("span", { text: truncated ? `${counted(truncated, "task")} not drawn` : "" })),
    ...cycles.map((ids) => cycle(ids, names, detail)),
    forest(nodes, awaits, "No task waits for another one."),
    element("h2", { text: "Who started whom" }),
    forest(nodes, created, "No task was started by one that is still there."),
  ];
}

export const trees = { path: "/tree", load: (fetched) => fetched("/tree"), draw };
