// Requests: in flight, by route, and one of them.

import { cell, clock, count, drawing, duration, element, isOurs, number, split, table } from "./draw.js";

const link = (id) => element("a", { href: `#requests/${encodeURIComponent(id)}`, text: id, title: id, className: "id", "data-key": `request-${id}` });

const LEGEND = [["busy", "busy: its handler ran"], ["ready", "ready: the loop was busy with others"], ["waits waits-0", "waiting, by kind"]];
const legend = () => element("span", { className: "legend" }, ...LEGEND.map(([kind, text]) => element("span", {}, drawing("svg", { viewBox: "0 0 8 8", "aria-hidden": "true" }, drawing("rect", { width: 8, height: 8, class: kind })), text)));

// What the service serves comes before what this console asks for.
const served = (requests) => [...requests].sort((one, other) => isOurs(one.route) - isOurs(other.route));
// The classes of latency, each without those below it, as they are read.
const LATENCY = { "<=10ms": "within 10 ms", "<=50ms": "10–50 ms", "<=100ms": "50–100 ms", "<=500ms": "100–500 ms", "<=1s": "0.5–1 s", "<=5s": "1–5 s", ">5s": "over 5 s" };

function latency(classes) {
  const taken = Object.entries(classes).filter(([, n]) => n);
  const total = taken.reduce((sum, [, n]) => sum + n, 0);
  const bar = (n) => drawing("svg", { viewBox: "0 0 100 8", preserveAspectRatio: "none", "aria-hidden": "true" }, drawing("rect", { width: ((100 * n) / total).toFixed(1), height: 8 }));
  return element("div", { className: "latency" }, ...taken.flatMap(([name, n]) => [element("span", { text: LATENCY[name] ?? name }), bar(n), element("b", { text: count(n) })]));
}

const aside = ({ route }) => (isOurs(route) ? "aside" : "");

function flying(request) {
  return element(
    "tr",
    { className: aside(request) },
    element("td", {}, element("span", { text: `${request.method} ${request.route}` }), element("small", {}, link(request.request_id))),
    element("td", {}, element("span", { text: request.waits_for ?? "–", className: "kind chain" }), request.client_left && element("small", { text: "⚠ its client has left", className: "warning" })),
    element("td", { className: "nowrap" }, request.task ? element("a", { href: `#tasks/${request.task}`, text: `task ${request.task}`, "data-key": `flying-${request.task}` }) : ""),
    element("td", {}, split(request)),
    number(duration(request.seconds)),
  );
}

function family(route) {
  const mean = route.count ? duration(route.seconds / route.count) : "–";
  return element(
    "tr",
    { className: aside(route) },
    element("td", {}, element("span", { text: `${route.method} ${route.route}`, className: "where" }), route.in_flight > 0 && element("small", { text: `${count(route.in_flight)} in flight, ${duration(route.in_flight_seconds)} so far` })),
    number(count(route.count)),
    cell(route.errors ? count(route.errors) : "", "number bad"),
    number(mean),
    element("td", {}, split(route)),
    element("td", {}, latency(route.latency)),
    element("td", {}, ...some("slowest", route.slowest), ...some("failed", route.failed)),
  );
}

function some(label, requests) {
  return requests.slice(0, 3).map((request) =>
    element("small", {}, `${label} ${duration(request.seconds)} `, element("a", { href: `#requests/${encodeURIComponent(request.request_id)}`, text: request.error_type ?? String(request.status ?? "–"), title: request.request_id, "data-key": `${label}-${request.request_id}` })),
  );
}

function overview({ in_flight, routes, left_out }) {
  return [
    element("h2", {}, "In flight ", element("span", { text: count(in_flight.length + left_out) })),
    table(["Request", "Waits for", "Task", "Where the time went", "#Since"], served(in_flight).map(flying), "No request is being served."),
    element("h2", {}, "By route ", legend()),
    table(["Route", "#Requests", "#Errors", "#Mean", "Where the time went", "Latency", "Examples"], served(routes).map(family), "No request yet."),
  ];
}

function waterfall({ steps, seconds }) {
  const total = Math.max(seconds, 1e-6);
  return steps.map((step) => {
    const took = step.seconds ?? seconds - step.started_seconds;
    const bar = drawing("rect", { x: ((100 * step.started_seconds) / total).toFixed(2), y: 0, width: Math.max((100 * took) / total, 0.6).toFixed(2), height: 8, class: step.error ? "failed" : step.kind });
    return element(
      "tr",
      {},
      element("td", {}, element("span", { text: step.name }), element("small", { text: step.error ? `${step.kind} · ${step.error}` : step.kind })),
      element("td", { className: "waterfall" }, drawing("svg", { viewBox: "0 0 100 8", preserveAspectRatio: "none", "aria-hidden": "true" }, bar)),
      number(duration(step.started_seconds)),
      number(step.seconds === null ? "goes on" : duration(step.seconds)),
    );
  });
}

function one(request) {
  const facts = [
    ["status", request.in_flight ? "in flight" : `${request.status ?? "–"}${request.error_type ? ` · ${request.error_type}` : ""}`],
    ["took", duration(request.seconds)],
    ["began", clock(request.at)],
    ["path", request.path],
    ["client", request.client_address ?? "–"],
    ["polls", `${count(request.polls)}, the longest ${duration(request.longest_poll_seconds)}`],
    ["trace", request.trace_id ?? "–"],
    ["request", request.request_id],
  ];
  return [
    element("p", {}, element("a", { href: "#requests", text: "← all requests", "data-key": "back" })),
    element("h2", { text: `${request.method} ${request.route}` }),
    element("dl", { className: "facts" }, ...facts.flatMap(([name, value]) => [element("dt", { text: name }), element("dd", { text: value })])),
    element("h2", {}, "Where the time went ", legend()),
    split(request),
    element("h2", {}, "Steps ", element("span", { text: request.steps_left_out ? `${count(request.steps_left_out)} not kept` : "" })),
    table(["Step", "When", "#After", "#Took"], waterfall(request), "No outbound call and no operation."),
  ];
}

export const requests = {
  path: "/requests",
  load: (fetched, id) => fetched(id ? `/requests/${encodeURIComponent(id)}` : "/requests"),
  draw: (found, id) => (id ? one(found) : overview(found)),
};
