// NIfTI-1 and -2 in and out, without a copy of the volume too many, and with the affine that nibabel reads.
// No library at hand has both: nifti-reader-js differs from nibabel where a header has no form code.

const LARGEST = 2 ** 27 // voxels; with float32 in two memories and a probability more than 1.5 GB
const TYPES = {
  2: [Uint8Array, 1], 256: [Int8Array, 1], 4: [Int16Array, 2], 512: [Uint16Array, 2], 8: [Int32Array, 4],
  768: [Uint32Array, 4], 1024: [BigInt64Array, 8], 1280: [BigUint64Array, 8], 16: [Float32Array, 4],
  64: [Float64Array, 8],
}
const NAMED = { 32: 'complex voxels', 1792: 'complex voxels', 128: 'colours', 2304: 'colours', 1536: '128-bit floats' }
const NIFTI_1 = { ndim: 40, type: 70, pixdim: 76, offset: 108, slope: 112, forms: 252, quaternion: 256, sform: 280 }
const NIFTI_2 = { ndim: 16, type: 12, pixdim: 104, offset: 168, slope: 176, forms: 344, quaternion: 352, sform: 400 }

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
  const stream = zipped ? file.stream().pipeThrough(new DecompressionStream('gzip')) : file.stream()
  const reader = stream.getReader()
  let header, bytes, filled = 0, start = new Uint8Array(0)
  try {
    for (let done = false, value; !done;) {
      ;({ done, value = new Uint8Array(0) } = await reader.read())
      if (!header) {
        value = start = joined(start, value)
        if (start.length < 544 && !done) continue
        header = readHeader(start)
        bytes = new Uint8Array(header.total) // of a size that is known to be sane: no bomb is ever unpacked
      }
      filled = place(bytes, value, filled)
    }
  } catch (error) {
    if (error instanceof ScanError) throw error
    if (error instanceof RangeError) throw new ScanError('it does not fit into the memory that the browser has')
    throw new ScanError(zipped ? 'its compressed data are broken' : `it cannot be read (${error.message})`)
  } finally {
    reader.cancel().catch(() => {}) // of a stream that has failed already
  }
  if (filled < bytes.length) throw new ScanError('it ends early: the file is not whole')
  const affine = affineOf(header), warnings = refuseAffine(affine, header)
  return { ...header, bytes, affine, warnings, values: valuesOf(bytes, header) }
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
  if (dim[0] !== 3) {
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
  if (!(offset >= size && offset < 2 ** 24)) throw new ScanError('its header does not say where the voxels begin')
  const code = (i) => (two ? view.getInt32(at.forms + 4 * i, little) : view.getInt16(at.forms + 2 * i, little))
  return {
    header: start.slice(0, size), two, little, sides, voxels, type, width, offset, total: offset + voxels * width,
    pixdim: floats(at.pixdim, 4), slope: float(at.slope), inter: float(at.slope + step),
    qform: code(0), sform: code(1), quaternion: floats(at.quaternion, 6),
    rows: [0, 1, 2].map((i) => floats(at.sform + 4 * step * i, 4)),
  }
}

/** From voxels to mm: the sform, else the qform, else the voxel size with the middle at 0 and x to the left. */
function affineOf({ sform, qform, rows, quaternion, pixdim, sides }) {
  const last = [0, 0, 0, 1]
  if (sform > 0) return [...rows, last]
  const size = pixdim.slice(1).map(Math.abs)
  if (qform > 0) {
    const [b, c, d, ...moved] = quaternion, a = Math.sqrt(Math.max(0, 1 - b * b - c * c - d * d))
    const s = 2 / (a * a + b * b + c * c + d * d), sign = pixdim[0] < 0 ? -1 : 1
    const rotation = [
      [1 - s * (c * c + d * d), s * (b * c - a * d), s * (b * d + a * c)],
      [s * (b * c + a * d), 1 - s * (b * b + d * d), s * (c * d - a * b)],
      [s * (b * d - a * c), s * (c * d + a * b), 1 - s * (b * b + c * c)],
    ]
    return [...rotation.map((row, i) => [row[0] * size[0], row[1] * size[1], sign * row[2] * size[2], moved[i]]), last]
  }
  const steps = [-size[0], size[1], size[2]]
  return [...steps.map((step, i) => [0, 1, 2, 3].map((j) =>
    (j === 3 ? -step * (sides[i] - 1) / 2 : i === j ? step : 0))), last]
}

function refuseAffine(affine, { sform, qform }) {
  const column = (j) => affine.slice(0, 3).map((row) => row[j])
  const sizes = [0, 1, 2].map((j) => Math.hypot(...column(j)))
  const [a, b, c] = affine
  const volume = Math.abs(a[0] * (b[1] * c[2] - b[2] * c[1]) - a[1] * (b[0] * c[2] - b[2] * c[0]) +
    a[2] * (b[0] * c[1] - b[1] * c[0]))
  const shown = `${sizes.map((size) => Number(size.toPrecision(3))).join('x')} mm`
  const sane = volume >= 0.1 * sizes[0] * sizes[1] * sizes[2] && Math.min(...sizes) >= 0.01 && Math.max(...sizes) <= 100
  if (!sane) throw new ScanError(`its affine is not one of a scan (spacing ${shown}); repair the header`)
  return [
    ...(Math.min(...sizes) < 0.2 || Math.max(...sizes) > 15 ? [`unusual spacing, ${shown}`] : []),
    ...(sform <= 0 && qform <= 0 ? ['its header does not say where left and right are (both form codes are 0)'] : []),
  ]
}

function valuesOf(bytes, { type, offset, voxels, width, little, slope, inter }) {
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
  let low = Infinity, high = -Infinity, odd = 0
  for (let i = 0; i < voxels; i++) {
    const value = values[i]
    if (value < low) low = value
    if (value > high) high = value
    if (!Number.isFinite(value)) odd++
  }
  if (odd) throw new ScanError(`${odd} voxels are NaN, infinite or more than float32 can hold`)
  if (low === high) throw new ScanError(`every voxel is ${low}; is this the right file?`)
  return values
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

/** The bytes, compressed. */
export function gzip(bytes) {
  return new Response(new Blob([bytes]).stream().pipeThrough(new CompressionStream('gzip'))).blob()
}
