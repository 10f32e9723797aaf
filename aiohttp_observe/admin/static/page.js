// The console: follows the service's feed, and draws the view that the address names.

import { at, base, clock, count, duration, element, fetched, kindly, redraw, sparkline, stack } from "./draw.js";
import { incidents } from "./incidents.js";
import { requests } from "./requests.js";
import { resources } from "./resources.js";
import { feedQuery, show, tasks } from "./tasks.js";
import { trees } from "./trees.js";

const VIEWS = { tasks, requests, resources, incidents, trees };
const MOST_POINTS = 150;
const RETRY_SECONDS = 3;
const SILENT_SECONDS = 5;
const WATCH_SECONDS = 1;
const PANEL_SECONDS = 1; // a block that is over sooner would move the page for a picture only
const INCIDENTS_SECONDS = 10;

const state = { picture: null, points: [], kinds: new Set(), paused: false, feed: null, heard: performance.now(), gaps: [0], counted: -Infinity, view: "tasks", detail: "", loading: false, sought: false, renewed: true };

function drawHead({ process, point }) {
  at("process").textContent =
    `pid ${process.pid} · Python ${process.python} · ${process.loop} · up ${duration(process.uptime_seconds)}`;
  at("clock").textContent = `${clock(point.at)} UTC`;
  tell("live", "ok");
}

function drawTitle() {
  const findings = state.picture?.verdict.length;
  const sign = document.body.dataset.news === "silent" ? "(?) " : findings ? `(${findings}) ` : "";
  document.title = `${sign}Tasks`;
}

function drawVerdict({ findings }) {
  if (!findings.length) return redraw(at("verdict"), element("p", { text: "Nothing stands out.", className: "well" }));
  const sentences = findings.map((finding) =>
    element("li", {}, element("button", {
      type: "button",
      title: finding.sentence,
      className: `finding ${finding.kind}`,
      ...(["worker", "failed", "busy", "log"].includes(finding.kind) && { disabled: "" }), // the evidence is elsewhere
      "data-key": finding.sentence.replace(/[\d.]+/g, "#"),
      on: { click: () => follow(finding) },
    }, element("span", { text: finding.sentence }))),
  );
  return redraw(at("verdict"), element("ol", {}, ...sentences));
}

// To the evidence of a finding, past what is marked or searched for.
function follow({ kind, tasks: ids, resource }) {
  document.getSelection().empty();
  if (kind === "deadlock") go(`#trees/${ids[0]}`);
  else if (resource !== null) go(`#resources/${resource}`);
  else if (ids.length) {
    if (show.search) choose({ search: "" });
    go(`#tasks/${ids[0]}`);
  } else if (kind === "blocked") at("blocked").hidden ? go("#incidents") : bringIntoView(at("blocked"));
  else if (kind === "failing" || kind === "abandoned") go("#requests");
}

function go(hash) {
  if (location.hash === hash) turn();
  else location.hash = hash;
}

function drawBlocked({ loop: { blocked_now: blocked } }) {
  at("blocked").hidden = blocked === null || blocked.seconds < PANEL_SECONDS;
  if (at("blocked").hidden) return;
  const { seconds, task, request_id: request, trace_id: trace } = blocked;
  const by = [
    task !== null && element("a", { href: `#tasks/${task}`, text: `task ${task}`, "data-key": "blocked-task" }),
    request !== null && element("a", { href: `#requests/${encodeURIComponent(request)}`, text: `request ${request}`, "data-key": "blocked-request" }),
    trace !== null && element("span", { text: `trace ${trace}` }),
  ].filter(Boolean);
  redraw(
    at("blocked"),
    element("h2", { text: `The loop is blocked, for ${duration(seconds)} so far` }),
    element("p", {}, ...by.flatMap((part, index) => [index ? " · " : "by ", part])),
    stack(blocked.stack),
  );
}

function tile(label, value, peak, values) {
  return element(
    "div",
    { className: "tile" },
    element("span", { text: label }),
    element("small", { text: peak, title: "the most in the last five minutes" }),
    element("b", { text: value }),
    sparkline(values),
  );
}

function drawTiles({ point }) {
  const { work } = point;
  const of = (name) => state.points.map((each) => each[name]);
  const most = (values) => Math.max(0, ...values.filter((value) => value !== undefined));
  const rate = (value) => value.toFixed(value < 10 ? 1 : 0);
  const share = (value) => `${Math.round(100 * value)} %`;
  const made = (label, show, now, values) => tile(label, show(now), `max ${show(most(values))}`, values);
  redraw(
    at("tiles"),
    made("requests / s", rate, point.requests_per_second, of("requests_per_second")),
    made("in flight", count, point.in_flight, of("in_flight")),
    made("loop lag", duration, point.lag_seconds, of("lag_seconds")),
    made("loop busy", share, point.utilization, of("utilization")),
    made("tasks", count, work.total, state.points.map((each) => each.work?.total)),
  );
}

function chip(key, text, number, values, pressed, act, title) {
  return element(
    "button",
    { className: "pill", type: "button", "aria-pressed": pressed, title, "data-key": `kind-${key}`, on: { click: act } },
    element("span", { text }),
    element("b", { text: count(number) }),
    sparkline(values.slice(Math.max(values.findIndex((value) => value !== undefined), 0))),
  );
}

function drawKinds({ point: { work } }) {
  const of = (read) => state.points.map((point) => (point.work ? read(point.work) : undefined));
  // In the order in which they came up: what moves can't be clicked at.  One that is filtered by can be taken off.
  for (const kind of Object.keys(work.waiting)) state.kinds.add(kind);
  const chips = [...state.kinds].filter((kind) => kind in work.waiting || kind === show.wait).map((kind) => {
    const number = work.waiting[kind] ?? 0;
    const pressed = show.wait === kind;
    return chip(kind, kindly(kind), number, of(({ waiting }) => waiting[kind] ?? 0), pressed, () => choose({ wait: pressed ? null : kind }), `show the tasks that wait for ${kindly(kind)}`);
  });
  const toggle = () => choose({ connections: !show.connections });
  redraw(
    at("kinds"),
    element("h2", { text: chips.length ? "Waiting for" : "No task waits" }),
    ...chips,
    work.connections > 0 && element("span", { className: "apart" }, chip("connections", "connections", work.connections, of(({ connections }) => connections), show.connections, toggle, "aiohttp's own tasks, one for each connection: shown among the others if pressed")),
  );
}

function drawTabs({ point, summary, resources }) {
  const told = { tasks: summary.total, requests: point.in_flight, resources: resources.length };
  for (const [name, number] of Object.entries(told)) at(`tab-${name}`).dataset.count = count(number);
  countIncidents();
}

// They aren't in the pictures: asked for now and then.
async function countIncidents() {
  if (performance.now() - state.counted < 1000 * INCIDENTS_SECONDS) return;
  state.counted = performance.now();
  const found = await fetched("/incidents").catch(() => null);
  if (found) at("tab-incidents").dataset.count = count(found.blocked.length + found.unhandled.length);
}

function drawPicture() {
  const { picture } = state;
  if (!picture) return;
  drawHead(picture);
  drawVerdict(picture);
  drawBlocked(picture);
  drawTiles(picture);
  drawKinds(picture);
  drawTabs(picture);
  drawView();
}

const address = () => `${state.view}/${state.detail}`;

async function drawView() {
  const view = VIEWS[state.view];
  if (!at("view").hasChildNodes()) redraw(at("view"), element("p", { text: "Loading…", className: "empty" }));
  if (!view.path) return state.picture && put(view.draw(state.picture, state.detail, page));
  if (state.loading) return;
  state.loading = true;
  const asked = address();
  try {
    const found = await view.load(fetched, state.detail);
    if (asked === address()) put(view.draw(found, state.detail, page), at("view"));
    trouble(null);
  } catch (error) {
    trouble(`No news from the service: ${error.message}`);
  } finally {
    state.loading = false;
  }
  if (asked !== address()) drawView();
}

// Draws the view.  What its address names is brought into view: it, or the view that would have it.  The page
// may change above it meanwhile, so that is done when a picture has found it there, or somebody does anything.
function put(children, otherwise = null) {
  redraw(at("view"), children);
  const named = at("view").querySelector(`[data-detail="${CSS.escape(address())}"]`) ?? otherwise;
  if (state.sought && named) state.sought = bringIntoView(named) || !state.renewed;
}

// With the details below it, or half a window of them; the keyboard goes along.  Tells if there was a way to go.
function bringIntoView(named) {
  named.focus({ preventScroll: true });
  const { top, bottom } = named.getBoundingClientRect();
  const details = named.nextElementSibling?.matches(".details") ? named.nextElementSibling : null;
  const end = Math.min(details?.getBoundingClientRect().bottom ?? bottom, top + window.innerHeight / 2);
  const covered = top < at("tabs").getBoundingClientRect().bottom - 1 && at("view").contains(named);
  const hidden = covered || end > window.innerHeight;
  if (hidden) named.scrollIntoView({ block: "start" });
  return hidden;
}

// What a view may ask of the page.
const page = { choose, fetched, redraw: drawView, cancel, posted, picture: () => state.picture };

function choose(filters) {
  Object.assign(show, filters);
  if (Object.keys(filters).length) location.hash = "#tasks";
  open();
}

// A change of the address: another view, or another detail in it.
function turn() {
  const [view, ...detail] = location.hash.slice(1).split("/");
  state.view = Object.hasOwn(VIEWS, view) ? view : "tasks";
  state.detail = decodeURIComponent(detail.join("/"));
  state.sought = state.detail !== "";
  for (const tab of at("tabs").children) {
    const selected = tab.id === `tab-${state.view}`;
    tab.setAttribute("aria-selected", selected);
    tab.tabIndex = selected ? 0 : -1;
  }
  at("view").setAttribute("aria-labelledby", `tab-${state.view}`);
  drawView();
}

// What an action has led to stays for a while; that the service answers again takes back only that it didn't.
function trouble(text, seconds = 0) {
  if (text === null && performance.now() < trouble.until) return;
  trouble.until = performance.now() + 1000 * seconds;
  at("trouble").hidden = text === null;
  at("trouble").textContent = text ?? "";
}

// How it stands with the feed: "ok", "silent" or "paused".  What is shown is only sure to be so while it is "ok".
function tell(text, news) {
  if (at("live").textContent !== text) at("live").textContent = text;
  document.body.dataset.news = news;
  drawTitle();
}

// A feed that is open and brings nothing looks as one does between two pictures, which come as often as the
// service can afford: every two seconds, or less often if it has very many tasks.
function watch() {
  if (state.paused || state.feed.readyState === EventSource.CLOSED) return;
  const silent = (performance.now() - state.heard) / 1000;
  if (silent < Math.max(SILENT_SECONDS, 2 * Math.min(...state.gaps))) return;
  const time = silent < 90 ? `${Math.floor(silent)} s` : duration(silent);
  tell(`no picture for ${time}: the loop may be blocked; Admin(port=...) would answer`, "silent");
}

function open() {
  state.feed?.close();
  if (state.paused) return;
  state.renewed = false;
  const feed = (state.feed = new EventSource(`${base}/stream?${feedQuery()}`));
  feed.addEventListener("history", ({ data }) => {
    const last = state.points.at(-1)?.at ?? "";
    state.points.push(...JSON.parse(data).filter((point) => point.at > last));
  });
  feed.addEventListener("refused", ({ data }) => trouble(JSON.parse(data).error));
  feed.addEventListener("picture", ({ data }) => {
    state.picture = JSON.parse(data);
    const now = performance.now();
    if (state.renewed) state.gaps = [(now - state.heard) / 1000, state.gaps[0]];
    Object.assign(state, { renewed: true, heard: now });
    state.points.push(state.picture.point);
    state.points.splice(0, state.points.length - MOST_POINTS);
    trouble(null);
    drawPicture();
  });
  feed.onerror = () => {
    feed.close();
    if (feed === state.feed && !state.paused) again(RETRY_SECONDS);
  };
}

// The service has gone, or refuses: says so, and tries again.
function again(seconds) {
  if (state.paused) return;
  tell(seconds ? `no answer, again in ${seconds} s` : "connecting…", "silent");
  if (seconds) setTimeout(() => again(seconds - 1), 1000);
  else open();
}

function pause() {
  state.paused = !state.paused;
  at("pause").setAttribute("aria-pressed", state.paused);
  at("pause").textContent = state.paused ? "Go on" : "Pause";
  state.heard = performance.now();
  tell(state.paused ? "paused" : "connecting…", "paused");
  if (state.paused) state.feed?.close();
  else open();
}

// Asks, and cancels what it was asked about: a task's id, or the query of a filter.
async function cancel(path, question, number) {
  at("question").textContent = question;
  at("confirm").returnValue = "no";
  at("confirm").showModal();
  await new Promise((closed) => at("confirm").addEventListener("close", closed, { once: true }));
  if (at("confirm").returnValue !== "yes") return;
  await posted(path, { confirm: number });
}

// Has something done; what the service says against it is told.
async function posted(path, body) {
  const response = await fetch(`${base}/${path}`, {
    method: "POST",
    credentials: "same-origin",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  }).catch(({ message }) => ({ ok: false, status: message }));
  if (!response.ok) trouble((await response.json?.().catch(() => null))?.error ?? `answer ${response.status}`, 15);
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || /INPUT|SELECT/.test(event.target.tagName)) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  if (event.key === "p") pause();
  else if (event.key === "/" && at("search")) {
    event.preventDefault();
    at("search").focus();
  } else if (event.key === "Escape") location.hash = `#${state.view}`;
  else if (event.key >= "1" && event.key <= "5") location.hash = `#${Object.keys(VIEWS)[event.key - 1]}`;
});
at("tabs").addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  const tabs = [...at("tabs").children];
  const next = step && tabs.at((tabs.indexOf(event.target) + step) % tabs.length);
  if (!next) return;
  location.hash = next.hash;
  next.focus();
});
at("pause").addEventListener("click", pause);
for (const act of ["wheel", "touchmove", "pointerdown", "keydown"]) {
  window.addEventListener(act, () => { state.sought = false; }, { capture: true, passive: true });
}
window.addEventListener("hashchange", turn);
turn();
open();
setInterval(watch, 1000 * WATCH_SECONDS);
