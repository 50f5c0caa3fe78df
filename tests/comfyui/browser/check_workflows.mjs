// Open every sample workflow in the real interface and report what a user would see wrong.
// Reads {workflows: [files], portrait: name of the one to show our node of, vueNodes};
// prints {workflow: {missing, overlaps, rejected, errors, told, sizes}}.
import { readFileSync } from "node:fs";
import { basename, join } from "node:path";
import { open, request, settle } from "./page.mjs";

const { page, errors: seen, close } = await open({ settings: { "Comfy.VueNodes.Enabled": request.vueNodes } });

/** Our node by itself at a zoom of 100 %, for its help page. */
const portrait = async () => {
  const [x, y, width, height] = await page.evaluate(() => {
    const canvas = window.app.canvas;
    const node = window.app.graph._nodes.find((known) => known.type === "SVGEARAttention");
    canvas.ds.scale = 1;
    canvas.ds.offset = [400 - node.pos[0], 300 - node.pos[1]];
    canvas.setDirty(true, true);
    const { left, top } = canvas.canvas.getBoundingClientRect();
    return [left + 400, top + 270, node.size[0], node.size[1] + 30];
  });
  await settle(page, 500);
  await page.screenshot({ path: join(request.screenshots, `attention${request.vueNodes ? "_nodes2" : ""}.png`), clip: { x, y, width, height } });
};

const report = {};
for (const file of request.workflows) {
  seen.length = 0;
  const name = basename(file, ".json");
  const workflow = JSON.parse(readFileSync(file, "utf8"));
  const found = await page.evaluate(async ([workflow, name]) => {
    await window.app.loadGraphData(workflow, true, true, name);
    await window.settle(900);
    const nodes = window.app.graph.nodes ?? window.app.graph._nodes;
    // As after a run: what our nodes tell makes them grow.
    for (const node of nodes.filter((node) => ["SVGEARAttention", "SVGEARCalibrate"].includes(node.type))) {
      window.app.api.dispatchCustomEvent("progress_text", { nodeId: String(node.id), text: "Too short, 8,190 of 24,576 tokens:\nnothing ran sparse" });
    }
    await window.settle(900);
    const told = nodes.filter((node) => node.widgets?.some((widget) => widget.name === "$$node-text-preview")).length;
    const missing = nodes.filter((node) => !window.LiteGraph.registered_node_types[node.type]).map((node) => node.type);
    const boxes = nodes.map((node) => ({ type: node.type, x: node.pos[0], y: node.pos[1] - 30, right: node.pos[0] + node.size[0], bottom: node.pos[1] + node.size[1] }));
    const apart = (a, b) => a.right <= b.x || b.right <= a.x || a.bottom <= b.y || b.bottom <= a.y;
    const overlaps = boxes.flatMap((a, i) => boxes.slice(i + 1).filter((b) => !apart(a, b)).map((b) => `${a.type} and ${b.type}`));
    const groups = window.app.graph.groups ?? window.app.graph._groups;
    for (const box of boxes) {
      const inside = groups.some(({ pos, size }) => pos[0] <= box.x && pos[1] <= box.y && box.right <= pos[0] + size[0] && box.bottom <= pos[1] + size[1]);
      if (!inside) overlaps.push(`${box.type} and the edge of its group`);
    }
    const bounds = { x: Math.min(...boxes.map((b) => b.x)), right: Math.max(...boxes.map((b) => b.right)), y: Math.min(...boxes.map((b) => b.y)), bottom: Math.max(...boxes.map((b) => b.bottom)) };
    const canvas = window.app.canvas;
    const scale = Math.min(3100 / (bounds.right - bounds.x + 120), 1150 / (bounds.bottom - bounds.y + 120), 1);
    canvas.ds.scale = scale;
    canvas.ds.offset = [60 / scale - bounds.x + 50, 70 / scale - bounds.y + 50];
    canvas.setDirty(true, true);
    const prompt = await window.app.graphToPrompt();
    const sizes = Object.fromEntries(nodes.map((node) => [`${node.id} ${node.type}`, Array.from(node.size, Math.round)]));
    return { missing, overlaps, told, prompt: prompt.output, sizes };
  }, [workflow, name]);
  await settle(page, 500);
  await page.screenshot({ path: join(request.screenshots, `workflow_${name}${request.vueNodes ? "_nodes2" : ""}.png`) });
  if (name === request.portrait) await portrait();
  const answer = await fetch(`${request.address}/prompt`, { method: "POST", body: JSON.stringify({ prompt: found.prompt }) });
  // the models are not there: everything else about the workflow must be accepted
  const body = await answer.json();
  const details = Object.values(body.node_errors ?? {}).flatMap((node) => node.errors.map((error) => `${node.class_type}: ${error.message}: ${error.details}`));
  const rejected = details.filter((text) => !/\.safetensors|\.png/.test(text));
  report[name] = { missing: found.missing, overlaps: found.overlaps, rejected, errors: [...seen], told: found.told, sizes: found.sizes };
}
await close();
console.log(JSON.stringify(report));
