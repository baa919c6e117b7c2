// Where the network's grid lies in a scan: MONAI's Orientation, Spacing and ResizeWithPadOrCrop (1.6), which are linear
// in the voxels' indices, and scripts/data/placement.py, put together. Matrices are lists of rows; x, y, z is the order of
// axes in the file.

const TOLERANCE = 1e-3 // MONAI's AFFINE_TOL
const MARGIN = 6 // voxels above a head that is too long for the grid
const NONE = 1e-8 // where np.allclose sees 0
const EYE = [[1, 0, 0], [0, 1, 0], [0, 0, 1]]

const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
const cross = (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]]
export const transpose = (m) => m[0].map((_, j) => m.map((row) => row[j]))
const product = (m, n) => m.map((row) => transpose(n).map((column) => dot(row, column)))
const times = (m, v) => m.map((row) => dot(row, v))
const plus = (a, b, sign = 1) => a.map((value, i) => value + sign * b[i])
const norms = (m) => transpose(m).map((column) => Math.hypot(...column))

export function determinant(m) {
  return dot(m[0], cross(m[1], m[2]))
}

export function inverse(m) {
  const rows = [cross(m[1], m[2]), cross(m[2], m[0]), cross(m[0], m[1])]
  return transpose(rows).map((row) => row.map((value) => value / determinant(m)))
}

/** Which axis of the world (column: R, A, S) each axis of a scan (row) follows, 1 or -1, as nibabel has it. */
export function orient(matrix) {
  const lengths = norms(matrix)
  let rotation = matrix.map((row) => row.map((value, j) => value / lengths[j]))
  for (let i = 0; i < 30; i++) { // Newton's iteration to its polar factor, the nearest rotation
    const other = transpose(inverse(rotation))
    rotation = rotation.map((row, r) => row.map((value, c) => (value + other[r][c]) / 2))
  }
  const columns = transpose(rotation), clearest = columns.map((column) => Math.max(...column.map(Math.abs)))
  const order = [0, 1, 2].sort((a, b) => clearest[b] - clearest[a])
  const found = [[0, 0, 0], [0, 0, 0], [0, 0, 0]], left = new Set([0, 1, 2])
  for (const axis of order) {
    const world = [...left].reduce((a, b) => (Math.abs(columns[axis][b]) > Math.abs(columns[axis][a]) ? b : a))
    left.delete(world)
    found[axis][world] = Math.sign(columns[axis][world])
  }
  return found
}

/** Orthonormal columns by Gram and Schmidt, which MONAI takes from a Cholesky factor. */
function orthogonal(matrix) {
  const columns = []
  for (let column of transpose(matrix)) {
    for (const other of columns) column = plus(column, other.map((value) => value * dot(column, other)), -1)
    columns.push(column.map((value) => value / Math.hypot(...column)))
  }
  return transpose(columns)
}

/** NumPy's and torch's: halves go to the even neighbour. */
function round(value) {
  const low = Math.floor(value)
  return value - low === 0.5 ? low + (low % 2) : Math.round(value)
}

/**
 * The maps between a scan's voxels and those of the network's grid.
 * @param {number[][]} affine (4, 4), from the scan's voxels to mm
 * @param {number[]} sides of the scan in voxels
 * @param {{orientation: string, spacing: number[], spatial_size: number[]}} card of the network
 * @param {number[][]} extent of the head along the scan's axes: its first voxel, and the one after its last
 * @returns toScan and back, (3, 4) each, from the grid to the scan and the other way; limits (2, 3), the first and the
 *   last voxel of the grid on which the scan lies
 */
export function geometry(affine, sides, card, extent) {
  const axes = [...card.orientation].map((letter) => ['LR', 'PA', 'IS'].map((pair) =>
    (pair.includes(letter) ? ('RAS'.includes(letter) ? 1 : -1) : 0)))
  const linear = affine.slice(0, 3).map((row) => row.slice(0, 3))
  const turn = product(orient(linear), transpose(axes))
  const flipped = turn.map((row, i) => (row[0] + row[1] + row[2] < 0 ? sides[i] - 1 : 0))
  const turned = product(linear, turn), start = plus(times(linear, flipped), affine.slice(0, 3).map((row) => row[3]))
  const shape = transpose(turn).map((row) => Math.abs(dot(row, sides)))

  const step = norms(turned).map((value, i) => (Math.abs(value - card.spacing[i]) <= TOLERANCE ? value : card.spacing[i]))
  const resampled = orthogonal(turned).map((row) => row.map((value, j) => value * step[j]))
  const toBox = product(inverse(resampled), turned), ends = shape.map((side) => side - 1)
  const box = toBox.map((row) => round(dot(row.map(Math.abs), ends) + 1))
  const below = toBox.map((row) => dot(row.map((value) => Math.min(value, 0)), ends))
  const half = (size) => size.map((side) => side / 2)
  const offset = below.every((value) => Math.abs(value) <= NONE) // else MONAI lays centre upon centre
    ? start
    : plus(plus(times(turned, half(shape)), start), times(resampled, half(box)), -1)
  let toTurned = product(inverse(turned), resampled), origin = times(inverse(turned), plus(offset, start, -1))

  const close = (a, b) => Math.abs(a - b) <= TOLERANCE + 1e-5 * Math.abs(b)
  const alike = (m, n) => m.every((row, i) => row.every((value, j) => close(value, n[i][j])))
  const same = (alike(turned, resampled) && start.every((value, i) => close(value, offset[i]))) ||
    (alike(toTurned, EYE) && origin.every((value) => close(value, 0)))
  if (same && box.every((side, i) => side === shape[i])) [toTurned, origin] = [EYE, [0, 0, 0]] // it resamples nothing

  const found = extent.some(([first, last], axis) => first > 0 || last < sides[axis])
  const shift = box.map((side, i) => { // voxel of the box = voxel of the grid + shift
    const size = card.spatial_size[i], centred = Math.floor(side / 2) - Math.floor(size / 2)
    if (side <= size) return -Math.floor((size - side) / 2)
    const axis = turn.findIndex((row) => row[i]), ends = extent[axis].map((end) => (end * side) / shape[i])
    const [first, last] = turn[axis][i] > 0 ? ends : [side - ends[1], side - ends[0]]
    if (!found || (centred <= first && last <= centred + size)) return centred
    const top = { S: last + MARGIN - size, I: first - MARGIN }[card.orientation[i]]
    const start = last - first > size && top !== undefined ? top : (first + last - size) / 2
    return Math.floor(Math.min(Math.max(0, start), side - size))
  })
  const matrix = product(turn, toTurned), first = plus(times(matrix, shift), plus(times(turn, origin), flipped))
  const back = inverse(matrix)
  return {
    toScan: matrix.map((row, i) => [...row, first[i]]),
    back: back.map((row) => [...row, -dot(row, first)]),
    limits: [shift.map((value) => 0 - value), box.map((side, i) => side - 1 - shift[i])],
  }
}
