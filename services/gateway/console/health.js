// Service health, polled: replicas from /readyz, reward health from /metrics if this caller may read it.

import { byId, el, number, setText } from "./dom.js";
import { describe } from "./messages.js";

const EVERY_MS = 5000;
const COLUMNS = ["errors", "saturated", "flat", "drift"];
const SERIES = {
  synod_scores_total: "scores",
  synod_reward_mean: "mean",
  synod_reward_std: "std",
  synod_reward_error_share: "errors",
  synod_reward_saturation: "saturated",
  synod_reward_zero_spread: "flat",
  synod_reward_drift: "drift",
};

export class Health {
  #metricsRefused = null;
  #timer = null;

  constructor(service) {
    this.service = service;
    document.addEventListener("visibilitychange", () => this.poll());
  }

  /** Polls now, and then every 5 s while the page is visible. A new token may give access to the metrics. */
  async poll({ newToken = false } = {}) {
    clearTimeout(this.#timer);
    if (document.hidden) return;
    if (newToken) this.#metricsRefused = null;
    await this.#ask();
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.poll(), EVERY_MS);
  }

  async #ask() {
    let found;
    try {
      found = await this.service.readiness();
    } catch (error) {
      return state("down", describe(error.code));
    }
    const behind = Object.values(found.scorers).filter((one) => !one.ready).length;
    state(found.ready ? "up" : "part", found.ready ? "ready" : `${behind} of ${Object.keys(found.scorers).length} not ready`);
    const health = await this.#rewardHealth();
    byId("health-rows").replaceChildren(...Object.entries(found.scorers).map(([name, one]) => row(name, one, health[name] ?? {})));
    setText(byId("health-note"), this.#metricsRefused ?? "Since the service started; updated every 5 s.");
  }

  async #rewardHealth() {
    if (this.#metricsRefused) return {};
    try {
      return parse(await this.service.metrics());
    } catch (error) {
      const closed = ["unauthenticated", "permission_denied"].includes(error.code);
      if (closed) this.#metricsRefused = "Scores are hidden: /metrics needs a token with the scope 'metrics'.";
      return {};
    }
  }
}

/** Parses the displayed series of Prometheus text into {scorer: {mean, std, ..}}. */
export function parse(text) {
  const found = {};
  for (const line of text.split("\n")) {
    const [, series, scorer, value] = /^(\w+)\{scorer="([^"]*)"\} (\S+)/.exec(line) ?? [];
    if (series in SERIES) (found[scorer] ??= {})[SERIES[series]] = Number(value);
  }
  return found;
}

function state(kind, text) {
  byId("service-state").className = `pill ${kind}`;
  setText(byId("service-state"), text);
}

function row(name, { ready, replicas, wanted, reason }, health) {
  const mean = Number.isFinite(health.mean) ? `${number(health.mean)} ± ${number(health.std)}` : "–";
  const readiness = el("td", { className: ready ? "up" : "down" }, `${replicas} of ${wanted} ${ready ? "ready" : (reason ?? "not ready")}`);
  return el(
    "tr",
    {},
    el("th", { scope: "row" }, name),
    readiness,
    el("td", {}, health.scores === undefined ? "–" : String(health.scores)),
    el("td", {}, mean),
    ...COLUMNS.map((column) => el("td", {}, column === "drift" ? number(health[column]) : share(health[column]))),
  );
}

const share = (value) => (Number.isFinite(value) ? `${(100 * value).toFixed(1)} %` : "–");
