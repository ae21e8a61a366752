for (const figure of document.querySelectorAll(".d")) {
  const [right, left] = figure.querySelectorAll(".s i"), range = figure.querySelector("input");
  const [chooseLeft, chooseRight] = figure.querySelectorAll("select");
  const show = () => { left.style.clipPath = `inset(0 ${100 - range.value}% 0 0)`; };
  range.addEventListener("input", show);
  chooseLeft.addEventListener("change", () => { left.className = chooseLeft.value + " o"; });
  chooseRight.addEventListener("change", () => { right.className = chooseRight.value; });
  show();
}
