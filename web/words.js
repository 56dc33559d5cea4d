/** The texts of the panels in ComfyUI's language: "clora" in locales/<language>/main.json. */

import { api } from "../../scripts/api.js"
import { app } from "../../scripts/app.js"

/** @typedef {{[key: string]: string | Texts}} Texts */

/** @type {Promise<void> | undefined} */
let loading
/** @type {Texts[]} The chosen language first, then English. */
let languages = []

/** Load the texts once. Until then, panels show their keys. */
export function loadWords() {
  loading ??= api
    .getCustomNodesI18n()
    .then((all) => {
      const chosen = app.extensionManager?.setting?.get("Comfy.Locale")
      languages = [all[chosen]?.clora, all.en?.clora].filter(Boolean)
    })
    .catch((error) => console.warn("C-LoRA: cannot load the texts of the panels.", error))
  return loading
}

/**
 * @param {string} key such as "museum.search"
 * @param {Record<string, string | number>} [values] replacements for %name in the text
 * @param {string} [fallback] if there is no such text
 */
export function say(key, values = {}, fallback = key) {
  for (const texts of languages) {
    const text = key.split(".").reduce((part, name) => part?.[name], /** @type {any} */ (texts))
    if (typeof text === "string") return text.replace(/%(\w+)/g, (match, name) => String(values[name] ?? match))
  }
  return fallback
}
