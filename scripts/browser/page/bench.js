// The scan in view, in a worker: its mask under other settings, and what corrections make of it.

import { answer } from './ask.js'
import { changesInside, changesOfPart, madeOf, maskOf } from './lesions.js'
import { gunzip, readNifti } from './nifti.js'

let scan, mask, made, probability

answer({
  /** The bytes of a scan's file, for the eye; its header is kept. */
  async open({ file }) {
    mask = made = probability = undefined
    const { bytes, values, ...header } = await readNifti(file)
    scan = header
    return { bytes, warnings: scan.warnings, moved: [bytes.buffer] }
  },

  /** The mask of a finished scan, a voxel a byte. */
  async load(finished) {
    made = finished
    mask = (await gunzip(made.mask)).slice(-scan.voxels)
    return { mask }
  },

  /** The mask under these settings, in place of the one that there is. */
  async mask(settings) {
    mask = maskOf(await probabilities(), scan, settings)
    return { ...(await madeOf(scan, mask, made.middle)), voxels: mask }
  },

  change({ voxels }) {
    for (const i of voxels) mask[i] ^= 1
  },

  async measure() {
    const { sha256, ...found } = await madeOf(scan, mask, made.middle)
    return found // the hash stays that of the mask as the network drew it
  },

  part: ({ at, keep }) => ({ voxels: changesOfPart(mask, scan.sides, at, keep) }),
  inside: async ({ region, threshold }) => ({ voxels: changesInside(mask, await probabilities(), region, threshold) }),
})

const probabilities = async () => (probability ??= new Float32Array((await gunzip(made.probability)).buffer))
