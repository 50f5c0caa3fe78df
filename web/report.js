// Shows the text that a node ended with on the node, under one line that sums it up.
import { app } from "../../scripts/app.js";
import { spoken, translate } from "./language.js";
import { addOwnWidget } from "./own_widget.js";

// What such nodes show before they ran.
const PLACEHOLDERS = {
  SVGEARReport: () => translate("Run the workflow to see what SVG-EAR did."),
  SVGEARRaylightReport: () => translate("Run the workflow to see what SVG-EAR did on each GPU."),
  SVGEARSaveCalibration: () => translate("Run the workflow to see how many runs are gathered."),
  SVGEARCompare: () => translate("Run the workflow to see how close and how fast it was."),
  SVGEARGPUCheck: () => translate("Run it to see from how many tokens on sparse attention pays on this GPU."),
};

app.registerExtension({
  name: "svg_ear.report",

  nodeCreated(node) {
    if (!(node.comfyClass in PLACEHOLDERS) || !node.addDOMWidget) return;

    const status = Object.assign(document.createElement("div"), { className: "svg-ear-status" });
    status.style.cssText = "flex: none; padding: 4px 2px; font: 600 12px/1.35 system-ui, sans-serif; color: var(--fg-color, #ddd);";
    const text = document.createElement("textarea");
    text.readOnly = true;
    text.placeholder = PLACEHOLDERS[node.comfyClass]();
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
      const said = message?.svg_ear_said?.[0];
      text.value = spoken(said?.text);
      status.textContent = spoken(said?.status);
    };
  },
});
