// Finished scans in the browser's own storage, so that a closed tab loses none.

import { inTurn } from './ask.js'
import { clear, get, keys, set } from './idb-keyval.js'

const LARGE = ['file', 'probability'] // of a scan; they do not change
const queue = inTurn() // so that nothing is kept after all was deleted

/** Keep a scan as it is; its large files are from then on those on the disk. */
export const keep = (scan, isWanted) => queue(async () => {
  if (!isWanted()) return
  for (const key of scan.kept ? [] : LARGE) {
    await set(`${key} ${scan.id}`, scan[key])
    scan[key] = await get(`${key} ${scan.id}`)
  }
  scan.kept = true
  await set(`scan ${scan.id}`, Object.fromEntries(Object.entries(scan).filter(([key]) => !LARGE.includes(key))))
})

const names = async () => (await keys()).filter((key) => key.startsWith('scan '))
export const count = async () => (await names()).length

/** All that are kept. */
export const kept = () => queue(async () => Promise.all((await names()).map(async (key) => {
  const scan = await get(key)
  for (const large of LARGE) scan[large] = await get(`${large} ${scan.id}`)
  return scan
})))

export const forget = () => queue(clear)
