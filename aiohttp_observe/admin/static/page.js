// The task page: asks for the snapshot every two seconds and draws it.
// All text of the service goes into the page as text, never as markup.

const base = document.body.dataset.base;
const INTERVAL = 2000;
const MOST_ROWS = 500;

const view = { paused: false, sort: "age", ascending: false, search: "", state: null, wait: null, open: new Set() };
let snapshot = null;

const at = (id) => document.getElementById(id);

function element(tag, { text, className, ...attributes } = {}, ...children) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children.filter(Boolean));
  return made;
}

function duration(seconds) {
  if (seconds === null) return "–";
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 90) return `${seconds.toFixed(1)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

const fileName = (path) => path.split("/").slice(-2).join("/");
const place = (frame) => `${fileName(frame.file)}:${frame.line} ${frame.function}`;
const isLibrary = (frame) => /\/(site-packages|asyncio|aiohttp_observe)\//.test(frame.file);
const where = (task) => task.frames.find((frame) => !isLibrary(frame)) ?? task.frames[0];

// A request's own task runs aiohttp's coroutine: what the service calls it is its handler.
const title = (task) => (task.coro === "RequestHandler._handle_request" && task.frames.length ? where(task).function : task.coro);

function drawHead({ process, loop }) {
  at("process").textContent =
    `pid ${process.pid} · Python ${process.python} · ${process.loop} · up ${duration(process.uptime_seconds)}`;
  const busy = Math.round(loop.utilization * 100);
  at("loop").textContent = `lag ${duration(loop.lag_seconds)} · loop ${busy} % busy`;
}

function drawVerdict(sentences) {
  at("verdict").replaceChildren(...sentences.map((text) => element("li", { text })));
}

function drawTiles({ total, by_state, waiting }) {
  const tiles = [tile("tasks", total, null, null)];
  for (const state of ["running", "scheduled", "waiting"]) tiles.push(tile(state, by_state[state] ?? 0, "state", state));
  for (const [kind, count] of Object.entries(waiting)) tiles.push(tile(kind.replaceAll("_", " "), count, "wait", kind));
  redraw(at("tiles"), tiles);
}

function tile(label, count, filter, value) {
  const pressed = filter !== null && view[filter] === value;
  const made = element(
    "button",
    { className: "tile", type: "button", "aria-pressed": pressed, "data-key": label },
    element("b", { text: count.toLocaleString("en") }),
    element("span", { text: label }),
  );
  made.addEventListener("click", () => {
    view.state = view.wait = null;
    if (filter !== null && !pressed) view[filter] = value;
    refresh();
  });
  return made;
}

function drawGroups(groups) {
  const rows = groups.slice(0, 12).map(({ coro, count, oldest_seconds }) =>
    element(
      "tr",
      {},
      element("td", { text: coro, className: "coro" }),
      element("td", { text: count.toLocaleString("en"), className: "number" }),
      element("td", { text: duration(oldest_seconds), className: "number" }),
    ),
  );
  if (groups.length > rows.length) {
    rows.push(element("tr", {}, element("td", { text: `and ${groups.length - rows.length} more`, colspan: 3, className: "empty" })));
  }
  at("by-coro").replaceChildren(...rows);
}

const KEYS = {
  id: (task) => task.id,
  name: (task) => `${title(task)} ${task.name}`,
  wait: (task) => (task.wait ? `${task.wait.kind} ${task.wait.detail}` : ""),
  where: (task) => (task.frames.length ? place(where(task)) : ""),
  request: (task) => (task.request ? `${task.request.route} ${task.request.id}` : ""),
  age: (task) => task.age_seconds ?? -1,
};

function chosen(tasks) {
  const words = view.search.toLowerCase().split(/\s+/).filter(Boolean);
  const key = KEYS[view.sort];
  const text = (task) => [task.id, task.operation, ...["name", "wait", "where", "request"].map((name) => KEYS[name](task))].join(" ").toLowerCase();
  const found = tasks.filter((task) => words.every((word) => text(task).includes(word)));
  const order = view.ascending ? 1 : -1;
  return found.sort((one, other) => order * (key(one) > key(other) ? 1 : key(one) < key(other) ? -1 : 0));
}

function drawTasks({ tasks, summary, truncated }) {
  const found = chosen(tasks);
  const shown = found.slice(0, MOST_ROWS);
  at("count").textContent = [
    `${shown.length} of ${summary.total.toLocaleString("en")}`,
    truncated ? `${truncated.toLocaleString("en")} not sent` : "",
    view.state ?? view.wait ? `only ${view.state ?? view.wait}` : "",
  ].filter(Boolean).join(" · ");
  const rows = shown.flatMap((task) => [row(task), view.open.has(task.id) ? details(task) : null].filter(Boolean));
  if (!rows.length) rows.push(element("tr", {}, element("td", { text: "No such task.", colspan: 6, className: "empty" })));
  redraw(at("tasks"), rows);
  for (const head of document.querySelectorAll("[data-sort]")) {
    const sorted = head.dataset.sort === view.sort;
    head.parentElement.setAttribute("aria-sort", sorted ? (view.ascending ? "ascending" : "descending") : "none");
  }
}

function row(task) {
  const open = view.open.has(task.id);
  const made = element(
    "tr",
    { className: "task", tabindex: 0, "aria-expanded": open, "data-key": task.id },
    element("td", { text: task.id, className: "number" }),
    element(
      "td",
      {},
      element("span", { className: `state ${task.state}`, title: task.state }),
      element("span", { text: title(task), className: "coro" }),
      element("small", { text: task.operation ? `${task.name} · ${task.operation}` : task.name }),
    ),
    element("td", {}, ...waits(task)),
    element("td", { text: task.frames.length ? place(where(task)) : "", className: "where" }),
    task.request
      ? element("td", { text: `${task.request.method} ${task.request.route}` }, element("small", { text: task.request.id }))
      : element("td", { text: "" }),
    element("td", { text: duration(task.age_seconds), className: "number" }),
  );
  const toggle = () => {
    open ? view.open.delete(task.id) : view.open.add(task.id);
    draw();
  };
  made.addEventListener("click", toggle);
  made.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      toggle();
    }
  });
  return made;
}

function waits({ wait, state, warnings }) {
  const shown = wait
    ? [element("span", { text: wait.kind, className: "kind" }), element("small", { text: wait.detail })]
    : [element("span", { text: state })];
  return [...shown, ...warnings.map((text) => element("small", { text: `⚠ ${text}`, className: "warning" }))];
}

function details(task) {
  const facts = [
    task.wait?.on.length ? `waits for ${task.wait.on.map((id) => `task ${id}`).join(", ")}` : "",
    task.created_at_frame ? `created at ${place(task.created_at_frame)}` : "",
    task.created_by ? `by task ${task.created_by}` : "",
    task.trace_id ? `trace ${task.trace_id}` : "",
    task.orphan ? "its request has finished" : "",
  ].filter(Boolean);
  const frames = element("ol", {}, ...task.frames.map((frame) => element("li", { text: `${frame.file}:${frame.line} in ${frame.function}`, className: "where" })));
  return element("tr", { className: "details" }, element("td", { colspan: 6 }, element("div", { text: "Await chain, innermost first" }), frames, element("div", { text: facts.join(" · "), className: "dim" })));
}

// Replaces the children but keeps the keyboard where it was.
function redraw(parent, children) {
  const key = parent.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
  parent.replaceChildren(...children);
  if (key !== undefined) children.find((child) => child.dataset.key === key)?.focus();
}

function draw() {
  if (!snapshot) return;
  drawHead(snapshot);
  drawVerdict(snapshot.verdict);
  drawTiles(snapshot.summary);
  drawGroups(snapshot.summary.by_coro);
  drawTasks(snapshot);
}

function query() {
  const asked = new URLSearchParams({ format: "json", frames: "20", limit: "2000" });
  if (view.state) asked.set("state", view.state);
  if (view.wait) asked.set("wait", view.wait);
  return asked;
}

async function refresh() {
  const trouble = at("trouble");
  try {
    const response = await fetch(`${base}?${query()}`, { headers: { Accept: "application/json" } });
    if (!response.ok) throw new Error(response.status === 401 ? "logged out: reload the page" : `answer ${response.status}`);
    snapshot = await response.json();
    trouble.hidden = true;
    draw();
  } catch (error) {
    trouble.textContent = `No news from the service: ${error.message}`;
    trouble.hidden = false;
  }
}

async function follow() {
  if (!view.paused && !document.hidden) await refresh();
  setTimeout(follow, INTERVAL);
}

at("pause").addEventListener("click", ({ currentTarget }) => {
  view.paused = !view.paused;
  currentTarget.setAttribute("aria-pressed", view.paused);
  currentTarget.textContent = view.paused ? "Resume" : "Pause";
});
at("search").addEventListener("input", ({ currentTarget }) => {
  view.search = currentTarget.value;
  draw();
});
at("filters").addEventListener("submit", (event) => event.preventDefault());
for (const head of document.querySelectorAll("[data-sort]")) {
  head.addEventListener("click", () => {
    view.ascending = view.sort === head.dataset.sort ? !view.ascending : head.dataset.sort !== "age";
    view.sort = head.dataset.sort;
    draw();
  });
}
const single = location.pathname.slice(base.length).match(/^\/(\d+)$/);
if (single) view.open.add(Number(single[1]));
follow();
