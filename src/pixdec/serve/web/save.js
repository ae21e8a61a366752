// Taking a result along: the file, the settings as a command and as Python, and a link.
import { picture } from "./api.js";
import { command, python } from "./recipe.js";
import { words } from "./words.js";

export const sharing = {
  tell(recipe) {
    document.getElementById("command").textContent = command(recipe);
    document.getElementById("python").textContent = python(recipe);
  },
};

/** Listen to the buttons. `now()` gives the run that is shown and its recipe. */
export function savingAs(at, now, say, fail) {
  at("download").addEventListener("click", async () => {
    const { run, recipe } = now();
    const format = at("format").value;
    try {
      const url = run.job ? URL.createObjectURL(await picture(`${run.job.links.result}?format=${format}`)) : run.resultUrl;
      const suffix = run.job ? format.replace("jpeg", "jpg") : "webp"; // an example's own file
      const name = `${recipe.name.replace(/\.[^.]+$/, "")}-${recipe.scale}x.${suffix}`;
      Object.assign(document.createElement("a"), { href: url, download: name }).click();
      if (run.job) setTimeout(() => URL.revokeObjectURL(url), 60_000);
    } catch (error) {
      fail(error);
    }
  });
  at("link").addEventListener("click", async () => {
    await navigator.clipboard.writeText(location.href);
    say(location.hash.includes("file=") ? words.linkOwn : words.linkCopied);
  });
  at("copy").addEventListener("click", async () => {
    await navigator.clipboard.writeText(at("python").textContent);
    say(words.copied);
  });
}
