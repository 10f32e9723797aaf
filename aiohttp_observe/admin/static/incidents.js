// Incidents: what has blocked the loop, and failures that nobody handled, by line.

import { base, cell, clock, count, counted, duration, element, ends, number, place, stack, table } from "./draw.js";

const link = (id) => element("a", { href: `#requests/${encodeURIComponent(id)}`, text: ends(id), title: id, className: "id" });

function blocked(line, index) {
  const { example, cause } = line;
  return element(
    "tr",
    {},
    element("td", { className: "roomy" }, element("span", { text: line.frame ? place(line.frame) : "unseen: it let no thread look", className: "where" }), line.frame && element("details", { "data-key": `stack-${index}` }, element("summary", { text: "stack of the longest" }), stack(example.stack))),
    number(count(line.count)),
    number(duration(line.longest_seconds)),
    number(duration(line.total_seconds)),
    element("td", {}, element("span", { text: cause.kind.replaceAll("_", " "), className: "kind" }), cause.kind !== "unknown" && ` ${cause.confidence} confidence`, element("small", { text: cause.evidence })),
    element("td", {}, element("span", { text: example.request ?? example.task ?? (line.frame ? "a callback" : "not known") }), example.request_id && element("small", {}, link(example.request_id))),
    element("td", {}, example.victims_total ? counted(example.victims_total, "request") : "–", ...example.victims.slice(0, 3).map((id) => element("small", {}, link(id)))),
    number(clock(line.last_at)),
  );
}

function unhandled(failure) {
  const { example } = failure;
  return element(
    "tr",
    {},
    element("td", {}, element("span", { text: failure.kind.replaceAll("_", " "), className: "kind" }), failure.exception && element("small", { text: failure.exception })),
    cell(place(failure.frame), "where roomy"),
    cell(failure.coro ?? "", "coro"),
    number(count(failure.count)),
    element("td", {}, element("span", { text: example.task ?? "" }), example.request_id && element("small", {}, link(example.request_id))),
    number(clock(failure.last_at)),
  );
}

const bundle = ({ id, at, reason, bytes }) =>
  element("tr", {}, cell(clock(at)), cell(reason), number(`${count(Math.ceil(bytes / 1000))} kB`), element("td", {}, element("a", { href: `${base}/bundles/${id}`, text: "open", target: "_blank", "data-key": `bundle-${id}` })));

function draw({ found, kept }, detail, page) {
  const left = found.left_out ? `${count(found.left_out)} not kept` : "";
  return [
    element("h2", {}, "The loop was blocked ", element("span", { text: left })),
    table(["Line", "#Times", "#Longest", "#Together", "Cause", "By", "Kept waiting", "#Last"], found.blocked.map(blocked), "Not once since the start."),
    element("h2", { text: "Nobody handled" }),
    table(["Failure", "Where", "Coroutine", "#Times", "Last task", "#Last"], found.unhandled.map(unhandled), "No failure since the start."),
    element("h2", {}, "Kept for later ", element("span", { text: "all of the console as it was: after a block of a second and more, or when asked" })),
    table(["At", "Why", "#Size", "As JSON"], kept.map(bundle), "Nothing yet."),
    element(
      "p",
      { className: "actions left" },
      element("button", { type: "button", text: "Keep one now", "data-key": "keep", on: { click: () => page.posted("bundles", {}).then(page.redraw) } }),
      element("a", { className: "button", href: `${base}/profile?seconds=5`, target: "_blank", text: "Profile the loop for 5 s", title: "collapsed stacks, as flame graph tools read them", "data-key": "profile" }),
    ),
  ];
}

const load = async (fetched) => ({ found: await fetched("/incidents"), kept: (await fetched("/bundles")).bundles });

export const incidents = { path: "/incidents", load, draw };
