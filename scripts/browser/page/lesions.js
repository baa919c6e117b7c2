// What the table of lesions says of a mask: the same as scripts/inference/lesions.py, which asks SciPy.

/**
 * Connected parts of a volume (x fastest), by runs along x that are joined where they touch.
 * @param {(i: number) => boolean} inside whether a voxel belongs to any part
 * @param {number[]} sides
 * @param {boolean} corners whether voxels that share a corner touch, or only those that share a face
 * @returns runs [first voxel, end, row], the part of each run, and the voxels of each part
 */
export function parts(inside, [nx, ny, nz], corners) {
  const starts = [], ends = [], parent = [], rows = new Int32Array(ny * nz + 1), reach = corners ? 1 : 0
  const root = (run) => {
    while (parent[run] !== run) run = parent[run] = parent[parent[run]]
    return run
  }
  const join = (row, other) => { // both are sorted, so one pass finds all pairs that touch
    let a = rows[row], b = rows[other]
    while (a < starts.length && b < rows[other + 1]) {
      if (starts[a] - row * nx < ends[b] - other * nx + reach && starts[b] - other * nx < ends[a] - row * nx + reach) {
        const [low, high] = [root(a), root(b)].sort((x, y) => x - y)
        parent[high] = low
      }
      if (ends[a] - row * nx < ends[b] - other * nx) a++
      else b++
    }
  }
  for (let z = 0, row = 0; z < nz; z++) {
    for (let y = 0; y < ny; y++, row++) {
      rows[row] = starts.length
      const end = (row + 1) * nx
      for (let i = row * nx; i < end; i++) {
        if (!inside(i)) continue
        starts.push(i)
        while (i < end && inside(i)) i++
        ends.push(i)
        parent.push(parent.length)
      }
      rows[row + 1] = starts.length
      if (rows[row] === starts.length) continue
      if (y) join(row, row - 1)
      if (!z) continue
      join(row, row - ny)
      if (corners && y) join(row, row - ny - 1)
      if (corners && y < ny - 1) join(row, row - ny + 1)
    }
  }
  const of = parent.map((_, run) => root(run)), size = new Map()
  of.forEach((part, run) => size.set(part, (size.get(part) ?? 0) + ends[run] - starts[run]))
  return { starts, ends, of, size }
}

/** The mask (bytes) of what is at least ``threshold`` probable, without parts of less than ``minVolume`` mm3. */
export function maskOf(probability, sides, threshold, minVolume, voxelVolume) {
  const least = Math.fround(threshold)
  const { starts, ends, of, size } = parts((i) => probability[i] >= least, sides, true)
  const mask = new Uint8Array(probability.length), kept = new Set()
  starts.forEach((start, run) => {
    if (size.get(of[run]) * voxelVolume < minVolume) return
    kept.add(of[run])
    mask.fill(1, start, ends[run])
  })
  return { mask, lesions: kept.size }
}

/** What to change so that only what is at least ``threshold`` probable is in the mask, of the voxels of a ``region``. */
export function changesInside(mask, probability, region, threshold) {
  const least = Math.fround(threshold)
  return region.filter((i) => mask[i] !== Number(probability[i] >= least))
}

/** What to change so that the connected part of a mask with the voxel ``at`` is gone, or so that it alone is kept. */
export function changesOfPart(mask, sides, at, keep) {
  const { starts, ends, of } = parts((i) => mask[i], sides, true), changes = []
  const part = of[starts.findIndex((start, run) => start <= at && at < ends[run])]
  starts.forEach((start, run) => {
    if (part === undefined || (of[run] === part) === keep) return
    for (let i = start; i < ends[run]; i++) changes.push(i)
  })
  return Int32Array.from(changes)
}

export const lesionsOf = (mask, sides) => parts((i) => mask[i], sides, true).size.size

/**
 * The numbers of ``lesions.tsv``, in mm3, where left is what lies left of ``middle``, null where that is not known; and where
 * the mask's centre is, in mm.
 */
export function measure(mask, lesions, [nx, ny], affine, middle, voxelVolume) {
  const sum = [0, 0, 0]
  let total = 0, left = 0
  for (let i = 0; i < mask.length; i++) {
    if (!mask[i]) continue
    total++
    const row = Math.floor(i / nx), x = i - row * nx, y = row % ny, z = (row - y) / ny
    const mm = affine.slice(0, 3).map((a) => a[0] * x + a[1] * y + a[2] * z + a[3])
    if (mm[0] < middle) left++
    for (let axis = 0; axis < 3; axis++) sum[axis] += mm[axis]
  }
  const [volume, onLeft] = [total * voxelVolume, left * voxelVolume]
  const known = middle !== null, row = {
    lesion_volume: volume, lesions, left_volume: known ? onLeft : null, right_volume: known ? volume - onLeft : null,
    laterality: known && total ? (2 * onLeft - volume) / volume : null,
  }
  return { row, centre: total ? sum.map((value) => value / total) : null }
}

/** The runs of voxels, as of ``parts``, of the head: the largest part above a tenth of the robust range. */
function headOf(values, sides) {
  const [low, high] = percentiles(values, [2, 98]), least = low + 0.1 * (high - low)
  const { starts, ends, of, size } = parts((i) => values[i] >= least, sides, false)
  const head = [...size].reduce((a, b) => (b[1] > a[1] ? b : a))[0]
  return starts.map((start, run) => [start, ends[run]]).filter((_, run) => of[run] === head)
}

/** The first voxel of the head and the one after its last, along x, y and z; blocks of voxels are enough to find it. */
export function extentOf(values, sides) {
  const block = sides.map((side) => Math.max(1, Math.floor(side / 64)))
  const coarse = sides.map((side, axis) => Math.ceil(side / block[axis])), extent = sides.map(() => [Infinity, 0])
  const sum = new Float32Array(coarse[0] * coarse[1] * coarse[2]), count = new Uint32Array(sum.length)
  for (let z = 0, i = 0; z < sides[2]; z++) {
    for (let y = 0; y < sides[1]; y++) {
      const row = coarse[0] * (Math.floor(y / block[1]) + coarse[1] * Math.floor(z / block[2]))
      for (let x = 0; x < sides[0]; x++, i++) {
        const at = row + Math.floor(x / block[0])
        sum[at] += values[i]
        count[at]++
      }
    }
  }
  for (const [start, end] of headOf(sum.map((value, i) => value / count[i]), coarse)) {
    const row = Math.floor(start / coarse[0]), at = [start - row * coarse[0], row % coarse[1], Math.floor(row / coarse[1])]
    extent.forEach((range, axis) => {
      range[0] = Math.min(range[0], at[axis] * block[axis])
      range[1] = Math.max(range[1], Math.min((at[axis] + (axis ? 1 : end - start)) * block[axis], sides[axis]))
    })
  }
  return extent
}

/** x (mm) of the middle of the head: the median over its lines of voxels from left to right. */
export function midline(values, sides, affine) {
  const across = affine[0].slice(0, 3).map(Math.abs), axis = across.indexOf(Math.max(...across))
  const [nx, ny] = sides, strides = [1, nx, nx * ny], others = [0, 1, 2].filter((i) => i !== axis)
  const lines = sides[others[0]] * sides[others[1]]
  const first = new Float64Array(lines).fill(Infinity), last = new Float64Array(lines).fill(-Infinity)
  const see = (i) => {
    const at = [i % nx, Math.floor(i / strides[1]) % ny, Math.floor(i / strides[2])]
    const x = affine[0][0] * at[0] + affine[0][1] * at[1] + affine[0][2] * at[2] + affine[0][3]
    const line = at[others[0]] + sides[others[0]] * at[others[1]]
    first[line] = Math.min(first[line], x)
    last[line] = Math.max(last[line], x)
  }
  for (const [start, end] of headOf(values, sides)) {
    if (axis) for (let i = start; i < end; i++) see(i)
    else [start, end - 1].forEach(see)
  }
  const middles = first.map((x, i) => (x + last[i]) / 2).filter(Number.isFinite).sort()
  const half = middles.length >> 1
  return middles.length % 2 ? middles[half] : (middles[half - 1] + middles[half]) / 2
}

/** As ``np.percentile``, of float32: a histogram of the upper halves of their bits, then only one bin is sorted. */
export function percentiles(values, percents) {
  const bits = new Uint32Array(values.buffer, values.byteOffset, values.length), counts = new Uint32Array(2 ** 16)
  const key = (bit) => (bit >>> 31 ? ~bit >>> 16 : (bit >>> 16) | 0x8000) // ascends as the floats do
  for (let i = 0; i < bits.length; i++) counts[key(bits[i])]++
  const nth = (n) => {
    let bin = 0, before = 0
    while (before + counts[bin] <= n) before += counts[bin++]
    const found = new Float32Array(counts[bin])
    for (let i = 0, j = 0; i < bits.length; i++) if (key(bits[i]) === bin) found[j++] = values[i]
    return found.sort()[n - before]
  }
  return percents.map((percent) => {
    const place = (percent / 100) * (values.length - 1), low = nth(Math.floor(place))
    return low + (nth(Math.ceil(place)) - low) * (place % 1)
  })
}
