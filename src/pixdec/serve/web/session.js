// What the page knows: the models, the picture that was given, the settings, and the decode that is shown.
import { Runs } from "./runs.js";
import { fromAddress } from "./state.js";

export const at = (id) => document.getElementById(id);
export const [compare, lens, form] = ["compare", "lens", "settings"].map(at);
export const session = { state: fromAddress(), models: [], limits: {}, source: null, shown: null };
export const runs = new Runs();

/** The model that is chosen; of one that is not loaded yet the server knows the name alone. */
export function model() {
  const found = session.models.find(({ id }) => id === session.state.model) ?? session.models[0];
  return { ...found, scale: found.scale ?? 4, space: found.space ?? "rgb" };
}

/** Whether this server takes an image so many times as large. */
export const fits = (scale, { width, height }) => width * height * Math.max(scale, model().scale) ** 2 <= (session.limits.pixels ?? Infinity);
/** How many times as large the picture becomes: the model's own, but for an image for which another is chosen. */
export const scale = () => (session.source.kind === "image" && Number(session.state.scale)) || model().scale;
export const steps = () => session.state.steps || model().default_steps || session.source?.result?.steps || 1;

/** What a decode depends on, besides the picture. */
export function settings() {
  const { source, state } = session;
  const prompt = model().needs_text && state.prompt.trim() ? { prompt: state.prompt.trim() } : {};
  const own = source.kind === "latent" ? { stop: state.stop } : { strength: state.strength, scale: scale() };
  return { model: model().id, steps: steps(), seed: state.seed, ...prompt, ...own };
}

/** The same as a person would type it. */
export function recipe() {
  const { source, state } = session;
  const { space, scale: own } = model();
  const name = source.stops?.[state.stop].file ?? source.name;
  return { kind: source.kind, name, space, own, strength: 0, scale: own, ...settings() };
}
