// The scan in view, in a worker: its mask under other settings, and what corrections make of it.

import { answer } from './ask.js'
import { changesInside, changesOfPart, lesionsOf, maskOf } from './lesions.js'
import { gunzip, madeOf, voxelVolume } from './made.js'
import { readNifti } from './nifti.js'

let scan, mask, made, probability

answer({
  /** The bytes of a scan's file, for the eye; its header is kept. */
  async open({ file }) {
    mask = made = probability = undefined
    scan = await readNifti(file)
    const { bytes, warnings } = scan
    delete scan.bytes
    delete scan.values
    return { bytes, warnings, moved: [bytes.buffer] }
  },

  /** The mask of a finished scan, a voxel a byte. */
  async load(finished) {
    made = finished
    const bytes = await gunzip(made.mask)
    mask = bytes.slice(bytes.length - scan.voxels)
    return { mask }
  },

  /** The mask under these settings, in place of the one that there is. */
  async mask({ threshold, minVolume }) {
    const found = maskOf(await probabilities(), scan.sides, threshold, minVolume, voxelVolume(scan))
    mask = found.mask
    return { ...(await madeOf(scan, mask, found.lesions, made.middle)), voxels: mask }
  },

  change({ voxels }) {
    for (const i of voxels) mask[i] ^= 1
  },

  measure: () => madeOf(scan, mask, lesionsOf(mask, scan.sides), made.middle),
  part: ({ at, keep }) => ({ voxels: changesOfPart(mask, scan.sides, at, keep) }),
  inside: async ({ region, threshold }) => ({ voxels: changesInside(mask, await probabilities(), region, threshold) }),
})

async function probabilities() {
  probability ??= new Float32Array((await gunzip(made.probability)).buffer)
  return probability
}
