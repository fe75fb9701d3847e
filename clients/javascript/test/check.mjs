// node clients/javascript/test/check.mjs [--fixtures FOLDER] [--quick] [--first]
// Checks the package with every case that concerns a client, then its behaviour with a small fake server. --quick leaves
// out the cases of PBKDF2, which take their time. --first ends at the first failure.
import fs from 'node:fs/promises'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { behaviours } from './behaviour.mjs'
import { checkVectors } from './vectors.mjs'

const ours = path.join(path.dirname(fileURLToPath(import.meta.url)), '../../../fixtures')
const { values: { fixtures, quick, first } } = parseArgs({ options: {
  fixtures: { type: 'string', default: ours }, quick: { type: 'boolean', default: false }, first: { type: 'boolean', default: false },
} })
const counts = {}, failures = []
function note(type, id, ok) {
  counts[type] ??= { passed: 0, skipped: 0 }
  if (ok === undefined) counts[type].skipped++
  else if (ok) counts[type].passed++
  else failures.push(`${type} ${id}`)
  if (failures.length && first) { console.log('FAILED', failures[0]); process.exit(1) }
}
const read = async name => new Uint8Array(await fs.readFile(path.join(fixtures, name)))
for (const [name, run] of Object.entries(await behaviours(quick, read))) {
  let ok = false
  try { ok = !!await run() } catch (error) { console.error(name, error) }
  note('Behaviour', name, ok)
}
await checkVectors(read, note, quick)
const left = type => type === 'Normalization' ? 'of a later Unicode' : 'for a server only'
for (const [type, n] of Object.entries(counts)) console.log(`${type}: ${n.passed} passed${n.skipped ? `, ${n.skipped} ${left(type)}` : ''}`)
for (const f of failures) console.log('FAILED', f)
console.log(`${Object.values(counts).reduce((s, n) => s + n.passed, 0)} passed, ${failures.length} failed`)
process.exit(failures.length ? 1 : 0)
