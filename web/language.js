// Says what we show in the language of the interface, and in English what has no translation.
import { app } from "../../scripts/app.js";

// {language: {English: translation}}, from locales/<language>/main.json. ComfyUI serves it; one that does not leaves all in English.
let languages = {};

app.registerExtension({
  name: "svg_ear.language",

  async init() {
    try {
      const served = await (await app.api.fetchApi("/i18n")).json();
      languages = Object.fromEntries(Object.entries(served).map(([language, texts]) => [language, texts.svgEar ?? {}]));
    } catch (error) {
      console.info("SVG-EAR: no translations:", error);
    }
  },
});

/** An English text, with its figures in the places of their names in braces. */
export function translate(english, figures = {}) {
  const language = String(app.extensionManager?.setting?.get?.("Comfy.Locale") ?? "en");
  const template = languages[language]?.[english] ?? languages[language.split("-")[0]]?.[english] ?? english;
  return template.replace(/\{(\w+)\}/g, (braces, name) => figures[name] ?? braces);
}

/** One or several of a thing; `count` is a figure of both texts. */
export const counted = (count, one, several) => translate(count === 1 ? one : several, { count });

/** A text of the server, as `for_browser` of nodes/recording/words.py writes it. */
export function spoken(said) {
  if (Array.isArray(said?.parts)) return said.parts.map(spoken).join(translate(said.between));
  if (said?.template === undefined) return translate(String(said ?? ""));
  return translate(said.template, Object.fromEntries(Object.entries(said.figures).map(([name, figure]) => [name, spoken(figure)])));
}
