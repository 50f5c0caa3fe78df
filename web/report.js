// Shows the text that a node ended with on the node, under one line that sums it up.
import { app } from "../../scripts/app.js";
import { addOwnWidget } from "./own_widget.js";

// What such nodes show before they ran.
const PLACEHOLDERS = {
  en: {
    SVGEARReport: "Run the workflow to see what SVG-EAR did.",
    SVGEARSaveCalibration: "Run the workflow to see how many runs are gathered.",
    SVGEARCompare: "Run the workflow to see how close and how fast it was.",
    SVGEARGPUCheck: "Run it to see from how many tokens on sparse attention pays on this GPU.",
  },
  zh: {
    SVGEARReport: "运行工作流即可查看 SVG-EAR 做了什么。",
    SVGEARSaveCalibration: "运行工作流即可查看已收集多少次运行。",
    SVGEARCompare: "运行工作流即可查看接近程度和速度。",
    SVGEARGPUCheck: "运行后即可查看在此 GPU 上从多少 token 起稀疏注意力更划算。",
  },
};

/** The placeholder of a node in the language of the interface. */
function placeholder(kind) {
  const locale = String(app.extensionManager?.setting?.get?.("Comfy.Locale") ?? "en");
  return PLACEHOLDERS[locale.split("-")[0]]?.[kind] ?? PLACEHOLDERS.en[kind];
}

app.registerExtension({
  name: "svg_ear.report",

  nodeCreated(node) {
    if (!(node.comfyClass in PLACEHOLDERS.en) || !node.addDOMWidget) return;

    const status = Object.assign(document.createElement("div"), { className: "svg-ear-status" });
    status.style.cssText = "flex: none; padding: 4px 2px; font: 600 12px/1.35 system-ui, sans-serif; color: var(--fg-color, #ddd);";
    const text = document.createElement("textarea");
    text.readOnly = true;
    text.placeholder = placeholder(node.comfyClass);
    text.style.cssText =
      "flex: 1; min-height: 0; width: 100%; box-sizing: border-box; resize: none; font: 12px/1.35 monospace; padding: 6px; border-radius: 4px; " +
      "border: 1px solid var(--border-color, #4e4e4e); background: var(--comfy-input-bg, #222); color: var(--input-text, #ddd);";
    const root = document.createElement("div");
    root.style.cssText = "display: flex; flex-direction: column; width: 100%; height: 100%;";
    root.append(status, text);
    addOwnWidget(node, "report", "svg_ear_report", root, { getMinHeight: () => 160 });
    const least = 320 + 24 * (node.widgets.length - 1);
    node.setSize?.([Math.max(node.size?.[0] ?? 0, 420), Math.max(node.size?.[1] ?? 0, least)]);

    const onExecuted = node.onExecuted;
    node.onExecuted = function (message) {
      onExecuted?.apply(this, arguments);
      text.value = message?.text?.join("\n") ?? "";
      status.textContent = message?.status?.join(" ") ?? "";
    };
  },
});
