// Shows the text of an SVG-EAR Report node on the node.
import { app } from "../../scripts/app.js";

app.registerExtension({
  name: "svg_ear.report",

  nodeCreated(node) {
    if (node.comfyClass !== "SVGEARReport" || !node.addDOMWidget) return;

    const text = document.createElement("textarea");
    text.readOnly = true;
    text.placeholder = "Run the workflow to see what SVG-EAR did.";
    text.style.cssText = "width: 100%; height: 100%; resize: none; font: 12px monospace;";
    const widget = node.addDOMWidget("report", "svg_ear_report", text, {
      serialize: false,
      getMinHeight: () => 160,
    });
    widget.serialize = false;
    node.setSize?.([Math.max(node.size?.[0] ?? 0, 420), Math.max(node.size?.[1] ?? 0, 320)]);

    const onExecuted = node.onExecuted;
    node.onExecuted = function (message) {
      onExecuted?.apply(this, arguments);
      text.value = message?.text?.join("\n") ?? "";
    };
  },
});
