// A page with the real interface, ready for use, and what goes wrong on it.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"];
const SETTINGS = {
  "Comfy.Locale": "en",
  "Comfy.RightSidePanel.IsOpen": false,
  "Comfy.TutorialCompleted": true,
  "Comfy.Workflow.Persist": false,
  "Comfy.Workflow.ShowMissingModelsWarning": false,
};

export const request = JSON.parse(readFileSync(0, "utf8"));

/** {page, errors, close}; ``settings`` are those of the interface. */
export async function open({ settings = {}, viewport = { width: 3300, height: 1300 } } = {}) {
  const { chromium } = createRequire(import.meta.url)(request.playwright);
  await fetch(`${request.address}/api/settings`, { method: "POST", body: JSON.stringify({ ...SETTINGS, ...settings }) });
  const launch = { executablePath: request.chromium, headless: true, args: FLAGS, viewport };
  const context = await chromium.launchPersistentContext(request.profile, launch);
  const page = await context.newPage();
  const errors = [];
  // Before the interface is ready only what concerns our files counts.
  let ready = false;
  // The interface itself asks the models' host about missing files, which this server forbids, and for files that a new
  // user does not have yet.
  const own = ({ text, url }) => /Content Security Policy/.test(text) || /\/(api\/)?(userdata|user\.css)/.test(url);
  page.on("console", (message) => {
    const said = { text: message.text(), url: message.location().url };
    if (message.type() === "error" && ready && !own(said)) errors.push(`${said.text} (${said.url})`);
    else if (message.type() === "error" && /svg-ear/.test(said.text + said.url)) errors.push(`${said.text} (${said.url})`);
  });
  page.on("pageerror", (error) => errors.push(String(error.stack ?? error)));
  await page.goto(request.address);
  await page.waitForFunction(() => window.app?.extensionManager && window.LiteGraph?.registered_node_types?.SVGEARRoutedBlocks, null, { timeout: 90000 });
  await page.waitForTimeout(1500);
  ready = true;
  return { page, errors, close: () => context.close() };
}

/** Run the workflow that is open, to its end. */
export const run = (page) =>
  page.evaluate(
    () =>
      new Promise((done, fail) => {
        window.app.api.addEventListener("execution_success", () => setTimeout(done, 1200), { once: true });
        window.app.api.addEventListener("execution_error", (event) => fail(new Error(JSON.stringify(event.detail).slice(0, 2000))), { once: true });
        window.app.queuePrompt(0, 1);
      }),
  );
