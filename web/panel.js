/** What both panels are made of: elements, a DOM widget under the node, a card beside the pointer. */

import { app } from "../../scripts/app.js"

const TEXT_PX = 76
const SVG = "http://www.w3.org/2000/svg"

/**
 * An element. Properties that begin with "on" are listeners; children are elements or texts.
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

/**
 * Let an element have these children; where it has them already it is left alone, and stays where it was scrolled to.
 * @param {Element} parent
 * @param {Element[]} children
 */
export function place(parent, children) {
  const now = parent.children
  if (now.length !== children.length || children.some((child, at) => child !== now[at])) {
    parent.replaceChildren(...children)
  }
}

/** Load the panels' looks, once. */
export function loadStyle() {
  const href = new URL("./panel.css", import.meta.url).href
  if (![...document.styleSheets].some((sheet) => sheet.href === href)) {
    document.head.append(element("link", { rel: "stylesheet", href }))
  }
}

/**
 * Put a panel under a node's widgets. It has no value of its own, so neither workflows nor prompts hold any of it.
 * @param {any} node
 * @param {string} name
 * @param {HTMLElement} body
 * @param {() => number} height the least, in pixels
 * @returns {any} the widget
 */
export function addPanel(node, name, body, height) {
  const widget = node.addDOMWidget(name, name, body, { serialize: false, hideOnZoom: false, getMinHeight: height })
  widget.serialize = false
  follow(node, "onRemoved", () => (body.dataset.left = `${name} ${node.id}`))
  follow(node, "onConfigure", () => takePlace(body, `${name} ${node.id}`))
  body.addEventListener("wheel", (event) => passOn(event, body), { passive: false })
  body.addEventListener("pointerup", (event) => {
    const control = /** @type {HTMLElement} */ (event.target)
    if (control.matches("input[type=range], input[type=checkbox]")) control.blur() // or it would swallow Ctrl+Z
  })
  return widget
}

/**
 * After undo, the Vue renderer goes on showing the panel of the node that was replaced: put the new one in its place.
 * @param {HTMLElement} body
 * @param {string} place
 */
function takePlace(body, place) {
  if (!globalThis.LiteGraph?.vueNodesMode) return
  for (const left of document.querySelectorAll(".clora-panel")) {
    if (/** @type {HTMLElement} */ (left).dataset.left === place) left.replaceWith(body)
  }
}

/**
 * Let a text widget take no more room than a few lines, so that the panel gets the rest.
 * @param {any} widget
 */
export function keepSmall(widget) {
  widget.options.getMaxHeight = () => TEXT_PX
}

/**
 * Make the node as high as its widgets need, if it is not. The Vue renderer does so by itself.
 * @param {any} node
 */
export function fit(node) {
  if (globalThis.LiteGraph?.vueNodesMode) return
  const [, needed] = node.computeSize()
  if (needed > node.size[1]) node.setSize([node.size[0], needed])
  node.setDirtyCanvas?.(true, true)
}

/** Tell ComfyUI's undo that the workflow was changed. */
export function changed() {
  const tracker = app.extensionManager?.workflow?.activeWorkflow?.changeTracker
  if (tracker?.captureCanvasState) tracker.captureCanvasState()
  else tracker?.checkState?.()
}

/**
 * Call `after` whenever `object[name]` was called; what it did and answered stays.
 * @param {any} object
 * @param {string} name
 * @param {(...args: any[]) => void} after
 */
export function follow(object, name, after) {
  const before = object[name]
  object[name] = function (...args) {
    const answer = before?.apply(this, args)
    after.apply(this, args)
    return answer
  }
}

/** @type {HTMLElement | undefined} */
let card

/**
 * Show something while an element is pointed at: at its height, and beside the panel that it stands in.
 * @param {HTMLElement} pointed
 * @param {() => Node[]} content
 */
export function addCard(pointed, content) {
  pointed.addEventListener("pointerenter", () => {
    card ??= document.body.appendChild(element("div", { class: "clora-card" }))
    card.replaceChildren(...content())
    card.hidden = false
    const { left, right } = pointed.closest(".clora-panel").getBoundingClientRect()
    const { top } = pointed.getBoundingClientRect()
    const fits = right + card.offsetWidth + 24 < window.innerWidth
    card.style.left = `${fits ? right + 16 : Math.max(8, left - card.offsetWidth - 16)}px`
    card.style.top = `${Math.max(8, Math.min(top, window.innerHeight - card.offsetHeight - 8))}px`
  })
  pointed.addEventListener("pointerleave", hideCard)
}

/** Nothing is pointed at any more. */
export function hideCard() {
  if (card) card.hidden = true
}

/** A wheel that scrolls nothing in the panel moves or zooms the canvas, as it does everywhere else. */
function passOn(event, body) {
  const along = Math.abs(event.deltaX) > Math.abs(event.deltaY) ? "x" : "y"
  for (let part = event.target; part instanceof Element && !event.ctrlKey; part = part.parentElement) {
    const room = along === "x" ? part.scrollWidth - part.clientWidth : part.scrollHeight - part.clientHeight
    const scrolls = getComputedStyle(part)[along === "x" ? "overflowX" : "overflowY"] === "auto"
    if (room > 0 && scrolls) return event.stopPropagation()
    if (part === body) break
  }
  event.preventDefault()
  event.stopPropagation()
  app.canvas.processMouseWheel(event)
}
