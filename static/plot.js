// A moving plot of the last two minutes. The scale is logarithmic: a few refusals show beside thousands of hits.

const SPAN = 120; // seconds
const GAP = 5; // seconds without a sample after which the line breaks
const LEFT = 52, RIGHT = 8, TOP = 8, BOTTOM = 24; // pixels around the plot, for the labels

export class Plot {
  #svg; #title; #names; #floor; #label; #samples = [];

  // `names` are the lines, and their CSS classes; what is at `floor` or below lies on the bottom; `label` writes a value.
  constructor(svg, title, names, floor, label) {
    this.#svg = svg;
    this.#title = title;
    this.#names = names;
    this.#floor = floor;
    this.#label = label;
    new ResizeObserver(() => this.draw()).observe(svg);
  }

  // Add one value for each line, null where there is none, at `time` in seconds.
  add(time, values) {
    this.#samples.push({ time, values });
    while (this.#samples[0].time < time - SPAN - GAP) this.#samples.shift();
    this.draw();
  }

  draw() {
    const { clientWidth, clientHeight } = this.#svg;
    const right = clientWidth - RIGHT, bottom = clientHeight - BOTTOM;
    const latest = this.#samples.at(-1)?.time ?? 0;
    const most = Math.max(...this.#samples.flatMap(({ values }) => values.map(Number)), this.#floor * 99);
    const decades = Math.ceil(Math.log10(most / this.#floor));
    const x = (time) => right - (latest - time) / SPAN * (right - LEFT);
    const y = (value) => bottom - Math.log10(Math.max(value / this.#floor, 1)) / decades * (bottom - TOP);
    this.#svg.replaceChildren(
      ...this.#rows(decades, y, right),
      ...this.#columns((ago) => x(latest - ago), bottom),
      ...this.#names.map((name, at) => element("path", { class: `line ${name}`, d: this.#path(at, x, y) })),
    );
    this.#svg.setAttribute("aria-label", this.#describe());
  }

  #rows(decades, y, right) {
    const values = Array.from({ length: decades + 1 }, (_, power) => this.#floor * 10 ** power);
    return values.flatMap((value, power) => [
      element("path", { class: "grid", d: `M${LEFT} ${y(value)}H${right}` }),
      element("text", { x: LEFT - 8, y: y(value) + 4, class: "value" }, this.#label(power ? value : 0)),
    ]);
  }

  #columns(x, bottom) {
    return [[120, "−2 min"], [60, "−1 min"], [0, "now"]].flatMap(([ago, text]) => [
      element("path", { class: "grid", d: `M${x(ago)} ${TOP}V${bottom}` }),
      element("text", { x: x(ago), y: bottom + 17, class: ["", "middle", "end"][[120, 60, 0].indexOf(ago)] }, text),
    ]);
  }

  #path(line, x, y) {
    let path = "", before = -Infinity;
    for (const { time, values } of this.#samples) {
      if (values[line] === null || x(time) < LEFT) continue;
      const to = `${x(time).toFixed(1)} ${y(values[line]).toFixed(1)}`;
      path += time - before > GAP ? `M${to}h0` : `L${to}`; // a lone sample is a dot
      before = time;
    }
    return path;
  }

  // The plot in words, for those who don't see it.
  #describe() {
    const lines = this.#names.map((name, at) => {
      const values = this.#samples.map(({ values }) => values[at]).filter((value) => value !== null);
      if (!values.length) return `${name}: nothing yet`;
      const [now, least, most] = [values.at(-1), Math.min(...values), Math.max(...values)].map(this.#label);
      return `${name}: ${now} now, ${least} to ${most}`;
    });
    return `${this.#title}, last two minutes. ${lines.join("; ")}.`;
  }
}

function element(name, attributes, text = "") {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  return made;
}
