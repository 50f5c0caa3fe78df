// Colours and small helpers for the canvases. Blue is exact, orange is error: told apart with any kind of colour vision.
const THEMES = {
  light: {
    exact: [13, 59, 120],
    dense: [214, 217, 222],
    error: [[250, 247, 241], [253, 208, 152], [240, 138, 44], [158, 60, 4]],
    density: [[240, 245, 250], [158, 196, 226], [58, 121, 184], [13, 59, 120]],
    mark: "#000000",
    halo: "#ffffff",
  },
  dark: {
    exact: [102, 178, 255],
    dense: [66, 70, 78],
    error: [[26, 27, 31], [92, 50, 14], [214, 116, 22], [255, 214, 153]],
    density: [[26, 30, 36], [24, 66, 116], [58, 128, 210], [102, 178, 255]],
    mark: "#ffffff",
    halo: "#000000",
  },
};
const SHARE = [[0, 32, 77], [65, 77, 107], [124, 123, 120], [187, 172, 104], [255, 234, 70]];
// The range of block errors that colours tell apart, as in nodes/showing/palette.py.
const ERROR_RANGE = [1e-4, 0.3];

/** Colours that suit the background that an element has. */
export function themeOf(element) {
  for (let at = element; at; at = at.parentElement) {
    const [red, green, blue, alpha = 1] = (getComputedStyle(at).backgroundColor.match(/[\d.]+/g) ?? []).map(Number);
    if (red !== undefined && alpha > 0.5) {
      return { share: SHARE, ...(0.2126 * red + 0.7152 * green + 0.0722 * blue < 128 ? THEMES.dark : THEMES.light) };
    }
  }
  return { share: SHARE, ...THEMES.dark };
}

/** [red, green, blue] at a level from 0 to 1 of a ramp. */
export function shade(level, ramp) {
  const place = Math.min(Math.max(level, 0), 1) * (ramp.length - 1);
  const first = Math.min(Math.floor(place), ramp.length - 2);
  return ramp[first].map((value, part) => value + (ramp[first + 1][part] - value) * (place - first));
}

export const errorLevel = (error) =>
  (Math.log10(Math.max(error, ERROR_RANGE[0])) - Math.log10(ERROR_RANGE[0])) / (Math.log10(ERROR_RANGE[1]) - Math.log10(ERROR_RANGE[0]));

export const mix = (from, to, share) => from.map((value, part) => value + (to[part] - value) * share);

/** A canvas that takes the width of its parent, is as high as ``height(width)`` says, and calls ``paint`` when that changes. */
export class Panel {
  constructor(label, height) {
    this.height = height;
    this.canvas = Object.assign(document.createElement("canvas"), { className: "svg-ear-canvas", tabIndex: 0 });
    this.canvas.setAttribute("role", "img");
    this.canvas.setAttribute("aria-label", label);
    this.context = this.canvas.getContext("2d");
    this.observer = new ResizeObserver(() => this.fit());
    this.observer.observe(this.canvas);
  }

  fit() {
    const width = this.canvas.clientWidth;
    if (!width) return;
    const height = Math.round(this.height(width));
    this.canvas.style.height = `${height}px`;
    // Nodes are zoomed: twice the resolution keeps them sharp up to 200 %.
    const scale = 2;
    if (this.canvas.width !== width * scale || this.canvas.height !== height * scale) {
      this.canvas.width = width * scale;
      this.canvas.height = height * scale;
    }
    this.paint();
  }

  /** Where a pointer is, from 0 to 1 in both directions, whatever the zoom. */
  at(event) {
    const box = this.canvas.getBoundingClientRect();
    const clamp = (share) => Math.min(Math.max(share, 0), 0.999999);
    return [clamp((event.clientX - box.left) / box.width), clamp((event.clientY - box.top) / box.height)];
  }

  /** Fill the canvas, or the box [x, y, width, height] of it, by colours of its pixels; returns the picture. */
  fill(colorAt, [x, y, width, height] = [0, 0, this.canvas.width, this.canvas.height]) {
    if (width < 1 || height < 1) return null;
    const image = this.context.createImageData(width, height);
    for (let row = 0, at = 0; row < height; row++) {
      for (let column = 0; column < width; column++, at += 4) {
        const color = colorAt(column, row);
        [image.data[at], image.data[at + 1], image.data[at + 2], image.data[at + 3]] = [color[0], color[1], color[2], 255];
      }
    }
    this.context.putImageData(image, x, y);
    return image;
  }

  outline(x, y, width, height, { mark, halo }) {
    // Inside the canvas also at its edges.
    const [left, top] = [Math.max(x, 3), Math.max(y, 3)];
    const [right, bottom] = [Math.min(x + width, this.canvas.width - 3), Math.min(y + height, this.canvas.height - 3)];
    for (const [line, color] of [[6, halo], [2.5, mark]]) {
      this.context.lineWidth = line;
      this.context.strokeStyle = color;
      this.context.strokeRect(left, top, right - left, bottom - top);
    }
  }

  message(text, color) {
    this.context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    this.context.fillStyle = color;
    this.context.font = "24px sans-serif";
    this.context.textAlign = "center";
    const lines = text.split("\n");
    lines.forEach((line, number) => this.context.fillText(line, this.canvas.width / 2, this.canvas.height / 2 + 34 * (number - (lines.length - 1) / 2)));
  }

  paint() {}
}

/** For each of ``pixels`` the number of the group that lies there, groups being as long as their sizes. */
export function proportions(sizes, pixels) {
  const total = sizes.reduce((sum, size) => sum + size, 0);
  const found = new Uint16Array(pixels);
  let group = 0;
  let end = sizes[0];
  for (let pixel = 0; pixel < pixels; pixel++) {
    while (((pixel + 0.5) / pixels) * total > end && group < sizes.length - 1) end += sizes[++group];
    found[pixel] = group;
  }
  return found;
}
