// Puts an element of ours on a node.

/**
 * The widget that shows ``element``, below the node's own.
 *
 * The properties panel would draw it once more, as it draws widgets that it does not know, and leave the panel's width on it: half of
 * what it has on the node, for good. So it stays out of the panel, and its width is always the node's.
 */
export function addOwnWidget(node, name, type, element, options) {
  const widget = node.addDOMWidget(name, type, element, { serialize: false, hideInPanel: true, ...options });
  widget.serialize = false;
  Object.defineProperty(widget, "width", { configurable: true, get: () => undefined, set: () => {} });
  return widget;
}
