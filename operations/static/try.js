// The box to try an event: shows the service's answer, and how long it is cached.

import { duration, latency } from "./format.js";

const byId = (id) => document.getElementById(id);
const still = matchMedia("(prefers-reduced-motion: reduce)");
let asking = new AbortController();
let timer;

export function start() {
  document.querySelector("form").addEventListener("submit", (event) => {
    event.preventDefault();
    ask(byId("event-id").value.trim());
  });
}

async function ask(id) {
  asking.abort(); // the earlier answer is no longer wanted
  asking = new AbortController();
  const { signal } = asking;
  clearTimeout(timer);
  byId("answer").hidden = true;
  byId("try-status").textContent = "Asking…";
  const began = performance.now();
  try {
    // Bypass the browser's cache, to see what the service answers.
    const path = `events-with-subscriptions/${encodeURIComponent(id)}`;
    const response = await fetch(path, { cache: "no-store", redirect: "error", signal });
    const body = await response.text();
    show(response, body, (performance.now() - began) / 1000);
  } catch (error) {
    if (!signal.aborted) byId("try-status").textContent = `The service gave no answer (${error.message}).`;
  }
}

function show({ status, statusText, headers }, body, seconds) {
  byId("try-status").textContent = `${status} ${statusText} in ${latency(seconds)}`;
  byId("cache-status").textContent = `Cache-Status: ${headers.get("Cache-Status") ?? "none"}`;
  byId("body").textContent = pretty(body);
  byId("answer").hidden = false;
  runDown(headers);
}

function pretty(body) {
  try {
    return JSON.stringify(JSON.parse(body), null, 2);
  } catch {
    return body;
  }
}

// Show the time until the expiry. A fault has no max-age, because clients may not store it; the service caches it for its ttl.
function runDown(headers) {
  const ttl = number(headers.get("Cache-Status"), /ttl=(\d+)/);
  const maxAge = number(headers.get("Cache-Control"), /max-age=(\d+)/);
  const lifetime = maxAge ?? ttl;
  byId("life").hidden = lifetime === null;
  if (lifetime === null) return;
  const bar = document.querySelector("progress");
  const end = performance.now() + lifetime * 1000;
  bar.max = lifetime || 1;
  function step() {
    const left = Math.max(0, (end - performance.now()) / 1000);
    bar.value = left;
    byId("life-left").textContent = left ? `expires in ${duration(Math.ceil(left))}` : "expired: the next request loads it anew";
    if (left) timer = setTimeout(step, still.matches ? 1000 : 100);
  }
  step();
}

function number(header, pattern) {
  const found = pattern.exec(header ?? "");
  return found && Number(found[1]);
}
