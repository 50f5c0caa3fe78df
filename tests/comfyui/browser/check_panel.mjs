// What the properties panel does to the widgets of our nodes. Reads {nodes: [types], locales};
// prints their widths, and their placeholders in each language.
import { join } from "node:path";
import { open, request, settle } from "./page.mjs";

const settings = { "Comfy.VueNodes.Enabled": false, "Comfy.RightSidePanel.IsOpen": true };
const { page, errors, reopen, close } = await open({ settings, viewport: { width: 2200, height: 1300 } });

const add = () => page.evaluate(async (kinds) => {
  await window.app.loadGraphData({ nodes: [], links: [], groups: [], version: 0.4 }, true, true, "panel");
  window.app.canvas.ds.scale = 1;
  window.app.canvas.ds.offset = [90, 120];
  window.ours = kinds.map((kind, number) => {
    const node = window.LiteGraph.createNode(kind);
    node.pos = [500 * (number % 3), 1200 * Math.floor(number / 3)];
    window.app.graph.add(node);
    node.setSize([464, node.size[1]]);
    return node;
  });
  await window.settle(900);
}, request.nodes);

const widths = () =>
  page.evaluate(() => {
    window.app.canvas.draw(true, true);
    const own = (node) => node.widgets.find((widget) => widget.type.startsWith("svg_ear"));
    return Object.fromEntries(window.ours.map((node) => [node.type, Math.round(own(node).element.getBoundingClientRect().width)]));
  });
const seen = { widths: Object.fromEntries(request.nodes.map((kind) => [kind, {}])), errors };
const note = async (name) => Object.entries(await widths()).forEach(([kind, width]) => (seen.widths[kind][name] = width));

await add();
await note("before");
for (const [number, kind] of request.nodes.entries()) {
  await page.evaluate((number) => window.app.canvas.selectNode(window.ours[number]), number);
  await settle(page, 900);
  seen.panel ||= await page.evaluate(() => document.body.innerText.includes("Parameters"));
  await page.screenshot({ path: join(request.screenshots, `panel_${kind}.png`) });
  await note(`${kind} chosen`);
}
await page.evaluate(() => window.app.canvas.deselectAll());
await settle(page, 600);
await note("after");
seen.placeholders = {};
for (const locale of request.locales) {
  await reopen({ ...settings, "Comfy.Locale": locale });
  await add();
  seen.placeholders[locale] = await page.evaluate(() => [...document.querySelectorAll(".svg-ear-status + textarea")].map((text) => text.placeholder));
}
console.log(JSON.stringify(seen));
await close();
