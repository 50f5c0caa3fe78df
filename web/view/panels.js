// The three pictures of the view: the routing map, the tables of layers and steps, and the video.
import { translate } from "../language.js";
import { Panel, errorLevel, mix, proportions, shade } from "./drawing.js";

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/** First pixel and end of group `index` in `at`, the ascending group of every pixel; a group too small for one gets the pixel where it lies. */
function span(at, index) {
  const first = at.findIndex((group) => group >= index);
  if (first < 0) return [at.length - 1, at.length];
  return at[first] === index ? [first, at.lastIndexOf(index) + 1] : [first, first + 1];
}

/** Query groups x key clusters. ``cursor`` is the [row, column] looked at; ``onCursor`` hears of it. */
export class MapPanel extends Panel {
  constructor(view) {
    super(translate("Routing map: query groups in rows, key clusters in columns. Arrow keys move over the blocks."), (width) => Math.min(width * 0.52, 460));
    this.view = view;
    this.canvas.addEventListener("pointermove", (event) => this.look(this.blockAt(event)));
    this.canvas.addEventListener("pointerleave", () => this.look(null));
    this.canvas.addEventListener("blur", () => this.look(null));
    this.canvas.addEventListener("keydown", (event) => {
      const step = ARROWS[event.key];
      if (!step || !this.map) return;
      event.preventDefault();
      event.stopPropagation();
      const [row, column] = this.view.block ?? [0, -1];
      const wrap = (value, count) => (value + count) % count;
      this.look([wrap(row + step[1], this.map.rows), wrap(column + step[0], this.map.columns)]);
    });
  }

  show(map, message) {
    [this.map, this.text] = [map, message];
    this.picture = null;
    this.fit();
  }

  look(block) {
    if (this.map) this.view.lookAtBlock(block);
  }

  blockAt(event) {
    if (!this.map || !this.rowAt) return null;
    const [x, y] = this.at(event);
    return [this.rowAt[Math.floor(y * this.rowAt.length)], this.columnAt[Math.floor(x * this.columnAt.length)]];
  }

  paint() {
    const { width, height } = this.canvas;
    const theme = this.view.theme;
    if (!this.map) return this.message(this.text ?? "", theme.mark);
    if (this.picture?.width !== width || this.picture?.height !== height || this.pictureTheme !== theme) {
      this.rowAt = proportions(this.map.queries, height);
      this.columnAt = proportions(this.map.keys, width);
      const colors = new Map();
      this.picture = this.fill((x, y) => {
        const block = this.rowAt[y] * this.map.columns + this.columnAt[x];
        if (!colors.has(block)) colors.set(block, this.color(this.rowAt[y], this.columnAt[x], theme));
        return colors.get(block);
      });
      this.pictureTheme = theme;
    }
    this.context.putImageData(this.picture, 0, 0);
    const block = this.view.block;
    const row = block ? block[0] : this.view.pinnedGroup();
    if (row === null) return;
    const [top, bottom] = span(this.rowAt, row);
    if (!block) return this.outline(1, top, width - 2, bottom - top, theme);
    const [left, right] = span(this.columnAt, block[1]);
    this.context.globalAlpha = 0.35;
    this.outline(0, top, width, bottom - top, theme);
    this.outline(left, 0, right - left, height, theme);
    this.context.globalAlpha = 1;
    this.outline(left, top, right - left, bottom - top, theme);
  }

  color(row, column, theme) {
    return mix(shade(errorLevel(this.map.error(row, column)), theme.error), theme.exact, this.map.exactShare(row, column));
  }
}

/** Layers x steps, of one figure: "density" or "error". */
export class TablePanel extends Panel {
  constructor(view, figure, label) {
    super(translate("{figure}, layers in rows, steps in columns. Arrow keys choose layer and step.", { figure: label }), () => 112);
    Object.assign(this, { view, figure });
    this.canvas.addEventListener("pointermove", (event) => view.lookAtCell(this.cellAt(event)));
    this.canvas.addEventListener("pointerleave", () => view.lookAtCell(null));
    this.canvas.addEventListener("click", (event) => this.cellAt(event) && view.choosePlace(...this.cellAt(event)));
    this.canvas.addEventListener("keydown", (event) => {
      const step = ARROWS[event.key];
      if (!step || !view.run) return;
      event.preventDefault();
      event.stopPropagation();
      const limit = (value, count) => Math.min(Math.max(value, 0), count - 1);
      view.choosePlace(limit(view.layer + step[1], view.run.layers), limit(view.step + step[0], view.run.steps));
    });
  }

  cellAt(event) {
    const run = this.view.run;
    if (!run?.layers) return null;
    const [x, y] = this.at(event);
    return [Math.floor(y * run.layers), Math.floor(x * run.steps)];
  }

  paint() {
    const { run, branch, theme } = this.view;
    const { width, height } = this.canvas;
    if (!run?.layers) return this.message("", theme.mark);
    const top = run.branches[branch]?.[this.figure].top ?? 1;
    const colors = Array.from({ length: run.layers * run.steps }, (_, place) => {
      const value = run.cell(branch, Math.floor(place / run.steps), place % run.steps)[this.figure];
      return value === undefined ? theme.dense : shade(value / top, theme[this.figure]);
    });
    this.fill((x, y) => colors[Math.floor((y / height) * run.layers) * run.steps + Math.floor((x / width) * run.steps)]);
    const box = (layer, step) => [(step / run.steps) * width, (layer / run.layers) * height, width / run.steps, height / run.layers];
    this.context.fillStyle = theme.mark;
    for (const map of run.maps.filter((map) => map.branch === branch)) {
      const [x, y, cellWidth, cellHeight] = box(map.layer, map.step);
      const radius = Math.min(5, cellWidth / 4, cellHeight / 4);
      for (const [size, color] of [[radius + 1.5, theme.halo], [radius, theme.mark]]) {
        this.context.fillStyle = color;
        this.context.beginPath();
        this.context.arc(x + cellWidth / 2, y + cellHeight / 2, size, 0, 7);
        this.context.fill();
      }
    }
    this.outline(...box(this.view.layer, this.view.step), theme);
  }
}

/** One frame of the video: each token's exact share, or with a pinned token the keys that it sees exactly. */
export class VideoPanel extends Panel {
  constructor(view) {
    super(translate("Video frame, one square per token. Arrow keys move, Enter pins a token."), (width) => {
      const grid = this.map?.grid;
      return grid ? Math.min((width * grid[1]) / grid[2], 190) : 60;
    });
    this.view = view;
    this.canvas.addEventListener("pointermove", (event) => view.lookAtToken(this.tokenAt(event)));
    this.canvas.addEventListener("pointerleave", () => view.lookAtToken(null));
    this.canvas.addEventListener("click", (event) => view.pin(this.tokenAt(event)));
    this.canvas.addEventListener("keydown", (event) => this.press(event));
  }

  press(event) {
    const step = ARROWS[event.key];
    if (!this.map?.grid || !(step || ["Enter", " ", "Escape"].includes(event.key))) return;
    event.preventDefault();
    event.stopPropagation();
    const [, rows, columns] = this.map.grid;
    const size = rows * columns;
    const token = (this.view.token ?? this.view.pinned ?? 0) % size;
    if (event.key === "Escape") return this.view.pin(null);
    if (!step) return this.view.pin(this.view.frame * size + token);
    const wrap = (value, count) => (value + count) % count;
    const [row, column] = [wrap(Math.floor(token / columns) + step[1], rows), wrap((token % columns) + step[0], columns)];
    this.view.lookAtToken(this.view.frame * size + row * columns + column);
  }

  show(map, message) {
    [this.map, this.text] = [map, message];
    this.fit();
  }

  /** The frame's box: in its proportions, centred. */
  box() {
    const [, rows, columns] = this.map.grid;
    const { width, height } = this.canvas;
    const drawn = Math.round(Math.min(width, (height * columns) / rows));
    return [Math.round((width - drawn) / 2), 0, drawn, Math.min(height, Math.round((drawn * rows) / columns))];
  }

  tokenAt(event) {
    if (!this.map?.grid) return null;
    const [, rows, columns] = this.map.grid;
    const [x, y] = this.at(event);
    const [left, , width, height] = this.box();
    const column = Math.floor(((x * this.canvas.width - left) / width) * columns);
    const row = Math.floor(((y * this.canvas.height) / height) * rows);
    return column < 0 || column >= columns || row >= rows ? null : (this.view.frame * rows + row) * columns + column;
  }

  paint() {
    const { view, map } = this;
    const theme = view.theme;
    if (!map?.grid) return this.message(this.text ?? "", theme.mark);
    this.context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    const [, rows, columns] = map.grid;
    const box = this.box();
    const first = view.frame * rows * columns;
    const group = view.block ? view.block[0] : view.pinnedGroup();
    const colors = Array.from({ length: rows * columns }, (_, place) => {
      const key = map.keyLabels[first + place];
      const color = shade(map.keyShares[key] / view.topShare(), theme.share);
      return group === null ? color : mix(mix(color, theme.dense, 0.85), theme.exact, map.exactShare(group, key));
    });
    this.fill((x, y) => colors[Math.floor((y / box[3]) * rows) * columns + Math.floor((x / box[2]) * columns)], box);
    const [cellWidth, cellHeight] = [box[2] / columns, box[3] / rows];
    const outline = (token) => this.outline(box[0] + (token % columns) * cellWidth, Math.floor(token / columns) * cellHeight, cellWidth, cellHeight, theme);
    if (group !== null) this.dots(map, group, first, box, theme);
    for (const token of [view.pinned, view.token]) {
      if (token !== null && token >= first && token < first + rows * columns) outline(token - first);
    }
  }

  /** A dot on every query of the group. */
  dots(map, group, first, [left, top, width, height], theme) {
    const [, rows, columns] = map.grid;
    const radius = Math.min(width / columns, height / rows) / 5;
    for (let place = 0; place < rows * columns; place++) {
      if (map.queryLabels[first + place] !== group) continue;
      const [x, y] = [left + ((place % columns) + 0.5) * (width / columns), top + (Math.floor(place / columns) + 0.5) * (height / rows)];
      for (const [size, color] of [[radius + 1.5, theme.halo], [radius, theme.mark]]) {
        this.context.fillStyle = color;
        this.context.beginPath();
        this.context.arc(x, y, size, 0, 7);
        this.context.fill();
      }
    }
  }
}
