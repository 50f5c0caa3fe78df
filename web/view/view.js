// The interactive view of SVG-EAR Routed Blocks: what was exact, what was estimated, and where.
import { VERSION, percent, readRuns } from "./data.js";
import { shade, themeOf } from "./drawing.js";
import { MapPanel, TablePanel, VideoPanel } from "./panels.js";

const EMPTY = "Run the workflow to see what SVG-EAR did. A workflow that has not changed fills this view without sampling again.";
const NO_RUN = "No run was recorded for this MODEL.";
const OTHER_VERSION = "This run was recorded by another version of SVG-EAR: reload the page without its cache (Ctrl+F5), and run again.";
const HINT = "Point at a picture to read it; click a cell or a token to choose it.";

function element(tag, className, ...children) {
  const made = Object.assign(document.createElement(tag), { className });
  made.append(...children);
  return made;
}

const plural = (count, thing) => `${count} ${thing}${count === 1 ? "" : "s"}`;

export class RoutedBlocksView {
  /** ``remembered`` is an object in which the choices are kept between visits. */
  constructor(remembered = {}) {
    this.remembered = remembered;
    this.runs = [];
    this.run = null;
    Object.assign(this, { layer: 0, step: 0, head: 0, branch: "cond", frame: 0, block: null, token: null, pinned: null, map: null });
    this.root = element("div", "svg-ear-view");
    this.build();
    this.theme = themeOf(this.root);
    this.refresh();
  }

  build() {
    this.selects = {};
    const choices = element("div", "svg-ear-choices");
    for (const name of ["run", "layer", "step", "head", "branch"]) {
      const select = element("select", "");
      select.addEventListener("change", () => this.choose(name, select.value));
      this.selects[name] = select;
      choices.append(element("label", `svg-ear-choice svg-ear-${name}`, element("span", "", name), select));
    }
    this.summary = element("div", "svg-ear-summary");
    this.mapPanel = new MapPanel(this);
    this.mapTitle = element("div", "svg-ear-title");
    this.mapLegend = element("div", "svg-ear-legend");
    this.tables = [new TablePanel(this, "density", "Share computed exactly"), new TablePanel(this, "error", "Estimated error")];
    this.tableLegends = this.tables.map(() => element("div", "svg-ear-legend"));
    const tables = element("div", "svg-ear-tables");
    this.tableTitles = this.tables.map(() => element("div", "svg-ear-title"));
    this.tables.forEach(({ canvas }, place) => tables.append(element("div", "", this.tableTitles[place], canvas, this.tableLegends[place])));
    this.videoPanel = new VideoPanel(this);
    this.videoTitle = element("div", "svg-ear-title");
    this.videoLegend = element("div", "svg-ear-legend");
    this.slider = Object.assign(element("input", "svg-ear-slider"), { type: "range", min: 0, value: 0 });
    this.slider.setAttribute("aria-label", "frame of the video");
    this.slider.addEventListener("input", () => {
      this.frame = Number(this.slider.value);
      this.token = null;
      this.paintVideo();
    });
    this.frameLabel = element("span", "");
    this.frames = element("div", "svg-ear-frames", this.slider, this.frameLabel);
    this.info = element("div", "svg-ear-info");
    this.info.setAttribute("aria-live", "polite");
    this.empty = element("div", "svg-ear-empty", EMPTY);
    this.content = element("div", "svg-ear-content", choices, this.summary, this.mapTitle, this.mapPanel.canvas, this.mapLegend);
    this.content.append(tables, this.videoTitle, this.videoPanel.canvas, this.frames, this.videoLegend);
    this.root.append(this.empty, this.content, this.info);
    // The canvas behind the node zooms and pans on these.
    for (const event of ["wheel", "pointerdown"]) this.root.addEventListener(event, (happened) => happened.stopPropagation());
  }

  /** Take the data of a run of the node. */
  async load(data) {
    const runs = await readRuns(data);
    this.runs = runs;
    this.run = runs[0] ?? null;
    this.unmatched = data?.matched === false;
    this.empty.textContent = data?.version === VERSION ? (data.missing ?? NO_RUN) : OTHER_VERSION;
    Object.assign(this, { block: null, token: null, pinned: null });
    const { layer, step, head, branch } = { layer: 0, step: 0, head: 0, branch: "cond", ...data?.chosen, ...this.remembered.chosen };
    Object.assign(this, { layer, step, head, branch });
    await this.settle();
  }

  /** Keep the choices inside what the run has, and show them. */
  async settle() {
    const run = this.run;
    if (run) {
      const branches = Object.keys(run.branches);
      if (branches.length && !branches.includes(this.branch)) this.branch = branches[0];
      this.layer = Math.min(this.layer, Math.max(run.layers - 1, 0));
      this.step = Math.min(this.step, Math.max(run.steps - 1, 0));
      this.head = Math.min(this.head, Math.max((run.branches[this.branch]?.heads ?? 1) - 1, 0));
      if (!run.find(this.branch, this.layer, this.step, this.head) && !this.remembered.chosen) {
        const near = run.nearest(this.branch, this.layer, this.step, this.head);
        if (near) Object.assign(this, { branch: near.branch, layer: near.layer, step: near.step, head: near.head });
      }
    }
    const map = run ? await run.map(this.branch, this.layer, this.step, this.head) : null;
    if (run !== this.run) return;
    if (map !== this.map) Object.assign(this, { map, block: null, token: null, pinned: null });
    this.frame = Math.min(this.frame, (map?.grid?.[0] ?? 1) - 1);
    this.refresh();
  }

  choose(name, value) {
    if (name === "run") this.run = this.runs[Number(value)];
    else this[name] = name === "branch" ? value : Number(value);
    const { layer, step, head, branch } = this;
    this.remembered.chosen = { layer, step, head, branch };
    return this.settle();
  }

  choosePlace(layer, step) {
    this.layer = layer;
    return this.choose("step", step);
  }

  refresh() {
    this.theme = themeOf(this.root);
    this.root.dataset.state = this.run ? "filled" : "empty";
    this.empty.hidden = this.run !== null;
    this.content.hidden = this.run === null;
    this.say(null);
    if (!this.run) return;
    this.fillSelects();
    this.fillSummary();
    this.fillLegends();
    const recorded = this.run.maps.length > 0;
    const places = (name) => [...new Set(this.run.maps.map((map) => map[name]))].sort((a, b) => a - b).join(", ");
    const missing = !recorded
      ? "No routing was recorded in this run."
      : `No routing was recorded here.\nLayers ${places("layer")}; steps ${places("step")}; heads ${places("head")}\nhave it: choose one, or a cell with a dot below.`;
    this.mapPanel.show(this.map, missing);
    this.tables.forEach((table) => table.fit());
    this.paintVideo();
  }

  fillSelects() {
    const run = this.run;
    const range = (count) => [...Array(count).keys()];
    const has = (wanted) => run.maps.some((map) => Object.entries(wanted).every(([name, value]) => map[name] === value));
    const numbered = (name, count, rest) => range(count).map((value) => [value, has({ [name]: value, ...rest }) ? `${value} \u25cf` : String(value)]);
    const options = {
      run: this.runs.map((known, place) => [place, known.title]),
      layer: numbered("layer", run.layers, { branch: this.branch }),
      step: numbered("step", run.steps, { branch: this.branch, layer: this.layer }),
      head: numbered("head", run.branches[this.branch]?.heads ?? 0, { branch: this.branch, layer: this.layer, step: this.step }),
      branch: Object.keys(run.branches).map((name) => [name, name]),
    };
    const chosen = { run: this.runs.indexOf(run), layer: this.layer, step: this.step, head: this.head, branch: this.branch };
    for (const [name, select] of Object.entries(this.selects)) {
      select.replaceChildren(...options[name].map(([value, text]) => Object.assign(document.createElement("option"), { value, textContent: text })));
      select.value = chosen[name];
      select.disabled = options[name].length < 2;
      select.title = name === "run" ? "sampler runs of this model that are kept, the shown one first" : "\u25cf has a routing map";
    }
  }

  fillSummary() {
    const { run } = this;
    const cell = run.cell(this.branch, this.layer, this.step, this.head);
    const place = `Layer ${this.layer}, step ${this.step}, head ${this.head}, ${this.branch}: `;
    const told = cell.notFinite
      ? "not finite"
      : cell.reason
        ? `dense (${cell.reason.name})`
        : cell.density === undefined
          ? "not evaluated"
          : `${percent(cell.density)} exact, estimated error ${percent(cell.error)}`;
    const warnings = this.unmatched ? ["The latent matches no recorded run; the newest is shown."] : [];
    // A headline without anything sparse is the warning itself.
    if (run.layers && Object.keys(run.branches).length) warnings.push(...(run.warnings ?? []));
    this.summary.replaceChildren(...warnings.map((text) => element("div", "svg-ear-warning", text)), element("div", "svg-ear-headline", run.headline), element("strong", "", place + told));
  }

  fillLegends() {
    const { theme, run, map } = this;
    const color = (rgb) => `rgb(${rgb.map(Math.round).join(",")})`;
    const swatch = (rgb, text) => {
      const box = element("i", "svg-ear-swatch");
      box.style.background = color(rgb);
      return element("span", "", box, text);
    };
    const bar = (ramp, low, high) => {
      const box = element("i", "svg-ear-bar");
      box.style.background = `linear-gradient(90deg, ${[0, 0.25, 0.5, 0.75, 1].map((level) => color(shade(level, ramp))).join(",")})`;
      return element("span", "", low, box, high);
    };
    this.mapTitle.textContent = map ? `Routing map: ${plural(map.groups.reduce((a, b) => a + b, 0), "query group")} (rows) x ${plural(map.clusters.reduce((a, b) => a + b, 0), "key cluster")} (columns)` : "Routing map";
    this.mapLegend.hidden = !map;
    this.mapLegend.replaceChildren(swatch(theme.exact, "exact"), bar(theme.error, "estimated, error 0.01 %", "30 %"));
    const axes = `layers 0-${run.layers - 1} down, steps 0-${run.steps - 1} across`;
    ["density", "error"].forEach((figure, place) => {
      this.tableTitles[place].replaceChildren(["Share computed exactly", "Estimated error"][place], element("div", "svg-ear-axes", axes));
      const top = run.branches[this.branch]?.[figure].top ?? 0;
      this.tableLegends[place].replaceChildren(bar(theme[figure], "0", percent(top)), swatch(theme.dense, "dense"));
    });
    const pinned = map && this.pinnedGroup() !== null;
    this.videoTitle.textContent = pinned ? "What the pinned token sees exactly (Esc unpins)" : "Share of the queries that see each token exactly";
    this.videoLegend.hidden = !map?.grid;
    this.videoLegend.replaceChildren(
      ...(pinned
        ? [swatch(theme.exact, "key seen exactly"), swatch(theme.dense, "estimated"), element("span", "", "dots: queries of the same group")]
        : [bar(theme.share, "0", `${percent(this.topShare())} or more`)]),
    );
  }

  paintVideo() {
    const grid = this.map?.grid;
    this.frames.hidden = !grid;
    this.videoTitle.hidden = !this.map;
    if (grid) {
      this.slider.max = grid[0] - 1;
      this.slider.value = this.frame;
      this.frameLabel.textContent = `frame ${this.frame + 1} of ${grid[0]}`;
    }
    this.videoPanel.show(this.map, this.map ? "The sequence holds more tokens than the video: their places are not known." : "");
  }

  topShare() {
    if (this.map && this.map.top === undefined) {
      const shares = Float32Array.from(this.map.keyLabels, (key) => this.map.keyShares[key]).sort();
      this.map.top = Math.max(shares[Math.floor(shares.length * 0.99)] ?? 0, 1e-6);
    }
    return this.map?.top ?? 1;
  }

  /** The query group of the pinned token, null without one. */
  pinnedGroup() {
    return this.pinned === null || !this.map ? null : this.map.queryLabels[this.pinned];
  }

  pin(token) {
    this.pinned = token === this.pinned ? null : token;
    this.fillLegends();
    this.mapPanel.paint();
    this.videoPanel.paint();
  }

  lookAtBlock(block) {
    if (String(block) === String(this.block)) return;
    this.block = block;
    this.mapPanel.paint();
    this.videoPanel.paint();
    this.say(block && this.describeBlock(...block));
  }

  describeBlock(row, column) {
    const { map } = this;
    const some = (merged, kind, tokens, thing) => `${merged > 1 ? plural(merged, kind) : `1 ${kind}`} (${plural(tokens, thing)})`;
    const share = map.exactShare(row, column);
    const error = map.error(row, column);
    const decided = share > 0.998 ? "computed exactly" : share < 0.002 ? "estimated from averages" : `${percent(share)} computed exactly, the rest estimated`;
    const cost = share > 0.998 ? `estimating would add ${percent(error)} error` : `error of estimating: ${percent(error)} of the output`;
    const blocks = map.groups[row] * map.clusters[column];
    return `${some(map.groups[row], "query group", map.queries[row], "token")} x ${some(map.clusters[column], "key cluster", map.keys[column], "token")}${blocks > 1 ? ", shown as one" : ""}: ${decided}; ${cost}.`;
  }

  lookAtCell(cell) {
    if (!cell) return this.say(null);
    const [layer, step] = cell;
    const { density, error, reason, notFinite } = this.run.cell(this.branch, layer, step);
    const place = `Layer ${layer}, step ${step}, mean over heads, ${this.branch}: `;
    if (reason) return this.say(`Layer ${layer}, step ${step}: dense, ${reason.name}. ${reason.sentence} ${reason.remedy}`);
    if (notFinite) return this.say(`${place}not finite (NaN or infinite): the model's own numbers overflow.`);
    this.say(place + (density === undefined ? "not evaluated." : `${percent(density)} exact, estimated error ${percent(error)}.`));
  }

  lookAtToken(token) {
    if (token === this.token) return;
    this.token = token;
    this.videoPanel.paint();
    if (token === null || !this.map) return this.say(null);
    const { map } = this;
    const [, rows, columns] = map.grid;
    const [key, group] = [map.keyLabels[token], map.queryLabels[token]];
    const place = token % (rows * columns);
    const where = `Row ${Math.floor(place / columns) * map.stride[1]}, column ${(place % columns) * map.stride[2]}`;
    let seen = 0;
    for (let column = 0; column < map.columns; column++) seen += map.exactShare(group, column) * map.keys[column];
    this.say(`${where}: ${percent(map.keyShares[key])} of the queries see it exactly; as a query it sees ${percent(seen / map.tokens)} of the keys exactly. Click to see which.`);
  }

  say(text) {
    this.info.textContent = text || (this.run ? HINT : "");
  }
}
