// What the server's metrics say of its load and of each adapter's traffic, over the last minutes.

import { ApiError, request } from "./api.js";

const PLACES = 90;
const SPAN = 5;
const LINE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)/;
const LABEL = /(\w+)="((?:[^"\\]|\\.)*)"/g;
const OTHER = "other";
const LEAN = {
  requests: "multiflora_requests_total",
  firstToken: "multiflora_time_to_first_token_seconds",
};
const WHOLE = {
  requests: "multiflora_adapter_requests_total",
  firstToken: "multiflora_adapter_first_token_seconds",
};
const HARMLESS = new Set(["ok", "disconnected"]);

/** Samples of one server; `look` takes one. `problem` says why there are none. */
export class Traffic {
  problem = null;
  #samples = [];

  get isKnown() {
    return this.#samples.length > 0;
  }

  async look() {
    try {
      const families = await read("metrics");
      const lean = byAdapter(families, LEAN);
      // The page that is read often has the busiest adapters; of the others it says that there are.
      const isWhole = !lean.has(OTHER);
      const adapters = isWhole ? lean : byAdapter(await read("metrics/adapters"), WHOLE);
      this.#samples.push({ time: performance.now() / 1000, families, adapters, isWhole });
      if (this.#samples.length > PLACES + 1) this.#samples.shift();
      this.problem = null;
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      this.problem = error.message;
    }
  }

  /** A gauge or counter without labels, as it is now. */
  value(name) {
    return this.#samples.at(-1)?.families.get(name)?.[0]?.value ?? null;
  }

  /** Growth of a counter per second, between the last two samples. */
  rate(name) {
    if (this.#samples.length < 2) return null;
    const [before, now] = this.#samples.slice(-2);
    const read = (sample) => sample.families.get(name)?.[0]?.value ?? 0;
    return growth(read(before), read(now)) / (now.time - before.time);
  }

  /** An adapter's requests, errors and mean time to the first token since the server's start. */
  totals(adapter) {
    return this.#samples.at(-1)?.adapters.get(adapter) ?? null;
  }

  /** An adapter's requests per second, over a few samples each, the oldest first. */
  history(adapter) {
    return this.#samples.slice(1).map((now, index) => {
      const before = this.#samples[Math.max(0, index + 1 - SPAN)];
      if (before.isWhole !== now.isWhole) return 0;
      const requests = (sample) => sample.adapters.get(adapter)?.requests ?? 0;
      return growth(requests(before), requests(now)) / (now.time - before.time);
    });
  }

  /** The mean of the last half minute. */
  recent(adapter) {
    const last = this.history(adapter).slice(-15);
    return last.length ? last.reduce((sum, one) => sum + one, 0) / last.length : null;
  }
}

/** A restarted server counts from zero. */
function growth(before, now) {
  return now >= before ? now - before : now;
}

async function read(path) {
  const response = await request("GET", path);
  return parse(await response.text());
}

function parse(text) {
  const families = new Map();
  for (const line of text.split("\n")) {
    const found = LINE.exec(line);
    if (!found) continue;
    const labels = Object.fromEntries(
      [...(found[2] ?? "").matchAll(LABEL)].map((one) => [one[1], one[2]]),
    );
    if (!families.has(found[1])) families.set(found[1], []);
    families.get(found[1]).push({ labels, value: Number(found[3]) });
  }
  return families;
}

/** Requests, errors and times to the first token, by the name of the adapter. */
function byAdapter(families, { requests, firstToken }) {
  const adapters = new Map();
  const of = ({ adapter }) => {
    if (!adapters.has(adapter))
      adapters.set(adapter, { requests: 0, errors: 0, firsts: 0, firstSeconds: 0 });
    return adapters.get(adapter);
  };
  for (const { labels, value } of families.get(requests) ?? []) {
    of(labels).requests += value;
    if (!HARMLESS.has(labels.outcome)) of(labels).errors += value;
  }
  for (const { labels, value } of families.get(`${firstToken}_count`) ?? [])
    of(labels).firsts += value;
  for (const { labels, value } of families.get(`${firstToken}_sum`) ?? [])
    of(labels).firstSeconds += value;
  return adapters;
}
