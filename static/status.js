// Keeps the status page up to date: asks for /status.json once a second, and says so when there is no answer.

import * as formats from "./format.js";
import { Plot } from "./plot.js";
import * as tryBox from "./try.js";

const INTERVAL = 1000; // milliseconds from one question to the next
const PATIENCE = 3000; // milliseconds until no answer is called so
const RECENT = 60_000; // milliseconds for which a fault counts as trouble, as in status_page.py

const byId = (id) => document.getElementById(id);
const outcomes = ["hits", "misses", "collapsed", "refused"];
const endpoints = ["events", "event-subscriptions"];
let before; // the numbers shown, and when they came
let asking = false;

document.querySelectorAll("[data-live]").forEach((part) => (part.hidden = false));
byId("still").hidden = true;
const requests = new Plot(byId("plot-requests"), "Requests per second", ["hit", "miss", "collapsed", "refused"], 0.1, formats.rate);
const latencies = new Plot(
  byId("plot-latency"), "Upstream latency", endpoints.flatMap((name) => [`${name}-median`, `${name}-p99`]), 0.001, formats.latency);
tryBox.start();
document.addEventListener("visibilitychange", poll);
poll();

// Ask now and then every second, but not while nobody looks: a hidden tab asks again once it is shown.
async function poll() {
  if (asking || document.hidden) return;
  asking = true;
  const began = performance.now();
  try {
    const numbers = await read();
    if (numbers) show({ ...numbers, seconds: performance.now() / 1000 });
    showTroubles(numbers);
  } finally {
    setTimeout(() => { asking = false; poll(); }, Math.max(0, INTERVAL - (performance.now() - began)));
  }
}

// Return the service's numbers, or nothing where it does not answer.
async function read() {
  try {
    const response = await fetch("status.json", { cache: "no-store", signal: AbortSignal.timeout(PATIENCE) });
    return response.ok ? await response.json() : undefined;
  } catch {
    return undefined;
  }
}

function show(numbers) {
  const { cache } = numbers;
  const asked = outcomes.reduce((sum, name) => sum + cache[name], 0);
  const held = cache.entries_ok + cache.entries_negative + cache.entries_fault;
  const view = { ...numbers, asked, held, hit_ratio: asked ? cache.hits / asked : null };
  for (const place of document.querySelectorAll("[data-number]")) showNumber(place, view);
  showRates(numbers);
  latencies.add(numbers.seconds, endpoints.flatMap((name) => {
    const { median_seconds, p99_seconds } = numbers.upstream.endpoints[name];
    return [median_seconds, p99_seconds];
  }));
  showFaults(numbers.upstream.faults);
  before = numbers;
}

function showNumber(place, view) {
  const value = at(view, place.dataset.number);
  if (place instanceof HTMLMeterElement) {
    place.max = at(view, place.dataset.most);
    place.value = value;
  } else {
    place.textContent = value === null ? "–" : formats[place.dataset.form](value);
  }
}

const at = (view, path) => path.split(".").reduce((inner, name) => inner[name], view);

function showRates(numbers) {
  const seconds = before?.pid === numbers.pid ? numbers.seconds - before.seconds : 0; // a new process counts anew
  const rates = outcomes.map((name) => seconds > 0 ? (numbers.cache[name] - before.cache[name]) / seconds : null);
  outcomes.forEach((name, at) => (byId(`rate-${name}`).textContent = rates[at] === null ? "–" : formats.rate(rates[at])));
  requests.add(numbers.seconds, rates);
}

function showFaults(faults) {
  // Only what is new is touched: rows that are replaced can't be marked and copied.
  if (JSON.stringify(faults) === JSON.stringify(before?.upstream.faults)) return;
  byId("no-faults").hidden = faults.length > 0;
  byId("fault-table").hidden = faults.length === 0;
  byId("fault-table").tBodies[0].replaceChildren(...faults.map(({ time, endpoint, status }) => {
    const row = document.createElement("tr");
    for (const text of [formats.clock(time), endpoint, status || "no answer"]) row.insertCell().textContent = text;
    return row;
  }));
}

// Toggle the sentences of the template; they hold no number that moves, so that a screen reader says each once.
function showTroubles(numbers) {
  const known = numbers ?? before;
  const troubles = {
    silent: !numbers,
    stopping: known?.stopping,
    reaper: known && !known.reaper_alive,
    full: known && known.cache.waiting >= known.cache.max_waiting,
    pause: known?.upstream.pause_seconds > 0,
    faults: known?.upstream.faults.some(({ time }) => Date.parse(known.now) - Date.parse(time) < RECENT),
  };
  for (const [name, isSo] of Object.entries(troubles)) byId(`trouble-${name}`).hidden = !isSo;
  const well = !Object.values(troubles).some(Boolean);
  byId("well").hidden = !well;
  document.body.classList.toggle("stale", !numbers);
  document.title = well ? "c42c status" : "(!) c42c status";
}
