/** What a node says when it runs, below its widgets: the whole text, until the node runs again. */

import { api } from "../../scripts/api.js"
import { app } from "../../scripts/app.js"
import { addPanel, element, fit } from "./panel.js"
import { onState } from "./panels.js"
import { loadWords, say } from "./words.js"

const HAS_A_PANEL = "CLoRA_TrainStep"
const NAME = "clora_text"
const LATER_MS = 1000 // the pictures of a node come after its text, and need room too
const LEAST_PX = 80, LINE_PX = 16 // narrower, it is not laid out yet

/** @type {WeakMap<object, HTMLElement>} node → the element of its text */
const places = new WeakMap()

/** @type {WeakMap<object, number>} node → its height before it said something */
const heights = new WeakMap()

/** @param {any} node @param {{text?: string, page?: string} | undefined} state */
function draw(node, state) {
  if (node.comfyClass === HAS_A_PANEL || (state?.text === undefined && !places.has(node))) return
  if (!heights.has(node)) heights.set(node, node.size[1])
  const resized = node.size[1] > node.computeSize()[1]
  const content = places.get(node) ?? place(node)
  const open = () => window.open(api.apiURL(`/clora/report?name=${encodeURIComponent(state?.page ?? "")}`), "_blank")
  content.replaceChildren(state?.text ?? "",
    ...(state?.page ? [element("button", { type: "button", class: "clora-open", onclick: open }, say("text.open"))] : []))
  content.parentElement.hidden = !state?.text
  if (!state?.text) shrink(node, resized)
  fit(node)
  setTimeout(() => fit(node), LATER_MS)
}

/** Give a node that says nothing any more the height that it had before, unless the user has made it larger. */
function shrink(node, resized) {
  if (!resized && !globalThis.LiteGraph?.vueNodesMode) node.setSize([node.size[0], heights.get(node)])
  heights.delete(node)
}

function place(node) {
  const content = element("div", { class: "clora-text" })
  const body = element("div", { class: "clora-panel" }, content)
  const height = () => (content.offsetWidth > LEAST_PX ? content.offsetHeight : 0) + (body.hidden ? 0 : LINE_PX)
  addPanel(node, NAME, body, height)
  node.widgets.find((widget) => widget.name === NAME).options.getMaxHeight = height
  new ResizeObserver(() => fit(node)).observe(content)
  places.set(node, content)
  return content
}

app.registerExtension({
  name: "clora.texts",
  async init() {
    await loadWords()
    onState(draw)
  },
})
