// The settings of a decode, as a command and as Python.

const quoted = (text) => (/^[\w.,/-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`);
const stem = (name) => name.replace(/\.[^.]+$/, "");

export function command({ kind, name, model, own, scale, steps, strength, seed, prompt }) {
  const verb = kind === "latent" ? "decode" : "upscale";
  const size = scale === own ? "" : ` --scale ${scale}`;
  const noise = kind === "image" && strength ? ` --strength ${strength}` : "";
  const said = prompt ? ` --prompt ${quoted(prompt)}` : "";
  return `pixdec ${verb} ${quoted(name)} -o ${quoted(`${stem(name)}-${scale}x.png`)} --model ${quoted(model)} --steps ${steps}${size}${noise}${said} --seed ${seed}`;
}

const PYTHON = {
  image: {
    imports: ["from pixdec import PixelDecoder", "from pixdec.generation.enlarge import UpscaleSettings, upscale", "from pixdec.io.images import read_picture"],
    lines: ({ file, own, scale, steps, strength, seed, prompt }) => {
      const size = scale === own ? "" : `scale=${scale}, `, noise = strength ? `strength=${strength}, ` : "", said = prompt ? `prompt=${JSON.stringify(prompt)}, ` : "";
      return [`settings = UpscaleSettings(${size}${noise}${said}seed=${seed}, steps=${steps})`, `image = upscale(read_picture(${file}), decoder, settings=settings).pil()`];
    },
  },
  latent: {
    imports: ["from pixdec import Latent, PixelDecoder"],
    lines: ({ file, steps, seed, prompt }) => [`latent = Latent.load(${file})`, `image = decoder.decode(latent, ${prompt ? `${JSON.stringify(prompt)}, ` : ""}seed=${seed}, steps=${steps})[0]`],
  },
  first: { // the latent of another space, which the VAE decodes for a decoder of images
    imports: ["from pixdec import Latent, PixelDecoder", "from pixdec.encoder import first_decode"],
    lines: ({ file, steps, seed }) => [`latent = first_decode(Latent.load(${file}))`, `image = decoder.decode(latent, seed=${seed}, steps=${steps})[0]`],
  },
};

export function python(recipe) {
  const { kind, name, model, space, scale } = recipe;
  const { imports, lines } = PYTHON[kind === "latent" && space === "rgb" ? "first" : kind];
  const decoder = `decoder = PixelDecoder.from_pretrained(${JSON.stringify(model)})`;
  const saved = `image.save(${JSON.stringify(`${stem(name)}-${scale}x.png`)})`;
  return [...imports, "", decoder, ...lines({ ...recipe, file: JSON.stringify(name) }), saved].join("\n");
}
