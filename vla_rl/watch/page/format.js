// Numbers for people, as the report and the command line write them. A missing value is a dash.

export const ABSENT = "–";
const grouped = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });
const significant = new Intl.NumberFormat("en-US", { maximumSignificantDigits: 3, useGrouping: false });

export function isNumber(value) {
  return typeof value === "number" && Number.isFinite(value);
}

export function number(value) {
  if (!isNumber(value)) return ABSENT;
  const size = Math.abs(value);
  if (size >= 1e9 || (size > 0 && size < 1e-3)) return value.toExponential(1);
  return size >= 100 || Number.isInteger(value) ? grouped.format(value) : significant.format(value);
}

export function percent(share) {
  if (!isNumber(share)) return ABSENT;
  const points = 100 * share;
  return `${points !== 0 && Math.abs(points) < 10 ? significant.format(Number(points.toPrecision(2))) : points.toFixed(0)} %`;
}

export function duration(seconds) {
  if (!isNumber(seconds)) return ABSENT;
  const whole = Math.max(0, Math.round(seconds));
  const hours = Math.floor(whole / 3600);
  if (hours >= 48) return `${Math.floor(hours / 24)} d ${hours % 24} h`;
  const two = (value) => String(value).padStart(2, "0");
  return `${hours}:${two(Math.floor(whole / 60) % 60)}:${two(whole % 60)}`;
}

export function age(seconds) {
  for (const [size, unit] of [[86400, "d"], [3600, "h"], [60, "min"]]) {
    if (seconds >= size) return `${Math.floor(seconds / size)} ${unit} ago`;
  }
  return `${Math.max(0, Math.floor(seconds))} s ago`;
}

export function bytes(count) {
  for (const unit of ["B", "kB", "MB"]) {
    if (count < 999.5) return `${significant.format(count)} ${unit}`;
    count /= 1000;
  }
  return `${significant.format(count)} GB`;
}

// A tick: 0.25, 20k, 1.5M
export function tick(value) {
  for (const [size, unit] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (Math.abs(value) >= size) return `${significant.format(value / size)}${unit}`;
  }
  return value !== 0 && Math.abs(value) < 1e-3 ? value.toExponential(1) : significant.format(value);
}
