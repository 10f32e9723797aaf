// Resources: what tasks meet at, who is inside, who waits.

import { called, count, duration, element, number, place, table } from "./draw.js";

function who(id, tasks) {
  const task = tasks[id];
  const text = task ? called(task) : `task ${id}`;
  const title = task ? `${task.name}: ${task.coro} at ${place(task.frame)}` : "";
  return element("a", { href: `#tasks/${id}`, text, title, "data-key": `who-${id}` });
}

function few(ids, tasks, most) {
  const shown = ids.slice(0, most).flatMap((id, index) => [index ? ", " : "", who(id, tasks)]);
  if (ids.length > most) shown.push(` and ${count(ids.length - most)} more`);
  return element("span", { text: shown.length ? null : "–" }, ...shown);
}

function row(resource, { tasks, deadlocks }, chosen) {
  const stuck = deadlocks.some((cycle) => cycle.some((id) => resource.holders.includes(id) || resource.waiters.includes(id)));
  const holder = tasks[resource.holders[0]];
  return element(
    "tr",
    { className: String(resource.id) === chosen ? "meeting chosen" : "meeting", tabindex: -1, "data-key": `resource-${resource.id}`, "data-detail": `resources/${resource.id}` },
    number(resource.id),
    element("td", {}, element("span", { text: resource.type, className: "kind" }), stuck && element("small", { text: "⚠ deadlock", className: "warning nowrap" })),
    element("td", {}, element("span", { text: resource.state }), resource.frame && element("small", { text: `at ${place(resource.frame)}`, className: "where" })),
    element("td", {}, few(resource.holders, tasks, 5), holder?.frame && element("small", { text: place(holder.frame), className: "where" })),
    number(resource.held_seconds === null ? "–" : duration(resource.held_seconds)),
    number(count(resource.waiters.length)),
    element("td", {}, few(resource.waiters, tasks, 8)),
  );
}

function draw(found, chosen) {
  const rows = found.resources.map((resource) => row(resource, found, chosen));
  return [
    element("h2", {}, "Resources ", element("span", { text: "that somebody waits at" })),
    table(["#id", "What", "State", "Held by", "#For at least", "#Waiting", "Who"], rows, "Nobody waits for a lock, queue, event or the like."),
  ];
}

export const resources = { path: "/resources", load: (fetched) => fetched("/resources"), draw };
