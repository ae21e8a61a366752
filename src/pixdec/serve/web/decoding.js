// From a picture to its decode: what is said, what is shown meanwhile, and how it ends.
import { Failure } from "./api.js";
import * as controls from "./controls.js";
import { sharing } from "./save.js";
import { at, compare, fits, form, model, recipe, runs, scale, session, settings, steps } from "./session.js";
import { toAddress } from "./state.js";
import { look } from "./view.js";
import { words } from "./words.js";

const rates = new Map(); // model → output megapixels a second of one step, as measured here

export function say(text, { bad = false, retry = false } = {}) {
  Object.assign(at("status"), { textContent: text, className: bad ? "bad" : "" });
  at("retry").hidden = !retry;
}

/** Progress: a share, undefined where none is known, null when nothing goes on. */
export function busy(share) {
  at("progress").hidden = at("cancel").hidden = share === null;
  compare.toggleAttribute("busy", share !== null);
  if (share === undefined) at("progress").removeAttribute("value");
  else at("progress").value = share ?? 0;
}

export function fail(error) {
  busy(null);
  const ended = { failed: words.errors.failed(error.message), expired: words.errors.expired, cancelled: words.canceled }[error.status];
  say(ended ?? (error instanceof Failure ? error.message : words.errors.other(String(error.message ?? error))), { bad: true, retry: true });
}

/** Take what a person or the address chose, and show it. */
export async function take(opened, { example = "", file = "" } = {}) {
  const { state } = session;
  runs.clear();
  if (session.source?.image) URL.revokeObjectURL(session.source.image.src);
  Object.assign(session, { source: opened, shown: null });
  Object.assign(state, { example, file, stop: Math.min(state.stop, (opened.stops?.length ?? 1) - 1) });
  const found = controls.fillModels(form, session.models, opened, state.model);
  state.model = found ?? "";
  if (opened.kind === "image" && !fits(state.scale, opened)) state.scale = "";
  controls.press(at("gallery"), opened.id);
  at("source").textContent = opened.credit ? words.credit(opened) : opened.kind === "latent" ? words.latentFile(opened) : opened.name;
  at("facts").textContent = "";
  for (const each of ["before", "after"]) compare.clear(each);
  if (opened.image) await place(opened);
  if (session.source !== opened) return; // another one was chosen meanwhile
  if (!found) return fail(new Failure(words.errors.noDecoder(opened.space)));
  if (isReady(opened)) runs.keep({ settings: settings(), resultUrl: opened.resultUrl, ready: true });
  await decode();
}

async function place({ image: { src }, width, height }) {
  const full = [width, height].map((side) => Math.round(side * scale()));
  await Promise.all([compare.show("before", src, words.input, full), compare.show("after", src, "", full)]);
}

function isReady({ result }) {
  const { seed, strength } = session.state;
  return result && result.model === model().id && result.steps === steps() && !seed && !strength && scale() === model().scale;
}

/** Show the decode that the settings ask for: one that is kept, or a new one. */
export async function decode() {
  refresh();
  const { source, state } = session, asked = settings();
  const found = runs.find(asked);
  if (found) {
    runs.stop();
    busy(null);
    return reveal(found);
  }
  const said = foretold(source), { id, scale: own, space } = model();
  const tell = (text) => say([said, text].filter(Boolean).join(" "));
  tell(words.sending);
  busy(undefined);
  const count = state.steps || model().default_steps; // null leaves it to a model that is not loaded yet
  const unsaid = source.kind === "latent" && !source.space && space !== "rgb" ? space : null;
  const { stop, ...fields } = { ...asked, steps: count, strength: asked.strength || null, scale: asked.scale === own ? null : asked.scale, space: unsaid };
  const on = {
    job: (job) => tell(job.state === "queued" ? words.queued(job.position) : words.decoding),
    full: ({ message }) => say(message, { bad: true }),
    first: (url) => compare.show("before", url, words.vae),
    preview({ step, steps, image }) {
      tell(words.step(step, steps));
      busy(step / (steps + 0.5));
      compare.show("after", image, words.atStep(id, step, steps));
    },
  };
  try {
    const file = source.fileAt?.(state.stop) ?? source.file;
    const run = await runs.start({ kind: source.kind, name: recipe().name, settings: asked, fields, file }, (event, data) => on[event](data));
    if (!run || session.source !== source) return;
    busy(null);
    const { job } = run;
    const decoded = job.width * job.height * Math.max(1, own / (asked.scale ?? own)) ** 2;
    if (job.seconds?.decode) rates.set(id, (decoded * job.steps) / 1e6 / job.seconds.decode);
    await reveal(run);
  } catch (error) {
    if (session.source === source) fail(error);
  }
}

/** What the server says of its models, now that it has loaded more. */
export function reload(models) {
  session.models = models;
  if (!session.source) return;
  controls.fillModels(form, models, session.source, session.state.model);
  refresh();
}

function foretold({ kind, width, height, note }) {
  if (kind !== "image") return "";
  const { id, scale: own, default_steps, megapixels_per_second: rate } = model();
  const each = rates.get(id) ?? (rate && rate * (default_steps ?? 1));
  const decoded = width * height * Math.max(scale(), own) ** 2; // a smaller picture is shrunk afterwards
  return words.ready(width, height, scale(), each && (decoded * steps()) / 1e6 / each) + note;
}

async function reveal(run) {
  session.shown = run;
  const { source } = session, { job, firstUrl, resultUrl, settings: { model: id, steps: count } } = run;
  say(job ? words.done(job) : words.shown);
  const size = job ? [job.width, job.height] : [source.width, source.height].map((side) => Math.round(side * scale()));
  if (firstUrl && source.kind === "latent") await compare.show("before", firstUrl, words.vae, size);
  await compare.show("after", resultUrl, words.result(id, job?.steps ?? count), size);
  at("facts").textContent = words.facts(source.image && [source.width, source.height], size, job?.peak_bytes);
  for (const each of ["download", "format"]) at(each).hidden = false;
  if (session.state.mode === "lens") await look();
}

function refresh() {
  toAddress(session.state);
  controls.fillForm(form, session.state, model(), session.source, fits);
  const { licence } = model();
  at("licence").hidden = !words.isClosed(licence);
  at("licence").textContent = words.noncommercial(licence);
  sharing.tell(recipe());
}
