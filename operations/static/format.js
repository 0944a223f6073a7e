// How numbers are written. The names are those of `data-form` in the page.

export const count = (number) => number.toLocaleString("en-US");

export const amount = (number) => number < 1e7 ? count(number) : `${rounded(number / 1e6, 1)} M`;

export const mib = (bytes) => `${rounded(bytes / 2 ** 20, bytes < 10 * 2 ** 20 && bytes % 2 ** 20 ? 1 : 0)} MiB`;

export const percent = (ratio) => `${(Math.floor(ratio * 1000) / 10).toFixed(1)} %`; // rounded down, so that 100 % means all

export function duration(seconds) {
  let rest = Math.floor(seconds);
  const parts = [];
  for (const [size, unit] of [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]]) {
    parts.push([Math.floor(rest / size), unit]);
    rest %= size;
  }
  while (parts.length > 1 && !parts[0][0]) parts.shift();
  return parts.slice(0, 2).map(([amount, unit]) => `${amount} ${unit}`).join(" ");
}

// How much of the last ten minutes is known.
export const span = (seconds) => seconds < 60 ? duration(seconds) : `${Math.floor(seconds / 60)} min`;

// Calendar42 rarely takes a second.
export const taken = (seconds) => seconds < 2 ? latency(seconds) : `${duration(seconds)}: Calendar42 is slow`;

export function latency(seconds) {
  if (seconds >= 0.9995) return `${rounded(seconds, 2)} s`;
  return `${rounded(seconds * 1000, seconds >= 0.01 ? 0 : 1)} ms`;
}

// Rounds halves upwards; toFixed alone does so only for some numbers.
const rounded = (number, digits) => (Math.floor(number * 10 ** digits + 0.5) / 10 ** digits).toFixed(digits);

export const pause = (seconds) => seconds > 0 ? duration(Math.ceil(seconds)) : "none";

export const rate = (perSecond) => perSecond >= 10 ? count(Math.round(perSecond)) : perSecond.toFixed(1);

export const clock = (stamp) => stamp.slice(11, 19);

// A time of today without its date.
export const since = (stamp, now) => stamp.slice(0, 10) === now.slice(0, 10) ? clock(stamp) : `${stamp.slice(0, 10)} ${clock(stamp)}`;

export const connection = (up) => up ? "up" : "lost";

export const plain = String;
