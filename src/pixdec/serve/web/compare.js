// <pix-compare>: two pictures under one divider, beside each other, in turn, or as their difference.
// The divider is an <input type="range">: keys, touch, dragging outside the window and its role come with it.
import { words } from "./words.js";

const MARKUP = (pane) => `<div class="pane ${pane}" tabindex="-1"><div class="sheet">
  <img class="before" alt="" draggable="false"><img class="after" alt="" draggable="false">
  ${pane === "first" ? `<input type="range" min="0" max="100" step="0.1" value="50"><div class="line"></div>
  <button class="lens" type="button"></button>` : ""}</div></div>`;

class Compare extends HTMLElement {
  natural = [4, 3];
  labels = ["", ""];
  zoom = "fit";

  connectedCallback() {
    this.innerHTML = `<div class="panes">${MARKUP("first")}${MARKUP("second")}</div><span class="tag left"></span><span class="tag right"></span>`;
    this.panes = [...this.querySelectorAll(".pane")];
    this.range = this.querySelector("input");
    this.range.setAttribute("aria-label", words.divider);
    this.range.addEventListener("input", () => this.moveTo(this.range.valueAsNumber));
    this.range.addEventListener("change", () => this.dispatchEvent(new Event("moved")));
    this.range.addEventListener("keydown", (event) => this.#key(event));
    for (const [i, pane] of this.panes.entries()) {
      pane.addEventListener("scroll", () => this.panes[1 - i].scrollTo(pane.scrollLeft, pane.scrollTop), { passive: true });
    }
    this.panes[0].addEventListener("click", () => this.mode === "flicker" && this.flick(this.getAttribute("shown") === "1" ? "2" : "1"));
    new ResizeObserver(() => this.#fit()).observe(this);
    this.setAttribute("mode", "divider");
    this.setAttribute("shown", "2");
    this.moveTo(50);
  }

  #key(event) {
    const way = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -10, PageUp: 10 }[event.key];
    if (way === undefined) return;
    event.preventDefault();
    this.moveTo(this.at + way * (event.shiftKey ? 10 : 1));
    this.dispatchEvent(new Event("moved"));
  }

  /** The divider at so many percent of the picture. */
  moveTo(at) {
    this.at = Math.min(100, Math.max(0, at));
    this.range.value = this.at;
    this.style.setProperty("--at", `${this.at}%`);
    this.range.setAttribute("aria-valuetext", words.position(this.at, ...this.labels));
  }

  /** Show a picture, "before" or "after", as soon as it is decoded; one that was overtaken is left out. */
  async show(which, source, label, [width, height] = []) {
    const asked = (this[`asked-${which}`] = {});
    const picture = new Image();
    picture.src = source;
    await picture.decode().catch(() => {});
    if (this[`asked-${which}`] !== asked) return;
    for (const image of this.querySelectorAll(`.${which}`)) Object.assign(image, { src: source, alt: label });
    this.labels[which === "before" ? 0 : 1] = label;
    this.#tag();
    this.natural = width ? [width, height] : this.natural;
    this.style.setProperty("--shape", this.natural[1] / this.natural[0]);
    this.#fit();
  }

  clear(which) {
    this[`asked-${which}`] = {};
    for (const image of this.querySelectorAll(`.${which}`)) image.removeAttribute("src");
  }

  set mode(mode) {
    this.setAttribute("mode", mode);
    this.#tag();
    this.#fit();
  }

  get mode() {
    return this.getAttribute("mode");
  }

  /** In flicker mode: 1 the first picture, 2 the second. */
  flick(shown) {
    this.setAttribute("shown", shown);
  }

  resize(zoom) {
    const [pane] = this.panes;
    const middle = [(pane.scrollLeft + pane.clientWidth / 2) / pane.scrollWidth, (pane.scrollTop + pane.clientHeight / 2) / pane.scrollHeight];
    this.zoom = zoom;
    this.#fit();
    pane.scrollTo(middle[0] * pane.scrollWidth - pane.clientWidth / 2, middle[1] * pane.scrollHeight - pane.clientHeight / 2);
  }

  #tag() {
    const [left, right] = this.querySelectorAll(".tag");
    [left.textContent, right.textContent] = this.labels;
    if (this.mode === "difference") right.textContent = words.difference;
    if (this.mode === "flicker") [left.textContent, right.textContent] = this.labels.map(words.flicker);
    this.panes[0].title = this.mode === "flicker" ? words.swap : "";
    for (const tag of [left, right]) tag.hidden = !tag.textContent;
    this.range.setAttribute("aria-valuetext", words.position(this.at, ...this.labels));
  }

  #fit() {
    const [width, height] = this.natural;
    const { clientWidth, clientHeight } = this.panes[0];
    const whole = Math.min(clientWidth / width, clientHeight / height);
    const zoom = this.zoom === "fit" ? whole : parseInt(this.zoom) / devicePixelRatio;
    this.style.setProperty("--width", `${width * zoom}px`);
    this.style.setProperty("--height", `${height * zoom}px`);
    for (const pane of this.panes) this.#center(pane, width * zoom, height * zoom);
    const scrolls = zoom > whole * 1.001;
    this.panes[0].tabIndex = scrolls ? 0 : -1;
    for (const [name, value] of [["role", "region"], ["aria-label", words.scroll]]) {
      if (scrolls) this.panes[0].setAttribute(name, value);
      else this.panes[0].removeAttribute(name);
    }
    for (const sheet of this.querySelectorAll(".sheet")) sheet.classList.toggle("pixelated", zoom * devicePixelRatio >= 3);
  }

  /** In the middle, on whole pixels of the screen: half of one would blur the picture. */
  #center(pane, width, height) {
    const box = pane.getBoundingClientRect();
    const place = (start, free) => (free > 0 ? Math.round((start + free / 2) * devicePixelRatio) / devicePixelRatio - start : 0);
    pane.style.padding = `${place(box.top, pane.clientHeight - height)}px 0 0 ${place(box.left, pane.clientWidth - width)}px`;
  }
}

customElements.define("pix-compare", Compare);
