// The interactive view of SVG-EAR Routed Blocks: what was exact, what was estimated, and where.
import { counted, spoken, translate } from "../language.js";
import { VERSION, percent, readRuns } from "./data.js";
import { shade, themeOf } from "./drawing.js";
import { MapPanel, TablePanel, VideoPanel } from "./panels.js";

// The choices by the names under which the data has them.
const CHOICES = {
  run: () => translate("run"),
  layer: () => translate("layer"),
  step: () => translate("step"),
  head: () => translate("head"),
  branch: () => translate("branch"),
};
const FIGURES = { density: () => translate("Share computed exactly"), error: () => translate("Estimated error") };
const empty = () => translate("Run the workflow to see what SVG-EAR did. A workflow that has not changed fills this view without sampling again.");
const noRun = () => translate("No run was recorded for this MODEL.");
const otherVersion = () => translate("This run was recorded by another version of SVG-EAR: reload the page without its cache (Ctrl+F5), and run again.");

function element(tag, className, ...children) {
  const made = Object.assign(document.createElement(tag), { className });
  made.append(...children);
  return made;
}

const groups = (count) => counted(count, "{count} query group", "{count} query groups");
const clusters = (count) => counted(count, "{count} key cluster", "{count} key clusters");
const tokens = (count) => counted(count, "{count} token", "{count} tokens");

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
    for (const [name, label] of Object.entries(CHOICES)) {
      const select = element("select", "");
      select.addEventListener("change", () => this.choose(name, select.value));
      this.selects[name] = select;
      choices.append(element("label", `svg-ear-choice svg-ear-${name}`, element("span", "", label()), select));
    }
    this.summary = element("div", "svg-ear-summary");
    this.mapPanel = new MapPanel(this);
    this.mapTitle = element("div", "svg-ear-title");
    this.mapLegend = element("div", "svg-ear-legend");
    this.tables = Object.entries(FIGURES).map(([figure, label]) => new TablePanel(this, figure, label()));
    this.tableLegends = this.tables.map(() => element("div", "svg-ear-legend"));
    const tables = element("div", "svg-ear-tables");
    this.tableTitles = this.tables.map(() => element("div", "svg-ear-title"));
    this.tables.forEach(({ canvas }, place) => tables.append(element("div", "", this.tableTitles[place], canvas, this.tableLegends[place])));
    this.videoPanel = new VideoPanel(this);
    this.videoTitle = element("div", "svg-ear-title");
    this.videoLegend = element("div", "svg-ear-legend");
    this.slider = Object.assign(element("input", "svg-ear-slider"), { type: "range", min: 0, value: 0 });
    this.slider.setAttribute("aria-label", translate("frame of the video"));
    this.slider.addEventListener("input", () => {
      this.frame = Number(this.slider.value);
      this.token = null;
      this.paintVideo();
    });
    this.frameLabel = element("span", "");
    this.frames = element("div", "svg-ear-frames", this.slider, this.frameLabel);
    this.info = element("div", "svg-ear-info");
    this.info.setAttribute("aria-live", "polite");
    this.empty = element("div", "svg-ear-empty", empty());
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
    this.empty.textContent = data?.version === VERSION ? (spoken(data.missing) || noRun()) : otherVersion();
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
    const recordedAt = { layers: places("layer"), steps: places("step"), heads: places("head") };
    const missing = recorded
      ? translate("No routing was recorded here.\nLayers {layers}; steps {steps}; heads {heads}\nhave it: choose one, or a cell with a dot below.", recordedAt)
      : translate("No routing was recorded in this run.");
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
      run: this.runs.map((known, place) => [place, spoken(known.title)]),
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
      select.title = name === "run" ? translate("sampler runs of this model that are kept, the shown one first") : translate("\u25cf has a routing map");
    }
  }

  fillSummary() {
    const { run } = this;
    const cell = run.cell(this.branch, this.layer, this.step, this.head);
    const told = cell.notFinite
      ? translate("not finite")
      : cell.reason
        ? translate("dense ({reason})", { reason: cell.reason.name })
        : cell.density === undefined
          ? translate("not evaluated")
          : translate("{density} exact, estimated error {error}", { density: percent(cell.density), error: percent(cell.error) });
    const { layer, step, head, branch } = this;
    const place = translate("Layer {layer}, step {step}, head {head}, {branch}: {told}", { layer, step, head, branch, told });
    const warnings = this.unmatched ? [translate("The latent matches no recorded run; the newest is shown.")] : [];
    // A headline without anything sparse is the warning itself.
    if (run.layers && Object.keys(run.branches).length) warnings.push(...(run.warnings ?? []).map(spoken));
    this.summary.replaceChildren(...warnings.map((text) => element("div", "svg-ear-warning", text)), element("div", "svg-ear-headline", spoken(run.headline)), element("strong", "", place));
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
    const sum = (counts) => counts.reduce((a, b) => a + b, 0);
    this.mapTitle.textContent = map
      ? translate("Routing map: {groups} (rows) x {clusters} (columns)", { groups: groups(sum(map.groups)), clusters: clusters(sum(map.clusters)) })
      : translate("Routing map");
    this.mapLegend.hidden = !map;
    this.mapLegend.replaceChildren(swatch(theme.exact, translate("exact")), bar(theme.error, translate("estimated, error 0.01 %"), "30 %"));
    const axes = translate("layers 0-{layer} down, steps 0-{step} across", { layer: run.layers - 1, step: run.steps - 1 });
    Object.entries(FIGURES).forEach(([figure, label], place) => {
      this.tableTitles[place].replaceChildren(label(), element("div", "svg-ear-axes", axes));
      const top = run.branches[this.branch]?.[figure].top ?? 0;
      this.tableLegends[place].replaceChildren(bar(theme[figure], "0", percent(top)), swatch(theme.dense, translate("dense")));
    });
    const pinned = map && this.pinnedGroup() !== null;
    this.videoTitle.textContent = pinned ? translate("What the pinned token sees exactly (Esc unpins)") : translate("Share of the queries that see each token exactly");
    this.videoLegend.hidden = !map?.grid;
    this.videoLegend.replaceChildren(
      ...(pinned
        ? [swatch(theme.exact, translate("key seen exactly")), swatch(theme.dense, translate("estimated")), element("span", "", translate("dots: queries of the same group"))]
        : [bar(theme.share, "0", translate("{share} or more", { share: percent(this.topShare()) }))]),
    );
  }

  paintVideo() {
    const grid = this.map?.grid;
    this.frames.hidden = !grid;
    this.videoTitle.hidden = !this.map;
    if (grid) {
      this.slider.max = grid[0] - 1;
      this.slider.value = this.frame;
      this.frameLabel.textContent = translate("frame {frame} of {frames}", { frame: this.frame + 1, frames: grid[0] });
    }
    this.videoPanel.show(this.map, this.map ? translate("The sequence holds more tokens than the video: their places are not known.") : "");
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
    const some = (things, size) => translate("{things} ({tokens})", { things, tokens: tokens(size) });
    const [share, error] = [map.exactShare(row, column), percent(map.error(row, column))];
    const decided = share > 0.998
      ? translate("computed exactly; estimating would add {error} error", { error })
      : share < 0.002
        ? translate("estimated from averages; error of estimating: {error} of the output", { error })
        : translate("{share} computed exactly, the rest estimated; error of estimating: {error} of the output", { share: percent(share), error });
    const [group, cluster] = [some(groups(map.groups[row]), map.queries[row]), some(clusters(map.clusters[column]), map.keys[column])];
    return map.groups[row] * map.clusters[column] > 1
      ? translate("{group} x {cluster}, shown as one: {decided}.", { group, cluster, decided })
      : translate("{group} x {cluster}: {decided}.", { group, cluster, decided });
  }

  lookAtCell(cell) {
    if (!cell) return this.say(null);
    const [layer, step] = cell;
    const { density, error, reason, notFinite } = this.run.cell(this.branch, layer, step);
    if (reason) {
      const { name, sentence, remedy } = reason;
      return this.say(translate("Layer {layer}, step {step}: dense, {name}. {sentence} {remedy}", { layer, step, name, sentence: spoken(sentence), remedy: spoken(remedy) }));
    }
    const told = notFinite
      ? translate("not finite (NaN or infinite): the model's own numbers overflow.")
      : density === undefined
        ? translate("not evaluated.")
        : translate("{density} exact, estimated error {error}.", { density: percent(density), error: percent(error) });
    this.say(translate("Layer {layer}, step {step}, mean over heads, {branch}: {told}", { layer, step, branch: this.branch, told }));
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
    const [row, column] = [Math.floor(place / columns) * map.stride[1], (place % columns) * map.stride[2]];
    let seen = 0;
    for (let cluster = 0; cluster < map.columns; cluster++) seen += map.exactShare(group, cluster) * map.keys[cluster];
    const figures = { row, column, queries: percent(map.keyShares[key]), keys: percent(seen / map.tokens) };
    this.say(
      translate("Row {row}, column {column}: {queries} of the queries see it exactly; as a query it sees {keys} of the keys exactly. Click to see which.", figures),
    );
  }

  say(text) {
    this.info.textContent = text || (this.run ? translate("Point at a picture to read it; click a cell or a token to choose it.") : "");
  }
}
