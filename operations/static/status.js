// Keeps the status page up to date: asks for /status.json once a second, and says so when there is no answer.

import * as formats from "./format.js";
import { Plot } from "./plot.js";
import * as tryBox from "./try.js";

const INTERVAL = 1000; // milliseconds from one question to the next
const PATIENCE = 3000; // milliseconds after which the service counts as not answering
const AVERAGED = 5; // seconds over which rates are averaged, so that single requests aren't spikes

const byId = (id) => document.getElementById(id);
const outcomes = ["hits", "misses", "collapsed", "refused"];
const endpoints = ["events", "event-subscriptions"];
const recent = []; // the latest numbers, and when they came, the newest last
let asking = false;

document.querySelectorAll("[data-live]").forEach((part) => (part.hidden = false));
const requests = new Plot(byId("plot-requests"), {
  title: "Requests per second",
  lines: { hit: "hit", miss: "miss", collapsed: "collapsed", refused: "refused" },
  floor: 0.1,
  label: formats.rate,
  tick: formats.count,
});
const latencies = new Plot(byId("plot-latency"), {
  title: "Upstream latency",
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
    if (numbers) show({ ...numbers, seconds: performance.now() / 1000 });
    showTroubles(numbers?.troubles ?? ["silent"]);
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

function show(numbers) {
  byId("shared-tier").hidden = !numbers.shared_tier;
  for (const place of document.querySelectorAll("[data-number]")) showNumber(place, numbers);
  showFaults(numbers.upstream.faults);
  showRates(numbers);
  latencies.add(numbers.seconds, endpoints.flatMap((name) => {
    const { median_seconds, p99_seconds } = numbers.upstream.endpoints[name];
    return [median_seconds, p99_seconds];
  }));
}

function showNumber(place, numbers) {
  const value = at(numbers, place.dataset.number) ?? null;
  if (place instanceof HTMLMeterElement) {
    place.max = at(numbers, place.dataset.most);
    place.value = value;
  } else {
    place.textContent = value === null ? "–" : formats[place.dataset.form](value);
  }
}

const at = (numbers, path) => path.split(".").reduce((inner, name) => inner?.[name], numbers);

function showRates(numbers) {
  const last = recent.at(-1);
  // Another process has other counters, and a rate that includes the time the tab was hidden isn't current. The process
  // id doesn't tell processes apart: in a container it is always 1.
  const passed = numbers.seconds - last?.seconds, counted = numbers.uptime_seconds - last?.uptime_seconds;
  if (!(passed <= AVERAGED && Math.abs(counted - passed) < 1)) recent.length = 0;
  recent.push(numbers);
  if (recent.length > 1 + AVERAGED) recent.shift();
  const before = recent.length > 1 ? recent[0] : null;
  const rates = outcomes.map((name) =>
    before ? (numbers.cache[name] - before.cache[name]) / (numbers.seconds - before.seconds) : null);
  outcomes.forEach((name, at) => (byId(`rate-${name}`).textContent = before ? formats.rate(rates[at]) : "–"));
  requests.add(numbers.seconds, rates);
}

function showFaults(faults) {
  // Unchanged rows are kept, because text in rows that are replaced can't be selected and copied.
  if (JSON.stringify(faults) === JSON.stringify(recent.at(-1)?.upstream.faults)) return;
  byId("no-faults").hidden = faults.length > 0;
  byId("fault-table").hidden = faults.length === 0;
  byId("fault-table").tBodies[0].replaceChildren(...faults.map(({ time, endpoint, status }) => {
    const row = document.createElement("tr");
    for (const text of [formats.clock(time), endpoint, status || "no answer"]) row.insertCell().textContent = text;
    return row;
  }));
}

// Show what is wrong. The sentences contain no changing numbers, so that a screen reader reads each of them once.
function showTroubles(troubles) {
  const shown = troubles.length ? troubles : ["none"];
  for (const item of byId("troubles").children) item.hidden = !shown.includes(item.dataset.trouble);
  document.body.classList.toggle("stale", troubles.includes("silent"));
  document.title = troubles.length ? "(!) c42c status" : "c42c status";
}
