// The data of SVG-EAR Routed Blocks, as nodes/showing/payload.py writes it.
import { translate } from "../language.js";

export const VERSION = 1;
const ARRAYS = { 8: Uint8Array, 16: Uint16Array, 32: Uint32Array };
const NOTHING = 255;

/** Unsigned integers: deflated, in base 64. */
async function unpack({ bits, shape, data }) {
  const bytes = Uint8Array.from(atob(data), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return { values: new ARRAYS[bits](await new Response(stream).arrayBuffer()), shape };
}

/** One sampler run: its figures by branch, layer, step and head, and its routing maps. */
export class Run {
  static async read(described) {
    const run = new Run();
    Object.assign(run, described, { dense: (await unpack(described.dense)).values, branches: {}, unpacked: new Map() });
    for (const [name, { heads, density, error }] of Object.entries(described.branches)) {
      const [exact, left] = await Promise.all([unpack(density), unpack(error)]);
      run.branches[name] = { heads, density: { top: density.top, codes: exact.values }, error: { top: error.top, codes: left.values } };
    }
    return run;
  }

  /** {density, error} of a sparse call, {notFinite} of one without numbers, {reason} of a dense one, or {} where nothing is known; head null takes the mean. */
  cell(branch, layer, step, head = null) {
    const tables = this.branches[branch];
    if (tables) {
      const first = (layer * this.steps + step) * tables.heads;
      const heads = head === null ? [...Array(tables.heads).keys()] : [head];
      const read = ({ top, codes }) => {
        const known = heads.map((number) => codes[first + number]).filter((code) => code !== undefined && code !== NOTHING);
        return known.length ? (known.reduce((sum, code) => sum + code, 0) / known.length / (NOTHING - 1)) * top : null;
      };
      const [density, error] = [read(tables.density), read(tables.error)];
      if (density !== null && error !== null) return { density, error };
    }
    if (this.notFinite?.some(([row, column]) => row === layer && column === step)) return { notFinite: true };
    const reason = this.reasons[this.dense[layer * this.steps + step]];
    return reason ? { reason } : {};
  }

  find(branch, layer, step, head) {
    return this.maps.find((map) => map.branch === branch && map.layer === layer && map.step === step && map.head === head);
  }

  /** The recorded map nearest to a place. */
  nearest(branch, layer, step, head) {
    const distance = (map) => 1e6 * (map.branch !== branch) + 1e4 * Math.abs(map.layer - layer) + 1e2 * Math.abs(map.step - step) + Math.abs(map.head - head);
    return this.maps.reduce((best, map) => (!best || distance(map) < distance(best) ? map : best), null);
  }

  async map(branch, layer, step, head) {
    const described = this.find(branch, layer, step, head);
    if (!described) return null;
    if (!this.unpacked.has(described)) this.unpacked.set(described, await RoutingMap.read(described));
    return this.unpacked.get(described);
  }
}

/** The routing of one head: rows are query groups, columns key clusters, both in an order that shows their structure. */
export class RoutingMap {
  static async read(described) {
    const map = new RoutingMap();
    const names = ["queries", "keys", "groups", "clusters", "exact", "errors", "queryLabels", "keyLabels"];
    const arrays = await Promise.all(names.map((name) => unpack(described[name])));
    Object.assign(map, described, Object.fromEntries(names.map((name, place) => [name, arrays[place].values])));
    [map.rows, map.columns] = arrays[names.indexOf("exact")].shape;
    map.tokens = map.queries.reduce((sum, size) => sum + size, 0);
    const { lowest, highest, codes } = described.errors;
    map.errorOfCode = (code) => (code ? 10 ** (lowest + (code / codes) * (highest - lowest)) : 0);
    map.keyShares = Float32Array.from({ length: map.columns }, (_, column) => {
      let seen = 0;
      for (let row = 0; row < map.rows; row++) seen += map.exactShare(row, column) * map.queries[row];
      return seen / map.tokens;
    });
    return map;
  }

  exactShare(row, column) {
    return this.exact[row * this.columns + column] / 255;
  }

  error(row, column) {
    return this.errorOfCode(this.errors[row * this.columns + column]);
  }
}

/** The runs of a message of the node; [] where the data is missing or of a version that this view does not know. */
export async function readRuns(data) {
  if (data?.version !== VERSION) return [];
  return Promise.all((data.runs ?? []).map(Run.read));
}

export const percent = (share) => {
  const value = 100 * share;
  if (value > 0 && value < 0.01) return translate("less than 0.01 %");
  return `${value < 1 ? value.toFixed(2) : value.toFixed(1)} %`;
};
