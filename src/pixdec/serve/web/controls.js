// Filling the form and the groups of choices, and reading them.
import { isLatent } from "./intake.js";
import { words } from "./words.js";

/** A group of radio buttons in `place`; `choose(name)` on a change. */
export function choices(place, options, chosen, choose) {
  place.replaceChildren(
    ...Object.entries(options).map(([value, text]) => {
      const label = document.createElement("label");
      const input = Object.assign(document.createElement("input"), { type: "radio", name: place.id, value, checked: value === String(chosen) });
      input.addEventListener("change", () => choose(value));
      label.append(input, text);
      return label;
    }),
  );
}

const spaceOf = ({ space }) => space ?? ""; // of a model that is not loaded yet the server does not know it
const takes = ({ kind, space, encodes }) => (model) =>
  kind === "image" ? model.encodes !== false : !model.space || model.space === "rgb" || !space || (model.spaces ?? [model.space]).includes(space);

/** The models that take this source, by latent space; answers with the name of the one that is chosen, if any fits. */
export function fillModels({ elements: { space, model } }, models, source, chosen) {
  const fits = models.filter(takes(source)), found = fits.find(({ id }) => id === chosen) ?? fits[0];
  const spaces = [...new Set(fits.map(spaceOf))];
  space.replaceChildren(...spaces.map((name) => new Option(words.space(name), name)));
  space.parentElement.hidden = spaces.length < 2;
  space.oninput = () => model.replaceChildren(...fits.filter((each) => spaceOf(each) === space.value).map(({ id }) => new Option(id)));
  if (found) space.value = spaceOf(found);
  space.oninput();
  return found?.id;
}

const SCALES = [1, 1.5, 2, 3, 4, 6, 8];

/** The sizes that an image can have here, in pixels. */
function fillScales(select, source, own, fits) {
  const scales = [...new Set([...SCALES, own])].sort((a, b) => a - b).filter((scale) => fits(scale, source));
  select.replaceChildren(...scales.map((scale) => new Option(words.scale(scale, source.width, source.height), scale)));
}

/** Mark the example that is open. */
export function press(list, id) {
  for (const button of list.querySelectorAll("button")) button.setAttribute("aria-pressed", button.dataset.id === id);
}

/** The least and the most steps of the dial, which ends where a person would. */
function stepsOf({ steps, default_steps: usual }) {
  const [least, most] = Array.isArray(steps) ? [Math.min(...steps), Math.max(...steps)] : [1, steps ?? 4];
  return [least, Math.min(most, Math.max(4, usual ?? 4))];
}

/** Show the state in the form; what does not apply to the source is hidden. */
export function fillForm(form, state, model, source, fits) {
  const { scale, steps, strength, seed, stop, prompt } = form.elements;
  if (source.kind === "image") fillScales(scale, source, model.scale, fits);
  scale.value = state.scale || model.scale;
  prompt.value = state.prompt;
  prompt.parentElement.hidden = !model.needs_text;
  form.elements.model.value = model.id;
  [steps.min, steps.max] = stepsOf(model);
  [steps.value, strength.value, seed.value] = [state.steps || model.default_steps || source.result?.steps || 1, state.strength, state.seed];
  steps.parentElement.hidden = steps.min === steps.max;
  const stops = source.stops ?? [];
  stop.max = Math.max(0, stops.length - 1);
  stop.value = state.stop;
  for (const field of form.querySelectorAll("[data-for]")) field.hidden = field.dataset.for !== source.kind || (field.contains(stop) && !stops.length);
  tellForm(form, source);
}

/** Say in words what the dials are at. */
export function tellForm(form, { stops }) {
  const { steps, strength, stop } = form.elements;
  tell(form, steps, words.steps(steps.valueAsNumber));
  tell(form, strength, words.strength(strength.valueAsNumber));
  if (stops) tell(form, stop, words.sigma(stops[stop.valueAsNumber].sigma));
}

function tell(form, input, text) {
  form.querySelector(`output[for=${input.id}]`).value = text;
  input.setAttribute("aria-valuetext", text);
}

export function readForm(form) {
  const { model, scale, steps, strength, seed, stop, prompt } = form.elements;
  const number = (input) => (Number.isFinite(input.valueAsNumber) ? input.valueAsNumber : 0);
  return { model: model.value, scale: scale.value, steps: number(steps), strength: number(strength), seed: Math.trunc(number(seed)), stop: number(stop), prompt: prompt.value };
}

export function fillGallery(list, examples, choose) {
  list.replaceChildren(
    ...examples.map((example) => {
      const item = document.createElement("li"), button = document.createElement("button");
      Object.assign(button, { type: "button", title: example.credit ? words.credit(example) : example.title });
      button.dataset.id = example.id;
      const picture = isLatent({ name: example.title }) ? document.createElement("i") : Object.assign(new Image(), { src: example.url, alt: "" });
      button.append(picture, Object.assign(document.createElement("span"), { textContent: words.example(example) }));
      button.addEventListener("click", () => choose(example.id));
      item.append(button);
      return item;
    }),
  );
}

/** A decode in the lens, told from the others. */
export function nameOf({ model, steps, scale, strength, stop, seed }, source, own) {
  const more = [scale && scale !== own ? words.times(scale) : "", strength ? `strength ${strength}` : "", stop ? words.sigma(source.stops[stop].sigma) : "", seed ? `seed ${seed}` : ""];
  return [words.result(model, steps), ...more].filter(Boolean).join(", ");
}
