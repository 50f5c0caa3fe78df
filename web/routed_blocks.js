// Puts the interactive view on SVG-EAR Routed Blocks.
import { app } from "../../scripts/app.js";
import { addOwnWidget } from "./own_widget.js";
import { RoutedBlocksView } from "./view/view.js";

const SIZE = [560, 1160];
const VIEW_HEIGHT = 920;
// Choices are kept with the node, so that a saved workflow opens as it was left.
const PROPERTY = "svg_ear_view";

const stylesheet = Object.assign(document.createElement("link"), { rel: "stylesheet", href: new URL("./routed_blocks.css", import.meta.url).href });
document.head.append(stylesheet);

function show(node, message) {
  const data = message?.svg_ear?.[0];
  if (data) node.svgEarView?.load(data).catch((error) => console.warn("SVG-EAR: the data of this run cannot be shown:", error));
}

app.registerExtension({
  name: "svg_ear.routed_blocks",

  nodeCreated(node) {
    if (node.comfyClass !== "SVGEARRoutedBlocks" || !node.addDOMWidget) return;

    node.properties ??= {};
    const remembered = {
      get chosen() {
        return node.properties[PROPERTY];
      },
      set chosen(value) {
        node.properties[PROPERTY] = value;
      },
    };
    const view = new RoutedBlocksView(remembered);
    node.svgEarView = view;
    addOwnWidget(node, "view", "svg_ear_routed_blocks", view.root, { hideOnZoom: false, getMinHeight: () => VIEW_HEIGHT });
    node.setSize?.([Math.max(node.size?.[0] ?? 0, SIZE[0]), Math.max(node.size?.[1] ?? 0, SIZE[1])]);

    const onExecuted = node.onExecuted;
    node.onExecuted = function (message) {
      onExecuted?.apply(this, arguments);
      show(this, message);
    };
  },

  loadedGraphNode(node) {
    if (node.comfyClass === "SVGEARRoutedBlocks") show(node, app.nodeOutputs?.[node.id]);
  },
});
