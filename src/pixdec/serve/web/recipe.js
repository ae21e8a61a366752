// The settings of a decode, as a command and as Python.

const quoted = (text) => (/^[\w.,/-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`);
const stem = (name) => name.replace(/\.[^.]+$/, "");

export function command({ kind, name, model, scale, steps, strength, seed, prompt }) {
  const verb = kind === "latent" ? "decode" : "upscale";
  const noise = kind === "image" && strength ? ` --strength ${strength}` : "";
  const said = prompt ? ` --prompt ${quoted(prompt)}` : "";
  return `pixdec ${verb} ${quoted(name)} -o ${quoted(`${stem(name)}-${scale}x.png`)} --model ${quoted(model)} --steps ${steps}${noise}${said} --seed ${seed}`;
}

export function python({ kind, name, model, space, scale, steps, strength, seed, prompt }) {
  const file = JSON.stringify(name), decodesImages = space === "rgb";
  const noised = strength ? `.noised(${strength}, seed=${seed})` : "";
  const [imports, latent] =
    kind === "latent"
      ? [["from pixdec import Latent, PixelDecoder"], `Latent.load(${file})`]
      : decodesImages
        ? [["from pixdec import Latent, PixelDecoder", "from pixdec.io.images import read_image, to_tensor"], `Latent(to_tensor(read_image(${file})), "rgb")${noised}`]
        : [["from pixdec import ImageEncoder, PixelDecoder", "from pixdec.io.images import read_image, to_tensor"],
          `ImageEncoder.from_pretrained(${JSON.stringify(space)}).encode(to_tensor(read_image(${file})))${noised}`];
  const first = kind === "latent" && decodesImages;
  return [
    ...imports,
    ...(first ? ["from pixdec.encoder import first_decode"] : []),
    "",
    `decoder = PixelDecoder.from_pretrained(${JSON.stringify(model)})`,
    `latent = ${first ? `first_decode(${latent})` : latent}`,
    `image = decoder.decode(latent, ${prompt ? `${JSON.stringify(prompt)}, ` : ""}seed=${seed}, steps=${steps})[0]`,
    `image.save(${JSON.stringify(`${stem(name)}-${scale}x.png`)})`,
  ].join("\n");
}
