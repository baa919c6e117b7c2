// NIfTI-1 and -2 in and out, without a copy of the volume too many, and with the affine that nibabel reads.
// No library at hand has both: nifti-reader-js differs from nibabel where a header has no form code.

const LARGEST = 2 ** 27 // voxels; with float32 in two memories and a probability more than 1.5 GB
const TYPES = {
  2: [Uint8Array, 1], 256: [Int8Array, 1], 4: [Int16Array, 2], 512: [Uint16Array, 2], 8: [Int32Array, 4],
  768: [Uint32Array, 4], 1024: [BigInt64Array, 8], 1280: [BigUint64Array, 8], 16: [Float32Array, 4],
  64: [Float64Array, 8],
}
const NAMED = { 32: 'complex voxels', 1792: 'complex voxels', 128: 'colours', 2304: 'colours', 1536: '128-bit floats' }
const NIFTI_1 = { ndim: 40, type: 70, pixdim: 76, offset: 108, slope: 112, units: 123, forms: 252, quaternion: 256, sform: 280 }
const NIFTI_2 = { ndim: 16, type: 12, pixdim: 104, offset: 168, slope: 176, units: 500, forms: 344, quaternion: 352, sform: 400 }
const MM = { 1: [1000, 'metres'], 3: [0.001, 'microns'] } // all other units are taken for mm

/** What is wrong with a scan, for people; the page shows its message as it is. */
export class ScanError extends Error {}

/**
 * A 3D volume.
 * @param {Blob} file .nii or .nii.gz, told apart by their content
 * @returns its bytes (decompressed), header, sides, affine (4, 4) from voxels to mm, values (float32, x fastest) and
 *   warnings in words
 * @throws {ScanError}
 */
export async function readNifti(file) {
  const magic = new Uint8Array(await file.slice(0, 2).arrayBuffer())
  const zipped = magic[0] === 0x1f && magic[1] === 0x8b
  let found
  try {
    found = await contentOf([file], zipped).catch(async (error) => {
      if (!zipped || error instanceof ScanError || error instanceof RangeError) throw error
      return contentOf(await membersOf(file), zipped)
    })
  } catch (error) {
    if (error instanceof ScanError) throw error
    if (error instanceof RangeError) throw new ScanError('it does not fit into the memory that the browser has')
    throw new ScanError(zipped ? 'its compressed data are broken' : `it cannot be read (${error.message})`)
  }
  const { header, bytes } = found, { affine, warnings } = affineOf(header)
  return { ...header, bytes, affine, sidesKnown: header.sform > 0 || header.qform > 0, ...valuesOf(bytes, header, warnings) }
}

const inflated = (blob) => blob.stream().pipeThrough(new DecompressionStream('gzip'))

/** The header and all bytes of a volume, of which a file has one part or several. */
async function contentOf(parts, zipped) {
  let header, bytes, filled = 0, start = new Uint8Array(0)
  for (const part of parts) {
    const reader = (zipped ? inflated(part) : part.stream()).getReader()
    try {
      for (let done = false, value; !done;) {
        ;({ done, value = new Uint8Array(0) } = await reader.read())
        if (!header) {
          value = start = joined(start, value)
          if (start.length < 544 && !(done && part === parts.at(-1))) continue
          header = readHeader(start)
          bytes = new Uint8Array(header.total) // of a size that is known to be sane: no bomb is ever unpacked
        }
        filled = place(bytes, value, filled)
      }
    } finally {
      reader.cancel().catch(() => {}) // of a stream that has failed already
    }
  }
  if (filled < bytes.length) throw new ScanError('it ends early: the file is not whole')
  return { header, bytes }
}

/**
 * The members of a gzip file, as ``bgzip`` and ``mgzip`` write several, without zeros behind them, which tapes pad with:
 * some browsers inflate one alone. Where one ends is tried, as only inflating tells: before the next that may begin, or
 * before the zeros, of which some may be its own.
 */
async function membersOf(file) {
  const bytes = new Uint8Array(await file.arrayBuffer()), members = []
  const next = (from) => {
    let at = from
    do at = bytes.indexOf(0x1f, at) + 1
    while (at && !(bytes[at] === 0x8b && bytes[at + 1] === 8))
    return at ? at - 1 : bytes.length
  }
  for (let start = 0; start < bytes.length;) {
    let member, end = start
    while (!member) {
      if (end === bytes.length) throw new Error('no whole member')
      let last = end = next(end + 1)
      while (bytes[last - 1] === 0) last--
      for (let zeros = Math.min(8, end - last); zeros >= 0 && !member; zeros--) {
        const part = file.slice(start, last + zeros)
        if (await inflated(part).pipeTo(new WritableStream()).then(() => true, () => false)) member = part
      }
    }
    members.push(member)
    start = end
  }
  return members
}

function joined(a, b) {
  const whole = new Uint8Array(a.length + b.length)
  whole.set(a)
  whole.set(b, a.length)
  return whole
}

function place(bytes, chunk, filled) {
  if (filled + chunk.length > bytes.length + 2 ** 20) throw new ScanError('it holds more data than its header says; refused')
  bytes.set(chunk.subarray(0, Math.max(0, bytes.length - filled)), Math.min(filled, bytes.length))
  return filled + chunk.length
}

function readHeader(start) {
  const view = new DataView(start.buffer, start.byteOffset, start.byteLength)
  const little = start.length >= 348 && [348, 540].includes(view.getInt32(0, true))
  const size = start.length >= 348 ? view.getInt32(0, little) : 0
  const magic = size === 540 ? 4 : 344
  const name = start.length >= size && size ? String.fromCharCode(...start.subarray(magic, magic + 3)) : ''
  if (!(size === 348 || size === 540) || !['n+1', 'n+2'].includes(name)) {
    throw new ScanError(['ni1', 'ni2'].includes(name)
      ? 'it is one half of a pair of files (.hdr and .img); save it as .nii'
      : 'it is not a NIfTI file (.nii or .nii.gz)')
  }
  const two = size === 540, at = two ? NIFTI_2 : NIFTI_1
  const float = (offset) => (two ? view.getFloat64(offset, little) : view.getFloat32(offset, little))
  const step = two ? 8 : 4, floats = (offset, n) => Array.from({ length: n }, (_, i) => float(offset + i * step))
  const dim = Array.from({ length: 8 }, (_, i) =>
    two ? Number(view.getBigInt64(at.ndim + 8 * i, little)) : view.getInt16(at.ndim + 2 * i, little))
  if (dim[0] < 3 || dim.slice(4, dim[0] + 1).some((side) => side !== 1)) {
    throw new ScanError(`it has ${dim[0]} dimensions (${dim.slice(1, dim[0] + 1).join('x')}), expected 3; give one volume`)
  }
  const sides = dim.slice(1, 4), type = view.getInt16(at.type, little), [, width] = TYPES[type] ?? []
  if (!width) throw new ScanError(`it holds ${NAMED[type] ?? `voxels of an unknown type (${type})`}, not one number each`)
  const voxels = sides.reduce((a, b) => a * b)
  if (sides.some((side) => side < 1)) throw new ScanError(`its header says ${sides.join('x')} voxels`)
  if (voxels > LARGEST) {
    throw new ScanError(`its header says ${sides.join('x')} voxels, more than the ${LARGEST / 2 ** 20} million that fit here`)
  }
  const offset = two ? Number(view.getBigInt64(at.offset, little)) : view.getFloat32(at.offset, little)
  if (!(offset >= size + 4 && offset < 2 ** 24)) throw new ScanError('its header does not say where the voxels begin')
  const codeAt = (i) => (two ? view.getInt32(at.forms + 4 * i, little) : view.getInt16(at.forms + 2 * i, little))
  const code = (i) => (codeAt(i) > 0 && codeAt(i) <= 5 ? codeAt(i) : 0) // nibabel takes unknown codes for none
  const units = (two ? view.getInt32(at.units, little) : view.getUint8(at.units)) & 7
  return {
    header: start.slice(0, size), two, little, sides, voxels, type, width, offset, total: offset + voxels * width,
    unit: MM[units] ?? [1], pixdim: floats(at.pixdim, 4), slope: float(at.slope), inter: float(at.slope + step),
    qform: code(0), sform: code(1), quaternion: floats(at.quaternion, 6),
    rows: [0, 1, 2].map((i) => floats(at.sform + 4 * step * i, 4)),
  }
}

/**
 * From voxels to mm, by the rule of scripts/data/reader.py: the sform, else the qform, else the voxel size with the middle
 * at 0 and x to the left; and what is to be known of it, in words.
 */
function affineOf(header) {
  const { sform, qform, unit: [mm, unit], sides } = header
  const scaled = (rows) => rows.map((row) => row.map((value) => value * mm))
  const turned = qform ? scaled(rowsOfQform(header)) : null
  if (!sform && turned?.flat().some(Number.isNaN)) throw new ScanError('its qform is no rotation; repair the header')
  const rows = sform ? scaled(header.rows) : turned ?? scaled(baseRows(header))
  const sizes = [0, 1, 2].map((j) => Math.hypot(...rows.map((row) => row[j])))
  const [a, b, c] = rows
  const volume = Math.abs(a[0] * (b[1] * c[2] - b[2] * c[1]) - a[1] * (b[0] * c[2] - b[2] * c[0]) +
    a[2] * (b[0] * c[1] - b[1] * c[0]))
  const shown = `${sizes.map((size) => Number(size.toPrecision(3))).join('x')} mm`, meant = unit ? `, its unit being ${unit}` : ''
  const sane = volume >= 0.1 * sizes[0] * sizes[1] * sizes[2] && Math.min(...sizes) >= 0.01 && Math.max(...sizes) <= 100
  if (!sane) throw new ScanError(`its affine is not one of a scan (spacing ${shown}${meant}); repair the header`)
  const corners = [0, 1, 2, 3, 4, 5, 6, 7].map((bits) => sides.map((side, i) => (bits >> i & 1) * (side - 1)))
  const shift = sform && turned ? Math.max(...corners.flatMap((corner) => rows.map((row, i) =>
    Math.abs([...corner, 1].reduce((sum, at, j) => sum + at * (row[j] - turned[i][j]), 0))))) : 0
  const warnings = [
    ...(Math.min(...sizes) < 0.2 || Math.max(...sizes) > 15 ? [`unusual spacing, ${shown}`] : []),
    ...(!sform && !qform ? ['its header does not say where left and right are (both form codes are 0)'] : []),
    ...(shift > 0.1 * Math.min(...sizes)
      ? [`sform and qform place a voxel up to ${shift.toFixed(1)} mm apart; the sform is taken`] : []),
  ]
  return { affine: [...rows, [0, 0, 0, 1]], warnings }
}

const sizesOf = ({ pixdim }) => pixdim.slice(1).map((size) => Math.abs(size) || 1)

/** NaN where the quaternion is longer than rounding makes it. */
function rowsOfQform(header) {
  const size = sizesOf(header), [b, c, d, ...moved] = header.quaternion, square = 1 - b * b - c * c - d * d
  const a = square < -1e-3 ? NaN : Math.sqrt(Math.max(0, square)), sign = header.pixdim[0] === -1 ? -1 : 1
  const s = 2 / (a * a + b * b + c * c + d * d)
  const rotation = [
    [1 - s * (c * c + d * d), s * (b * c - a * d), s * (b * d + a * c)],
    [s * (b * c + a * d), 1 - s * (b * b + d * d), s * (c * d - a * b)],
    [s * (b * d - a * c), s * (c * d + a * b), 1 - s * (b * b + c * c)],
  ]
  return rotation.map((row, i) => [row[0] * size[0], row[1] * size[1], sign * row[2] * size[2], moved[i]])
}

function baseRows(header) {
  const size = sizesOf(header), steps = [-size[0], size[1], size[2]]
  return steps.map((step, i) => [0, 1, 2, 3].map((j) =>
    (j === 3 ? -step * (header.sides[i] - 1) / 2 : i === j ? step : 0)))
}

function valuesOf(bytes, { type, offset, voxels, width, little, slope, inter, sides }, warnings) {
  const [Kind] = TYPES[type], data = bytes.slice(offset, offset + voxels * width)
  if (!little && width > 1) {
    for (let i = 0; i < data.length; i += width) data.subarray(i, i + width).reverse()
  }
  const stored = new Kind(data.buffer), scaled = slope !== 0 && Number.isFinite(slope) && !(slope === 1 && inter === 0)
  const values = stored instanceof Float32Array && !scaled ? stored : new Float32Array(voxels)
  if (stored instanceof BigInt64Array || stored instanceof BigUint64Array) {
    for (let i = 0; i < voxels; i++) values[i] = scaled ? Number(stored[i]) * slope + inter : Number(stored[i])
  } else if (scaled) {
    for (let i = 0; i < voxels; i++) values[i] = stored[i] * slope + inter
  } else if (values !== stored) values.set(stored)
  let low = Infinity, high = -Infinity, infinite = 0, nan = 0, inside = 0
  const middle = sides.map((side) => [side >> 2, side - (side >> 2)])
  for (let i = 0; i < voxels; i++) {
    const value = values[i]
    if (value !== value) {
      const row = Math.floor(i / sides[0]), at = [i % sides[0], row % sides[1], Math.floor(row / sides[1])]
      if (at.every((place, axis) => place >= middle[axis][0] && place < middle[axis][1])) inside++
      nan++
      values[i] = 0
    } else if (!Number.isFinite(value)) infinite++
    if (values[i] < low) low = values[i]
    if (values[i] > high) high = values[i]
  }
  if (infinite) throw new ScanError(`${infinite} voxels are infinite or more than float32 can hold`)
  if (inside > 0.01 * middle.reduce((product, [first, end]) => product * (end - first), 1)) {
    throw new ScanError(`${nan} voxels are NaN, ${inside} of them in the middle of the volume`)
  }
  if (nan) warnings = [...warnings, `${nan} voxels are NaN, taken as 0`]
  if (low === high) throw new ScanError(`every voxel is ${low}; is this the right file?`)
  return { values, warnings }
}

/** A mask (one byte a voxel) as a NIfTI file's bytes, with the header of the scan that it lies upon. */
export function maskFile(scan, mask) {
  const { header, two, little } = scan, at = two ? NIFTI_2 : NIFTI_1, first = two ? 544 : 352
  const bytes = new Uint8Array(first + mask.length), view = new DataView(bytes.buffer)
  bytes.set(header)
  bytes.set(mask, first)
  const float = (offset, value) => (two ? view.setFloat64(offset, value, little) : view.setFloat32(offset, value, little))
  const step = two ? 8 : 4
  view.setInt16(at.type, 2, little)
  view.setInt16(at.type + 2, 8, little)
  if (two) view.setBigInt64(at.offset, BigInt(first), little)
  else float(at.offset, first)
  float(at.slope, 1)
  float(at.slope + step, 0)
  float(two ? 192 : 124, 1) // cal_max and cal_min: what viewers show
  float(two ? 200 : 128, 0)
  return bytes
}
