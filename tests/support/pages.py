"""What is wrong with a page, as a browser shows it: small or pale text, what does not fit, what is fetched."""

from __future__ import annotations

from pathlib import Path

from tests.support.browser import Page

__all__ = ["WIDTHS", "problems"]

WIDTHS = (1280, 400)
"""A screen, a phone: in CSS pixels."""
SMALLEST_TEXT_PIXELS = 11
TEXT_CONTRAST = 4.5
"""What WCAG 2.2 asks of text, 1.4.3."""
MARK_CONTRAST = 3
"""What WCAG 2.2 asks of what carries meaning in a drawing, 1.4.11."""

_SCRIPT = """
(() => {
  const found = [], wide = document.documentElement.clientWidth;
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", {willReadFrequently: true});
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = (colour) => {
    const [r, g, b] = colour.map((each) => each / 255).map((each) => each <= .04045 ? each / 12.92 : ((each + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const contrast = (one, other) => {
    const [dark, pale] = [light(one), light(other)].sort((a, b) => a - b);
    return (pale + .05) / (dark + .05);
  };
  const behind = (element) => {
    for (let each = element; each; each = each.parentElement) {
      const colour = rgba(getComputedStyle(each).backgroundColor);
      if (colour[3] === 255) return colour;
    }
    return [255, 255, 255, 255];
  };
  if (document.documentElement.scrollWidth > wide) found.push(`scrolls sideways: ${document.documentElement.scrollWidth} of ${wide}`);
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let texts = 0;
  while (walker.nextNode()) {
    const node = walker.currentNode, element = node.parentElement, text = node.textContent.trim();
    if (!text || element.closest("title, style, script")) continue;
    const range = document.createRange(); range.selectNodeContents(node);
    const box = range.getBoundingClientRect();
    if (!box.width) continue;
    texts += 1;
    const style = getComputedStyle(element), svg = element.namespaceURI.endsWith("svg");
    const matrix = svg ? element.getScreenCTM() : {a: 1, b: 0, c: 0, d: 1};
    const size = parseFloat(style.fontSize) * Math.min(Math.hypot(matrix.a, matrix.b), Math.hypot(matrix.c, matrix.d));
    if (size < SMALLEST) found.push(`text of ${size.toFixed(1)} px: ${text}`);
    if (box.left < 0 || box.right > wide + .5) found.push(`text outside the page: ${text}`);
    const seen = contrast(rgba(svg ? style.fill : style.color), behind(element));
    if (seen < TEXT_CONTRAST) found.push(`text with a contrast of ${seen.toFixed(1)}: ${text}`);
    const lines = box.height / (parseFloat(style.fontSize) * 1.1);
    if (lines > 6 && box.width < 3 * size) found.push(`text one letter wide: ${text}`);
  }
  let plots = 0;
  for (const plot of document.querySelectorAll("svg[role=img]")) {
    const box = plot.getBoundingClientRect();
    if (box.width < 80 || box.height < 10) found.push(`a plot of ${box.width} by ${box.height}`);
    else if (plot.querySelector("circle, rect.bar, path.area")) plots += 1;
  }
  for (const mark of document.querySelectorAll("svg .dot, svg .bar, svg .area")) {
    const seen = contrast(rgba(getComputedStyle(mark).fill), behind(mark));
    if (seen < MARK_CONTRAST) found.push(`a mark with a contrast of ${seen.toFixed(1)}: ${mark.outerHTML.slice(0, 80)}`);
  }
  if (!texts) found.push("no text");
  if (!plots) found.push("no plot");
  return [...new Set(found)];
})()
"""


def problems(page: Page, path: Path, pictures: Path | None = None) -> list[str]:
    """Look at a file at each width, as a light and as a dark page.

    Args:
        page: The browser's page.
        path: The file.
        pictures: The folder that pictures of it are put into, if any.

    Returns:
        What is wrong, a line each.
    """
    script = _SCRIPT
    for name, value in (
        ("SMALLEST", SMALLEST_TEXT_PIXELS),
        ("TEXT_CONTRAST", TEXT_CONTRAST),
        ("MARK_CONTRAST", MARK_CONTRAST),
    ):
        script = script.replace(f"< {name}", f"< {value}")
    found = []
    for width in WIDTHS:
        for dark in (False, True):
            how = f"{width} wide, {'dark' if dark else 'light'}"
            page.open(path, width=width, dark=dark)
            seen = page.evaluate(script)
            assert isinstance(seen, list)
            found += [f"{how}: {each}" for each in seen]
            found += [
                f"{how}: fetches {url}"
                for url in page.requests
                if url != path.resolve().as_uri() and not url.startswith("data:")
            ]
            found += [f"{how}: {each}" for each in page.complaints]
            if pictures:
                name = f"{path.stem}-{width}-{'dark' if dark else 'light'}.png"
                (pictures / name).write_bytes(page.picture())
    return found
