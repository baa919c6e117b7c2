// NIfTI-1 and -2 in and out, without a copy of the volume too many, and with the affine that nibabel reads.
// No library at hand has both: nifti-reader-js differs from nibabel where a header has no form code.

import { Inflate } from './pako.js'

const LARGEST = 2 ** 27 // voxels; with float32 in two memories and a probability more than 1.5 GB
const PIECE = 2 ** 16 // bytes of a file that are unpacked at a time
const TYPES = {
  2: Uint8Array, 256: Int8Array, 4: Int16Array, 512: Uint16Array, 8: Int32Array, 768: Uint32Array,
  1024: BigInt64Array, 1280: BigUint64Array, 16: Float32Array, 64: Float64Array,
}
const NAMED = { 32: 'complex voxels', 1792: 'complex voxels', 128: 'colours', 2304: 'colours', 1536: '128-bit floats' }
const FIELDS = [ // of NIfTI-1 and of NIfTI-2
  { int: 'Int16', float: 'Float32', step: 4, code: 'Int16', size: 348, magic: 344, dim: 40, type: 70, pixdim: 76,
    offset: 108, slope: 112, unit: 'Uint8', units: 123, calMax: 124, forms: 252, quaternion: 256, sform: 280 },
  { int: 'BigInt64', float: 'Float64', step: 8, code: 'Int32', size: 540, magic: 4, dim: 16, type: 12, pixdim: 104,
    offset: 168, slope: 176, unit: 'Int32', units: 500, calMax: 192, forms: 344, quaternion: 352, sform: 400 },
]
const MM = { 1: [1000, 'metres'], 3: [0.001, 'microns'] } // all other units are taken for mm

/** What is wrong with a scan, for people; the page shows its message as it is. */
export class ScanError extends Error {}

const refuseIf = (wrong, why) => {
  if (wrong) throw new ScanError(why)
}

/**
 * A 3D volume.
 * @param {Blob} file .nii or .nii.gz, told apart by their content
 * @returns its bytes (decompressed), header, sides, affine (4, 4) from voxels to mm, values (float32, x fastest) and
 *   warnings in words
 * @throws {ScanError}
 */
export async function readNifti(file) {
  try {
    const { header, bytes } = await contentOf(file), { warnings, ...geometry } = affineOf(header)
    const sidesKnown = header.sform > 0 || header.qform > 0
    return { ...header, ...geometry, bytes, sidesKnown, ...valuesOf(bytes, header, warnings) }
  } catch (error) {
    if (error instanceof ScanError) throw error
    if (error instanceof RangeError) throw new ScanError('it does not fit into the memory that the browser has')
    throw new ScanError(`it cannot be read (${error.message})`)
  }
}

/** The header and all bytes of a volume. */
async function contentOf(file) {
  let header, bytes, filled = 0, start = new Uint8Array(0)
  for await (let piece of piecesOf(file)) {
    if (!header) {
      start = new Uint8Array([...start, ...piece])
      if (start.length < 544 && piece.length) continue
      header = readHeader(piece = start)
      bytes = new Uint8Array(header.total) // of a size that is known to be sane: no bomb is ever unpacked
    }
    refuseIf(filled + piece.length > bytes.length + 2 ** 20, 'it holds more data than its header says; refused')
    bytes.set(piece.subarray(0, Math.max(0, bytes.length - filled)), Math.min(filled, bytes.length))
    filled += piece.length
  }
  refuseIf(filled < bytes.length, 'it ends early: the file is not whole')
  return { header, bytes }
}

/**
 * The bytes of a file, piece by piece, and an empty piece at its end. Gzip is unpacked: several members, as ``bgzip``
 * and ``mgzip`` write them, and zeros behind each, which tapes pad with. Browsers' own streams take one member alone.
 */
async function* piecesOf(file) {
  let inflate, zipped
  const found = []
  for (let at = 0; at < file.size; at += PIECE) {
    let rest = new Uint8Array(await file.slice(at, at + PIECE).arrayBuffer())
    zipped ??= rest[0] === 0x1f && rest[1] === 0x8b
    if (!zipped) yield rest
    while (zipped && (inflate || (rest = rest.subarray(rest.findIndex(Boolean)))[0]) && rest.length) {
      inflate ??= Object.assign(new Inflate({ windowBits: 31 }), { onData: (piece) => found.push(piece), onEnd() {} })
      inflate.push(rest)
      refuseIf(inflate.err, 'its compressed data are broken')
      yield* found.splice(0)
      rest = rest.subarray(rest.length - inflate.strm.avail_in)
      if (inflate.ended) inflate = undefined
    }
  }
  refuseIf(inflate, 'its compressed data are broken')
  yield new Uint8Array(0)
}

/** What a header says, as numbers; ``at`` is where. */
function readHeader(start) {
  const view = new DataView(start.buffer, start.byteOffset, start.byteLength)
  const sizeOf = (little) => (start.length >= 348 ? view.getInt32(0, little) : 0)
  const kind = (little) => FIELDS.find(({ size }) => size === sizeOf(little)), little = Boolean(kind(true))
  const at = kind(little)
  const name = at ? String.fromCharCode(...start.subarray(at.magic, at.magic + 3)) : ''
  refuseIf(/ni[12]/.test(name), 'it is one half of a pair of files (.hdr and .img); save it as .nii')
  refuseIf(!/n\+[12]/.test(name) || start.length < at.size, 'it is not a NIfTI file (.nii or .nii.gz)')
  const get = (kind, offset) => Number(view[`get${kind}`](offset, little))
  const floats = (offset, n) => Array.from({ length: n }, (_, i) => get(at.float, offset + i * at.step))
  const width = at.int === 'Int16' ? 2 : 8, dim = [0, 1, 2, 3, 4, 5, 6, 7].map((i) => get(at.int, at.dim + width * i))
  const sides = dim.slice(1, 4), shown = sides.join('x'), type = get('Int16', at.type), Kind = TYPES[type]
  refuseIf(dim[0] < 3 || dim.slice(4, dim[0] + 1).some((side) => side !== 1),
    `it has ${dim[0]} dimensions (${dim.slice(1, dim[0] + 1).join('x')}), expected 3; give one volume`)
  refuseIf(!Kind, `it holds ${NAMED[type] ?? `voxels of an unknown type (${type})`}, not one number each`)
  refuseIf(sides.some((side) => side < 1), `its header says ${shown} voxels`)
  const voxels = sides.reduce((a, b) => a * b), offset = get(at === FIELDS[0] ? at.float : at.int, at.offset)
  refuseIf(voxels > LARGEST,
    `its header says ${shown} voxels, more than the ${LARGEST / 2 ** 20} million that fit here`)
  refuseIf(!(offset >= at.size + 4 && offset < 2 ** 24), 'its header does not say where the voxels begin')
  const code = (i) => get(at.code, at.forms + i * (width === 2 ? 2 : 4)), known = (n) => (n > 0 && n <= 5 ? n : 0)
  const [slope, inter] = floats(at.slope, 2)
  return {
    header: start.slice(0, at.size), at, little, sides, voxels, Kind, slope, inter,
    offset, total: offset + voxels * Kind.BYTES_PER_ELEMENT,
    unit: MM[get(at.unit, at.units) & 7] ?? [1], sign: get(at.float, at.pixdim) === -1 ? -1 : 1,
    sizes: floats(at.pixdim + at.step, 3).map((size) => Math.abs(size) || 1), quaternion: floats(at.quaternion, 6),
    qform: known(code(0)), sform: known(code(1)), // nibabel takes unknown codes for none
    rows: [0, 1, 2].map((i) => floats(at.sform + 4 * at.step * i, 4)),
  }
}

const determinant = ([a, b, c]) => a[0] * (b[1] * c[2] - b[2] * c[1]) - a[1] * (b[0] * c[2] - b[2] * c[0]) +
  a[2] * (b[0] * c[1] - b[1] * c[0])

/**
 * From voxels to mm, by the rule of scripts/data/reader.py: the sform, else the qform, else the voxel size with the
 * middle at 0 and x to the left; and what is to be known of it, in words.
 */
function affineOf(header) {
  const { sform, qform, unit: [mm, unit], sides } = header, turned = qform ? rowsOfQform(header) : null
  const chosen = sform ? header.rows : turned ?? baseRows(header)
  refuseIf(!sform && chosen.flat().some(Number.isNaN), 'its qform is no rotation; repair the header')
  const rows = chosen.map((row) => row.map((value) => value * mm)), voxelVolume = Math.abs(determinant(rows))
  const sizes = [0, 1, 2].map((j) => Math.hypot(...rows.map((row) => row[j])))
  const least = Math.min(...sizes), most = Math.max(...sizes)
  const spacing = `${sizes.map((size) => Number(size.toPrecision(3))).join('x')} mm`
  const sane = voxelVolume >= 0.1 * sizes[0] * sizes[1] * sizes[2] && least >= 0.01 && most <= 100
  const meant = unit ? `, its unit being ${unit}` : ''
  refuseIf(!sane, `its affine is not one of a scan (spacing ${spacing}${meant}); repair the header`)
  const corners = [0, 1, 2, 3, 4, 5, 6, 7].map((bits) => [...sides.map((side, i) => (bits >> i & 1) * (side - 1)), 1])
  const shift = sform && turned ? mm * Math.max(...corners.flatMap((corner) => chosen.map((row, i) =>
    Math.abs(corner.reduce((sum, at, j) => sum + at * (row[j] - turned[i][j]), 0))))) : 0
  const warnings = [
    (least < 0.2 || most > 15) && `unusual spacing, ${spacing}`,
    !sform && !qform && 'its header does not say where left and right are (both form codes are 0)',
    shift > 0.1 * least && `sform and qform place a voxel up to ${shift.toFixed(1)} mm apart; the sform is taken`,
  ].filter(Boolean)
  return { affine: [...rows, [0, 0, 0, 1]], voxelVolume, warnings }
}

/** NaN where the quaternion is longer than rounding makes it. */
function rowsOfQform({ quaternion: [b, c, d, ...moved], sizes: [x, y, z], sign }) {
  const axis = [b, c, d], across = [[0, -d, c], [d, 0, -b], [-c, b, 0]], steps = [x, y, sign * z]
  const length = b * b + c * c + d * d, a = length > 1.001 ? NaN : Math.sqrt(Math.max(0, 1 - length))
  const s = 2 / (a * a + length)
  const turned = (i, j) => (i === j ? 1 - s * length : 0) + s * (axis[i] * axis[j] + a * across[i][j])
  return moved.map((start, i) => [...steps.map((step, j) => turned(i, j) * step), start])
}

const baseRows = ({ sizes, sides }) => sizes.map((size, i) => [0, 1, 2].map((j) => (i === j ? (i ? size : -size) : 0))
  .concat((i ? -size : size) * (sides[i] - 1) / 2))

/** Where a voxel of this index is, in voxels along each side. */
export const placeOf = (i, [nx, ny]) => [i % nx, Math.floor(i / nx) % ny, Math.floor(i / (nx * ny))]

function valuesOf(bytes, { Kind, offset, total, voxels, little, slope, inter, sides }, warnings) {
  const data = bytes.slice(offset, total), width = Kind.BYTES_PER_ELEMENT
  for (let i = 0; !little && i < data.length; i += width) data.subarray(i, i + width).reverse()
  const stored = new Kind(data.buffer), values = Kind === Float32Array ? stored : new Float32Array(voxels)
  const [times, plus] = slope !== 0 && Number.isFinite(slope) ? [slope, inter] : [1, 0]
  const isInner = (place, axis) => place >= sides[axis] >> 2 && place < sides[axis] - (sides[axis] >> 2)
  let low = Infinity, high = -Infinity, infinite = 0, nan = 0, inside = 0
  for (let i = 0; i < voxels; i++) {
    values[i] = Number(stored[i]) * times + plus
    if (Number.isNaN(values[i])) {
      if (placeOf(i, sides).every(isInner)) inside++
      nan++
      values[i] = 0
    } else if (!Number.isFinite(values[i])) infinite++
    low = Math.min(low, values[i])
    high = Math.max(high, values[i])
  }
  refuseIf(infinite, `${infinite} voxels are infinite or more than float32 can hold`)
  refuseIf(inside > 0.01 * sides.reduce((product, side) => product * (side - 2 * (side >> 2)), 1),
    `${nan} voxels are NaN, ${inside} of them in the middle of the volume`)
  refuseIf(low === high, `every voxel is ${low}; is this the right file?`)
  return { values, warnings: nan ? [...warnings, `${nan} voxels are NaN, taken as 0`] : warnings }
}

const through = (blob, stream) => new Response(blob.stream().pipeThrough(stream))

/** Of bytes or of a Blob. */
export const gzip = (content) => through(new Blob([content]), new CompressionStream('gzip')).blob()

/** The bytes of a Blob. */
export const gunzip = async (blob) => new Uint8Array(await through(blob, new DecompressionStream('gzip')).arrayBuffer())

/** A mask (one byte a voxel) as a NIfTI file's bytes, with the header of the scan that it lies upon. */
export function maskFile({ header, at, little }, mask) {
  const first = at.size + 4, bytes = new Uint8Array(first + mask.length), view = new DataView(bytes.buffer)
  bytes.set(header)
  bytes.set(mask, first)
  view.setInt16(at.type, 2, little)
  view.setInt16(at.type + 2, 8, little)
  if (at === FIELDS[0]) view.setFloat32(at.offset, first, little)
  else view.setBigInt64(at.offset, BigInt(first), little)
  const floats = [[at.slope, 1], [at.slope + at.step, 0], [at.calMax, 1], [at.calMax + at.step, 0]]
  for (const [offset, value] of floats) view[`set${at.float}`](offset, value, little)
  return bytes
}
