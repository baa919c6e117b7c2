// Masks, and what the table of lesions says of them: as scripts/inference/lesions.py, which asks SciPy.

import { gzip, maskFile, placeOf } from './nifti.js'

/**
 * Connected parts of a volume (x fastest).
 * @param {(i: number) => boolean} inside whether a voxel belongs to any part
 * @param {number[]} sides
 * @param {boolean} corners whether voxels that share a corner touch, or only those that share a face
 * @returns the part of each voxel, 0 for none, and the voxels of each part
 */
export function parts(inside, [nx, ny, nz], corners) {
  const part = new Uint32Array(nx * ny * nz), sizes = [0], steps = [-1, 0, 1], todo = []
  const near = steps.flatMap((dz) => steps.flatMap((dy) => steps.map((dx) => [dx, dy, dz])))
    .filter((step) => corners || step.filter(Boolean).length === 1)
  for (let seed = 0; seed < part.length; seed++) {
    if (part[seed] || !inside(seed)) continue
    part[seed] = sizes.push(0) - 1
    for (todo.push(seed); todo.length;) {
      const i = todo.pop(), row = Math.floor(i / nx), x = i - row * nx, z = Math.floor(row / ny), y = row - z * ny
      sizes[part[seed]]++
      for (const [dx, dy, dz] of near) {
        const there = i + dx + nx * (dy + ny * dz)
        if (x + dx < 0 || x + dx === nx || y + dy < 0 || y + dy === ny || z + dz < 0 || z + dz === nz) continue
        if (part[there] || !inside(there)) continue
        part[there] = part[seed]
        todo.push(there)
      }
    }
  }
  return { part, sizes }
}

/** The mask (bytes) of what is at least ``threshold`` probable, without parts of less than ``minVolume`` mm3. */
export function maskOf(probability, { sides, voxelVolume }, { threshold, minVolume }) {
  const least = Math.fround(threshold), { part, sizes } = parts((i) => probability[i] >= least, sides, true)
  const kept = sizes.map((size) => size > 0 && size * voxelVolume >= minVolume)
  return new Uint8Array(part.length).map((_, i) => kept[part[i]])
}

/** What to change so that of a ``region`` only what is at least ``threshold`` probable is in the mask. */
export function changesInside(mask, probability, region, threshold) {
  const least = Math.fround(threshold)
  return region.filter((i) => mask[i] !== Number(probability[i] >= least))
}

/** What to change so that the connected part of a mask with the voxel ``at`` is gone, or so that it alone is kept. */
export function changesOfPart(mask, sides, at, keep) {
  const { part } = parts((i) => mask[i], sides, true), changes = []
  if (part[at]) part.forEach((n, i) => { if (n && (n === part[at]) !== keep) changes.push(i) })
  return Int32Array.from(changes)
}

/**
 * The numbers of ``lesions.tsv``, in mm3, where left is what lies left of ``middle``, null where that is not known; and
 * where the mask's centre is, in mm.
 */
export function measure(mask, { sides, affine, voxelVolume }, middle) {
  const sum = [0, 0, 0], known = middle !== null, [, ...lesions] = parts((i) => mask[i], sides, true).sizes
  let total = 0, left = 0
  mask.forEach((inside, i) => {
    if (!inside) return
    const at = [...placeOf(i, sides), 1], mm = affine.map((row) => row.reduce((all, v, axis) => all + v * at[axis], 0))
    total++
    if (mm[0] < middle) left++
    for (const axis of [0, 1, 2]) sum[axis] += mm[axis]
  })
  const row = {
    lesion_volume: total * voxelVolume, lesions: lesions.length, left_volume: known ? left * voxelVolume : null,
    right_volume: known ? (total - left) * voxelVolume : null,
    laterality: known && total ? (2 * left - total) / total : null,
  }
  return { row, centre: total ? sum.map((value) => value / total) : null }
}

/** A ``mask``: its file with that file's hash, its row of the table, and its centre in mm. */
export async function madeOf(scan, mask, middle) {
  const file = await gzip(maskFile(scan, mask))
  const digest = await self.crypto.subtle?.digest('SHA-256', await file.arrayBuffer()) // there is none without https
  const sha256 = digest && Array.from(new Uint8Array(digest), (byte) => byte.toString(16).padStart(2, '0')).join('')
  return { mask: file, sha256, ...measure(mask, scan, middle) }
}

/** The head (bytes): the largest part above a tenth of the robust range. */
export function headOf(values, sides) {
  const [low, high] = percentiles(values, [2, 98]), least = low + 0.1 * (high - low)
  const { part, sizes } = parts((i) => values[i] >= least, sides, false)
  const head = sizes.reduce((largest, size, n) => (size > sizes[largest] ? n : largest), 0)
  return new Uint8Array(part.length).map((_, i) => part[i] === head)
}

/** As ``np.percentile``. */
export function percentiles(values, percents) {
  const sorted = values.slice().sort()
  return percents.map((percent) => {
    const place = (percent / 100) * (values.length - 1), low = sorted[Math.floor(place)]
    return low + (sorted[Math.ceil(place)] - low) * (place % 1)
  })
}
