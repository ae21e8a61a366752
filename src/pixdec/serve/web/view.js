// How the pictures are looked at: the mode, the size, and what the lens shows.
import * as controls from "./controls.js";
import { compare, at, lens, model, runs, session } from "./session.js";
import { load } from "./intake.js";
import { toAddress } from "./state.js";
import { words } from "./words.js";

export function setMode(mode) {
  const { state } = session;
  state.mode = compare.mode = mode in words.modes ? mode : "divider";
  lens.hidden = state.mode !== "lens";
  const zooms = state.mode === "lens" ? Object.fromEntries(Object.entries(words.zooms).filter(([zoom]) => zoom !== "fit")) : words.zooms;
  setZoom(state.zoom in zooms ? state.zoom : Object.keys(zooms)[0]);
  controls.choices(at("zooms"), zooms, state.zoom, setZoom);
  if (state.mode === "lens" && session.source) look();
}

function setZoom(zoom) {
  session.state.zoom = zoom;
  compare.resize(session.state.mode === "lens" ? "fit" : zoom);
  lens.zoom = parseInt(zoom) || 1;
  lens.draw();
  if (session.source) toAddress(session.state);
}


/** Give the lens its pictures: what was given, enlarged plainly, and the decodes that are kept. */
export async function look() {
  const { source, shown } = session;
  const isLatent = source.kind === "latent", views = [];
  let low = source.image;
  if (isLatent && shown?.firstUrl) low = shown.firstImage ??= await load(shown.firstUrl);
  if (low) {
    const scale = compare.natural[0] / low.width;
    const [plain, larger] = isLatent ? [words.vae, words.vaeLanczos] : [words.input, words.lanczos];
    views.push({ label: plain, image: low, scale, how: "pixels" }, { label: larger, image: low, scale, how: "lanczos" });
  }
  for (const run of runs.done.values()) {
    run.image ??= await load(run.resultUrl);
    const scale = compare.natural[0] / run.image.width;
    views.push({ label: controls.nameOf(run.settings, source, model().scale), image: run.image, scale, how: "pixels" });
  }
  if (source === session.source) lens.pictures = views;
}

/** Keys that act wherever the focus is: 1 and 2 in flicker mode. */
export function listen() {
  controls.choices(at("modes"), words.modes, session.state.mode, setMode);
  lens.over(compare);
  [lens.x, lens.y] = session.state.lens.split(",").map(Number);
  compare.addEventListener("moved", () => remember({ at: Math.round(compare.at * 10) / 10 }));
  lens.addEventListener("moved", () => remember({ lens: `${lens.x.toFixed(1)},${lens.y.toFixed(1)}` }));
  addEventListener("keydown", ({ key, target }) => {
    if (/^(INPUT|SELECT)$/.test(target.tagName) && !/^(radio|range)$/.test(target.type)) return;
    if (session.state.mode === "flicker" && (key === "1" || key === "2")) compare.flick(key);
  });
  setMode(session.state.mode);
  compare.moveTo(session.state.at);
}

function remember(change) {
  Object.assign(session.state, change);
  if (session.source) toAddress(session.state);
}
