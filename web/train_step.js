/** The panel of Train Step: loss curves, previews of the word, and measurements at the end. */

import { app } from "../../scripts/app.js"
import { normal } from "./museum_text.js"
import { addCard, addPanel, element, fit, follow, hideCard, keepSmall, place } from "./panel.js"
import { isConnected, onState } from "./panels.js"
import { loadWords, say } from "./words.js"

const KIND = "CLoRA_TrainStep"
const EMPTY_PX = 30
const RUNNING = ["learning", "reading", "measuring", "drawing", "comparing"]

/** @typedef {{loss_before?: number, loss_after?: number, moved?: Record<string, number>,
 *   overlap?: Record<string, number>}} Effect */
/** @typedef {{word: string, steps: number, step: number, resumed: number, resumable: boolean, where: string,
 *   part: [number, number], note: string, seconds: number, seconds_left: number | null,
 *   curves: Record<string, [number, number][]>, film: {step: number, title?: string, picture: string}[],
 *   sheet: {word: string, real: string, then: string, now: string}[], effect: Effect}} PanelState */

/** @type {WeakMap<object, TrainingPanel>} */
const panels = new WeakMap()

class TrainingPanel {
  constructor(node) {
    this.node = node
    this.title = element("div", { class: "clora-title" })
    this.lanes = element("div", { class: "clora-lanes" })
    this.film = element("div", { class: "clora-film" })
    this.sheet = element("div", { class: "clora-sheet" })
    this.numbers = element("dl", { class: "clora-numbers" })
    this.note = element("div", { class: "clora-note" })
    const parts = [this.title, this.note, this.lanes, this.film, this.sheet, this.numbers]
    this.content = element("div", { class: "clora-content" }, ...parts)
    this.body = element("div", { class: "clora-panel clora-training" }, this.content)
    /** @type {Map<string, Lane>} */
    this.curves = new Map()
    this.height = EMPTY_PX
    keepSmall(node.widgets.find((widget) => widget.name === "captions"))
    addPanel(node, "clora_training", this.body, () => (this.height = this.content.offsetHeight || this.height) + 20)
    this.lanes.addEventListener("pointermove", (event) => this.point(event))
    this.lanes.addEventListener("pointerleave", () => this.point())
    panels.set(node, this)
    follow(node, "onRemoved", hideCard)
    node.hideOutputImages = true // the film strip shows them
    node.onDrawBackground = undefined
    new ResizeObserver(() => fit(node)).observe(this.content)
    new ResizeObserver(() => this.showNewest()).observe(this.film) // also once it comes into view
    this.draw()
  }

  /** @param {PanelState} [state] */
  draw(state) {
    this.body.classList.toggle("clora-empty", !state)
    this.title.replaceChildren(...(state ? title(state) : [element("span", {}, say("training.empty"))]))
    if (!state) return this.clear()
    this.body.dataset.where = state.where
    this.note.textContent = note(state)
    this.drawCurves(state)
    this.drawFilm(state.film ?? [])
    this.sheet.replaceChildren(...sheet(state.sheet ?? []))
    this.numbers.replaceChildren(...numbers(state))
  }

  clear() {
    this.note.textContent = this.filmKey = ""
    this.curves.clear()
    for (const part of [this.lanes, this.film, this.sheet, this.numbers]) part.replaceChildren()
  }

  /** @param {PanelState} state */
  drawCurves({ curves = {}, steps }) {
    const drawn = Object.entries(curves).filter(([name, points]) => name === "diffusion" || points.some(([, y]) => y))
    const names = drawn.map(([name]) => name)
    for (const name of this.curves.keys()) if (!names.includes(name)) this.curves.delete(name)
    for (const [name, points] of drawn) {
      if (!this.curves.has(name)) this.curves.set(name, new Lane(name, this.curves.size))
      this.curves.get(name).draw(points, steps)
    }
    place(this.lanes, [...this.curves.values()].map((lane) => lane.body))
  }

  /** @param {PanelState["film"]} film */
  drawFilm(film) {
    const key = film.map(({ step, picture }) => `${step} ${picture.length}`).join()
    if (key === this.filmKey) return
    this.filmKey = key
    this.film.replaceChildren(...film.map(({ step, title, picture }) => element("figure", {}, enlarged(picture),
      element("figcaption", {}, title ? say(`film.${title}`) : String(step)))))
    this.showNewest()
  }

  showNewest() { this.film.scrollLeft = this.film.scrollWidth }

  /** Show the values at the pointer's step, or the last ones. @param {PointerEvent} [event] */
  point(event) {
    const { left, width } = this.lanes.getBoundingClientRect()
    const share = event && width ? (event.clientX - left) / width : undefined
    this.lanes.style.setProperty("--clora-pointed", share === undefined ? "-1" : String(share))
    for (const lane of this.curves.values()) lane.point(share)
  }
}

/** A small picture, shown larger under the pointer. @param {string} picture */
function enlarged(picture) {
  const image = element("img", { src: picture, alt: "", draggable: "false" })
  addCard(image, () => [element("img", { src: picture, alt: "" })])
  return image
}

/** A header, and a row for each exhibit: its own picture, when learned, now. @param {PanelState["sheet"]} rows */
function sheet(rows) {
  const names = ["real", "then", "now"]
  const header = ["", ...names.map((name) => say(`sheet.${name}`))].map((text) => element("small", {}, text))
  const cells = rows.map((row) => [element("b", { title: row.word }, row.word),
    ...names.map((name) => row[name] ? enlarged(row[name]) : element("span"))])
  return rows.length ? [...header, ...cells.flat()] : []
}

/** The curve of one part of the loss, on its own scale from zero. */
class Lane {
  constructor(name, index) {
    this.value = element("output")
    this.line = element("path", { class: "clora-line" })
    this.area = element("path", { class: "clora-area" })
    const drawing = element("svg", { viewBox: "0 0 100 100", preserveAspectRatio: "none" }, this.area, this.line)
    const label = say(`part.${name}`, {}, name.replaceAll("_", " "))
    this.body = element("div", { class: `clora-lane clora-part-${index % 4}` },
      element("div", { class: "clora-legend" }, element("span", {}, label), this.value), drawing)
  }

  /** @param {[number, number][]} points @param {number} steps */
  draw(points, steps) {
    this.points = points
    this.steps = steps
    const top = Math.max(...points.map(([, value]) => value), 1e-12) * 1.05
    const places = points.map(([step, value]) => `${(100 * step) / steps} ${100 - (100 * value) / top}`)
    const ends = [points.at(0), points.at(-1)].map(([step]) => (100 * step) / steps)
    this.line.setAttribute("d", `M${places.join("L")}`)
    this.area.setAttribute("d", `M${ends[0]} 100L${places.join("L")}L${ends[1]} 100Z`)
    this.point()
  }

  /** @param {number} [share] of the steps */
  point(share) {
    const step = share === undefined ? Infinity : share * this.steps
    const distance = ([at]) => Math.abs(at - step)
    const nearest = this.points.reduce((a, b) => (distance(b) < distance(a) ? b : a), this.points.at(-1))
    const label = share === undefined ? "" : `${say("training.at", { step: Math.round(nearest[0]) })} `
    this.value.textContent = label + rounded(nearest[1])
  }
}

/** @param {PanelState} state */
function title({ word, step, steps, resumed, where, part: [done, of] = [0, 0], seconds, seconds_left }) {
  const begins = resumed ? say("training.resumes", { step: resumed }) : step ? "" : say("training.begins")
  const right = {
    learning: (seconds_left ?? null) === null ? begins : left(seconds_left),
    reading: say("training.reading", { done, of }),
    measuring: say("training.measuring", { done, of }),
    drawing: say("training.drawing", { done, of }),
    comparing: say("training.comparing", { done, of }),
    learned: say("training.learned", { time: time(seconds ?? 0) }),
    kept: say("training.kept"),
    stopped: say("training.stopped"),
  }[where] ?? ""
  const status = RUNNING.includes(where) && !isConnected() ? say("training.disconnected") : right
  return [
    element("b", {}, word),
    element("span", {}, ended(where) ? say("training.steps", { steps: step }) : say("training.step", { step, steps })),
    element("span", { class: "clora-where", title: status }, status),
  ]
}

function ended(where) {
  return where === "learned" || where === "kept"
}

/** @param {PanelState} state */
function note({ where, step, resumable, note = "" }) {
  if (where !== "stopped" || !step) return note
  const stopped = resumable ? say("training.stopped_resumable", { step }) : say("training.stopped_at", { step })
  return [stopped, note].filter(Boolean).join(" · ")
}

/** @param {number} seconds */
function left(seconds) {
  return say("training.left", { time: time(seconds) })
}

/** The measurements: name, value, and a comment. @param {PanelState} state */
function numbers({ effect = {} }) {
  const { loss_before, loss_after, moved = {}, overlap = {} } = effect
  const lines = []
  if (loss_before !== undefined && loss_after !== undefined) {
    lines.push(["own", `${rounded(loss_before)} → ${rounded(loss_after)}`, ""])
  }
  for (const [name, values, format] of [["moved", moved, percent], ["overlap", overlap, rounded]]) {
    const words = Object.entries(values).sort(([, one], [, other]) => other - one)
    if (!words.length) continue
    const mean = words.reduce((sum, [, value]) => sum + value, 0) / words.length
    const all = words.map(([word, value]) => `${word} ${format(value)}`)
    lines.push([name, format(mean), words.length > 1 ? say("number.most", { what: all[0] }) : "", all.join("\n")])
  }
  return lines.flatMap(([name, value, more, all = ""]) => [
    element("dt", { title: say(`number.${name}_tip`) }, say(`number.${name}`)),
    element("dd", { title: all }, value, ...(more ? [element("small", {}, more)] : [])),
  ])
}

function rounded(value) {
  return value >= 0.0995 ? value.toFixed(2) : value.toPrecision(2).replace(/e-(\d+)$/, "e−$1")
}

function percent(value) {
  return `${Number((100 * value).toPrecision(2))} %`
}

function time(seconds) {
  const whole = Math.round(seconds)
  if (whole < 120) return say("time.seconds", { seconds: whole })
  const minutes = Math.floor(whole / 60)
  if (minutes < 60) return say("time.minutes", { minutes, seconds: String(whole % 60).padStart(2, "0") })
  return say("time.hours", { hours: Math.floor(minutes / 60), minutes: String(minutes % 60).padStart(2, "0") })
}

/**
 * Whether the state is of this node's concept, as far as the graph shows: another workflow that was saved under the
 * same mark may have other concepts. @param {any} node @param {PanelState} state
 */
function isOf(node, { word }) {
  const link = node.inputs?.find((input) => input.name === "concept")?.link
  const links = node.graph?.links
  const origin = links?.get?.(link)?.origin_id ?? links?.[link]?.origin_id
  const source = node.graph?.getNodeById(origin)
  const known = source?.widgets?.find((widget) => widget.name === "word")?.value
  const linked = source?.inputs?.find((input) => input.name === "word")?.link != null
  return typeof known !== "string" || linked || normal(known) === word.split(", ").at(-1)
}

app.registerExtension({
  name: "clora.train_step",
  async init() {
    await loadWords()
    onState((node, state) => panels.get(node)?.draw(state?.word && isOf(node, state) ? state : undefined))
  },
  nodeCreated(node) {
    if (node.comfyClass === KIND) new TrainingPanel(node)
  },
})
