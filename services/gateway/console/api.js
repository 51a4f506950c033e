// The service's paths, relative to the page, so that a service behind a prefix works too.

const JSON_TYPE = "application/json";
const NDJSON_TYPE = "application/x-ndjson";

/** A request that failed as a whole: a code of docs/wire.md, or "network", "cut_off", "stopped". */
export class ServiceError extends Error {
  constructor(code, message, retryAfterS = null) {
    super(message);
    this.code = code;
    this.retryAfterS = retryAfterS;
  }
}

export class Service {
  token = "";

  /** Returns the catalogue of GET /v1/scorers. Throws ServiceError. */
  async scorers() {
    const answer = await this.#ask("v1/scorers", { headers: { accept: JSON_TYPE } });
    return await answer.json();
  }

  /** Scores a request and passes each part to `onPart` as it arrives. Throws ServiceError. */
  async score(request, maxBodyBytes, onPart, signal) {
    const body = new Blob([JSON.stringify(request)]);
    if (body.size > maxBodyBytes) {
      const why = `the request has ${body.size} bytes, the limit is ${maxBodyBytes}; choose smaller or fewer images`;
      throw new ServiceError("payload_too_large", why);
    }
    const headers = { "content-type": JSON_TYPE, accept: NDJSON_TYPE };
    const answer = await this.#ask("v1/score", { method: "POST", headers, body, signal });
    let last = {};
    for await (const line of lines(answer.body)) {
      last = JSON.parse(line);
      if (last.error) throw errorOf(last.error);
      onPart(last);
    }
    if (!last.rewards) throw new ServiceError("cut_off", "the last part of the answer is missing; try again");
  }

  /** Returns the body of GET /readyz: {ready, scorers: {name: {ready, replicas, wanted, reason}}}. Throws ServiceError. */
  async readiness() {
    const answer = await this.#fetch("readyz", { signal: AbortSignal.timeout(10_000) });
    if (answer.status !== 200 && answer.status !== 503) throw await errorFrom(answer);
    return await answer.json();
  }

  /** Returns the text of GET /metrics. Throws ServiceError. */
  async metrics() {
    const answer = await this.#ask("metrics", { signal: AbortSignal.timeout(10_000) });
    return await answer.text();
  }

  async #ask(path, options) {
    const answer = await this.#fetch(path, options);
    if (!answer.ok) throw await errorFrom(answer);
    return answer;
  }

  async #fetch(path, options) {
    const headers = { ...options.headers };
    if (this.token) headers.authorization = `Bearer ${this.token}`;
    try {
      return await fetch(path, { ...options, headers, redirect: "error" });
    } catch (error) {
      throw asServiceError(error);
    }
  }
}

/** Converts any error to a ServiceError: a request that was stopped, or a service that did not answer. */
export function asServiceError(error) {
  if (error instanceof ServiceError) return error;
  if (error.name === "AbortError") return new ServiceError("stopped", "the service drops the work in progress");
  return new ServiceError("network", error.message);
}

async function errorFrom(answer) {
  try {
    return errorOf((await answer.json()).error);
  } catch {
    return new ServiceError("network", `HTTP ${answer.status} with a body that this page cannot read`);
  }
}

function errorOf(error) {
  return new ServiceError(error.code, error.message, error.retry_after_s ?? null);
}

async function* lines(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    const whole = (rest + value).split("\n");
    rest = whole.pop();
    yield* whole;
  }
}
