// Images from a person: dropped, pasted or chosen. What is given back can be shown and sent.
import { Failure } from "./api.js";
import { words } from "./words.js";

export const isLatent = (file) => /\.(safetensors|latent)$/i.test(file.name);

/** An image whose size is known and whose pixels the browser holds for as long as it likes: no bitmap, which is all of them. */
export function load(src) {
  const image = new Image();
  return new Promise((resolve, reject) => Object.assign(image, { src, onload: () => resolve(image), onerror: reject }));
}

/** A file → { kind, file, name, width, height, image, note }; refuses what cannot be read, in words. */
export async function read(file, limits, scale) {
  if (limits?.bytes && file.size > limits.bytes) throw new Failure(words.errors.tooHeavy(file.size, limits.bytes));
  const source = { file, name: file.name || "pasted.png", note: "" };
  if (isLatent(source)) return { ...source, kind: "latent", ...(await latentFacts(source)) };
  const image = await load(URL.createObjectURL(file)).catch(() => null);
  if (!image?.width) throw new Failure(words.errors.noImage(source.name));
  const { width, height } = image, pixels = width * height * scale ** 2;
  if (limits?.pixels && pixels > limits.pixels) throw new Failure(words.errors.tooLarge(pixels, limits.pixels));
  await image.decode().catch(() => Promise.reject(new Failure(words.errors.noImage(source.name))));
  if (await isAnimated(file)) {
    source.file = await firstFrame(image);
    return { ...source, kind: "image", width, height, image: await load(URL.createObjectURL(source.file)), note: words.firstFrame };
  }
  return { ...source, kind: "image", width, height, image, note: (await isTurned(file)) ? words.turned : "" };
}

/** What the header of a latent's file tells: { space, sigma, shape }. */
async function latentFacts({ file, name }) {
  try {
    const length = Number(new DataView(await file.slice(0, 8).arrayBuffer()).getBigUint64(0, true));
    const { __metadata__: said = {}, ...tensors } = JSON.parse(await file.slice(8, 8 + length).text());
    const { shape } = tensors.latent ?? tensors.latent_tensor ?? Object.values(tensors)[0];
    return { space: said.space, shape, sigma: said.sigma && JSON.parse(said.sigma)[0] };
  } catch {
    throw new Failure(words.errors.noLatent(name));
  }
}

async function firstFrame(image) {
  const canvas = new OffscreenCanvas(image.width, image.height);
  canvas.getContext("2d").drawImage(image, 0, 0);
  return canvas.convertToBlob({ type: "image/png" });
}

async function isAnimated(file) {
  if (!globalThis.ImageDecoder || !/gif|webp|png|avif/.test(file.type)) return false; // such a browser sends all frames
  const decoder = new ImageDecoder({ data: file.stream(), type: file.type });
  try {
    await decoder.tracks.ready;
    return decoder.tracks.selectedTrack?.animated ?? false;
  } catch {
    return false;
  } finally {
    decoder.close();
  }
}

async function isTurned(file) {
  if (file.type !== "image/jpeg") return false;
  const head = new DataView(await file.slice(0, 1 << 16).arrayBuffer());
  for (let at = 2; at + 10 < head.byteLength && head.getUint8(at) === 0xff; at += 2 + head.getUint16(at + 2)) {
    if (head.getUint16(at) !== 0xffe1 || head.getUint32(at + 4) !== 0x45786966) continue;
    const start = at + 10, little = head.getUint16(start) === 0x4949;
    const first = start + head.getUint32(start + 4, little);
    for (let entry = 0; entry < head.getUint16(first, little); entry++) {
      const place = first + 2 + 12 * entry;
      if (head.getUint16(place, little) === 0x112) return head.getUint16(place + 8, little) > 1;
    }
  }
  return false;
}

/** Call `take(file)` for whatever a person drops on the page, pastes, or chooses with the input. */
export function listen(input, curtain, take) {
  const hasFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  let depth = 0;
  const show = (change) => (curtain.hidden = (depth = Math.max(0, depth + change)) === 0);
  addEventListener("dragenter", (event) => hasFiles(event) && show(1));
  addEventListener("dragleave", (event) => hasFiles(event) && show(-1));
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => {
    event.preventDefault();
    show(-depth);
    if (event.dataTransfer.files[0]) take(event.dataTransfer.files[0]);
  });
  addEventListener("paste", (event) => {
    const file = [...event.clipboardData.files][0];
    if (file) take(file);
  });
  input.addEventListener("change", () => {
    if (input.files[0]) take(input.files[0]);
    input.value = "";
  });
}
