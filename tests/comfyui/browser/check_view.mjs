// Run a workflow with SVG-EAR Routed Blocks in the real interface and use its view as a person would.
// Reads {prompt, node, status, vueNodes, light}: an API workflow, and the ids of the nodes to look at. Prints what was seen.
import { join } from "node:path";
import { open, request, run, settle } from "./page.mjs";

const kind = `${request.vueNodes ? "nodes2" : "classic"}${request.light ? "_light" : ""}`;
const { page, errors, close } = await open({
  settings: { "Comfy.VueNodes.Enabled": request.vueNodes, "Comfy.ColorPalette": request.light ? "light" : "dark" },
  viewport: { width: 1600, height: 1330 },
});
const seen = {};

// Nodes beside each other, the two of ours first, at a zoom of 100 %.
const lay = () =>
  page.evaluate(async ({ node, report, attention }) => {
    const every = window.app.graph._nodes;
    const [view, text, patch] = [node, report, attention].map((id) => every.find((known) => String(known.id) === id));
    Object.assign(window, { viewNode: view, reportNode: text, attentionNode: patch });
    const place = (known, pos, size) => {
      known.pos = pos;
      known.setSize(size);
    };
    place(view, [0, 0], [560, 1160]);
    place(text, [620, 0], [480, 440]);
    place(patch, [1160, 0], [320, 360]);
    const others = every.filter((known) => ![view, text, patch].includes(known));
    others.forEach((known, number) => (known.pos = [620 + 420 * (number % 3), 2000 + 500 * Math.floor(number / 3)]));
    window.app.canvas.ds.scale = 0.98;
    window.app.canvas.ds.offset = [80, 130];
    window.app.canvas.setDirty(true, true);
    await window.settle(700);
  }, request);

const state = () =>
  page.evaluate(() => {
    const root = document.querySelector(".svg-ear-view");
    const canvases = [...root.querySelectorAll("canvas")];
    const digest = (canvas) => {
      const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
      let sum = 0;
      for (let place = 0; place < data.length; place += 4) sum = (sum * 31 + data[place] * 7 + data[place + 1] * 3 + data[place + 2]) % 1000000007;
      return sum;
    };
    const colors = (canvas) => new Set(new Uint32Array(canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data.buffer)).size;
    const content = root.querySelector(".svg-ear-content");
    const box = root.getBoundingClientRect();
    const clipped = [...root.querySelectorAll("div, span, label, select, canvas, input")]
      .filter((part) => part.offsetParent && !part.classList.contains("svg-ear-content"))
      .filter((part) => part.getBoundingClientRect().right > box.right + 1 || part.getBoundingClientRect().bottom > box.bottom + 1)
      .map((part) => part.className || part.tagName);
    return {
      filled: root.dataset.state,
      pictures: canvases.map(digest),
      colors: canvases.map(colors),
      chosen: Object.fromEntries([...root.querySelectorAll("select")].map((select) => [select.parentElement.querySelector("span").textContent, select.value])),
      summary: root.querySelector(".svg-ear-summary").textContent,
      says: root.querySelector(".svg-ear-empty").textContent,
      info: root.querySelector(".svg-ear-info").textContent,
      clipped,
      scrolls: content.scrollHeight > content.clientHeight + 1,
      width: box.width,
      status: document.querySelector(".svg-ear-status")?.textContent ?? "",
      told: window.attentionNode?.widgets?.map((widget) => (typeof widget.value === "string" ? widget.value : "")).join(" ").replaceAll("\n", " ") ?? "",
    };
  });

const choose = async (name, value) => {
  await page.locator(`.svg-ear-${name} select`).selectOption(String(value));
  await settle(page, 400);
  return state();
};
const shot = (name) => page.screenshot({ path: join(request.screenshots, `view_${kind}_${name}.png`) });

const look = async (canvas, x, y) => {
  const box = await page.locator(".svg-ear-view canvas").nth(canvas).boundingBox();
  await page.mouse.move(box.x + box.width * x, box.y + box.height * y);
  await settle(page, 150);
  return state();
};
const press = async (selector, ...keys) => {
  await page.locator(selector).first().focus();
  for (const key of keys) await page.keyboard.press(key);
  await settle(page, 200);
  return state();
};

await page.evaluate((prompt) => window.app.loadApiJson(prompt, "routed blocks"), request.prompt);
await settle(page, 800);
// An unchanged workflow must not sample again.
await page.evaluate(() => window.app.graph._nodes.flatMap((node) => node.widgets ?? []).filter((widget) => widget.name === "control_after_generate").forEach((widget) => (widget.value = "fixed")));
await lay();
seen.empty = await state();
await run(page);
await lay();
seen.first = await state();
await shot("filled");
seen.otherLayer = await choose("layer", 7);
seen.otherHead = await choose("head", 1);
seen.otherBranch = await choose("branch", "uncond");
seen.withoutMap = await choose("layer", 5);
await shot("without_map");
seen.back = await choose("layer", 7);
seen.overBlock = await look(0, 0.3, 0.4);
seen.overDense = await look(1, 0.05, 0.5);
seen.overToken = await look(3, 0.5, 0.5);
await page.mouse.down();
await page.mouse.up();
await settle(page, 200);
seen.pinned = await state();
await shot("pinned");
await page.mouse.move(800, 1320);
seen.unpinned = await press(".svg-ear-view canvas >> nth=3", "Escape");
seen.nextFrame = await press(".svg-ear-slider", "ArrowRight", "ArrowRight");
seen.keyboard = await press(".svg-ear-view canvas >> nth=0", "ArrowRight", "ArrowDown");
seen.keyboardTable = await press(".svg-ear-view canvas >> nth=2", "ArrowUp", "ArrowUp");

// What an older or a broken server might send changes nothing.
await page.evaluate(() => [undefined, {}, { svg_ear: [] }, { svg_ear: [null] }].forEach((message) => window.viewNode.onExecuted(message)));
await settle(page, 300);
seen.afterNothing = await state();
await page.evaluate(() => window.viewNode.onExecuted({ svg_ear: [{ version: 99, runs: [{}] }] }));
await settle(page, 300);
seen.afterUnknown = await state();
await page.evaluate(() => window.viewNode.onExecuted({ svg_ear: [{ version: 1, runs: [] }] }));
await settle(page, 300);
seen.withoutRuns = await state();

await page.evaluate(async () => {
  const saved = JSON.parse(JSON.stringify(window.app.graph.serialize()));
  await window.app.loadGraphData(saved, true, true, "reloaded");
});
await settle(page, 1200);
await lay();
await run(page);
await lay();
seen.reloaded = await state();
await shot("reloaded");
// The help panel; the interface asks for a page in its language first, which is not an error of ours.
seen.errors = [...errors];
seen.help = await page.evaluate(() => window.app.canvas.selectNode(window.viewNode)).then(async () => {
  await settle(page, 600);
  await page.locator('[data-testid="info-button"]').first().evaluate((button) => button.click());
  await settle(page, 2000);
  return page.evaluate(() => ({
    titles: [...document.querySelectorAll("h1, h2")].map((title) => title.textContent),
    pictures: [...document.querySelectorAll("img")].filter((picture) => picture.src.includes("/svg-ear/docs/")).map((picture) => picture.naturalWidth),
  }));
});
await shot("help");
console.log(JSON.stringify(seen));
await close();
