// What is made of a scan: the mask's file, the numbers of it; and both compressed.

import { measure } from './lesions.js'
import { determinant, maskFile } from './nifti.js'

const through = (blob, stream) => new Response(blob.stream().pipeThrough(stream))

/** Of bytes or of a Blob. */
export const gzip = (content) => through(new Blob([content]), new CompressionStream('gzip')).blob()

/** The bytes of a Blob. */
export const gunzip = async (blob) => new Uint8Array(await through(blob, new DecompressionStream('gzip')).arrayBuffer())

export const voxelVolume = ({ affine }) => Math.abs(determinant(affine))

/** A ``mask`` of so many ``lesions``: its file with that file's hash, its row of the table, and its centre in mm. */
export async function madeOf(scan, mask, lesions, middle) {
  const { row, centre } = measure(mask, lesions, scan.sides, scan.affine.slice(0, 3), middle, voxelVolume(scan))
  const file = await gzip(maskFile(scan, mask))
  const digest = await self.crypto.subtle?.digest('SHA-256', await file.arrayBuffer()) // there is none without https
  const sha256 = digest && Array.from(new Uint8Array(digest), (byte) => byte.toString(16).padStart(2, '0')).join('')
  return { mask: file, sha256, row, centre }
}
