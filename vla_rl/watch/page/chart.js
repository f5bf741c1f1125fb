// A chart of a few curves over one clock, as SVG.

import { ABSENT, isNumber, number, percent, tick } from "./format.js";

const HEIGHT = 190;
const MARGIN = { left: 46, right: 10, top: 8, bottom: 34 };
const COLORS = 6;
const DASHES = 4;
const SPANS = [[300, 1, "s"], [3 * 3600, 60, "min"], [3 * 86400, 3600, "h"], [Infinity, 86400, "d"]];

export function element(name, attributes = {}, ...children) {
  const isSvg = ["svg", "g", "path", "line", "text", "circle"].includes(name);
  const made = isSvg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

// A sample of a curve's line, for legends; without a colour where only its dashes matter.
export function swatch(color, dash = 0) {
  const hue = color === null ? "" : `c${color % COLORS}`;
  const line = element("line", { x1: 1, x2: 21, y1: 5, y2: 5, class: `line ${hue} d${dash % DASHES}` });
  return element("svg", { width: 22, height: 10, "aria-hidden": "true" }, line);
}

// A step between ticks: 1, 2 or 5 times a power of ten, for at most `count` steps in a span.
function stepFor(span, count) {
  const power = 10 ** Math.floor(Math.log10(span / count));
  return [1, 2, 5, 10].map((factor) => factor * power).find((each) => each >= (span / count) * (1 - 1e-9));
}

function ticks(low, high, step) {
  const found = [];
  for (let index = Math.ceil(low / step - 1e-9); index * step <= high + 1e-9 * step; index += 1) found.push(index * step || 0);
  return found;
}

// Exponential smoothing without the pull towards the start; a missing value changes nothing.
export function smooth(values, weight) {
  let sum = 0;
  let total = 0;
  return values.map((value) => {
    if (!isNumber(value)) return value;
    sum = weight * sum + (1 - weight) * value;
    total = weight * total + (1 - weight);
    return sum / total;
  });
}

export class Chart {
  // `panel`: title, unit, shares, from_zero. `onCursor(x)`: the reader points at a place of the clock, or at none.
  constructor(panel, onCursor) {
    this.panel = panel;
    this.series = [];
    this.cursor = null;
    this.onCursor = onCursor;
    this.legend = element("div", { class: "legend" });
    this.svg = element("svg", { class: "plot", role: "img" });
    const heading = panel.unit ? `${panel.title} (${panel.unit})` : panel.title;
    this.figure = element("figure", { tabindex: 0, "aria-label": heading }, element("figcaption", {}, heading), this.legend, this.svg);
    this.figure.addEventListener("pointermove", (event) => this.point(event));
    this.figure.addEventListener("pointerleave", () => onCursor(null));
    this.figure.addEventListener("blur", () => onCursor(null));
    this.figure.addEventListener("keydown", (event) => this.step(event));
  }

  // `series`: run and label (empty where there is one), color, dash, x, mean, low, high (null where points are single).
  show(series, { clock, clockLabel, smoothing }) {
    this.series = series.map((each) => ({ ...each, shown: smoothing > 0 ? smooth(each.mean, smoothing) : each.mean }));
    this.clock = clock;
    this.clockLabel = clockLabel;
    this.isSmoothed = smoothing > 0;
    this.figure.hidden = !series.length;
    this.makeLegend();
    this.draw();
  }

  // One line of names and values; for several metrics of several runs a table, a row for each run.
  makeLegend() {
    for (const each of this.series) each.output = element("b", {}, ABSENT);
    const runs = [...new Set(this.series.map((each) => each.run))];
    const metrics = [...new Set(this.series.map((each) => each.label))];
    if (runs.length < 2 || metrics.length < 2) {
      const names = this.series.map((each) => [each.run, each.label].filter(Boolean).join(": "));
      this.legend.replaceChildren(element("ul", {}, ...this.series.map((each, at) => element("li", {}, swatch(each.color, each.dash), names[at], each.output))));
      return;
    }
    const of = (name, value) => this.series.find((each) => each[name] === value);
    const head = metrics.map((label) => element("th", { scope: "col" }, swatch(null, of("label", label).dash), label));
    const rows = runs.map((run) => {
      const cells = metrics.map((label) => this.series.find((each) => each.run === run && each.label === label)?.output ?? "");
      return element("tr", {}, element("th", { scope: "row", title: run }, swatch(of("run", run).color), run), ...cells.map((cell) => element("td", {}, cell)));
    });
    this.legend.replaceChildren(element("table", {}, element("tr", {}, element("td"), ...head), ...rows));
  }

  range() {
    let [low, high, end] = [Infinity, -Infinity, 0];
    for (const each of this.series) {
      for (const value of [...each.mean, ...(each.low ?? []), ...(each.high ?? [])]) {
        if (isNumber(value)) [low, high] = [Math.min(low, value), Math.max(high, value)];
      }
      end = Math.max(end, each.x.at(-1) ?? 0);
    }
    if (low > high) [low, high] = [0, 1];
    if (this.panel.shares || this.panel.from_zero) low = Math.min(0, low);
    if (this.panel.shares && high > 0.5 && high <= 1) high = 1;
    if (high === low) [low, high] = [low && low - Math.abs(low) / 2, high + (Math.abs(high) || 1) / 2];
    const step = stepFor(high - low, 4);
    return { low: Math.floor(low / step + 1e-9) * step, high: Math.ceil(high / step - 1e-9) * step, step, end: end || 1 };
  }

  draw() {
    const width = this.figure.clientWidth;
    if (!width || this.figure.hidden) return;
    const { low, high, step, end } = this.range();
    const [inner, depth] = [width - MARGIN.left - MARGIN.right, HEIGHT - MARGIN.top - MARGIN.bottom];
    this.toX = (value) => MARGIN.left + (inner * value) / end;
    this.toY = (value) => MARGIN.top + depth * (1 - (value - low) / (high - low));
    this.end = end;
    const parts = [...this.axes(ticks(low, high, step), end, width), ...this.series.flatMap((each) => this.curve(each))];
    this.line = element("line", { class: "cursor", y1: MARGIN.top, y2: HEIGHT - MARGIN.bottom, visibility: "hidden" });
    this.svg.replaceChildren(...parts, this.line);
    for (const [key, value] of [["width", width], ["height", HEIGHT], ["viewBox", `0 0 ${width} ${HEIGHT}`]]) this.svg.setAttribute(key, value);
    this.point_at(this.cursor);
    this.svg.setAttribute("aria-label", this.summary(low, high));
  }

  axes(heights, end, width) {
    const format = this.panel.shares ? (value) => `${tick(100 * value)} %` : tick;
    const made = [];
    for (const value of heights) {
      const y = this.toY(value);
      made.push(element("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: y, y2: y }));
      made.push(element("text", { class: "tick", x: MARGIN.left - 6, y: y + 4, "text-anchor": "end" }, format(value)));
    }
    const [, size, unit] = this.clock === "seconds" ? SPANS.find(([limit]) => end < limit) : [0, 1, ""];
    for (const value of ticks(0, end / size, stepFor(end / size, Math.max(2, Math.floor(width / 70))))) {
      const x = this.toX(value * size);
      made.push(element("text", { class: "tick", x, y: HEIGHT - MARGIN.bottom + 14, "text-anchor": "middle" }, tick(value)));
    }
    this.axisName = unit ? `wall-clock time (${unit})` : this.clockLabel;
    this.axis = element("text", { class: "axis", x: width - MARGIN.right, y: HEIGHT - 3, "text-anchor": "end" }, this.axisName);
    return [...made, this.axis];
  }

  curve(each) {
    const places = each.x.map((_, index) => index).filter((index) => isNumber(each.mean[index]));
    const color = `c${each.color % COLORS}`;
    const path = (values) => places.map((index, at) => `${at ? "L" : "M"}${this.toX(each.x[index]).toFixed(1)} ${this.toY(values[index]).toFixed(1)}`).join("");
    const made = [];
    if (each.low && places.length > 1) {
      const back = [...places].reverse().map((index) => `L${this.toX(each.x[index]).toFixed(1)} ${this.toY(each.low[index]).toFixed(1)}`);
      made.push(element("path", { class: `band ${color}`, d: `${path(each.high)}${back.join("")}Z` }));
    }
    if (this.isSmoothed) made.push(element("path", { class: `line raw ${color}`, d: path(each.mean) }));
    if (places.length === 1) {
      const index = places[0];
      made.push(element("circle", { class: `dot ${color}`, cx: this.toX(each.x[index]), cy: this.toY(each.mean[index]), r: 3 }));
    } else {
      made.push(element("path", { class: `line ${color} d${each.dash % DASHES}`, d: path(each.shown) }));
    }
    return made;
  }

  format(value) {
    return this.panel.shares ? percent(value) : number(value);
  }

  summary(low, high) {
    return `${this.panel.title} over ${this.axisName}, from ${this.format(low)} to ${this.format(high)}; newest: ${this.values()}`;
  }

  values() {
    return this.series.map((each) => [each.run, each.label, each.output.textContent].filter(Boolean).join(" ")).join(", ");
  }

  // Show the values at a place of the clock, or the newest ones.
  point_at(x) {
    this.cursor = x;
    if (!this.line) return;
    for (const each of this.series) {
      const index = nearest(each, x);
      each.output.textContent = index < 0 ? ABSENT : this.format(each.shown[index]);
    }
    const isShown = x !== null && x <= this.end;
    this.line.setAttribute("visibility", isShown ? "visible" : "hidden");
    if (isShown) {
      this.line.setAttribute("x1", this.toX(x));
      this.line.setAttribute("x2", this.toX(x));
    }
    this.axis.textContent = isShown ? `at ${number(x)} ${this.clockLabel}` : this.axisName;
  }

  point(event) {
    const box = this.svg.getBoundingClientRect();
    const share = (event.clientX - box.left - MARGIN.left) / (box.width - MARGIN.left - MARGIN.right);
    this.onCursor(this.clock, Math.min(1, Math.max(0, share)) * this.end);
  }

  step(event) {
    const clocks = [...new Set(this.series.flatMap((each) => each.x.filter((_, index) => isNumber(each.mean[index]))))].sort((a, b) => a - b);
    const at = this.cursor === null ? clocks.length - 1 : clocks.findLastIndex((each) => each <= this.cursor);
    const jump = Math.max(1, Math.round(clocks.length / 50));
    const next = { ArrowLeft: at - jump, ArrowRight: at + jump, Home: 0, End: clocks.length - 1 }[event.key];
    if (event.key === "Escape") this.onCursor(null);
    if (next === undefined || !clocks.length) return;
    event.preventDefault();
    this.onCursor(this.clock, clocks[Math.min(clocks.length - 1, Math.max(0, next))]);
    this.svg.setAttribute("aria-label", `${this.axis.textContent}: ${this.values()}`);
  }
}

// Index of the newest value at or before a place of the clock, of the first value after it if there is none; -1 without values.
function nearest(each, x) {
  let found = -1;
  for (let index = 0; index < each.x.length; index += 1) {
    if (!isNumber(each.mean[index])) continue;
    if (found >= 0 && x !== null && each.x[index] > x) break;
    found = index;
  }
  return found;
}
