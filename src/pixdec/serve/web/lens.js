// <pix-lens>: one position, the same region of up to six pictures, pixel for pixel.
import { lanczos } from "./lanczos.js";
import { words } from "./words.js";

class Lens extends HTMLElement {
  views = [];
  x = 50;
  y = 50;
  zoom = 1;

  connectedCallback() {
    new ResizeObserver(() => this.draw()).observe(this);
  }

  /** The pictures: [{ label, image, scale, how }], scale: output / image, how: "pixels" or "lanczos". */
  set pictures(views) {
    this.views = views.slice(0, 6);
    this.style.setProperty("--views", Math.max(3, this.views.length));
    this.replaceChildren(
      ...this.views.map(({ label }) => {
        const figure = document.createElement("figure");
        const caption = Object.assign(document.createElement("figcaption"), { textContent: label, title: label });
        figure.append(document.createElement("canvas"), caption);
        return figure;
      }),
    );
    this.draw();
  }

  /** The lens on a comparison: its frame follows pointer, touch and arrow keys. */
  over(compare) {
    this.compare = compare;
    this.frame = compare.querySelector(".lens");
    const sheet = this.frame.parentElement;
    const follow = (event) => {
      if (compare.mode !== "lens" || (event.pointerType !== "mouse" && !event.buttons)) return;
      const box = sheet.getBoundingClientRect();
      this.moveTo((100 * (event.clientX - box.left)) / box.width, (100 * (event.clientY - box.top)) / box.height);
    };
    sheet.addEventListener("pointermove", follow);
    sheet.addEventListener("pointerdown", follow);
    this.frame.addEventListener("keydown", (event) => {
      const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
      if (!way) return;
      event.preventDefault();
      const far = event.shiftKey ? 10 : 1;
      this.moveTo(this.x + far * way[0], this.y + far * way[1]);
    });
  }

  moveTo(x, y) {
    [this.x, this.y] = [x, y].map((at) => Math.min(100, Math.max(0, at)));
    this.draw();
    this.dispatchEvent(new Event("moved"));
  }

  draw() {
    if (this.hidden || !this.views.length) return;
    cancelAnimationFrame(this.drawing);
    this.drawing = requestAnimationFrame(() => this.#draw());
  }

  #draw() {
    const canvases = [...this.querySelectorAll("canvas")];
    const side = Math.round(canvases[0].clientWidth * devicePixelRatio);
    if (!side) return;
    const [width, height] = this.compare.natural;
    const seen = Math.max(8, Math.round(side / this.zoom)); // output pixels across the lens
    const corner = (at, whole) => Math.round(Math.min(Math.max(0, whole - seen), Math.max(0, (at / 100) * whole - seen / 2)));
    const left = corner(this.x, width), top = corner(this.y, height);
    this.#place(left / width, top / height, seen / width, seen / height);
    for (const [i, { image, scale, how }] of this.views.entries()) {
      const canvas = canvases[i], context = canvas.getContext("2d");
      canvas.width = canvas.height = side;
      context.imageSmoothingEnabled = false;
      if (how === "lanczos") {
        const patch = new OffscreenCanvas(seen, seen);
        patch.getContext("2d").putImageData(lanczos(image, scale, left, top, seen, seen), 0, 0);
        context.drawImage(patch, 0, 0, side, side);
      } else context.drawImage(image, left / scale, top / scale, seen / scale, seen / scale, 0, 0, side, side);
    }
  }

  #place(left, top, width, height) {
    Object.assign(this.frame.style, { left: `${100 * left}%`, top: `${100 * top}%`, width: `${100 * width}%`, height: `${100 * height}%` });
    this.frame.setAttribute("aria-label", words.lens(this.x, this.y));
  }
}

customElements.define("pix-lens", Lens);
