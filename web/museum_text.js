/** The text of Load Museum's `exhibits`: nothing for all of them, else one per line, "<my-cat>" or "<my-cat>: 0.8". */

const NUMBER = /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i

/**
 * What a text names.
 * @param {string} text
 * @returns {Map<string, {strength: number, line: string}>} word → its strength, NaN for one that is no number
 */
function read(text) {
  const named = new Map()
  for (const line of text.split("\n").filter((part) => part.trim())) {
    const [, word, number] = line.match(/^([^:]*)(?::(.*))?$/s)
    const strength = !number ? 1 : NUMBER.test(number.trim()) ? Number(number) : NaN
    named.set(word.trim(), { strength, line })
  }
  return named
}

/**
 * What a text means for a museum.
 * @param {string} text
 * @param {string[]} words of the museum
 * @returns {{chosen: Map<string, number>, missing: Map<string, string>}} word → strength of those that are shown, and
 *   word → line of those that the museum does not hold, or whose strength is no number
 */
export function understood(text, words) {
  const named = read(text)
  if (!named.size) return { chosen: new Map(words.map((word) => [word, 1])), missing: new Map() }
  const chosen = new Map()
  for (const word of words) {
    const strength = named.get(word)?.strength
    if (strength !== undefined && !Number.isNaN(strength)) chosen.set(word, strength)
  }
  const missing = [...named].filter(([word]) => !chosen.has(word)).map(([word, { line }]) => [word, line])
  return { chosen, missing: new Map(missing) }
}

/**
 * The shortest text that means this.
 * @param {string[]} words of the museum, in its order
 * @param {Map<string, number>} chosen
 * @param {Iterable<string>} missing lines that stay as they are
 * @returns {string}
 */
export function written(words, chosen, missing) {
  const kept = [...missing]
  if (!kept.length && words.every((word) => chosen.get(word) === 1)) return ""
  const lines = words
    .filter((word) => chosen.has(word))
    .map((word) => (chosen.get(word) === 1 ? word : `${word}: ${chosen.get(word)}`))
  return [...lines, ...kept].join("\n")
}
