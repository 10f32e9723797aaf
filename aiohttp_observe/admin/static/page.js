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

const state = { picture: null, points: [], paused: false, feed: null, view: "tasks", detail: "", loading: false };

function drawHead({ process, point }) {
  at("process").textContent =
    `pid ${process.pid} · Python ${process.python} · ${process.loop} · up ${duration(process.uptime_seconds)}`;
  document.title = state.picture.verdict.length ? `(${state.picture.verdict.length}) Tasks` : "Tasks";
  tell(`live · ${clock(point.at)}`, "ok");
}

function drawVerdict({ findings }) {
  if (!findings.length) return redraw(at("verdict"), element("p", { text: "Nothing stands out.", className: "well" }));
  const sentences = findings.map((finding) =>
    element("li", {}, element("button", {
      type: "button",
      text: finding.sentence,
      className: `finding ${finding.kind}`,
      "data-key": finding.sentence.replace(/[\d.]+/g, "#"),
      on: { click: () => follow(finding) },
    })),
  );
  return redraw(at("verdict"), element("ol", {}, ...sentences));
}

// To the evidence of a finding.
function follow({ kind, tasks: ids, resource }) {
  if (kind === "deadlock") location.hash = "#trees";
  else if (resource !== null) location.hash = `#resources/${resource}`;
  else if (ids.length) location.hash = `#tasks/${ids[0]}`;
}

function drawBlocked({ loop: { blocked_now: blocked } }) {
  at("blocked").hidden = blocked === null;
  if (blocked === null) return;
  redraw(
    at("blocked"),
    element("h2", { text: `Blocked for ${duration(blocked.seconds)}` }),
    element("p", { text: blocked.request_id ? `request ${blocked.request_id}` : "" }),
    stack(blocked.stack),
  );
}

function tile(label, value, values) {
  return element("div", { className: "tile" }, element("span", { text: label }), element("b", { text: value }), sparkline(values));
}

function kindTile(kind, number) {
  const pressed = show.wait === kind;
  const values = state.points.map((point) => point.waiting?.[kind] ?? 0);
  return element(
    "button",
    {
      className: "tile",
      type: "button",
      "aria-pressed": pressed,
      "data-key": `kind-${kind}`,
      on: { click: () => choose({ wait: pressed ? null : kind }) },
    },
    element("span", { text: kindly(kind) }),
    element("b", { text: count(number) }),
    sparkline(values),
  );
}

function drawTiles({ summary, point }) {
  const of = (name) => state.points.map((each) => each[name]);
  redraw(
    at("tiles"),
    tile("requests / s", point.requests_per_second.toFixed(point.requests_per_second < 10 ? 1 : 0), of("requests_per_second")),
    tile("in flight", count(point.in_flight), of("in_flight")),
    tile("loop lag", duration(point.lag_seconds), of("lag_seconds")),
    tile("loop busy", `${Math.round(100 * point.utilization)} %`, of("utilization")),
    tile("tasks", count(summary.total), state.points.map((each) => each.total ?? 0)),
    ...Object.entries(summary.waiting).slice(0, 9).map(([kind, number]) => kindTile(kind, number)),
  );
}

function drawPicture() {
  const { picture } = state;
  if (!picture) return;
  drawHead(picture);
  drawVerdict(picture);
  drawBlocked(picture);
  drawTiles(picture);
  drawView();
}

async function drawView() {
  const view = VIEWS[state.view];
  if (!view.path) return state.picture && redraw(at("view"), view.draw(state.picture, state.detail, page));
  if (state.loading) return;
  state.loading = true;
  const asked = `${state.view}/${state.detail}`;
  try {
    const found = await view.load(fetched, state.detail);
    if (asked === `${state.view}/${state.detail}`) redraw(at("view"), view.draw(found, state.detail, page));
    trouble(null);
  } catch (error) {
    trouble(`No news from the service: ${error.message}`);
  } finally {
    state.loading = false;
  }
}

// What a view may ask of the page.
const page = { choose, fetched, redraw: drawView, cancel, picture: () => state.picture };

function choose(filters) {
  Object.assign(show, filters);
  location.hash = "#tasks";
  open();
}

// A change of the address: another view, or another detail in it.
function turn() {
  const [view, ...detail] = location.hash.slice(1).split("/");
  state.view = view in VIEWS ? view : "tasks";
  state.detail = decodeURIComponent(detail.join("/"));
  for (const tab of at("tabs").children) tab.setAttribute("aria-selected", tab.id === `tab-${state.view}`);
  at("view").setAttribute("aria-labelledby", `tab-${state.view}`);
  drawView();
}

function trouble(text) {
  at("trouble").hidden = text === null;
  at("trouble").textContent = text ?? "";
}

function tell(text, className) {
  at("live").textContent = text;
  at("live").className = className;
}

function open() {
  state.feed?.close();
  if (state.paused) return;
  const feed = (state.feed = new EventSource(`${base}/stream?${feedQuery()}`));
  feed.addEventListener("history", ({ data }) => (state.points = JSON.parse(data)));
  feed.addEventListener("refused", ({ data }) => trouble(JSON.parse(data).error));
  feed.addEventListener("picture", ({ data }) => {
    state.picture = JSON.parse(data);
    state.points.push({ ...state.picture.point, total: state.picture.summary.total });
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
  tell(seconds ? `no answer, again in ${seconds} s` : "connecting…", "bad");
  if (seconds) setTimeout(() => again(seconds - 1), 1000);
  else open();
}

function pause() {
  state.paused = !state.paused;
  at("pause").setAttribute("aria-pressed", state.paused);
  at("pause").textContent = state.paused ? "Go on" : "Pause";
  if (!state.paused) return open();
  state.feed?.close();
  return tell("paused", "");
}

// Asks, and cancels what it was asked about: a task's id, or the query of a filter.
async function cancel(path, question, number) {
  at("question").textContent = question;
  at("confirm").returnValue = "no";
  at("confirm").showModal();
  await new Promise((closed) => at("confirm").addEventListener("close", closed, { once: true }));
  if (at("confirm").returnValue !== "yes") return;
  const response = await fetch(`${base}/${path}`, {
    method: "POST",
    credentials: "same-origin",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ confirm: number }),
  });
  trouble(response.ok ? null : (await response.json().catch(() => ({ error: `answer ${response.status}` }))).error);
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
at("pause").addEventListener("click", pause);
window.addEventListener("hashchange", turn);
turn();
open();
