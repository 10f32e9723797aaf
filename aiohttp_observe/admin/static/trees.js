// Trees: who awaits whom, and who started whom.  Each task is drawn once, and mentioned after that.

import { CONNECTION, called, count, counted, duration, element, groupedBy, isOurs, kindly, place } from "./draw.js";

const closed = new Set();
const DEEPEST = 60;
const MOST_DRAWN = 300;
const FEWEST_ALIKE = 3;
const MOST_NAMED = 20;

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

// Those that wait for the same are one line, with what they wait for below it once.
function branches(siblings, drawing, depth) {
  return alike(siblings, drawing).flatMap((some) =>
    some.length < FEWEST_ALIKE ? some.map(([id, via]) => branch(id, via, drawing, depth)) : crowd(some, drawing, depth),
  );
}

const alike = (siblings, { below, drawn }) =>
  groupedBy(siblings, ([id, via]) => (drawn.has(id) || !below.has(id) ? `${id}` : `${via}: ${below.get(id).join("; ")}`));

function crowd(some, drawing, depth) {
  const { tree, below, drawn } = drawing;
  const nodes = some.map(([id]) => tree.get(id));
  const [first, via] = some[0];
  for (const { id } of nodes) drawn.add(id);
  drawing.lines += 1;
  const ages = nodes.map(({ age_seconds: age }) => age).filter((age) => age !== null);
  const places = [...new Set(nodes.map(({ wait, state, frame }) => `${wait ? kindly(wait) : state} · ${place(frame)}`))];
  const oldest = ages.length ? ` · the oldest ${duration(Math.max(...ages))}` : "";
  const told = [
    element("span", { className: "state waiting", title: "waiting" }),
    via && element("span", { text: `${via} → `, className: "dim" }),
    element("b", { text: `${count(nodes.length)} wait` }),
    element("span", { text: ` ${places.slice(0, 2).join(", ")}${places.length > 2 ? " and elsewhere" : ""}${oldest}: `, className: "dim" }),
    ...named(nodes.slice(0, MOST_NAMED)),
    nodes.length > MOST_NAMED && element("span", { text: ` and ${count(nodes.length - MOST_NAMED)} more`, className: "dim" }),
  ];
  return folded(`crowd-${first}`, told, branches(below.get(first), drawing, depth + 1));
}

// Links to tasks; those of one name by their ids.
function named(nodes) {
  const link = (node, text) => element("a", { href: `#tasks/${node.id}`, text, "data-key": `node-${node.id}` });
  return groupedBy(nodes, called).flatMap((same, index) => {
    const name = called(same[0]);
    const links = same.length === 1 ? [link(same[0], name)] : [name, ...same.flatMap((node) => [" ", link(node, String(node.id))])];
    return [index ? ", " : "", ...links];
  });
}

function branch(id, via, drawing, depth) {
  const { tree, below, drawn } = drawing;
  const node = tree.get(id);
  const children = below.get(id) ?? [];
  drawing.lines += 1;
  if (drawn.has(id)) return element("li", {}, ...label(node, via), element("em", { text: " see above" }));
  drawn.add(id);
  if (!children.length || depth > DEEPEST || drawing.lines > MOST_DRAWN) return element("li", {}, ...label(node, via));
  const told = [...label(node, via), element("span", { text: ` (${count(children.length)})`, className: "dim" })];
  return folded(`branch-${id}`, told, branches(children, drawing, depth + 1));
}

function folded(key, told, inner) {
  const made = element("details", {}, element("summary", { "data-key": key }, ...told), element("ul", {}, ...inner));
  made.open = !closed.has(key);
  made.addEventListener("toggle", () => (made.open ? closed.delete(key) : closed.add(key)));
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
  const drawing = { tree, below, drawn: new Set(), lines: 0 };
  const ids = [...below.keys()].sort((one, other) => one - other);
  // Those in a ring are led by each other: what is left of them when all others are drawn.
  const roots = [...alike(ids.filter((id) => !led.has(id)).map((id) => [id, ""]), drawing), ...ids.filter((id) => led.has(id)).map((id) => [[id, ""]])];
  const made = [];
  let left = 0;
  for (const some of roots) {
    if (drawing.drawn.has(some[0][0])) continue;
    if (drawing.lines < MOST_DRAWN) made.push(...branches(some, drawing, 0));
    else left += some.length;
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
