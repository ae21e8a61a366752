// The service's HTTP interface: models, jobs and their events. Every failure is a Failure with words for a person.
import { words } from "./words.js";

export class Failure extends Error {
  constructor(message, { status = 0, retryAfter = 0 } = {}) {
    super(message);
    Object.assign(this, { status, retryAfter });
  }
}

const address = (path) => new URL(path.replace(/^\//, ""), document.baseURI);
let key = sessionStorage.getItem("pixdec-key") ?? "";
let asking = async () => "";
export const askKeyWith = (ask) => (asking = ask);

async function request(path, options = {}) {
  let response;
  try {
    const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
    response = await fetch(address(path), { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure(words.errors.gone);
  }
  if (response.status === 401 && (key = await asking())) {
    sessionStorage.setItem("pixdec-key", key);
    return request(path, options);
  }
  if (!response.ok) throw await failureOf(response);
  return response;
}

async function failureOf(response) {
  const { status } = response;
  const body = await response.json().catch(() => ({}));
  const message = body.error?.message ?? `${status} ${response.statusText}`;
  const retryAfter = Number(response.headers.get("Retry-After")) || 5;
  if (status === 410) return new Failure(words.errors.expired, { status });
  if (status === 429) return new Failure(words.errors.full(retryAfter), { status, retryAfter });
  if (status === 503) return new Failure(words.errors.loading(retryAfter), { status, retryAfter });
  if (status === 401) return new Failure(words.errors.key, { status });
  return new Failure(words.errors.other(message), { status });
}

export const models = async () => (await request("v1/models")).json();

/** Start a job, "upscale" or "decode"; answers with its record. */
export async function submit(verb, file, name, fields) {
  const form = new FormData();
  for (const [field, value] of Object.entries(fields)) if (value != null && value !== "") form.set(field, value);
  form.set("respond", "job");
  form.set(verb === "decode" ? "latent" : "image", file, name);
  return (await request(`v1/${verb}`, { method: "POST", body: form })).json();
}

export const cancel = (job) => request(job.links.self, { method: "DELETE" }).catch(() => {});
export const picture = async (link, signal) => (await request(link, { signal })).blob();

const ENDS = ["done", "failed", "cancelled", "expired"];

/** Follow a job to its end; `on(event, data)` for each event. A stream that breaks is opened again three times. */
export async function follow(job, on, signal) {
  for (let tries = 0; ; tries++) {
    try {
      const stream = await request(job.links.events, { signal, headers: { Accept: "text/event-stream" } });
      for await (const [event, data] of events(stream.body)) {
        on(event, data);
        if (event !== "preview" && ENDS.includes(data.state)) return data;
      }
      throw new Failure(words.errors.gone);
    } catch (error) {
      if (signal.aborted || error.status || tries === 3) throw error;
      await new Promise((later) => setTimeout(later, 400 * 2 ** tries));
    }
  }
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read().catch(() => ({ done: true }));
    if (done) return;
    const parts = (held + value.replaceAll("\r", "")).split("\n\n");
    held = parts.pop();
    for (const part of parts) {
      const lines = part.split("\n");
      const of = (name) => lines.filter((line) => line.startsWith(`${name}:`)).map((line) => line.slice(name.length + 1).trimStart()).join("\n");
      if (of("data")) yield [of("event") || "message", JSON.parse(of("data"))];
    }
  }
}
