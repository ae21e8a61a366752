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

async function choose(id) {
  const example = examples.find((each) => each.id === id) ?? examples[0];
  if (session.source) state.stop = 0; // not the first time: the address says which
  try {
    const opened = example.given ? await intake.read(await gallery.file(example), session.limits, model().scale) : await gallery.open(example);
    await take({ ...opened, id: example.id }, { example: example === examples[0] ? "" : example.id });
  } catch (error) {
    fail(error);
  }
}

async function own(file, { again = false } = {}) {
  try {
    const opened = await intake.read(file, session.limits, model().scale);
    if (!again) keep(file);
    await take(opened, { file: opened.name });
  } catch (error) {
    fail(error);
  }
}

function listen() {
  intake.listen(at("file"), at("dropping"), own);
  form.addEventListener("input", () => controls.tellForm(form, session.source));
  form.addEventListener("change", () => {
    const read = controls.readForm(form);
    if (Number(read.scale) === model().scale) read.scale = "";
    Object.assign(state, read, read.model !== state.model && { steps: "", scale: "" }); // another model has its own
    decode();
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

async function start() {
  at("retry").hidden = true;
  try {
    const { data, limits } = await api.models();
    Object.assign(session, { models: data.filter(isDecoder), limits: limits ?? {} });
  } catch (error) {
    return fail(error);
  }
  const { model: asked, file: name } = state;
  const last = name && (await kept());
  await (name && last?.name === name ? own(last, { again: true }) : choose(state.example));
  if (name && last?.name !== name) say(words.otherImage(name), { bad: true });
  untilLoaded();
  if (asked && !session.models.some(({ id }) => id === asked)) say(words.errors.noModel(asked), { bad: true });
}

at("privacy").textContent = words.private;
examples = [...gallery.given(state.given), ...(await gallery.examples())];
controls.fillGallery(at("gallery"), examples, choose);
listen();
view.listen();
await start();
