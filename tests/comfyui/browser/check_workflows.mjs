// Open every sample workflow in the real interface and report what a user would see wrong.
//   node check_workflows.mjs ADDRESS PLAYWRIGHT CHROMIUM PROFILE SCREENSHOTS WORKFLOW.json...
// Prints one JSON object: {workflow: {missing, overlaps, rejected, errors}}; the runner beside this file judges it.
import { readFileSync } from "node:fs";
import { basename, join } from "node:path";
import { createRequire } from "node:module";

const [address, playwright, executablePath, profile, screenshots, ...files] = process.argv.slice(2);
const { chromium } = createRequire(import.meta.url)(playwright);
const FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"];

const settings = {
  "Comfy.TutorialCompleted": true,
  "Comfy.Workflow.Persist": false,
  "Comfy.Workflow.ShowMissingModelsWarning": false,
  "Comfy.VueNodes.Enabled": process.env.VUE_NODES === "1",
};
await fetch(`${address}/api/settings`, { method: "POST", body: JSON.stringify(settings) });

const context = await chromium.launchPersistentContext(profile, { executablePath, headless: true, args: FLAGS, viewport: { width: 3300, height: 1300 } });
const page = await context.newPage();
let errors = [];
// the interface asks the models' host about missing files, which this server forbids
const lookedUp = (message) => /Content Security Policy/.test(message.text());
page.on("console", (message) => message.type() === "error" && !lookedUp(message) && errors.push(`${message.text()} (${message.location().url})`));
page.on("pageerror", (error) => errors.push(String(error.stack ?? error)));
await page.goto(address);
await page.waitForFunction(() => window.app?.extensionManager && window.LiteGraph?.registered_node_types?.SVGEARAttention, null, { timeout: 90000 });
await page.waitForTimeout(1500);

const report = {};
for (const file of files) {
  errors = [];
  const name = basename(file, ".json");
  const workflow = JSON.parse(readFileSync(file, "utf8"));
  const found = await page.evaluate(async ([workflow, name]) => {
    await window.app.loadGraphData(workflow, true, true, name);
    await new Promise((done) => setTimeout(done, 1500));
    const nodes = window.app.graph.nodes ?? window.app.graph._nodes;
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
    return { missing, overlaps, prompt: prompt.output, sizes };
  }, [workflow, name]);
  await page.waitForTimeout(700);
  await page.screenshot({ path: join(screenshots, `${name}.png`) });
  const answer = await fetch(`${address}/prompt`, { method: "POST", body: JSON.stringify({ prompt: found.prompt }) });
  // the models are not there: everything else about the workflow must be accepted
  const body = await answer.json();
  const details = Object.values(body.node_errors ?? {}).flatMap((node) => node.errors.map((error) => `${node.class_type}: ${error.message}: ${error.details}`));
  const rejected = details.filter((text) => !/\.safetensors|\.png/.test(text));
  report[name] = { missing: found.missing, overlaps: found.overlaps, rejected, errors, sizes: found.sizes };
}
await context.close();
console.log(JSON.stringify(report));
