// Tasks: grouped by where they wait, then one by one.

import { CONNECTION, REQUEST, cell, count, counted, drawing, duration, element, groupedBy, isOurs, kindly, label, number, ownFrame, place, stack, table } from "./draw.js";

const FEW = 200;
const MANY = 2000;
const MOST_GROUPS = 12;

// What is shown: filters that the service applies, and what is searched for here.
export const show = { state: null, wait: null, coro: null, search: "", sort: "age", ascending: false, limit: FEW, all: false, connections: false };
const details = new Map();

export function feedQuery() {
  const asked = new URLSearchParams({ frames: "20", limit: show.limit });
  for (const [name, value] of filters()) asked.set(name, value);
  return asked;
}

// The tasks that serve connections would be in front of the others, being the oldest and the most.
function filters() {
  const coro = show.coro ?? (show.connections ? null : `!${CONNECTION}`);
  return Object.entries({ state: show.state, wait: show.wait, coro, search: show.search.trim() }).filter(([, value]) => value);
}

const ours = (task) => task.request !== null && isOurs(task.request.route);

// A request's own task runs aiohttp's coroutine: what the service calls it is its handler.
const title = (task) => (task.coro === REQUEST && task.frames.length ? ownFrame(task.frames).function : task.coro);

const KEYS = {
  id: (task) => task.id,
  task: (task) => `${title(task)} ${task.name}`,
  wait: (task) => (task.wait ? `${task.wait.kind} ${task.wait.detail}` : task.state),
  where: (task) => place(ownFrame(task.frames)),
  request: (task) => (task.request ? `${task.request.route} ${task.request.id}` : ""),
  age: (task) => task.age_seconds ?? -1,
};
const COLUMNS = { id: "id", task: "Task", wait: "Waits for", where: "Where", request: "Request", age: "Age" };

function chosen(tasks) {
  const words = show.search.toLowerCase().split(/\s+/).filter(Boolean);
  const text = (task) => [task.id, task.operation, task.trace_id, ...["task", "wait", "where", "request"].map((name) => KEYS[name](task))].join(" ").toLowerCase();
  const found = words.length ? tasks.filter((task) => { const all = text(task); return words.every((word) => all.includes(word)); }) : tasks;
  const key = KEYS[show.sort];
  const order = show.ascending ? 1 : -1;
  return [...found].sort((one, other) => ours(one) - ours(other) || order * (key(one) > key(other) ? 1 : key(one) < key(other) ? -1 : 0));
}

function groupRows(groups, page) {
  const shown = show.all ? groups : groups.slice(0, MOST_GROUPS);
  const marks = marksOf(shown);
  const most = Math.max(...groups.map((group) => group.count));
  const rows = shown.map((group, index) => {
    const served = group.coro === REQUEST;
    const what = told(group);
    const filter = () => page.choose({ coro: exactly(group.coro), wait: group.wait, search: served ? place(group.frame) : "" });
    const bar = drawing("svg", { viewBox: "0 0 100 4", preserveAspectRatio: "none", class: "share", "aria-hidden": "true" }, drawing("rect", { width: (100 * group.count) / most, height: 4 }));
    return element(
      "tr",
      { className: "pick", tabindex: 0, "data-key": `group-${index}`, title: "show these tasks", on: { click: filter, keydown: (event) => event.key === "Enter" && filter() } },
      element("td", { className: "number many" }, element("b", { text: count(group.count) }), bar),
      element("td", {}, element("span", { text: group.wait ? kindly(group.wait) : group.detail, className: "kind" }), group.wait && group.wait !== group.detail && element("small", { text: group.detail })),
      element("td", {}, element("span", { text: place(group.frame), className: "where" }), what && element("small", { text: what }), marks.get(group) && element("small", { text: marks.get(group) })),
      number(duration(group.oldest_seconds)),
    );
  });
  if (groups.length > shown.length) rows.push(more(counted(groups.length - shown.length, "more group"), 4, () => { show.all = true; page.redraw(); }));
  return rows;
}

// What runs there, unless that is plain from the place.
const told = ({ coro, frame }) => (coro === REQUEST ? "request handler" : coro.split(".").at(-1) === frame?.function ? "" : coro);

// What tells groups apart that would read alike: their coroutine, or their file.
function marksOf(groups) {
  const differences = [({ coro }) => coro, ({ frame }) => frame?.file ?? ""];
  const marks = new Map();
  for (const alike of groupedBy(groups, (group) => [group.wait, group.detail, place(group.frame), told(group)].join("\n"))) {
    const telling = alike.length > 1 && differences.find((one) => new Set(alike.map(one)).size > 1);
    if (telling) for (const group of alike) marks.set(group, telling(group));
  }
  return marks;
}

// A coroutine's name as a pattern of the service's that matches nothing else.
const exactly = (coro) => coro.replace(/[[*?]/g, (sign) => `[${sign}]`);

const more = (text, columns, act) =>
  element("tr", {}, element("td", { colspan: columns, className: "empty" }, element("button", { type: "button", text, "data-key": text.replace(/\d+/, "#"), on: { click: act } })));

function head(page) {
  return Object.entries(COLUMNS).map(([name, text]) => {
    const sorted = show.sort === name;
    const sort = () => { Object.assign(show, sorted ? { ascending: !show.ascending } : { sort: name, ascending: name !== "age" }); page.redraw(); };
    return element(
      "th",
      { scope: "col", className: name === "id" || name === "age" ? "number" : "", "aria-sort": sorted ? (show.ascending ? "ascending" : "descending") : "none" },
      element("button", { type: "button", text, "data-key": `sort-${name}`, on: { click: sort } }),
    );
  });
}

function row(task, open) {
  const toggle = () => { location.hash = open ? "#tasks" : `#tasks/${task.id}`; };
  const act = (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); toggle(); } };
  return element(
    "tr",
    { className: ours(task) ? "pick task aside" : "pick task", tabindex: 0, "aria-expanded": open, "data-key": `task-${task.id}`, "data-detail": `tasks/${task.id}`, on: { click: toggle, keydown: act } },
    number(task.id),
    element("td", {}, element("span", { className: "coro" }, element("span", { className: `state ${task.state}`, title: task.state }), title(task)), element("small", { text: task.operation ? `${task.name} · ${task.operation}` : task.name })),
    element("td", {}, ...waits(task)),
    cell(place(ownFrame(task.frames)), "where"),
    task.request ? element("td", {}, element("span", { text: `${task.request.method} ${task.request.route}` }), element("small", { text: task.request.id, title: task.request.id, className: "id" })) : cell(""),
    number(duration(task.age_seconds)),
  );
}

function waits({ wait, state, warnings }) {
  const shown = wait ? [element("span", { text: kindly(wait.kind), className: "kind" }), wait.kind !== wait.detail && element("small", { text: wait.detail })] : [element("span", { text: state })];
  return [...shown, ...warnings.map((text) => element("small", { text: `⚠ ${text}`, className: "warning" }))];
}

const link = (id) => element("a", { href: `#tasks/${id}`, text: `task ${id}` });
const links = (ids) => [...ids.slice(0, 20).flatMap((id, index) => [index ? ", " : "", link(id)]), ids.length > 20 ? ` and ${count(ids.length - 20)} more` : ""];

// What is known of a task, and whom it has to do with.
function facts(task, picture) {
  const resource = picture.resources.find(({ id }) => id === task.wait?.resource);
  const awaiting = picture.tasks.filter((other) => other.wait?.on.includes(task.id)).map(({ id }) => id);
  const made = picture.tasks.filter((other) => other.created_by === task.id).map(({ id }) => id);
  return [
    ["name", [task.name]],
    ["coroutine", [task.coro]],
    task.wait && ["waits for", [`${kindly(task.wait.kind)}: ${task.wait.detail}`]],
    resource && ["waits at", [element("a", { href: `#resources/${resource.id}`, text: `${resource.type} ${resource.id}` }), ` (${resource.detail})`]],
    resource?.holders.length && ["held by", links(resource.holders)],
    task.wait?.on.length && ["awaits", links(task.wait.on)],
    awaiting.length && ["is awaited by", links(awaiting)],
    task.created_at_frame && ["created at", [place(task.created_at_frame), task.created_by ? " by " : "", task.created_by ? link(task.created_by) : ""]],
    made.length && ["has started", links(made)],
    task.operation && ["operation", [task.operation]],
    task.request && ["works for", [element("a", { href: `#requests/${encodeURIComponent(task.request.id)}`, text: `${task.request.method} ${task.request.route}, request ${task.request.id}` })]],
    task.trace_id && ["trace", [task.trace_id]],
  ].filter(Boolean);
}

function detailRow(task, picture, page) {
  const whole = details.get(task.id) ?? task;
  const told = facts(task, picture).flatMap(([name, value]) => [element("dt", { text: name }), element("dd", {}, ...value)]);
  const stop = () => page.cancel(`${task.id}/cancel`, `Cancel task ${task.id}, ${task.name}?`, 1);
  return element(
    "tr",
    { className: "details" },
    element(
      "td",
      { colspan: 6 },
      element(
        "div",
        { className: "both" },
        element("section", {}, element("h3", { text: "Await chain, innermost first" }), stack(whole.frames)),
        element("section", {}, element("h3", { text: "What is known" }), element("dl", { className: "facts" }, ...told), picture.allow_cancel && element("button", { type: "button", className: "danger", text: "Cancel this task", "data-key": "cancel", on: { click: stop } })),
      ),
    ),
  );
}

function filterBar(picture, page) {
  const active = ["state", "wait", "coro"].filter((name) => show[name]);
  const query = new URLSearchParams(filters());
  const total = picture.summary.total;
  let typing = 0;
  const searched = ({ target }) => {
    show.search = target.value;
    clearTimeout(typing);
    typing = setTimeout(() => { page.redraw(); page.choose({}); }, 250);
  };
  return element(
    "div",
    { id: "filters" },
    element("input", { id: "search", type: "search", placeholder: "Filter: name, place, request…  (key /)", "aria-label": "Filter", value: show.search, "data-key": "search", on: { input: searched } }),
    ...active.map((name) => element("button", { type: "button", className: "chip", text: `${name}: ${show[name]} ✕`, "data-key": `chip-${name}`, on: { click: () => page.choose({ [name]: null }) } })),
    picture.allow_cancel && active.length > 0 && element("button", { type: "button", className: "danger", text: total === 1 ? "Cancel this one" : `Cancel these ${count(total)}`, "data-key": "cancel-all", on: { click: () => page.cancel(`cancel?${query}`, `Cancel the ${counted(total, "task")} with ${active.map((name) => `${name} ${show[name]}`).join(", ")}?`, total) } }),
  );
}

function draw(picture, detail, page) {
  const opened = Number(detail);
  if (opened) loadDetail(opened, page);
  const found = chosen(picture.tasks);
  const rows = found.flatMap((task) => (task.id === opened ? [row(task, true), detailRow(task, picture, page)] : [row(task, false)]));
  if (opened && !show.search && !found.some(({ id }) => id === opened)) {
    const task = details.get(opened);
    if (task) rows.unshift(row(task, true), detailRow(task, picture, page));
    else rows.unshift(absent(opened, task));
  }
  if (picture.truncated && show.limit < MANY) rows.push(more(`${count(picture.truncated)} more`, 6, () => page.choose({ limit: MANY })));
  if (!rows.length) rows.push(element("tr", {}, element("td", { text: show.search || filters().some(([name]) => show[name]) ? "No task passes the filter." : "No task but aiohttp's own.", colspan: 6, className: "empty" })));
  for (const one of rows) if (one.cells.length > 1) label(one, Object.values(COLUMNS));
  const left = picture.truncated ? ` · ${count(picture.truncated)} not sent` : "";
  return [
    element("h2", {}, "Where they wait ", element("span", { text: "the largest crowd of the service's own code first" })),
    table(["#Tasks", "Waiting for", "At", "#Oldest"], groupRows(picture.groups, page), "No tasks."),
    element("h2", {}, "Tasks ", element("span", { id: "count", text: `${count(found.length)} of ${count(picture.summary.total)}${left}` })),
    filterBar(picture, page),
    element("div", { className: "scroll" }, element("table", { id: "list" }, element("thead", {}, element("tr", {}, ...head(page))), element("tbody", {}, ...rows))),
  ];
}

// An opened task that wasn't sent, and is being asked for (undefined) or isn't there (null).
function absent(id, task) {
  const text = task === null ? `Task ${id} isn't there any more: it has ended.` : `Looking for task ${id}…`;
  const found = task === null ? { tabindex: -1, "data-key": `task-${id}`, "data-detail": `tasks/${id}` } : {};
  return element("tr", found, element("td", { text, colspan: 6, className: "empty" }));
}

// The whole chain of the opened task, asked for with each picture; null for one that isn't there.
let asked = {};
function loadDetail(id, page) {
  const picture = page.picture();
  if (asked.picture === picture && asked.id === id) return;
  asked = { picture, id };
  const keep = (task) => {
    if (asked.id !== id) return;
    const known = details.get(id);
    details.clear();
    details.set(id, task);
    if (known === undefined || !known !== !task) page.redraw();
  };
  page.fetched(`/${id}`).then(keep, () => keep(null));
}

export const tasks = { draw };
