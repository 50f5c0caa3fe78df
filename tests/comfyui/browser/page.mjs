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

/** Say that it goes on: who started this script ends it when it is silent for long, so that nothing here has a limit of its own. */
export const tell = (text) => process.stderr.write(`${text}\n`);

/** Let the page come to rest, ``milliseconds`` where it has nothing to do: turns of 130 that only end once it has drawn. */
export const settle = async (page, milliseconds) => {
  tell("waits for the page to come to rest");
  await page.evaluate((milliseconds) => window.settle(milliseconds), milliseconds);
};
const settleInPage = () => {
  const drawn = () => new Promise((done) => requestAnimationFrame(done));
  window.settle = async (milliseconds) => {
    for (let turn = 0; turn < milliseconds / 130; turn++) {
      await new Promise((done) => setTimeout(done, 100));
      await drawn();
      await drawn();
    }
  };
};

const send = (settings) => fetch(`${request.address}/api/settings`, { method: "POST", body: JSON.stringify({ ...SETTINGS, ...settings }) });

/** {page, errors, reopen, close}; ``settings`` are those of the interface, and ``reopen(settings)`` loads it again with others. */
export async function open({ settings = {}, viewport = { width: 3300, height: 1300 } } = {}) {
  const { chromium } = createRequire(import.meta.url)(request.playwright);
  const launch = { executablePath: request.chromium, headless: true, args: FLAGS, viewport, timeout: 0 };
  const context = await chromium.launchPersistentContext(request.profile, launch);
  context.setDefaultTimeout(0);
  await context.addInitScript(settleInPage);
  const page = await context.newPage();
  await page.exposeFunction("tell", tell);
  tell("the browser has started");
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
  page.on("response", (response) => tell(`loaded ${response.url()}`));
  const reopen = async (settings) => {
    ready = false;
    await send(settings);
    await page.goto(request.address);
    await page.waitForFunction(() => window.app?.extensionManager && window.LiteGraph?.registered_node_types?.SVGEARRoutedBlocks);
    await settle(page, 1500);
    ready = true;
    tell("the interface is ready");
  };
  await reopen(settings);
  return { page, errors, reopen, close: () => context.close() };
}

/** Run the workflow that is open, to its end. */
export const run = (page) =>
  page.evaluate(
    () =>
      new Promise((done, fail) => {
        ["executing", "progress"].forEach((event) => window.app.api.addEventListener(event, () => window.tell(`the server: ${event}`)));
        window.app.api.addEventListener("execution_success", () => window.settle(1200).then(done), { once: true });
        window.app.api.addEventListener("execution_error", (event) => fail(new Error(JSON.stringify(event.detail).slice(0, 2000))), { once: true });
        window.app.queuePrompt(0, 1);
      }),
  );
