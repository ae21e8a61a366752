// The bundled examples: photographs, one with its result, and latents saved at several noise levels.
import { load } from "./intake.js";

const FOLDER = new URL("examples/", import.meta.url);
const url = (file) => new URL(file, FOLDER).href;
const blob = async (file) => (await fetch(url(file))).blob();

export async function examples() {
  const listed = (await (await fetch(url("index.json"))).json()).examples;
  return listed.map((example) => ({ ...example, url: url(example.file), resultUrl: example.result && url(example.result.file) }));
}

/** The files that `pixdec page` was given, as examples. */
export const given = (names) =>
  names.split("/").filter(Boolean).map((title, i) => ({ id: `given-${i}`, title, given: true, url: new URL(`given/${i}`, document.baseURI).href }));

export const file = async ({ title, url }) => {
  const data = await (await fetch(url)).blob();
  return new File([data], title, { type: data.type });
};

/** An example as `intake.read` gives back a person's own image. */
export async function open(example) {
  if (example.kind === "latent") return { ...example, name: example.stops[0].file, note: "", fileAt: (stop) => blob(example.stops[stop].file) };
  const file = await blob(example.file);
  return { ...example, name: example.file, file, note: "", image: await load(URL.createObjectURL(file)) };
}
