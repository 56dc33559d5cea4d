/**
 * The state of the nodes of the open workflow, from the server: the progress of a Train Step, the text of any node.
 *
 * The server sends changes and remembers whole states, so a page that loads later asks for them once.
 */

import { api } from "../../scripts/api.js"
import { app } from "../../scripts/app.js"
import { loadWords } from "./words.js"

/** @typedef {Record<string, any>} State */

/** @type {Map<string, State>} the states of this workflow's nodes, by their ids in a run ("5", "12:5") */
const states = new Map()
/** @type {Set<(node: any, state: State | undefined) => void>} */
const drawers = new Set()
let connected = true

/**
 * Have `draw` called with every node of this workflow whose state is known or has changed.
 * @param {(node: any, state: State | undefined) => void} draw
 */
export function onState(draw) {
  drawers.add(draw)
}

/** Whether the server answers. */
export function isConnected() {
  return connected
}

function rootGraph() {
  return app.rootGraph ?? app.graph?.rootGraph ?? app.graph
}

/**
 * The mark of the open workflow, which every run sends with it. ComfyUI's own id is the same in every workflow that was
 * opened from the same template.
 */
function workflow() {
  const graph = rootGraph()
  if (!graph) return ""
  graph.extra ??= {}
  graph.extra.clora ??= [...crypto.getRandomValues(new Uint32Array(4))].map((part) => part.toString(16)).join("-")
  return graph.extra.clora
}

/** The node with this id in a run: "12:5" is node 5 in the subgraph of node 12. @param {string} id */
function nodeOf(id) {
  const parts = id.split(":")
  const last = parts.pop()
  const graph = parts.reduce((outer, part) => outer?.getNodeById(part)?.subgraph, rootGraph())
  return graph?.getNodeById(last)
}

/** @param {string} id */
function draw(id) {
  const node = nodeOf(id)
  if (node) drawers.forEach((draw) => draw(node, states.get(id)))
}

/** @type {Promise<void> | undefined} */
let loading

/** Load the states of this workflow's nodes. */
function load() {
  loading = fetchStates().catch((error) => console.warn("C-LoRA: cannot load the state of the panels.", error))
}

async function fetchStates() {
  const before = [...states.keys()]
  states.clear()
  const id = workflow()
  const response = await api.fetchApi(`/clora/learning?workflow=${encodeURIComponent(id)}`)
  const nodes = await response.json()
  if (id !== workflow()) return // another workflow was opened in the meantime
  for (const [node, state] of Object.entries(nodes)) states.set(node, state)
  for (const node of new Set([...before, ...states.keys()])) draw(node)
}

/** Merge changes into a node's state, if the rest of the state is known. */
async function update({ detail: { workflow: id, node, first, state: changes } }) {
  await loading
  if (id !== workflow() || !(first || states.has(node))) return
  states.set(node, { ...(first ? {} : states.get(node)), ...changes })
  draw(node)
}

/** A node runs: clear the state of its last run. @param {{detail: string | null}} event */
function clear({ detail: node }) {
  if (node && states.get(node)?.until_it_runs && states.delete(node)) draw(node)
}

function connect(now) {
  connected = now
  if (now) load()
  else for (const node of states.keys()) draw(node)
}

/** Every run sends the mark, also that of a graph that was cleared instead of opened. */
function markRuns() {
  const original = app.graphToPrompt
  app.graphToPrompt = function (...inputs) {
    workflow()
    return original.apply(this, inputs)
  }
}

app.registerExtension({
  name: "clora.panels",
  async init() {
    markRuns()
    await loadWords()
    api.addEventListener("clora.learning", update)
    api.addEventListener("executing", clear)
    api.addEventListener("reconnecting", () => connect(false))
    api.addEventListener("reconnected", () => connect(true))
  },
  afterConfigureGraph: load,
})
