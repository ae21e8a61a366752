// Every text that the scripts show, in one place. A translation replaces this file.

const counted = (n, one, many) => `${n} ${n === 1 ? one : many}`;
const seconds = (s) => (s == null ? "" : s < 9.95 ? `${s.toFixed(1)} s` : s < 90 ? `${Math.round(s)} s` : `${Math.round(s / 60)} min`);
const bytes = (n) => (n >= 1e9 ? `${(n / 1e9).toFixed(1)} GB` : n >= 1e6 ? `${Math.round(n / 1e6)} MB` : `${Math.round(n / 1e3)} kB`);
const size = (width, height) => `${width} × ${height}`;
const megapixels = (n) => `${(n / 1e6).toFixed(n < 1e7 ? 1 : 0)} megapixels`;

export const words = {
  modes: { divider: "Divider", side: "Side by side", flicker: "Flicker", difference: "Difference", lens: "Lens" },
  zooms: { fit: "Fit", "1x": "100 %", "2x": "200 %", "4x": "400 %" },
  steps: (n) => counted(n, "step", "steps"),
  input: "Input",
  lanczos: "Lanczos",
  vae: "VAE decode",
  vaeLanczos: "VAE + Lanczos",
  result: (model, steps) => `${model}, ${counted(steps, "step", "steps")}`,
  atStep: (model, step, steps) => `${model}, step ${step} of ${steps}`,
  difference: "Difference × 4",
  swap: "Click, or press 1 and 2, to change between the two",
  flicker: (label, i) => label && `${i + 1} of 2: ${label}`,
  divider: "Divider between the two pictures",
  position: (at, left, right) => `${left} on the left ${Math.round(at)} %, ${right} on the right ${Math.round(100 - at)} %`,
  lens: (x, y) => `Lens at ${Math.round(x)} % across and ${Math.round(y)} % down; arrow keys move it`,
  scroll: "Picture, scrollable",
  sigma: (s) => (s ? `σ ${s}` : "σ 0, clean"),
  strength: (s) => (s ? `${s}` : "0, faithful"),
  space: (name) => (name === "rgb" ? "rgb, any image" : name || "not loaded yet"),
  times: (scale) => `${scale} ×`,
  scale: (scale, width, height) => `${scale} ×: ${size(Math.round(width * scale), Math.round(height * scale))}`,
  isClosed: (licence) => /NSCL|non-?commercial/i.test(licence ?? ""),
  noncommercial: (licence) => `${licence}: not for commercial use`,
  example: (example) => (example.kind === "latent" ? "Latent" : example.title),
  credit: (example) => `${example.title}: ${example.credit}`,
  latentFile: ({ name, space, shape, sigma }) => `${name}: a latent${space ? ` of ${space}` : ""}${shape ? `, ${size(...shape.slice(-2).reverse())}` : ""}${sigma ? `, σ ${sigma}` : ""}`,

  ready: (width, height, scale, estimate) =>
    `${size(width, height)}, nothing cropped, becomes ${size(Math.round(width * scale), Math.round(height * scale))}${estimate ? ` in about ${seconds(estimate)}` : ""}.`,
  firstFrame: " It is animated: its first frame is taken.",
  turned: " Turned as its EXIF says.",
  sending: "Sending…",
  queued: (position) => (position > 1 ? `Waiting: ${position - 1} before this one` : "Waiting for the decoder…"),
  decoding: "Decoding…",
  step: (step, steps) => `Step ${step} of ${steps}`,
  canceled: "Canceled. Change a setting, or try again.",
  shown: "An example, decoded beforehand. Change a setting and it is decoded here.",
  done: (job) => {
    const { queue = 0, prepare = 0, decode = 0, write = 0 } = job.seconds ?? {};
    const parts = [["waiting", queue], ["preparing", prepare], ["decoding", decode], ["writing", write]];
    const told = parts.filter(([, s]) => s >= 0.05).map(([what, s]) => `${what} ${seconds(s)}`);
    return `Done in ${seconds(queue + prepare + decode + write)}${told.length > 1 ? `: ${told.join(", ")}` : ""}.`;
  },
  facts: (from, to, peak) => [from && to ? `${size(...from)} → ${size(...to)}` : to ? size(...to) : "", peak ? `memory ${bytes(peak)}` : ""].filter(Boolean).join(" · "),
  copied: "Copied.",
  linkCopied: "Link copied. It reopens these settings.",
  linkOwn: "Link copied. It reopens these settings; your image is not in it.",
  otherImage: (name) => `This link was made with ${name}, which is not in it. Drop that image here; an example stands in for it.`,
  private: "Your images stay in this browser and, for a few minutes, in the server's memory. Nothing is written to the server's disk, and no third party is asked.",

  errors: {
    noImage: (name) => `${name} is not an image that this browser can read. Choose a PNG, JPEG, WebP, AVIF or GIF, or a latent (.safetensors).`,
    tooLarge: (pixels, limit) => `This image would become ${megapixels(pixels)}, more than the ${megapixels(limit)} of this server. Choose a smaller one, or use pixdec upscale on the command line.`,
    tooHeavy: (size, limit) => `This file has ${bytes(size)}; this server takes ${bytes(limit)}. Choose a smaller one, or use pixdec upscale on the command line.`,
    gone: "The server does not answer. Your image and your settings are kept: start it again with pixdec serve, then try again.",
    full: (after) => `The server has too much to do. Trying again in ${after} s.`,
    loading: (after) => `The server is not ready: it loads the decoder, or is about to end. Trying again in ${after} s.`,
    expired: "The server no longer has this result. Try again to decode it anew.",
    noLatent: (name) => `${name} is not a latent that can be read. Choose a .safetensors file with one latent, as pixdec encode and pixdec.Latent.save write it.`,
    noDecoder: (space) => `No model of this server decodes latents of ${space}. Choose another file, or start pixdec serve with --model.`,
    noModel: (model) => `This server does not have ${model}. Choose another model.`,
    key: "This server asks for a key.",
    other: (message) => `${message.replace(/\.?$/, ".")} Change the setting that is named, or try again.`,
    failed: (message) => `The decoder stopped: ${message.replace(/\.?$/, ".")} Try again, or choose a smaller image.`,
  },
};
