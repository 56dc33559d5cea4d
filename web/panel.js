/** The parts of both panels: elements, a DOM widget on the node, a card next to the pointer. */

import { app } from "../../scripts/app.js"

const TEXT_PX = 76
const SVG = "http://www.w3.org/2000/svg"

document.head.append(element("link", { rel: "stylesheet", href: new URL("./panel.css", import.meta.url).href }))

/**
 * Create an element. Properties that start with "on" are listeners.
 * @param {string} tag
 * @param {Record<string, any>} [properties]
 * @param {...(Node | string)} children
 * @returns {any}
 */
export function element(tag, properties = {}, ...children) {
  const made = tag === "svg" || tag === "path" ? document.createElementNS(SVG, tag) : document.createElement(tag)
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value)
    else if (value !== undefined && value !== false) made.setAttribute(name, value === true ? "" : value)
  }
  made.append(...children)
  return made
}

/** Set an element's children. If they are unchanged, do nothing, which keeps the scroll position. */
export function place(parent, children) {
  const now = parent.children
  if (now.length !== children.length || children.some((child, at) => child !== now[at])) {
    parent.replaceChildren(...children)
  }
}

/**
 * Add a panel below a node's widgets. It has no value, so workflows and prompts do not contain it.
 * @param {any} node
 * @param {string} name
 * @param {HTMLElement} body
 * @param {() => number} height the minimum in pixels
 */
export function addPanel(node, name, body, height) {
  const widget = node.addDOMWidget(name, name, body, { serialize: false, hideOnZoom: false, getMinHeight: height })
  widget.serialize = false
  follow(node, "onRemoved", () => (body.dataset.removed = `${name} ${node.id}`))
  follow(node, "onConfigure", () => replaceRemoved(body, `${name} ${node.id}`))
  body.addEventListener("wheel", (event) => forwardWheel(event, body), { passive: false })
  body.addEventListener("pointerup", (event) => {
    const control = /** @type {HTMLElement} */ (event.target)
    if (control.matches("input[type=range], input[type=checkbox]")) control.blur() // or it would swallow Ctrl+Z
  })
}

/** After undo, the Vue renderer still shows the panel of the replaced node: replace it by the new one. */
function replaceRemoved(body, key) {
  if (!globalThis.LiteGraph?.vueNodesMode) return
  for (const panel of document.querySelectorAll(".clora-panel")) {
    if (/** @type {HTMLElement} */ (panel).dataset.removed === key) panel.replaceWith(body)
  }
}

/** Limit a text widget to a few lines, so that the panel gets the rest. */
export function keepSmall(widget) {
  widget.options.getMaxHeight = () => TEXT_PX
}

/** Make the node high enough for its widgets. The Vue renderer does so by itself. */
export function fit(node) {
  if (globalThis.LiteGraph?.vueNodesMode) return
  const [, needed] = node.computeSize()
  if (needed > node.size[1]) node.setSize([node.size[0], needed])
  node.setDirtyCanvas?.(true, true)
}

/** Tell ComfyUI's undo that the workflow has changed. */
export function changed() {
  const tracker = app.extensionManager?.workflow?.activeWorkflow?.changeTracker
  if (tracker?.captureCanvasState) tracker.captureCanvasState()
  else tracker?.checkState?.()
}

/** Call `after` after every call of `object[name]`, which otherwise works as before. */
export function follow(object, name, after) {
  const original = object[name]
  object[name] = function (...args) {
    const result = original?.apply(this, args)
    after.apply(this, args)
    return result
  }
}

/** @type {HTMLElement | undefined} */
let card

/** Show content next to the panel while the pointer is on an element of it. */
export function addCard(target, content) {
  target.addEventListener("pointerenter", () => {
    card ??= document.body.appendChild(element("div", { class: "clora-card" }))
    card.replaceChildren(...content())
    card.hidden = false
    const { left, right } = target.closest(".clora-panel").getBoundingClientRect()
    const { top } = target.getBoundingClientRect()
    const fits = right + card.offsetWidth + 24 < window.innerWidth
    card.style.left = `${fits ? right + 16 : Math.max(8, left - card.offsetWidth - 16)}px`
    card.style.top = `${Math.max(8, Math.min(top, window.innerHeight - card.offsetHeight - 8))}px`
  })
  target.addEventListener("pointerleave", hideCard)
}

export function hideCard() {
  if (card) card.hidden = true
}

/** If the wheel scrolls nothing in the panel, it moves or zooms the canvas, as everywhere else. */
function forwardWheel(event, body) {
  const axis = Math.abs(event.deltaX) > Math.abs(event.deltaY) ? "x" : "y"
  for (let part = event.target; part instanceof Element && !event.ctrlKey; part = part.parentElement) {
    const room = axis === "x" ? part.scrollWidth - part.clientWidth : part.scrollHeight - part.clientHeight
    const scrolls = getComputedStyle(part)[axis === "x" ? "overflowX" : "overflowY"] === "auto"
    if (room > 0 && scrolls) return event.stopPropagation()
    if (part === body) break
  }
  event.preventDefault()
  event.stopPropagation()
  app.canvas.processMouseWheel(event)
}
