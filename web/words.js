/** What the panels say, in the language that ComfyUI is set to: "clora" in locales/<language>/main.json. */

import { api } from "../../scripts/api.js"
import { app } from "../../scripts/app.js"

/** @typedef {{[key: string]: string | Texts}} Texts */

/** @type {Promise<void> | undefined} */
let loading
/** @type {Texts[]} The chosen language first, then English. */
let languages = []

/**
 * Read the texts once. A panel that is drawn before they are there shows their keys.
 * @returns {Promise<void>}
 */
export function loadWords() {
  loading ??= api
    .getCustomNodesI18n()
    .then((all) => {
      const chosen = app.extensionManager?.setting?.get("Comfy.Locale")
      languages = [all[chosen]?.clora, all.en?.clora].filter(Boolean)
    })
    .catch((error) => console.warn("C-LoRA: the texts of its panels cannot be read.", error))
  return loading
}

/**
 * @param {string} key as "museum.search"
 * @param {Record<string, string | number>} [values] what stands for %name in the text
 * @param {string} [otherwise] where there is no such text
 * @returns {string}
 */
export function say(key, values = {}, otherwise = key) {
  for (const texts of languages) {
    const found = key.split(".").reduce((part, name) => part?.[name], /** @type {any} */ (texts))
    if (typeof found === "string") return found.replace(/%(\w+)/g, (all, name) => String(values[name] ?? all))
  }
  return otherwise
}
