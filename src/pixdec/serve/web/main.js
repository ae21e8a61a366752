// The page begins here: what a person does, and what is done then.
import "./compare.js";
import "./lens.js";
import * as api from "./api.js";
import * as controls from "./controls.js";
import { busy, decode, fail, reload, say, take } from "./decoding.js";
import * as gallery from "./gallery.js";
import * as intake from "./intake.js";
import { savingAs } from "./save.js";
import { at, form, model, recipe, runs, session } from "./session.js";
import { keep, kept } from "./state.js";
import * as view from "./view.js";
import { words } from "./words.js";

const { state } = session;
let examples = [];

// The last picture asked for is shown, however long the models and the others take; Retry asks for it again.
let last = null, loaded;

async function show(open) {
  last = open;
  try {
    await loaded;
    const opened = await open();
    if (last === open) await take(...opened);
  } catch (error) {
    if (last === open) fail(error);
  }
}

function choose(id) {
  const example = examples.find((each) => each.id === id) ?? examples[0];
  if (session.source) state.stop = 0; // not the first time: the address says which
  const open = async () => (example.given ? intake.read(await gallery.file(example), session.limits, model().scale) : gallery.open(example));
  return show(async () => [{ ...(await open()), id: example.id }, { example: example === examples[0] ? "" : example.id }]);
}

const own = (file, { again = false } = {}) =>
  show(async () => {
    const opened = await intake.read(file, session.limits, model().scale);
    if (!again) keep(file);
    return [opened, { file: opened.name }];
  });

function listen() {
  intake.listen(at("file"), at("dropping"), own);
  form.addEventListener("input", () => session.source && controls.tellForm(form, session.source));
  form.addEventListener("change", () => {
    const read = controls.readForm(form);
    if (Number(read.scale) === model().scale) read.scale = "";
    Object.assign(state, read, read.model !== state.model && { steps: "", scale: "" }); // another model has its own
    if (session.source) decode();
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  at("cancel").addEventListener("click", () => {
    runs.stop();
    busy(null);
    say(words.canceled, { retry: true });
    at("retry").focus();
  });
  at("retry").addEventListener("click", () => (session.source ? decode() : start()));
  addEventListener("hashchange", () => location.reload());
  savingAs(at, () => ({ run: session.shown, recipe: recipe() }), say, fail);
  api.askKeyWith(async () => {
    at("key").showModal();
    await new Promise((closed) => at("key").addEventListener("close", closed, { once: true }));
    return at("key").returnValue === "ok" ? at("token").value : "";
  });
}

const isDecoder = ({ kind }) => kind !== "pipeline";

async function untilLoaded() {
  for (let tries = 0; tries < 60 && session.models.some(({ default_steps: usual }) => usual == null); tries++) {
    await new Promise((later) => setTimeout(later, 1000));
    const { data } = await api.models().catch(() => ({}));
    const models = data?.filter(isDecoder);
    if (models && JSON.stringify(models) !== JSON.stringify(session.models)) reload(models);
  }
}

async function first() {
  examples = [...gallery.given(state.given), ...(await gallery.examples())];
  controls.fillGallery(at("gallery"), examples, choose);
  const { model: asked, file: name } = state;
  const before = name && (await kept());
  if (last) return; // a person was quicker
  await (name && before?.name === name ? own(before, { again: true }) : choose(state.example));
  if (name && before?.name !== name) say(words.otherImage(name), { bad: true });
  if (asked && !session.models.some(({ id }) => id === asked)) say(words.errors.noModel(asked), { bad: true });
}

async function start() {
  at("retry").hidden = true;
  loaded = api.models().then(({ data, limits }) => Object.assign(session, { models: data.filter(isDecoder), limits: limits ?? {} }));
  loaded.then(untilLoaded, fail);
  await (last ? show(last) : first());
}

at("privacy").textContent = words.private;
listen();
view.listen();
await start();
