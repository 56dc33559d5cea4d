/**
 * The panel of Load Museum: the exhibits of the selected file, each with a switch and a strength.
 *
 * Its only state is the node's `exhibits` text. Clicks write to the text, and any change of the text (typing, undo,
 * paste, a workflow file) redraws the panel.
 */

import { api } from "../../scripts/api.js"
import { app } from "../../scripts/app.js"
import { formatExhibits, parseExhibits } from "./museum_text.js"
import { addCard, addPanel, changed, element, fit, follow, hideCard, keepSmall, place } from "./panel.js"
import { loadWords, say } from "./words.js"

const KIND = "CLoRA_LoadMuseum"
const ROW_PX = 44, HEAD_PX = 40, ROWS_LEAST = 2, ROWS_MOST = 5 // of the minimum height
const SLIDER_MOST = 2

/** weights: the word of the exhibit that holds its weights, if it is another one
 * @typedef {{word: string, kind: string, prompt: string, recipe: string, rank: number, weights: string, steps: number,
 *   applied: string, strength: number, pictures: unknown, date: unknown, checkpoint: unknown,
 *   thumbnail: string}} Exhibit */

/** @typedef {{row: HTMLElement, on: HTMLInputElement, slider: HTMLInputElement, number: HTMLInputElement}} Row */

/** @type {Set<MuseumPanel>} */
const panels = new Set()

class MuseumPanel {
  constructor(node) {
    this.node = node
    /** @type {Exhibit[]} */
    this.exhibits = []
    this.base = ""
    this.version = ""
    /** @type {Map<string, Row>} */
    this.rows = new Map()
    this.search = element("input", { type: "search", placeholder: say("museum.search"), oninput: () => this.filter() })
    this.count = element("span", { class: "clora-count" })
    this.all = element("button", { type: "button", title: say("museum.all_tip"), onclick: () => this.write("") },
      say("museum.all"))
    this.list = element("div", { class: "clora-list", role: "list" })
    this.body = element("div", { class: "clora-panel clora-museum" },
      element("div", { class: "clora-head" }, this.search, this.count, this.all), this.list)
    this.body.addEventListener("pointerenter", () => this.refresh())
    addPanel(node, "clora_museum", this.body, () => HEAD_PX + ROW_PX * this.visibleRows() + 20)
    keepSmall(this.textWidget)
    follow(this.textWidget, "callback", () => this.draw())
    follow(this.nameWidget, "callback", () => this.load())
    follow(node, "onConfigure", () => this.load())
    follow(node, "onConnectionsChange", () => this.draw())
    follow(node, "onAdded", () => panels.add(this))
    follow(node, "onRemoved", () => { panels.delete(this); hideCard() })
    queueMicrotask(() => this.load())
  }

  get textWidget() { return this.node.widgets.find((widget) => widget.name === "exhibits") }
  get nameWidget() { return this.node.widgets.find((widget) => widget.name === "museum_name") }
  get files() { return [this.nameWidget.options?.values ?? []].flat().filter(Boolean) }
  get words() { return this.exhibits.map((exhibit) => exhibit.word) }

  visibleRows() { return Math.min(ROWS_MOST, Math.max(ROWS_LEAST, this.list.childElementCount)) }

  /** Whether another node is connected to this input. @param {string} name */
  linked(name) { return this.node.inputs?.find((input) => input.name === name)?.link != null }

  /** Redraw after changes without an event. */
  refresh() {
    if (this.nameWidget.value !== this.name) this.load()
    else if (this.textWidget.value !== this.text) this.draw()
  }

  /** Whether another node provides the museum, or the file's name. */
  get provided() { return this.linked("museum") || this.linked("museum_name") }

  /** Why the rows cannot be edited; undefined if they can. */
  get obstacle() {
    if (this.linked("exhibits")) return say("museum.linked_exhibits")
    if (this.provided) return say("museum.linked")
    return this.error
  }

  /** Load the header of the selected file, from the cache if it is unchanged. */
  async load() {
    if (!this.provided) this.nameWidget.value ||= this.files[0] ?? "" // the first one may be new
    const name = this.name = this.nameWidget.value
    const { museum, version } = await header(name)
    if (name !== this.name) return // another file was selected in the meantime
    if (version && version === this.version) return this.draw()
    this.version = version
    this.error = museum.error
    this.base = museum.base ?? ""
    this.exhibits = museum.exhibits ?? []
    this.rows = new Map(this.exhibits.map((exhibit) => [exhibit.word, this.row(exhibit)]))
    this.draw()
    this.filter()
    fit(this.node)
  }

  row(exhibit) {
    const { word } = exhibit
    const on = element("input", { type: "checkbox", class: "clora-switch", "aria-label": word,
      onchange: () => this.choose(word, on.checked ? 1 : undefined) })
    const picture = exhibit.thumbnail
      ? element("img", { src: exhibit.thumbnail, alt: "", loading: "lazy", decoding: "async", draggable: "false" })
      : element("span", { class: "clora-nopicture" })
    const name = element("button", { type: "button", class: "clora-word", onclick: () => copy(name, word) },
      element("b", {}, word), element("small", {}, say(`kind.${exhibit.kind}`, {}, exhibit.kind)))
    const only = element("button", { type: "button", class: "clora-only", title: say("museum.only_tip"),
      onclick: () => this.write(formatExhibits(this.words, new Map([[word, 1]]), [])) }, say("museum.only"))
    const step = { step: 0.05, "aria-label": say("museum.strength") }
    const slider = element("input", { type: "range", min: 0, max: SLIDER_MOST, ...step,
      oninput: () => this.choose(word, Number(slider.value), { done: false }), onchange: changed })
    const number = element("input", { type: "number", ...step,
      onchange: () => this.choose(word, number.valueAsNumber) })
    const row = element("div", { class: "clora-row", role: "listitem" }, on, picture, name, only, slider, number)
    addCard(picture, () => facts(exhibit, this.base))
    addCard(name, () => facts(exhibit, this.base))
    return { row, on, slider, number }
  }

  /** Draw the state of the text. */
  draw() {
    const text = this.text = this.textWidget.value
    const { chosen, missing } = parseExhibits(text, this.words)
    const obstacle = this.obstacle
    for (const [word, { row, on, slider, number }] of this.rows) {
      const strength = chosen.get(word)
      const last = strength !== undefined && chosen.size === 1 && !missing.size
      row.classList.toggle("clora-off", strength === undefined)
      on.checked = strength !== undefined
      on.disabled = last
      on.title = last ? say("museum.last") : ""
      slider.disabled = number.disabled = strength === undefined
      if (document.activeElement !== number || strength !== number.valueAsNumber) number.value = String(strength ?? 1)
      slider.value = String(strength ?? 1)
    }
    const rows = obstacle ? [] : [...this.rows.values()].map(({ row }) => row)
    place(this.list, obstacle
      ? [element("div", { class: "clora-message" }, obstacle)]
      : [...[...missing].map(([word, line]) => this.missingRow(word, line)), ...rows])
    this.list.style.minHeight = `${ROW_PX * this.visibleRows()}px`
    this.count.textContent = obstacle ? "" : say("museum.count", { shown: chosen.size, all: this.rows.size })
    this.search.disabled = !rows.length
    this.all.disabled = !text.trim() || this.linked("exhibits")
  }

  missingRow(word, line) {
    const problem = this.rows.has(word) ? say("museum.no_number") : say("museum.missing")
    return element("div", { class: "clora-row clora-missing", role: "listitem" },
      element("span", { class: "clora-nopicture" }, "?"),
      element("span", { class: "clora-word" }, element("b", {}, word), element("small", {}, problem)),
      element("button", { type: "button", title: say("museum.remove"), onclick: () => this.forget(line) }, "×"))
  }

  /** Show only the rows whose word, kind or prompt contains the search text. */
  filter() {
    const query = this.search.value.trim().toLowerCase()
    for (const { word, kind, prompt } of this.exhibits) {
      this.rows.get(word).row.hidden = !`${word} ${kind} ${prompt}`.toLowerCase().includes(query)
    }
  }

  /** Show an exhibit at this strength; undefined hides it. @param {string} word @param {number | undefined} strength */
  choose(word, strength, { done = true } = {}) {
    const { chosen, missing } = parseExhibits(this.textWidget.value, this.words)
    missing.delete(word)
    if (strength === undefined) chosen.delete(word)
    else if (Number.isFinite(strength)) chosen.set(word, strength)
    this.write(formatExhibits(this.words, chosen, missing.values()), { done })
  }

  /** Remove a line from the text. @param {string} line */
  forget(line) {
    this.write(this.textWidget.value.split("\n").filter((other) => other !== line).join("\n"))
  }

  /** done: whether this is an undo step; false while a slider moves. @param {string} text */
  write(text, { done = true } = {}) {
    this.textWidget.value = text
    this.draw()
    this.node.setDirtyCanvas?.(true, true)
    if (done) changed()
  }
}

/**
 * The header of a museum as the server sends it, or an error; and its version, "" if there is none to compare.
 * @param {string} name
 */
async function header(name) {
  if (!name) return { museum: { error: say("museum.none") }, version: "" }
  let museum, version = ""
  try {
    const response = await api.fetchApi(`/clora/museum?name=${encodeURIComponent(name)}`, { cache: "no-cache" })
    museum = await response.json().catch(() => ({ error: `${response.status} ${response.statusText}` }))
    version = museum.error ? "" : response.headers.get("ETag") ?? ""
  } catch {
    museum = { error: say("training.disconnected") }
  }
  return { museum, version }
}

/** The card of an exhibit. @param {Exhibit} exhibit @param {string} base */
function facts(exhibit, base) {
  const applied = exhibit.applied === "everywhere" ? "" : say(`applied.${exhibit.applied}`, {}, exhibit.applied)
  const lines = [
    [say("fact.prompt"), exhibit.prompt],
    [say("fact.recipe"), exhibit.recipe],
    [say("fact.rank"), exhibit.rank || say("fact.word_alone")],
    [say("fact.weights"), exhibit.weights],
    [say("fact.steps"), exhibit.steps],
    [say("fact.pictures"), typeof exhibit.pictures === "number" ? exhibit.pictures : ""],
    [say("fact.applied"), applied],
    [say("fact.strength"), exhibit.strength === 1 ? "" : exhibit.strength],
    [say("fact.base"), exhibit.checkpoint || base],
    [say("fact.date"), day(exhibit.date)],
  ]
  const pairs = lines.filter(([, value]) => value !== "").flatMap(([name, value]) => [
    element("dt", {}, name), element("dd", {}, String(value))])
  return [
    ...(exhibit.thumbnail ? [element("img", { src: exhibit.thumbnail, alt: "" })] : []),
    element("div", {}, element("b", {}, exhibit.word), element("dl", {}, ...pairs),
      element("small", {}, say("museum.copy"))),
  ]
}

/** The header's date in the reader's format; "" if it is invalid. @param {unknown} value */
function day(value) {
  const date = new Date(typeof value === "string" ? value : NaN)
  return Number.isNaN(date.getTime()) ? "" : date.toLocaleString([], { dateStyle: "medium", timeStyle: "short" })
}

/** Copy a word and confirm it on its button. @param {HTMLElement} button @param {string} word */
async function copy(button, word) {
  try {
    await navigator.clipboard.writeText(word)
  } catch { // browsers only allow it for https and localhost
    const field = document.body.appendChild(element("textarea"))
    field.value = word
    field.select()
    document.execCommand("copy")
    field.remove()
  }
  button.dataset.copied = say("museum.copied")
  setTimeout(() => delete button.dataset.copied, 1200)
}

function reloadAll() {
  for (const panel of panels) panel.load()
}

/** Reload the panels after a run, which may have saved a museum. */
async function afterRun() {
  if (!panels.size) return
  const files = await museumFiles().catch(() => undefined) // without an answer, the lists stay
  for (const panel of panels) if (files) panel.nameWidget.options.values = files
  reloadAll()
}

/** The files that a Load Museum can choose now. */
async function museumFiles() {
  const response = await api.fetchApi(`/object_info/${KIND}`)
  const [type, options] = (await response.json())[KIND].input.required.museum_name
  return Array.isArray(type) ? type : options.options
}

app.registerExtension({
  name: "clora.load_museum",
  async init() {
    await loadWords()
    api.addEventListener("execution_success", afterRun)
    api.addEventListener("reconnected", reloadAll)
  },
  nodeCreated(node) {
    if (node.comfyClass === KIND) new MuseumPanel(node)
  },
  refreshComboInNodes: reloadAll,
})
