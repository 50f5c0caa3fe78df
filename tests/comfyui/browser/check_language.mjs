// What SVG-EAR Routed Blocks and SVG-EAR Report say in a language, and after another was chosen.
// Reads {prompt, node, report, locale, then, light}: an API workflow, and the ids of the nodes to look at. Prints what was said.
import { join } from "node:path";
import { open, request, run } from "./page.mjs";

const { page, errors, close } = await open({
  settings: { "Comfy.VueNodes.Enabled": false, "Comfy.Locale": request.locale, "Comfy.ColorPalette": request.light ? "light" : "dark" },
  viewport: { width: 1300, height: 1330 },
});

await page.evaluate((prompt) => window.app.loadApiJson(prompt, "language"), request.prompt);
await page.waitForTimeout(800);
const lay = () =>
  page.evaluate(({ node, report }) => {
    const every = window.app.graph._nodes;
    every.forEach((known, number) => (known.pos = [500 * (number % 3), 2000 + 500 * Math.floor(number / 3)]));
    const place = (id, pos, size) => {
      const found = every.find((known) => String(known.id) === id);
      found.pos = pos;
      found.setSize(size);
    };
    place(node, [0, 0], [560, 1160]);
    place(report, [620, 0], [560, 640]);
    window.app.canvas.ds.scale = 0.98;
    window.app.canvas.ds.offset = [80, 130];
    window.app.canvas.setDirty(true, true);
  }, request);
await lay();
await run(page);

const look = async (canvas, x, y) => {
  const box = await page.locator(".svg-ear-view canvas").nth(canvas).boundingBox();
  await page.mouse.move(box.x + box.width * x, box.y + box.height * y);
  await page.waitForTimeout(200);
  return page.locator(".svg-ear-info").textContent();
};
const said = async () => ({
  block: await look(0, 0.3, 0.4),
  token: await look(3, 0.5, 0.5),
  dense: await look(1, 0.05, 0.5),
  ...(await page.evaluate(() => ({
    view: document.querySelector(".svg-ear-content").innerText,
    report: document.querySelector(".svg-ear-status + textarea").value,
    status: document.querySelector(".svg-ear-status").textContent,
  }))),
});

const seen = { first: await said() };
await page.screenshot({ path: join(request.screenshots, `language_${request.locale}_${request.light ? "light" : "dark"}.png`) });
await page.evaluate((locale) => window.app.extensionManager.setting.set("Comfy.Locale", locale), request.then);
await page.waitForTimeout(1500);
// The interface opens the workflow once more in the new language, without what the nodes showed.
await lay();
seen.empty = await page.evaluate(() => document.querySelector(".svg-ear-empty").textContent + document.querySelector(".svg-ear-status + textarea").placeholder);
await run(page);
seen.then = await said();
console.log(JSON.stringify({ ...seen, errors }));
await close();
