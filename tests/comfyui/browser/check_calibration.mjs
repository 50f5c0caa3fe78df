// Gather two runs and save them in the real interface. Reads {prompt, calibrate, save, vueNodes}; prints what the nodes said.
import { join } from "node:path";
import { open, request, run, settle } from "./page.mjs";

const { page, errors, close } = await open({ settings: { "Comfy.VueNodes.Enabled": request.vueNodes }, viewport: { width: 1000, height: 800 } });
const seen = {};

const state = () =>
  page.evaluate(() => {
    const text = document.querySelector(".svg-ear-status + textarea");
    const box = text.getBoundingClientRect();
    return {
      status: document.querySelector(".svg-ear-status").textContent,
      text: text.value,
      placeholder: text.placeholder,
      height: box.height,
      told: window.calibrateNode.widgets.map((widget) => (typeof widget.value === "string" ? widget.value : "")).join(" "),
    };
  });

await page.evaluate((prompt) => window.app.loadApiJson(prompt, "calibration"), request.prompt);
await settle(page, 800);
await page.evaluate(async ({ calibrate, save }) => {
  const every = window.app.graph._nodes;
  const [gathers, saves] = [calibrate, save].map((id) => every.find((known) => String(known.id) === id));
  window.calibrateNode = gathers;
  [gathers, saves].forEach((node, number) => {
    node.pos = [460 * number, 0];
    node.setSize([420, 480]);
  });
  every.filter((known) => ![gathers, saves].includes(known)).forEach((node, number) => (node.pos = [420 * number, 2000]));
  window.app.canvas.ds.scale = 1;
  window.app.canvas.ds.offset = [70, 190];
  window.app.canvas.setDirty(true, true);
  await window.settle(700);
}, request);

seen.before = await state();
for (const name of ["first", "second"]) {
  // Each run with another seed.
  await page.evaluate(() => window.app.graph._nodes.flatMap((node) => node.widgets ?? []).find((widget) => widget.name === "seed").value++);
  await run(page);
  seen[name] = await state();
}
await page.screenshot({ path: join(request.screenshots, `calibration_${request.vueNodes ? "nodes2" : "classic"}.png`) });
seen.errors = errors;
console.log(JSON.stringify(seen));
await close();
