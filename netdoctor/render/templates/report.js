
"use strict";
function copied(button, done) {
  button.textContent = done ? "Copied" : "Select and copy by hand";
  setTimeout(function () { button.textContent = "Copy"; }, 2000);
}
function copyByHand(block) {
  var range = document.createRange();
  range.selectNodeContents(block);
  var selection = getSelection();
  selection.removeAllRanges();
  selection.addRange(range);
  try { return document.execCommand("copy"); } catch (error) { return false; }
}
document.querySelectorAll("figure.fix").forEach(function (figure) {
  var block = figure.querySelector("code.paste") || figure.querySelector("code");
  var button = document.createElement("button");
  button.type = "button";
  button.textContent = "Copy";
  button.setAttribute("aria-live", "polite");
  button.addEventListener("click", function () {
    if (!navigator.clipboard) { copied(button, copyByHand(block)); return; }
    navigator.clipboard.writeText(block.textContent).then(
      function () { copied(button, true); },
      function () { copied(button, copyByHand(block)); });
  });
  figure.appendChild(button);
});
addEventListener("beforeprint", function () {
  document.querySelectorAll("details").forEach(function (fold) { fold.open = true; });
});
