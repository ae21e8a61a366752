// The page: the state, what a person does to it, and what is shown of it.
import "./compare.js";
import "./lens.js";
import * as api from "./api.js";
import * as controls from "./controls.js";
import * as gallery from "./gallery.js";
import * as intake from "./intake.js";
import { savingAs, sharing } from "./save.js";
import { Runs } from "./runs.js";
import { fromAddress, keep, kept, toAddress } from "./state.js";
import { words } from "./words.js";

const at = (id) => document.getElementById(id);
const [compare, lens, form] = ["compare", "lens", "settings"].map(at);
const state = fromAddress();
const runs = new Runs();
const rates = new Map(); // model → output megapixels a second of one step, as measured here
let models = [], limits = {}, examples = [], source = null, shown = null, sourceUrl = "";

const model = () => models.find(({ id }) => id === state.model) ?? models[0];
const steps = () => state.steps || model().default_steps;
const settings = () => ({ model: model().id, steps: steps(), seed: state.seed, ...(source.kind === "latent" ? { stop: state.stop } : { strength: state.strength }) });
const recipe = () => {
  const strength = source.kind === "image" ? state.strength : 0;
  return { kind: source.kind, name: source.stops?.[state.stop].file ?? source.name, ...settings(), strength, space: model().space };
};

function say(text, { bad = false, retry = false } = {}) {
  Object.assign(at("status"), { textContent: text, className: bad ? "bad" : "" });
  at("retry").hidden = !retry;
}

function busy(share) {
  at("progress").hidden = at("cancel").hidden = share === null;
  compare.toggleAttribute("busy", share !== null);
  if (share === undefined) at("progress").removeAttribute("value");
  else at("progress").value = share ?? 0;
}

const fail = (error) => {
  busy(null);
  const status = { failed: words.errors.failed(error.message), expired: words.errors.expired, cancelled: words.canceled }[error.status];
  say(status ?? (error instanceof api.Failure ? error.message : words.errors.other(String(error.message ?? error))), { bad: true, retry: Boolean(source) });
};

/** Take what a person or the address chose, and show it. */
async function take(opened, { example = "", file = "" } = {}) {
  runs.clear();
  source?.bitmap?.close?.();
  if (sourceUrl) URL.revokeObjectURL(sourceUrl);
  [source, shown, sourceUrl] = [opened, null, ""];
  Object.assign(state, { example, file, stop: Math.min(state.stop, (opened.stops?.length ?? 1) - 1) });
  const fits = controls.fillModels(form.elements.model, models, source);
  if (!fits.some(({ id }) => id === state.model)) state.model = fits[0]?.id ?? "";
  for (const button of at("gallery").querySelectorAll("button")) button.setAttribute("aria-pressed", button.dataset.id === opened.id);
  const { kind, width, height, bitmap } = source;
  at("facts").textContent = "";
  at("source").textContent = source.id ? words.credit(source) : kind === "latent" ? words.latentFile(source.name) : source.name;
  compare.clear("before");
  compare.clear("after");
  if (bitmap) {
    sourceUrl = URL.createObjectURL(source.file);
    const full = [width * model().scale, height * model().scale];
    compare.label("after", "");
    await Promise.all([compare.show("before", sourceUrl, words.input, full), compare.show("after", sourceUrl, "", full)]);
  }
  const ready = source.result;
  if (ready && ready.model === model().id && ready.steps === steps() && !state.seed && !state.strength) {
    runs.keep({ settings: settings(), resultUrl: source.resultUrl, ready: true });
  }
  await decode();
}

/** Show the decode that the settings ask for: one that is kept, or a new one. */
async function decode() {
  refresh();
  const asked = settings();
  const found = runs.find(asked);
  if (found) {
    runs.stop();
    busy(null);
    return reveal(found);
  }
  const { kind, name, file, width, height, note } = source;
  const { id, scale, megapixels_per_second: rate } = model();
  const each = rates.get(id) ?? (rate && rate * model().default_steps);
  const said = kind === "image" ? words.ready(width, height, scale, each && (width * height * scale ** 2 * steps()) / 1e6 / each) + note : "";
  const tell = (text) => say([said, text].filter(Boolean).join(" "));
  tell(words.sending);
  busy(undefined);
  const fields = { model: id, steps: asked.steps, seed: asked.seed, format: "png", strength: kind === "image" && asked.strength ? asked.strength : null, ...(kind === "latent" && source.space && { space: source.space }) };
  const sent = source;
  const on = {
    job: (job) => job.state === "queued" && tell(words.queued(job.position)),
    full: ({ message }) => say(message, { bad: true }),
    first: (url) => compare.show("before", url, words.vae),
    preview: ({ step, steps, image }) => {
      tell(words.step(step, steps));
      busy(step / (steps + 0.5));
      compare.show("after", image, words.atStep(id, step, steps));
    },
  };
  try {
    const run = await runs.start({ kind, name, settings: asked, fields, file: source.fileAt?.(state.stop) ?? file }, (event, data) => on[event](data));
    if (!run || source !== sent) return;
    busy(null);
    const { job } = run;
    if (job.seconds?.decode) rates.set(id, (job.width * job.height * job.steps) / 1e6 / job.seconds.decode);
    await reveal(run);
  } catch (error) {
    if (source === sent) fail(error);
  }
}

async function reveal(run) {
  shown = run;
  const { job, firstUrl, resultUrl, settings: { model: id, steps: count } } = run;
  say(job ? words.done(job) : words.shown);
  run.size = job ? [job.width, job.height] : [source.width, source.height].map((side) => side * model().scale);
  if (firstUrl && source.kind === "latent") await compare.show("before", firstUrl, words.vae, run.size);
  await compare.show("after", resultUrl, words.result(id, count), run.size);
  at("facts").textContent = words.facts(source.bitmap && [source.width, source.height], run.size, job?.peak_bytes);
  for (const id of ["download", "format"]) at(id).hidden = !run.job && !run.ready;
  if (state.mode === "lens") await look();
}

/** Give the lens its pictures: what was given, enlarged plainly, and the decodes that are kept. */
async function look() {
  const bitmapOf = async (url) => createImageBitmap(await (await fetch(url)).blob());
  const { scale } = model(), views = [];
  let low = source.bitmap;
  if (source.kind === "latent" && shown?.firstUrl) low = shown.firstBitmap ??= await bitmapOf(shown.firstUrl);
  const names = source.kind === "latent" ? [words.vae, words.vaeLanczos] : [words.input, words.lanczos];
  if (low) {
    const larger = compare.natural[0] / low.width;
    views.push({ label: names[0], bitmap: low, scale: larger, how: "pixels" }, { label: names[1], bitmap: low, scale: larger, how: "lanczos" });
  }
  for (const run of runs.done.values()) {
    run.bitmap ??= await bitmapOf(run.resultUrl);
    views.push({ label: controls.nameOf(run.settings, source), bitmap: run.bitmap, scale: compare.natural[0] / run.bitmap.width || scale, how: "plain" });
  }
  lens.pictures = views;
}

function refresh() {
  toAddress(state);
  controls.fillForm(form, state, model(), source);
  const { licence } = model();
  const closed = /NSCL|non-?commercial/i.test(typeof licence === "string" ? licence : (licence?.name ?? ""));
  at("licence").hidden = !closed;
  at("licence").textContent = closed ? words.noncommercial(licence.name ?? licence) : "";
  sharing.tell(recipe());
}

function setMode(mode) {
  state.mode = compare.mode = mode in words.modes ? mode : "divider";
  lens.hidden = state.mode !== "lens";
  const zooms = state.mode === "lens" ? Object.fromEntries(Object.entries(words.zooms).filter(([zoom]) => zoom !== "fit")) : words.zooms;
  setZoom(state.zoom in zooms ? state.zoom : Object.keys(zooms)[0], zooms);
  if (state.mode === "lens" && source) look();
}

function setZoom(zoom, zooms = null) {
  state.zoom = zoom;
  compare.resize(state.mode === "lens" ? "fit" : zoom);
  lens.zoom = parseInt(zoom) || 1;
  lens.draw();
  if (zooms) controls.choices(at("zooms"), zooms, zoom, setZoom);
  if (source) toAddress(state);
}

async function choose(id) {
  const example = examples.find((each) => each.id === id) ?? examples[0];
  Object.assign(state, { stop: 0 });
  await take(await gallery.open(example), { example: example === examples[0] ? "" : example.id });
}

async function given(file, quiet = false) {
  try {
    const opened = await intake.read(file, limits, model().scale);
    if (!quiet) keep(file);
    await take(opened, { file: opened.name });
  } catch (error) {
    fail(error);
  }
}

function listen() {
  intake.listen(at("file"), at("dropping"), given);
  form.addEventListener("input", () => controls.fillForm(form, { ...state, ...controls.readForm(form) }, model(), source));
  form.addEventListener("change", () => {
    Object.assign(state, controls.readForm(form));
    decode();
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  at("cancel").addEventListener("click", () => {
    runs.stop();
    busy(null);
    say(words.canceled, { retry: true });
  });
  at("retry").addEventListener("click", () => (models.length ? decode() : start()));
  compare.addEventListener("moved", () => ((state.at = Math.round(compare.at * 10) / 10), toAddress(state)));
  lens.addEventListener("moved", () => ((state.lens = `${lens.x.toFixed(1)},${lens.y.toFixed(1)}`), toAddress(state)));
  addEventListener("keydown", ({ key, target }) => {
    if (/^(INPUT|SELECT|TEXTAREA)$/.test(target.tagName) && !/^(radio|range)$/.test(target.type)) return;
    if (state.mode === "flicker" && (key === "1" || key === "2")) compare.flick(key);
  });
  addEventListener("hashchange", () => location.reload());
  savingAs(at, () => ({ run: shown, recipe: recipe() }), say, fail);
  api.askKeyWith(async () => {
    at("key").showModal();
    await new Promise((closed) => at("key").addEventListener("close", closed, { once: true }));
    return at("key").returnValue === "ok" ? at("token").value : "";
  });
}

async function start() {
  at("retry").hidden = true;
  try {
    const found = await api.models();
    [models, limits] = [found.data, found.limits ?? {}];
  } catch (error) {
    fail(error);
    at("retry").hidden = false;
    return;
  }
  if (state.model && !models.some(({ id }) => id === state.model)) say(words.errors.noModel(state.model), { bad: true });
  const own = state.file && (await kept());
  if (own?.name === state.file) return given(own, true);
  const missing = state.file;
  await choose(state.example);
  if (missing) say(words.otherImage(missing), { bad: true });
}

at("privacy").textContent = words.private;
examples = await gallery.examples();
controls.fillGallery(at("gallery"), examples, choose);
lens.over(compare);
listen();
[lens.x, lens.y] = state.lens.split(",").map(Number);
controls.choices(at("modes"), words.modes, state.mode, setMode);
setMode(state.mode);
compare.moveTo(state.at);
await start();
