// A plot of the last ten minutes, or of less if less is known. The scale is logarithmic: a few refusals are visible next to thousands of hits.

const SPANS = [[60, "1 min", "30 s"], [120, "2 min", "1 min"], [240, "4 min", "2 min"], [600, "10 min", "5 min"]]; // seconds, and their halves
const GAP = 15; // seconds without a value after which a line breaks
const LEFT = 56, RIGHT = 8, TOP = 8, BOTTOM = 24; // pixels around the plot, for the labels
const MOST_TICKS = 7;

export class Plot {
  #svg; #title; #lines; #floor; #label; #tick; #ago = []; #series = [];

  // `lines` has what each line is called, by its CSS class. `label` writes a value, `tick` one of the scale.
  // What is at `floor` or below lies on the bottom, as zero; without a floor, the bottom follows the values.
  constructor(svg, { title, lines, floor, label, tick }) {
    this.#svg = svg;
    this.#title = title;
    this.#lines = Object.entries(lines);
    this.#floor = floor;
    this.#label = label;
    this.#tick = tick;
    new ResizeObserver(() => this.#draw()).observe(svg);
  }

  // Show the values of each line, null where there is none, which are so many seconds old.
  show(ago, series) {
    this.#ago = ago;
    this.#series = series;
    this.#draw();
  }

  #draw() {
    const right = this.#svg.clientWidth - RIGHT, bottom = this.#svg.clientHeight - BOTTOM;
    const ticks = this.#ticks();
    const height = (bottom - TOP) / Math.log(ticks.at(-1) / ticks[0]);
    const [span, whole, half] = this.#span();
    const marks = [[span, `−${whole}`, "start"], [span / 2, `−${half}`, "middle"], [0, "now", "end"]];
    const x = (ago) => right - Math.min(ago / span, 1) * (right - LEFT);
    const y = (value) => bottom - Math.log(Math.max(value / ticks[0], 1)) * height;
    this.#svg.replaceChildren(
      ...ticks.flatMap((tick) => [
        make("path", { class: "grid", d: `M${LEFT} ${y(tick)}H${right}` }),
        make("text", { class: "end", x: LEFT - 8, y: y(tick) + 4 }, this.#tick(tick === this.#floor ? 0 : tick)),
      ]),
      ...marks.flatMap(([ago, text, anchor]) => [
        make("path", { class: "grid", d: `M${x(ago)} ${TOP}V${bottom}` }),
        make("text", { class: anchor, x: x(ago), y: bottom + 17 }, text),
      ]),
      ...this.#lines.map(([style], at) => make("path", { class: `line ${style}`, d: this.#path(this.#series[at] ?? [], x, y) })),
    );
    this.#svg.setAttribute("aria-label", this.#describe());
  }

  // Return the shortest span that has all values.
  #span() {
    return SPANS.find(([span]) => !(this.#ago[0] > span)) ?? SPANS.at(-1);
  }

  // Return the values for the grid lines: 1, 2, 5, 10 …, or only powers of ten if those are too many.
  #ticks() {
    const values = this.#series.flat().filter((value) => value > 0);
    const least = this.#floor ?? (values.length ? Math.min(...values) : 0.01), most = Math.max(...values, least * 10);
    for (const steps of [[1, 2, 5], [1]]) {
      const all = [];
      for (let power = Math.floor(Math.log10(least)); !(all.at(-1) >= most); power++) {
        all.push(...steps.map((step) => Number(`${step}e${power}`)));
      }
      const first = all.findLastIndex((tick) => tick <= least), last = all.findIndex((tick) => tick >= most);
      if (last - first < MOST_TICKS || steps.length === 1) return all.slice(first, last + 1);
    }
  }

  #path(values, x, y) {
    let path = "", before = Infinity;
    for (const [at, value] of values.entries()) {
      if (value === null) continue;
      const ago = this.#ago[at];
      const point = `${x(ago).toFixed(1)} ${y(value).toFixed(1)}`;
      path += before - ago > GAP ? `M${point}h0` : `L${point}`; // one alone is a dot
      before = ago;
    }
    return path;
  }

  // The plot in words, for screen readers.
  #describe() {
    const lines = this.#lines.map(([, name], at) => {
      const values = (this.#series[at] ?? []).filter((value) => value !== null);
      if (!values.length) return `${name}: nothing yet`;
      const [now, least, most] = [values.at(-1), Math.min(...values), Math.max(...values)].map(this.#label);
      return `${name}: ${now} now, from ${least} to ${most}`;
    });
    return `${this.#title}, last ${this.#span()[1]}. ${lines.join("; ")}.`;
  }
}

function make(name, attributes, text = "") {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.textContent = text;
  return element;
}
