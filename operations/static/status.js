// Keeps the status page up to date: asks for /status.json once a second, and says so when there is no answer.

import * as formats from "./format.js";
import { Plot } from "./plot.js";
import * as tryBox from "./try.js";

const INTERVAL = 1000; // milliseconds from one question to the next
const PATIENCE = 3000; // milliseconds after which the service counts as not answering
const NOTICED = 10000; // milliseconds for which the page says that another instance answers
const HIGH = 0.8; // the share of a limit from which a meter warns

const byId = (id) => document.getElementById(id);
const names = (table) => [...document.querySelectorAll(`[aria-labelledby=${table}] [data-name]`)]
  .map((head) => head.dataset.name);
const outcomes = names("requests");
const endpoints = names("latency");
let last; // the latest numbers
let changed = -Infinity; // when another instance answered than before
let asking = false;

document.querySelectorAll("[data-live]").forEach((part) => (part.hidden = false));
const requests = new Plot(byId("plot-requests"), {
  title: "Events asked for, per second",
  lines: Object.fromEntries(outcomes.map((name) => [name, name.replace("_", " ")])),
  floor: 0.1,
  label: formats.rate,
  tick: formats.count,
});
const latencies = new Plot(byId("plot-latency"), {
  title: "Latency of Calendar42",
  lines: Object.fromEntries(endpoints.flatMap((name) => [
    [`${name}-median`, `${name}, median`], [`${name}-p99`, `${name}, 99th percentile`],
  ])),
  label: formats.latency,
  tick: (seconds) => seconds >= 1 ? `${seconds} s` : `${Number((seconds * 1000).toPrecision(1))} ms`,
});
tryBox.start();
document.addEventListener("visibilitychange", poll);
poll();

// Ask at once and then every second, but not while the tab is hidden.
async function poll() {
  if (asking || document.hidden) return;
  asking = true;
  const began = performance.now();
  try {
    const numbers = await read();
    if (numbers) show(numbers);
    showTroubles(numbers?.troubles ?? ["no-answer"]);
  } finally {
    setTimeout(() => { asking = false; poll(); }, Math.max(0, INTERVAL - (performance.now() - began)));
  }
}

// Return the service's numbers, or undefined if it doesn't answer.
async function read() {
  try {
    const response = await fetch("status.json", { cache: "no-store", signal: AbortSignal.timeout(PATIENCE) });
    return response.ok ? await response.json() : undefined;
  } catch {
    return undefined;
  }
}

// Everything shown is of the instance that has just answered, its history included: nothing is kept of another.
function show(numbers) {
  const { seconds_ago, requests_per_second, failed_per_second, refreshes_per_second, latency_seconds } = numbers.history;
  const rates = outcomes.map((name) => requests_per_second[name]);
  requests.show(seconds_ago, rates);
  latencies.show(seconds_ago, endpoints.flatMap((name) => [latency_seconds[name].median, latency_seconds[name].p99]));
  numbers.rates = Object.fromEntries(outcomes.map((name, at) => [name, rates[at].at(-1)]));
  numbers.rates.failed = failed_per_second.at(-1);
  numbers.rates.refreshes = refreshes_per_second.at(-1);
  byId("shared-tier").hidden = !numbers.shared_tier;
  for (const place of document.querySelectorAll("[data-number]")) showNumber(place, numbers);
  showFaults(numbers.upstream.faults, numbers.now);
  if (last && last.instance !== numbers.instance) changed = performance.now();
  byId("changed").hidden = performance.now() - changed > NOTICED;
  last = numbers;
}

function showNumber(place, numbers) {
  const value = at(numbers, place.dataset.number) ?? null;
  if (place instanceof HTMLMeterElement) {
    place.max = at(numbers, place.dataset.most);
    place.high = HIGH * place.max;
    place.value = value;
  } else {
    place.textContent = value === null ? "–" : formats[place.dataset.form](value);
  }
}

const at = (numbers, path) => path.split(".").reduce((inner, name) => inner?.[name], numbers);

function showFaults(faults, now) {
  byId("no-faults").hidden = faults.length > 0;
  byId("fault-table").hidden = faults.length === 0;
  const body = byId("fault-table").tBodies[0];
  while (body.rows.length > faults.length) body.deleteRow(-1);
  for (const [at, { time, endpoint, cause, count, request_id }] of faults.entries()) {
    const row = body.rows[at] ?? body.insertRow();
    [formats.since(time, now), `${endpoint}: ${cause}`, formats.count(count), request_id].forEach((text, column) => {
      const cell = row.cells[column] ?? row.insertCell();
      // Text that is replaced, even by the same, can't be selected and copied.
      if (cell.textContent !== text) cell.textContent = text;
    });
  }
}

// Show what is wrong. What changes in the sentences isn't live, so that a screen reader reads each of them once.
function showTroubles(troubles) {
  const shown = troubles.length ? troubles : ["none"];
  for (const item of byId("troubles").children) item.hidden = !shown.includes(item.dataset.trouble);
  document.body.classList.toggle("stale", troubles.includes("no-answer"));
  document.title = troubles.length ? "(!) c42c status" : "c42c status";
}
