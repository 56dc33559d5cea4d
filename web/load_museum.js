/**
 * The panel of Load Museum: the exhibits of the chosen file, each with a switch and a strength.
 *
 * Its only state is the node's `exhibits` text. Whatever changes the text (typing, undo, paste, a workflow file) is
 * drawn, and what is clicked here is written there.
 */

import { api } from "../../scripts/api.js"
import { app } from "../../scripts/app.js"
import { understood, written } from "./museum_text.js"
import { addCard, addPanel, changed, element, fit, follow, hideCard, keepSmall, loadStyle, place } from "./panel.js"
import { loadWords, say } from "./words.js"

const KIND = "CLoRA_LoadMuseum"
const ROW_PX = 44, HEAD_PX = 40, ROWS_LEAST = 2, ROWS_MOST = 5 // of the least height
const SLIDER_MOST = 2

/** @typedef {{word: string, kind: string, prompt: string, recipe: string, rank: number, steps: number, applied: string,
 *   strength: number, pictures: unknown, date: unknown, thumbnail: string}} Exhibit */

/** @typedef {{row: HTMLElement, on: HTMLInputElement, slider: HTMLInputElement, number: HTMLInputElement}} Row */

/** @type {Set<MuseumPanel>} */
const panels = new Set()

class MuseumPanel {
  /** @param {any} node */
  constructor(node) {
    this.node = node
    /** @type {Exhibit[]} */
    this.exhibits = []
    this.base = ""
    this.version = ""
    /** @type {Map<string, Row>} */
    this.rows = new Map()
    this.search = element("input", { type: "search", placeholder: say("museum.search"), oninput: () => this.find() })
    this.count = element("span", { class: "clora-count" })
    this.all = element("button", { type: "button", title: say("museum.all_tip"), onclick: () => this.write("") },
      say("museum.all"))
    this.list = element("div", { class: "clora-list", role: "list" })
    this.body = element("div", { class: "clora-panel clora-museum" },
      element("div", { class: "clora-head" }, this.search, this.count, this.all), this.list)
    this.body.addEventListener("pointerenter", () => this.follow())
    addPanel(node, "clora_museum", this.body, () => HEAD_PX + ROW_PX * this.rowsShown() + 20)
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
  get words() { return this.exhibits.map((exhibit) => exhibit.word) }

  rowsShown() { return Math.min(ROWS_MOST, Math.max(ROWS_LEAST, this.list.childElementCount)) }

  /** Whether this input gets its value from another node. @param {string} name */
  linked(name) { return this.node.inputs?.find((input) => input.name === name)?.link != null }

  /** Draw what was changed by something that tells nobody. */
  follow() {
    if (this.nameWidget.value !== this.name) this.load()
    else if (this.textWidget.value !== this.text) this.draw()
  }

  /** Read the chosen file's header again; the browser asks only whether it changed. */
  async load() {
    const name = this.name = this.nameWidget.value
    let found = { base: "", exhibits: [], error: name ? undefined : say("museum.none") }
    let version = "none"
    if (name) {
      const answer = await api.fetchApi(`/clora/museum?name=${encodeURIComponent(name)}`, { cache: "no-cache" })
      version = answer.headers.get("ETag") ?? ""
      found = await answer.json().catch(() => ({ error: `${answer.status} ${answer.statusText}` }))
    }
    if (name !== this.name) return // another one was chosen meanwhile
    if (!found.error && version === this.version) return this.draw()
    this.version = found.error ? "" : version
    this.error = found.error
    this.base = found.base ?? ""
    this.exhibits = found.exhibits ?? []
    this.build()
  }

  /** Make the rows anew. */
  build() {
    this.rows = new Map(this.exhibits.map((exhibit) => [exhibit.word, this.row(exhibit)]))
    this.draw()
    this.find()
    fit(this.node)
  }

  /** @param {Exhibit} exhibit */
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
      onclick: () => this.write(written(this.words, new Map([[word, 1]]), [])) }, say("museum.only"))
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

  /** Draw what the text says. */
  draw() {
    const text = this.text = this.textWidget.value
    const { chosen, missing } = understood(text, this.words)
    const known = !this.error && !this.linked("museum") && !this.linked("exhibits")
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
    const notes = known ? [] : [element("div", { class: "clora-told" }, this.error ?? say("museum.linked"))]
    const lost = known ? [...missing].map(([word, line]) => this.missingRow(word, line)) : []
    const shown = known ? [...this.rows.values()].map(({ row }) => row) : []
    place(this.list, [...notes, ...lost, ...shown])
    this.list.style.minHeight = `${ROW_PX * this.rowsShown()}px`
    this.count.textContent = known ? say("museum.count", { shown: chosen.size, all: this.rows.size }) : ""
    this.search.disabled = !shown.length
    this.all.disabled = !text.trim() || this.linked("exhibits")
  }

  /** @param {string} word @param {string} line */
  missingRow(word, line) {
    const why = this.rows.has(word) ? say("museum.no_number") : say("museum.missing")
    return element("div", { class: "clora-row clora-missing", role: "listitem" },
      element("span", { class: "clora-nopicture" }, "?"),
      element("span", { class: "clora-word" }, element("b", {}, word), element("small", {}, why)),
      element("button", { type: "button", title: say("museum.remove"), onclick: () => this.forget(line) }, "×"))
  }

  /** Show only the rows whose word, kind or prompt holds what is searched for. */
  find() {
    const wanted = this.search.value.trim().toLowerCase()
    for (const { word, kind, prompt } of this.exhibits) {
      this.rows.get(word).row.hidden = !`${word} ${kind} ${prompt}`.toLowerCase().includes(wanted)
    }
  }

  /** Show an exhibit at that strength, or not at all. @param {string} word @param {number | undefined} strength */
  choose(word, strength, { done = true } = {}) {
    const { chosen, missing } = understood(this.textWidget.value, this.words)
    if (strength === undefined) chosen.delete(word)
    else if (Number.isFinite(strength)) chosen.set(word, strength)
    this.write(written(this.words, chosen, missing.values()), { done })
  }

  /** Take a line out of the text. @param {string} line */
  forget(line) {
    this.write(this.textWidget.value.split("\n").filter((other) => other !== line).join("\n"))
  }

  /** done: whether undo shall come back to here; not while a slider moves. @param {string} text */
  write(text, { done = true } = {}) {
    this.textWidget.value = text
    this.draw()
    this.node.setDirtyCanvas?.(true, true)
    if (done) changed()
  }
}

/** What the card beside an exhibit says. @param {Exhibit} exhibit @param {string} base */
function facts(exhibit, base) {
  const applied = exhibit.applied === "everywhere" ? "" : say(`applied.${exhibit.applied}`, {}, exhibit.applied)
  const lines = [
    [say("fact.prompt"), exhibit.prompt],
    [say("fact.recipe"), exhibit.recipe],
    [say("fact.rank"), exhibit.rank || say("fact.word_alone")],
    [say("fact.steps"), exhibit.steps],
    [say("fact.pictures"), typeof exhibit.pictures === "number" ? exhibit.pictures : ""],
    [say("fact.applied"), applied],
    [say("fact.strength"), exhibit.strength === 1 ? "" : exhibit.strength],
    [say("fact.base"), base],
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

/** A date as the header gives it, in the reader's own way; nothing for what is none. @param {unknown} written */
function day(written) {
  const date = new Date(typeof written === "string" ? written : NaN)
  return Number.isNaN(date.getTime()) ? "" : date.toLocaleString([], { dateStyle: "medium", timeStyle: "short" })
}

/** Copy a word, and say so on its button. @param {HTMLElement} button @param {string} word */
async function copy(button, word) {
  try {
    await navigator.clipboard.writeText(word)
  } catch { // browsers offer it to https and localhost only
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

app.registerExtension({
  name: "clora.load_museum",
  async init() {
    loadStyle()
    await loadWords()
    api.addEventListener("execution_success", reloadAll) // a museum may have been saved
  },
  nodeCreated(node) {
    if (node.comfyClass === KIND) new MuseumPanel(node)
  },
  refreshComboInNodes: reloadAll,
})
