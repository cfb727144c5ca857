// Numbers, sizes and times as people read them.

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

/** A size in bytes. */
export function bytes(number) {
  let value = number;
  let unit = 0;
  while (value >= 1024 && unit < UNITS.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${unit === 0 || value >= 100 ? Math.round(value) : value.toFixed(1)} ${UNITS[unit]}`;
}

export function count(number) {
  return number.toLocaleString("en-US", { maximumFractionDigits: 0 });
}

/** A number of any size, in about four digits. */
export function figure(number) {
  if (number === null || number === undefined) return "–";
  if (typeof number !== "number") return String(number);
  if (Number.isInteger(number) && Math.abs(number) < 1e6) return count(number);
  const size = Math.abs(number);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return number.toExponential(2);
  return number
    .toPrecision(4)
    .replace(/(\.\d*?)0+$/, "$1")
    .replace(/\.$/, "");
}

export function percent(share, digits = 0) {
  return `${Number((100 * share).toFixed(digits))} %`;
}

export function milliseconds(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  return seconds < 10 ? `${Math.round(1000 * seconds)} ms` : `${seconds.toFixed(1)} s`;
}

/** How long ago a Unix time in seconds was, in one unit. */
export function ago(time) {
  const seconds = Math.max(0, Date.now() / 1000 - time);
  if (seconds < 10) return "just now";
  return `${duration(seconds)} ago`;
}

export function duration(seconds) {
  for (const [size, unit] of [
    [86400, "d"],
    [3600, "h"],
    [60, "min"],
  ]) {
    if (seconds >= size) return `${Math.floor(seconds / size)} ${unit}`;
  }
  return `${Math.floor(seconds)} s`;
}

export function moment(time) {
  return new Date(1000 * time).toLocaleString(undefined, {
    dateStyle: "medium",
    timeStyle: "short",
  });
}

export function clock(time) {
  return new Date(1000 * time).toLocaleTimeString(undefined, { hour12: false });
}

/** The first digits of a version: enough to tell versions apart by eye. */
export function short(digest) {
  return digest ? digest.slice(0, 10) : "–";
}
