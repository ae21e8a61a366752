// One decode after the other: a new one cancels the one before, and what was decoded is kept for as long as its source.
import { Failure, cancel, follow, picture, submit } from "./api.js";

const KEPT = 4;
const TRIES = 12; // of a queue that is full, or a server that loads its decoder

// What the server writes without loss in the least time, up to the side that it can have.
const quickest = ({ width, height }) => (Math.max(width, height) < 16384 ? "webp" : "png");

export class Runs {
  #current = null;
  done = new Map();

  find = (settings) => this.done.get(JSON.stringify(settings));

  /** Forget the pictures of the source before. */
  clear() {
    this.stop();
    for (const run of this.done.values()) this.#free(run);
    this.done.clear();
  }

  #free(run) {
    for (const url of [run.firstUrl, run.resultUrl]) if (url?.startsWith("blob:")) URL.revokeObjectURL(url);
  }

  /** Cancel what is going on, on the server too. */
  stop() {
    const current = this.#current;
    this.#current = null;
    current?.controller.abort();
    if (current?.job) cancel(current.job);
  }

  /** Decode; `on` hears of "job", "preview", "first" and "full". Answers with the run, or null if it was overtaken. */
  async start({ kind, file, name, settings, fields }, on) {
    this.stop();
    const current = (this.#current = { controller: new AbortController(), job: null });
    const { signal } = current.controller;
    const tell = (event, data) => this.#current === current && on(event, data);
    try {
      const job = (current.job = await this.#submit(kind === "latent" ? "decode" : "upscale", await file, name, fields, signal, tell));
      if (signal.aborted) return null;
      tell("job", job);
      const first = {};
      const end = await follow(job, (event, data) => {
        tell(event === "preview" ? event : "job", data);
        if (event === "preview" && kind === "latent") first.url ??= this.#url(job.links.first, signal).then((url) => (tell("first", url), url), () => null);
      }, signal);
      current.job = null;
      if (end.state !== "done") throw new Failure(end.error?.message ?? end.state, { status: end.state });
      if (kind === "latent") first.url ??= this.#url(job.links.first, signal).catch(() => null);
      const resultUrl = await this.#url(`${end.links.result}?format=${quickest(end)}`, signal), firstUrl = await first.url;
      const run = { job: end, settings, resultUrl, firstUrl };
      this.keep(run);
      return run;
    } catch (error) {
      if (signal.aborted || this.#current !== current) return null;
      throw error;
    } finally {
      if (this.#current === current) this.#current = null;
    }
  }

  keep(run) {
    this.done.set(JSON.stringify(run.settings), run);
    for (const [key, old] of this.done) {
      if (this.done.size <= KEPT) break;
      this.#free(old);
      this.done.delete(key);
    }
  }

  #url = async (link, signal) => URL.createObjectURL(await picture(link, signal));

  /** A full queue is asked again when it said. */
  async #submit(verb, file, name, fields, signal, tell) {
    for (let tries = 0; ; tries++) {
      try {
        const job = await submit(verb, file, name, fields); // not aborted: the server may have taken it already
        if (signal.aborted) cancel(job);
        return job;
      } catch (error) {
        if (!error.retryAfter || tries === TRIES || signal.aborted) throw error;
        tell("full", error);
        await new Promise((resolve, reject) => {
          setTimeout(resolve, 1000 * error.retryAfter);
          signal.addEventListener("abort", reject, { once: true });
        });
      }
    }
  }
}
