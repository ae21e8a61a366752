// A region of a small image enlarged by Lanczos (three lobes), as pixdec's own baseline does, on a canvas.
const LOBES = 3;
const sinc = (x) => (x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x));
const weight = (x) => (Math.abs(x) < LOBES ? sinc(x) * sinc(x / LOBES) : 0);

/** For each of `count` outputs, from `start` on, the first input it reads and its six weights. */
function taps(start, count, scale) {
  return Array.from({ length: count }, (_, i) => {
    const center = (start + i + 0.5) / scale - 0.5;
    const first = Math.floor(center) - LOBES + 1;
    const weights = Array.from({ length: 2 * LOBES }, (_, k) => weight(center - first - k));
    const sum = weights.reduce((a, b) => a + b);
    return [first, weights.map((w) => w / sum)];
  });
}

/** ImageData of the region of `width` x `height` pixels at (left, top) of `image` enlarged `scale` times. */
export function lanczos(image, scale, left, top, width, height) {
  const across = taps(left, width, scale), down = taps(top, height, scale);
  const x0 = across[0][0], y0 = down[0][0];
  const columns = across.at(-1)[0] + 2 * LOBES - x0, rows = down.at(-1)[0] + 2 * LOBES - y0;
  const canvas = new OffscreenCanvas(columns, rows);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const inside = (v, most) => Math.min(most - 1, Math.max(0, v));
  context.drawImage(image, -x0, -y0);
  const source = context.getImageData(0, 0, columns, rows).data;
  const place = (x, y) => 4 * ((inside(y + y0, image.height) - y0) * columns + inside(x + x0, image.width) - x0); // edges repeat
  const middle = new Float32Array(width * rows * 3), out = new ImageData(width, height);
  for (let y = 0; y < rows; y++)
    for (let x = 0; x < width; x++)
      for (let c = 0; c < 3; c++) {
        const [first, weights] = across[x];
        let sum = 0;
        for (let k = 0; k < weights.length; k++) sum += weights[k] * source[place(first - x0 + k, y) + c];
        middle[3 * (y * width + x) + c] = sum;
      }
  for (let y = 0; y < height; y++)
    for (let x = 0; x < width; x++) {
      const [first, weights] = down[y];
      for (let c = 0; c < 3; c++) {
        let sum = 0;
        for (let k = 0; k < weights.length; k++) sum += weights[k] * middle[3 * ((first - y0 + k) * width + x) + c];
        out.data[4 * (y * width + x) + c] = sum;
      }
      out.data[4 * (y * width + x) + 3] = 255;
    }
  return out;
}
