/** The `exhibits` text of Load Museum: empty for all, else one per line, "<my-cat>" or "<my-cat>: 0.8". */

const INVISIBLE = /[\p{Default_Ignorable_Code_Point}\ufff9-\ufffb\u2800]/gu // as in clora_core/texts.py
const NUMBER = /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i

/** A word as the museum keeps it: in NFC, without invisible characters. @param {string} word */
export function normal(word) {
  return word.replace(INVISIBLE, "").normalize("NFC").trim()
}

/**
 * Parse a text for a museum with these words.
 * @param {string} text
 * @param {string[]} words
 * @returns {{chosen: Map<string, number>, missing: Map<string, string>}} word → strength of the exhibits to show, and
 *   word → line for words that are not in the museum or have an invalid strength
 */
export function parseExhibits(text, words) {
  const lines = text.split("\n").filter((line) => line.trim())
  if (!lines.length) return { chosen: new Map(words.map((word) => [word, 1])), missing: new Map() }
  const entries = new Map(lines.map((line) => {
    const [, word, number] = line.match(/^([^:]*)(?::(.*))?$/s)
    const strength = !number ? 1 : NUMBER.test(number.trim()) ? Number(number) : NaN
    return [normal(word), { strength, line }]
  }))
  const valid = words.filter((word) => entries.has(word) && !Number.isNaN(entries.get(word).strength))
  const chosen = new Map(valid.map((word) => [word, entries.get(word).strength]))
  const missing = [...entries].filter(([word]) => !chosen.has(word)).map(([word, { line }]) => [word, line])
  return { chosen, missing: new Map(missing) }
}

/**
 * The shortest text for these exhibits.
 * @param {string[]} words of the museum, in its order
 * @param {Map<string, number>} chosen word → strength
 * @param {Iterable<string>} missing lines to leave as they are
 */
export function formatExhibits(words, chosen, missing) {
  const others = [...missing]
  if (!others.length && words.every((word) => chosen.get(word) === 1)) return ""
  const lines = words
    .filter((word) => chosen.has(word))
    .map((word) => (chosen.get(word) === 1 ? word : `${word}: ${chosen.get(word)}`))
  return [...lines, ...others].join("\n")
}
